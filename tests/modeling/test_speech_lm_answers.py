# SPDX-License-Identifier: Apache-2.0
"""Answers by text: prompts are those of training, likelihoods those of whole sequences, and only text is written."""

import copy

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from helpers.tiny_speaking_lm import PHONES, tiny_codec, tiny_row, tiny_speech_lm
from helpers.tiny_speech_lm import bpe_tokenizer, make_row, waveform, word_tokenizer
from helpers.tiny_speech_lm import tiny_processor as named_processor
from speech_tokenizers.modeling.audio_logits import AllowedIds
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.speech_lm_sequences import pad_sequences
from speech_tokenizers.modeling.speech_lm_tasks import TASKS
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
from speech_tokenizers.processing.unit_bpe import train_unit_bpe


LAYOUTS = ["flat", "delay", "continuous"]
ANSWERS = ["yes", "no, never", "a"]
HEARING = [task for task in TASKS.values() if task.source == "audio_codes" and task.output == "text"]


def rows(*lengths, **fields):
    return [{**tiny_row("hi", seed, length), **fields} for seed, length in enumerate(lengths)]


def sharpened(model):
    """The model with larger weights, so that its answers differ from row to row."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4
    return model


def whole(processor, row, task, answer):
    return processor.row_inputs({**row, TASKS[task].target: answer}, task)


# --- Prompts ---


def check_prompts(processor, table, task):
    """Each row of the batch is what `row_inputs` has before the answer, with padding before it."""
    inputs = processor.task_inputs(task, table)
    assert "labels" not in inputs
    for place, row in enumerate(table):
        told = processor.row_inputs({**row, task.target: "yes"}, task)
        labels = told["labels"] if told["labels"].dim() == 1 else told["labels"][0]
        length = int((labels == -100).sum())
        assert (labels[:length] == -100).all()
        assert (labels[length:] != -100).all()
        num_pads = inputs["input_ids"].shape[1] - length
        assert inputs["attention_mask"][place].tolist() == [0] * num_pads + [1] * length
        for name in set(told) - {"labels"}:
            axis = 0 if name == "audio_latents" else -1
            assert torch.equal(inputs[name][place].narrow(axis, num_pads, length), told[name].narrow(axis, 0, length))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_are_those_of_rows_before_the_answer(layout):
    _, processor = tiny_speech_lm(layout=layout)
    for task in HEARING:
        check_prompts(processor, rows(5, 9), task)


@pytest.mark.parametrize(
    ("kind", "layout"), [("units", "flat"), ("runs", "flat"), ("bpe", "flat"), ("runs", "delay"), ("bpe", "delay")]
)
def test_prompts_of_units_are_those_of_rows(kind, layout):
    codec = tiny_codec(1, 16)
    units = [1, 1, 2, 2, 3, 1, 1, 2, 5, 5]
    fields = {"max_duration": 5} if kind != "units" else {}
    if kind != "runs":
        fields["unit_durations"] = [1.5] * 16
    processor = SpeechLMProcessor.from_tokenizer(
        build_speech_vocabulary(),
        codec,
        RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate),
        unit_coding=kind,
        layout=layout,
        unit_bpe=train_unit_bpe([np.array([1, 2, 5, 2, 1, 2, 5])] * 3, 16, 20) if kind == "bpe" else None,
        **fields,
    )
    table = [{**tiny_row(num_frames=10, codec=codec), "audio_codes": units}]
    table.append({**tiny_row(num_frames=7, seed=1, codec=codec), "audio_codes": units[:7]})
    check_prompts(processor, table, TASKS["emotion"])


@pytest.mark.parametrize("tokenizer", [bpe_tokenizer(), bpe_tokenizer(chat=False), word_tokenizer()])
def test_prompts_and_answers_of_every_tokenizer_are_those_of_rows(tokenizer):
    processor = named_processor(tokenizer)
    table = [make_row(processor, 3), make_row(processor, 6, seed=1)]
    check_prompts(processor, table, TASKS["keyword"])
    answers = processor.answer_ids(["hello there", "<|endoftext|>again"])
    inputs = processor.task_inputs("keyword", table)["input_ids"]
    length = inputs.shape[1] - len(answers.prompt_end)
    assert inputs[:, length:].tolist() == [answers.prompt_end] * 2
    for answer, ids in zip(["hello there", "<|endoftext|>again"], answers.ids, strict=True):
        told = processor.row_inputs({**table[0], "keyword": answer}, "keyword")
        assert told["input_ids"][told["labels"] != -100].tolist() == ids
        assert ids[-1] == tokenizer.eos_token_id
        assert ids[-1] not in ids[:-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recordings_and_codes_give_the_prompts_of_their_rows(layout):
    _, processor = tiny_speech_lm(layout=layout)
    table = rows(5, 9)
    codes = [processor.codec.dequantize(torch.tensor(row["audio_codes"]).view(1, 2, -1))[0] for row in table]
    codes = codes if layout == "continuous" else [torch.tensor(row["audio_codes"]).view(2, -1) for row in table]
    name = "audio_latents" if layout == "continuous" else "audio_codes"
    expected = processor.task_inputs("asr", table)
    found = processor.task_inputs("asr", **{name: codes})
    assert all(torch.equal(found[name], part) for name, part in expected.items())
    alone = processor.task_inputs("asr", audio=waveform(80), sampling_rate=800)
    both = processor.task_inputs("asr", audio=[waveform(80), waveform(160, 1)])
    real = both["attention_mask"][0].bool()
    assert torch.equal(both["input_ids"][0][real], alone["input_ids"][0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "tts", "audio_codes": [[0], [0]]}, "'tts' reads `text` and answers by speech"),
        ({"task": "continuation", "audio_codes": [[0], [0]]}, "'continuation' reads `audio_codes` and answers by sp"),
        ({"task": "asr"}, "Give either `rows`, or recordings"),
        ({"task": "asr", "rows": rows(3), "audio_codes": [[0], [0]]}, "Give either `rows`, or recordings"),
        ({"task": "asr", "rows": []}, "no clip to ask about"),
        ({"task": "asr", "audio_codes": []}, "no clip to ask about"),
        ({"task": "asr", "audio_latents": torch.zeros(2, 4)}, "`audio_latents` need `layout='continuous'`"),
        ({"task": "asr", "rows": rows(3, codec_fingerprint="x")}, "Row 'row-0' is of the codec 'tiny-codec'"),
    ],
)
def test_what_cannot_be_asked_is_told(given, message):
    _, processor = tiny_speech_lm()
    with pytest.raises(ValueError, match=message):
        processor.task_inputs(**given)


# --- Likelihoods ---


def likelihoods(model, processor, row, task):
    """Of each answer, by the losses of the whole sequence."""
    found = []
    for answer in ANSWERS:
        batch = pad_sequences([whole(processor, row, task, answer)], processor.pad_token_id, "right")
        if model.config.layout == "continuous":
            found.append(-model(**batch).target_losses.sum())
        else:
            found.append(model.score(**batch)[0][0])
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma3_text", "opt"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_likelihoods_are_those_of_whole_sequences(kind, layout):
    model, processor = tiny_speech_lm(kind, layout=layout)
    sharpened(model).double()
    table = rows(3, 11)
    with torch.no_grad():
        expected = torch.stack([likelihoods(model, processor, row, "emotion") for row in table])
    assert expected.std() > 1
    batch = processor.task_inputs("emotion", table)
    found = model.score_answers(batch, ANSWERS, processor)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=1e-5)
    for most in (1, 4):
        torch.testing.assert_close(model.score_answers(batch, ANSWERS, processor, max_batch=most), found)
    for place, row in enumerate(table):
        alone = model.score_answers(processor.task_inputs("emotion", row), ANSWERS, processor)
        torch.testing.assert_close(alone[0], found[place])


def with_context(layout):
    return tiny_speech_lm(text_alignment="phone", layout=layout, fields={"piece_context": 2})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_models_that_are_told_their_phones_answer_too(layout):
    model, processor = with_context(layout)
    sharpened(model).double()
    table = rows(3, 8)
    with torch.no_grad():
        expected = torch.stack([likelihoods(model, processor, row, "keyword") for row in table])
    batch = processor.task_inputs("keyword", table)
    torch.testing.assert_close(model.score_answers(batch, ANSWERS, processor), expected.double(), rtol=1e-5, atol=1e-5)
    assert model.answer(batch, processor, max_new_tokens=5).texts == [
        model.answer(processor.task_inputs("keyword", row), processor, max_new_tokens=5).texts[0] for row in table
    ]


def test_the_likeliest_of_a_set_is_chosen():
    model, processor = tiny_speech_lm()
    sharpened(model)
    batch = processor.task_inputs("emotion", rows(3, 11, 6))
    chosen = model.choose(batch, ANSWERS, processor)
    torch.testing.assert_close(chosen.probabilities.sum(-1), torch.ones(3))
    torch.testing.assert_close(chosen.scores, model.score_answers(batch, ANSWERS, processor))
    assert chosen.texts == [ANSWERS[place] for place in chosen.probabilities.argmax(-1).tolist()]
    with pytest.raises(ValueError, match="'7' and '8' are the same to this model's tokenizer"):
        model.choose(batch, ["7", "a", "8"], processor)


# --- Free answers ---


def learnt(layout, answers, kind):
    """A model that has learnt the answers to two rows by heart."""
    model, processor = tiny_speech_lm(kind, layout=layout)
    table = rows(4, 7)
    sequences = [whole(processor, row, "slots", answer) for row, answer in zip(table, answers, strict=True)]
    batch = pad_sequences(sequences, processor.pad_token_id, "right")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval(), processor, table


@pytest.mark.parametrize(
    ("kind", "layout"), [*(("llama", layout) for layout in LAYOUTS), ("gpt2", "flat"), ("qwen2", "continuous")]
)
def test_what_was_learnt_is_answered_and_ends(kind, layout):
    answers = ["size: large", "drink: tea; size: small"]
    model, processor, table = learnt(layout, answers, kind=kind)
    batch = processor.task_inputs("slots", table)
    for num_beams in (1, 3):
        found = model.answer(batch, processor, num_beams=num_beams)
        assert found.texts == answers
        assert found.ended.tolist() == [True, True]
    cut = model.answer(batch, processor, max_new_tokens=len(answers[0]) + 1)
    assert cut.texts == [answers[0], answers[1][: len(answers[0]) + 1].strip()]
    assert cut.ended.tolist() == [True, False]
    assert model.choose(batch, [*answers, "size: small"], processor).texts == answers
    # What was never heard, too: each row of a batch is what it is alone.
    others = rows(9, 2, 5)
    found = model.answer(processor.task_inputs("slots", others), processor, max_new_tokens=12)
    singles = [model.answer(processor.task_inputs("slots", row), processor, max_new_tokens=12) for row in others]
    assert found.texts == [single.texts[0] for single in singles]
    assert found.ended.tolist() == [bool(single.ended[0]) for single in singles]


def test_neither_codes_nor_marks_nor_phones_are_written():
    model, processor = tiny_speech_lm(text_alignment="phone")
    sharpened(model)
    batch = processor.task_inputs("asr", rows(3, 5))
    written = []
    wanted = [processor.pad_token_id, processor.speech_ids.audio_start, processor.speech_ids.piece_offset]
    wanted += [processor.audio_offset, processor.audio_token_id, processor.tokenizer.bos_token_id]
    is_text = processor.is_text_id(model.config.text_config.vocab_size)
    assert is_text.sum() == len(processor.tokenizer) - 3 - 3 - len(PHONES)  # pad, bos and eos; marks; phones
    assert not is_text[wanted].any()

    def prefer(module, inputs, output):
        written.append(output.logits.shape)
        output.logits[..., wanted] += 1000.0
        return output

    expected = model.answer(batch, processor, max_new_tokens=6).texts
    handle = model.language_model.register_forward_hook(prefer)
    assert model.answer(batch, processor, max_new_tokens=6).texts == expected
    handle.remove()
    assert written


def test_the_settings_of_a_checkpoint_change_no_answer():
    answers = ["size: large", "drink: tea; size: small"]
    model, processor, table = learnt("flat", answers, kind="llama")
    first = processor.answer_ids(answers).ids[0][0]
    for told in (
        {"do_sample": True, "temperature": 9.0, "top_k": 3},
        {"repetition_penalty": 9.0, "num_beams": 4},
        {"min_new_tokens": 40, "suppress_tokens": [first]},
        {"return_dict_in_generate": True, "max_length": 3},
    ):
        changed = copy.deepcopy(model)
        changed.generation_config.update(**told)
        found = changed.answer(processor.task_inputs("slots", table), processor)
        assert (found.texts, found.ended.tolist()) == (answers, [True, True])
        assert changed.generation_config.to_dict().items() >= told.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: {**batch, "labels": batch["input_ids"]}, "`inputs` must be prompts as `task_inputs`"),
        (lambda batch: {"input_ids": batch["input_ids"]}, "`inputs` must be prompts as `task_inputs`"),
        (lambda batch: {name: part[:, :-1] for name, part in batch.items()}, "Prompt 0 does not end where an answer"),
        (lambda batch: {name: part.flip(1) for name, part in batch.items()}, "Prompt 0 does not end where an answer"),
    ],
)
def test_prompts_that_ask_nothing_are_refused(change, message):
    model, processor = tiny_speech_lm()
    batch = change(dict(processor.task_inputs("asr", rows(3, 5))))
    with pytest.raises(ValueError, match=message):
        model.answer(batch, processor)
    with pytest.raises(ValueError, match=message):
        model.score_answers(batch, ANSWERS, processor)


def test_numbers_and_answers_that_make_no_sense_are_refused():
    model, processor = tiny_speech_lm(max_position_embeddings=40)
    batch = processor.task_inputs("asr", rows(3, 5))
    with pytest.raises(ValueError, match="`max_new_tokens` must be at least 1, but is 0"):
        model.answer(batch, processor, max_new_tokens=0)
    with pytest.raises(ValueError, match="`num_beams` must be at least 1, but is 0"):
        model.answer(batch, processor, num_beams=0)
    with pytest.raises(ValueError, match="`max_batch` must be at least 1, but is 0"):
        model.score_answers(batch, ANSWERS, processor, max_batch=0)
    with pytest.raises(ValueError, match="longest prompt has 25 positions and an answer 16, but the language model"):
        model.answer(batch, processor, max_new_tokens=16)
    assert len(model.answer(batch, processor).texts) == 2  # as long as there is room
    with pytest.raises(ValueError, match="positions and an answer 31, but"):
        model.score_answers(batch, ["a" * 30], processor)
    for answers, message in (([], "at least one text"), ("yes", "a list of"), (["a", " "], "Answer 1 must be a text")):
        with pytest.raises(ValueError, match=message):
            model.score_answers(batch, answers, processor)
    other = tiny_speech_lm(num_codebooks=1)[1]
    with pytest.raises(ValueError, match="do not belong together"):
        model.score_answers(batch, ANSWERS, other)


def test_an_answer_that_joins_with_the_prompt_is_refused():
    processor = named_processor(bpe_tokenizer(chat=False))
    processor.chat_template = processor.chat_template.replace("'\\n' }}{% endif", "' ' }}{% endif")
    with pytest.raises(ValueError, match="Answer 0: the tokenizer joins the end of the prompt"):
        processor.answer_ids(["hello"])


def test_ids_that_are_allowed_are_checked():
    with pytest.raises(ValueError, match="allows no id"):
        AllowedIds(torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="has 4 ids, but there are 5 scores"):
        AllowedIds(torch.ones(4, dtype=torch.bool))(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 5))


def test_tasks_and_labels_of_a_model_are_kept_and_checked(tmp_path):
    labels = {"emotion": ["angry", "calm"]}
    model, _ = tiny_speech_lm(fields={"tasks": ["asr", "emotion"], "task_labels": labels})
    model.save_pretrained(tmp_path)
    config = SpeechLMForConditionalGeneration.from_pretrained(tmp_path).config
    assert (config.tasks, config.task_labels) == (["asr", "emotion"], labels)
    for fields, message in (
        ({"tasks": ["asr", "asr"]}, "`tasks` must hold different names"),
        ({"tasks": ["asr"], "task_labels": labels}, "the task 'emotion', which is not among `tasks`"),
        ({"task_labels": {"emotion": []}}, "must be different labels"),
        ({"task_labels": {"emotion": ["a", "a"]}}, "must be different labels"),
    ):
        with pytest.raises(StrictDataclassClassValidationError, match=message):
            type(config)(**fields)
