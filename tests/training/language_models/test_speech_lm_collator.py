# SPDX-License-Identifier: Apache-2.0
"""Batches of rows teach what they should: the answer with its ends, nothing of the prompt, each task by its weight."""

import collections
import pickle

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from helpers.tiny_speech_lm import PHONES, bpe_tokenizer, make_row, tiny_processor
from speech_tokenizers.modeling.speech_lm_layouts import flat_to_codes, split_pieces
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.training.language_models.speech_lm_collator import SpeechLMCollator
from speech_tokenizers.training.language_models.speech_lm_items import SpeechLMItems


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(bpe_tokenizer())


LAYOUTS = ["flat", "delay", "continuous"]


@pytest.fixture(scope="module")
def rows(processor):
    return [make_row(processor, num_frames=6 + 5 * seed, seed=seed) for seed in range(3)]


def test_the_prompt_is_masked(processor, rows):
    batch = SpeechLMCollator(processor)(rows)
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        prompt = processor(text=processor.speech_prompt(row["text"]))["input_ids"][0]
        assert torch.equal(ids[: len(prompt)], prompt)
        assert bool((labels[: len(prompt)] == -100).all())
        assert bool((labels[len(prompt) :][: 2 * row["num_frames"]] != -100).all())


@pytest.mark.parametrize("text_alignment", ["none", "word", "phone"])
def test_audio_end_is_a_target(text_alignment):
    processor = tiny_processor(bpe_tokenizer(), text_alignment)
    batch = SpeechLMCollator(processor)([make_row(processor, seed=seed) for seed in range(3)])
    assert (batch["labels"] == processor.speech_ids.audio_end).sum(-1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("task", ["tts", "asr", "continuation"])
def test_the_bases_end_is_the_last_target(processor, rows, task):
    batch = SpeechLMCollator(processor, {task: 1.0})(rows)
    for labels in batch["labels"]:
        targets = labels[labels != -100]
        assert int(targets[-1]) == processor.tokenizer.eos_token_id
        assert int((targets == processor.tokenizer.eos_token_id).sum()) == 1


def test_labels_are_the_ids_at_their_own_positions(processor, rows):
    batch = SpeechLMCollator(processor)(rows)
    is_target = batch["labels"] != -100
    assert torch.equal(batch["labels"][is_target], batch["input_ids"][is_target])


def test_rows_are_padded_on_the_right_behind_the_mask(processor, rows):
    batch = SpeechLMCollator(processor, pad_to_multiple_of=16)(rows)
    lengths = [len(processor.row_inputs(row)["input_ids"]) for row in rows]
    assert batch["input_ids"].shape == (3, -(-max(lengths) // 16) * 16)
    assert batch["attention_mask"].sum(-1).tolist() == lengths
    for place, length in enumerate(lengths):
        assert bool(batch["attention_mask"][place, :length].all())
        assert torch.equal(batch["input_ids"][place, :length], processor.row_inputs(rows[place])["input_ids"])
        assert bool((batch["labels"][place, length:] == -100).all())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_holds_what_its_rows_hold_alone(layout):
    processor = tiny_processor(bpe_tokenizer(), layout=layout)
    rows = [make_row(processor, num_frames=6 + 5 * seed, seed=seed) for seed in range(3)]
    collator = SpeechLMCollator(processor, {"tts": 1.0, "asr": 1.0})
    batch = collator(rows)
    for place, row in enumerate(rows):
        alone = collator([row])
        real = batch["attention_mask"][place].bool()
        assert set(alone) == set(batch)
        for name, part in alone.items():
            axis = 0 if name == "audio_latents" else -1
            found = batch[name][place].index_select(axis, real.nonzero()[:, 0])
            assert torch.equal(found, part[0])


def test_tasks_are_mixed_as_asked_and_the_same_again(processor):
    tasks = {"tts": 1.0, "asr": 0.5, "continuation": 0.5}
    rows = [{**make_row(processor), "id": f"row-{place}"} for place in range(2000)]
    collator = SpeechLMCollator(processor, tasks, seed=3)
    drawn = [collator.draw_task(row) for row in rows]
    shares = {name: count / len(rows) for name, count in collections.Counter(drawn).items()}
    # Four standard deviations.
    assert shares == pytest.approx({"tts": 0.5, "asr": 0.25, "continuation": 0.25}, abs=0.045)
    assert [SpeechLMCollator(processor, tasks, seed=3).draw_task(row) for row in reversed(rows)] == drawn[::-1]
    assert [SpeechLMCollator(processor, tasks, seed=4).draw_task(row) for row in rows] != drawn
    collator.set_epoch(1)
    assert [collator.draw_task(row) for row in rows] != drawn
    collator.set_epoch(0)
    assert [collator.draw_task(row) for row in rows] == drawn


def test_the_place_of_a_row_goes_before_its_id(processor):
    collator = SpeechLMCollator(processor, {"tts": 1.0, "asr": 1.0})
    row = make_row(processor)
    drawn = {collator.draw_task({**row, "place": place}) for place in range(20)}
    assert drawn == {"tts", "asr"}
    with pytest.raises(ValueError, match="neither `place` nor `id`"):
        collator.draw_task({**row, "id": None})


def test_a_row_is_not_drawn_for_a_task_whose_columns_it_lacks():
    processor = tiny_processor(bpe_tokenizer(), "phone")
    collator = SpeechLMCollator(processor, {"tts": 1.0, "asr": 1.0, "continuation": 0.0})
    untimed = [{**make_row(processor), "id": str(place), "phones": None} for place in range(30)]
    assert {collator.draw_task(row) for row in untimed} == {"asr"}
    with pytest.raises(ValueError, match="Row '7' serves no task: tts needs `text`, asr needs `text`"):
        collator.draw_task({**untimed[7], "text": ""})


def test_the_task_of_each_row_is_told_on_request(processor, rows):
    collator = SpeechLMCollator(processor, {"tts": 0.0, "asr": 1.0}, return_tasks=True)
    assert collator(rows)["tasks"].tolist() == [1, 1, 1]
    assert set(SpeechLMCollator(processor)(rows)) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text_alignment", ["none", "word", "phone"])
def test_a_long_row_is_refused_by_its_id_and_never_cut(text_alignment, layout):
    processor = tiny_processor(bpe_tokenizer(), text_alignment, layout=layout)
    rows = [make_row(processor, num_frames=6 + 5 * seed, seed=seed) for seed in range(3)]
    length = len(processor.row_inputs(rows[2])["input_ids"])
    batch = SpeechLMCollator(processor, max_length=length)(rows)
    assert batch["input_ids"].shape[1] == batch["labels"].shape[-1] == length
    with pytest.raises(ValueError, match=f"Row 'clip-2' has {length} positions.*at most {length - 1}"):
        SpeechLMCollator(processor, max_length=length - 1)(rows)
    processor.max_length = length - 1
    with pytest.raises(ValueError, match=f"Row 'clip-2' has {length} positions.*at most {length - 1}"):
        processor.row_inputs(rows[2])
    processor.max_length = None
    with pytest.raises(ValueError, match=f"Row 'clip-2' takes {length} positions, but at most {length - 1}"):
        SpeechLMItems(rows, processor, max_length=length - 1)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"ttts": 1.0}, "no task 'ttts'"),
        ({"tts": -1.0}, "weight of the task 'tts'"),
        ({"tts": float("nan")}, "weight of the task 'tts'"),
        ({"tts": 0.0}, "some task a positive weight"),
        ({}, "some task a positive weight"),
    ],
)
def test_bad_weights_are_refused(processor, tasks, message):
    with pytest.raises(ValueError, match=message):
        SpeechLMCollator(processor, tasks)


def test_an_empty_batch_is_refused(processor):
    with pytest.raises(ValueError, match="`rows` is empty"):
        SpeechLMCollator(processor)([])


def test_a_collator_travels_to_other_processes(processor, rows):
    collator = pickle.loads(pickle.dumps(SpeechLMCollator(processor)))
    assert torch.equal(collator(rows)["input_ids"], SpeechLMCollator(processor)(rows)["input_ids"])


def test_plain_trainer_overfits_two_rows_which_are_then_said_and_end(tmp_path):
    processor = tiny_processor(build_speech_vocabulary(), "phone")
    rows = [make_row(processor, num_frames=6 + 3 * seed, seed=seed) for seed in range(2)]
    rows[1]["phones"] = [*rows[1]["phones"][::-1]]
    for piece, other in zip(rows[1]["phones"], sorted(piece["end"] for piece in rows[1]["phones"]), strict=True):
        piece["end"] = other
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=processor.vocab_size_needed, **sizes))
    arguments = TrainingArguments(
        tmp_path,
        max_steps=120,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=SpeechLMCollator(processor))
    trainer.train()
    for row in rows:
        labels = [piece["label"] for piece in row["phones"]]
        prompt = processor(text=processor.speech_prompt(row["text"], labels))
        said = model.generate(**prompt, do_sample=False, max_new_tokens=100, eos_token_id=2, pad_token_id=0)
        answer = said[0, prompt["input_ids"].shape[1] :]
        assert answer[-2:].tolist() == [processor.speech_ids.audio_end, processor.tokenizer.eos_token_id]
        codes = torch.from_numpy(np.array(row["audio_codes"]).reshape(4, -1)[:2])
        assert torch.equal(flat_to_codes(answer, processor.speech_ids).audio_codes, codes)
        pieces = split_pieces(answer[:-2], processor.speech_ids).pieces
        assert [processor.piece_labels[ids[0] - processor.speech_ids.piece_offset] for ids in pieces] == labels
    assert set(PHONES) == set(processor.piece_labels)
