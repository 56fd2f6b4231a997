# SPDX-License-Identifier: Apache-2.0
"""Truths about speech language models: targets, ends, tables, files."""

import copy

import pytest
import torch
from transformers import AutoModel, LogitsProcessorList

from helpers.tiny_speaking_lm import ARCHITECTURES, tiny_codec, tiny_lm, tiny_processor, tiny_row, tiny_speech_lm
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.speech_lm_sequences import pad_sequences
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.modeling.speech_lm_writers import FlatWriter, write_ids


def greedy_ids(model, ids, mask, end):
    inputs = {"input_ids": ids, "attention_mask": mask}
    *_, writing = write_ids(model, inputs, FlatWriter(), LogitsProcessorList(), 6, [end])
    return writing.ids


def batch_of(processor, rows, side="right"):
    items = [processor.row_inputs(row) for row in rows]
    length = max(len(item["input_ids"]) for item in items)
    batch = {name: torch.full((len(items), length), fill) for name, fill in (("input_ids", 0), ("labels", -100))}
    batch["attention_mask"] = torch.zeros(len(items), length, dtype=torch.long)
    for number, item in enumerate(items):
        size = len(item["input_ids"])
        place = slice(0, size) if side == "right" else slice(length - size, length)
        for name in ("input_ids", "labels"):
            batch[name][number, place] = item[name]
        batch["attention_mask"][number, place] = 1
    return batch


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_wrapper_round_trips(kind, tied, tmp_path):
    model, _ = tiny_speech_lm(kind, tied=tied)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(again, SpeechLMForConditionalGeneration)
    ids = torch.randint(model.config.audio_offset, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) == tied
    assert again.generation_config.eos_token_id == [2, model.config.audio_end_token_id]
    assert not any("codec" in name for name in model.state_dict())
    assert "downsampling_ratios" not in str(model.config.to_dict())


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_custom_loop_equals_stock_greedy(kind):
    model, _ = tiny_speech_lm(kind)
    ids = torch.randint(8, model.config.audio_offset, (2, 9), generator=torch.Generator().manual_seed(0))
    stock = model.language_model.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=None)
    assert torch.equal(model.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=None), stock)
    assert torch.equal(greedy_ids(model, ids, torch.ones_like(ids), -1), stock)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_custom_loop_on_padded_rows_equals_stock_greedy(kind):
    model, _ = tiny_speech_lm(kind)
    ids = torch.randint(8, model.config.audio_offset, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    stock = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=6, eos_token_id=None)
    assert torch.equal(greedy_ids(model, ids, mask, -1), stock)
    alone = greedy_ids(model, ids[1:, 4:], mask[1:, 4:], -1)
    assert torch.equal(alone[0, 5:], stock[1, 9:])


def test_arguments_that_would_have_no_effect_are_refused():
    model, processor = tiny_speech_lm(text_alignment="phone")
    for options in ({"top_k": 3}, {"top_p": 0.9}):
        with pytest.raises(ValueError, match="a `temperature` above 0"):
            model.generate_speech("hi", processor, temperature=0, **options)
    with pytest.raises(ValueError, match="without a `text_alignment`"):
        model.generate_speech("hi", processor, min_frames=4)


def test_prompts_of_another_version_are_refused():
    model, processor = tiny_speech_lm()
    model.config.template_version = 0
    with pytest.raises(ValueError, match="template_version"):
        model.generate_speech("hi", processor)


def test_a_row_that_has_ended_waits_for_the_others():
    model, _ = tiny_speech_lm()
    ids = torch.randint(8, model.config.audio_offset, (3, 9), generator=torch.Generator().manual_seed(0))
    free = greedy_ids(model, ids, torch.ones_like(ids), -1)
    end = int(free[1, 11])
    stock = model.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=end, pad_token_id=end)
    assert torch.equal(greedy_ids(model, ids, torch.ones_like(ids), end), stock)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("alignment", ["none", "word", "phone"])
def test_no_condition_reads_its_own_target(alignment, side):
    model, processor = tiny_speech_lm(text_alignment=alignment)
    batch = batch_of(processor, [tiny_row("hi tim"), tiny_row("die", 1, 5)], side)
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach()
    for row, number in ((0, 4), (1, 1), (1, -1)):
        position = int(batch["labels"][row].ne(-100).nonzero()[number])
        labels = torch.full_like(batch["labels"], -100)
        labels[row, position] = batch["labels"][row, position]
        inputs = embedded.clone().requires_grad_()
        model(inputs_embeds=inputs, attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        moved = inputs.grad[row].abs().sum(-1) > 0
        assert not moved[position:].any()
        assert moved[position - 1]


def test_the_loss_of_a_perfect_oracle_is_zero():
    model, processor = tiny_speech_lm(text_alignment="phone")
    batch = batch_of(processor, [tiny_row("hi tim"), tiny_row("die", 1, 5)])
    logits = torch.zeros(*batch["input_ids"].shape, model.config.text_config.vocab_size)
    logits[:, :-1].scatter_(-1, batch["input_ids"][:, 1:, None], 100.0)
    losses = model._losses(logits, batch["labels"], None)
    assert float(losses["loss"]) < 1e-6
    shifted = model._losses(logits.roll(1, 1), batch["labels"], None)
    assert float(shifted["loss"]) > 10


def test_shifting_by_hand_is_refused():
    model, processor = tiny_speech_lm()
    batch = batch_of(processor, [tiny_row("hi tim")])
    model(**batch)
    shifted = torch.cat([batch["labels"][:, 1:], torch.full((1, 1), -100)], dim=1)
    with pytest.raises(ValueError, match="shifted by hand by one"):
        model(input_ids=batch["input_ids"], labels=shifted)


def test_the_loss_is_the_mean_over_all_targets_of_a_step():
    model, processor = tiny_speech_lm()
    rows = [tiny_row("hi tim"), tiny_row("die", 1, 5)]
    both = model(**batch_of(processor, rows)).loss
    number = int(batch_of(processor, rows)["labels"][:, 1:].ne(-100).sum())
    parts = [model(**batch_of(processor, [row]), num_items_in_batch=number).loss for row in rows]
    torch.testing.assert_close(sum(parts), both)


def test_the_losses_told_are_those_of_their_targets():
    model, processor = tiny_speech_lm(text_alignment="phone")
    outputs = model(**(batch := batch_of(processor, [tiny_row("hi tim"), tiny_row("die", 1, 5)])))
    is_code = model.config.speech_ids.is_unit(batch["labels"])
    torch.testing.assert_close(outputs.target_losses[is_code].mean(), outputs.audio_loss)
    torch.testing.assert_close(outputs.codebook_losses.mean(), outputs.audio_loss)
    count = (batch["labels"] != -100).sum()
    torch.testing.assert_close(outputs.target_losses.sum() / count, outputs.loss.detach())
    scores, counts = model.score(**batch)
    torch.testing.assert_close(scores.sum(), -outputs.target_losses.sum())
    assert int(counts.sum()) == int(count)


def test_a_weight_counts_in_the_loss_alone():
    codec = tiny_codec()
    processor = tiny_processor(codec)
    lm = tiny_lm(vocab_size=processor.audio_offset)
    plain = SpeechLMForConditionalGeneration.from_causal_lm(copy.deepcopy(lm), codec, processor)
    weighted = SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, processor, audio_loss_weight=0.0)
    batch = batch_of(processor, [tiny_row("hi")])
    first, second = plain(**batch), weighted(**batch)
    assert float(second.loss) < float(first.loss)
    torch.testing.assert_close(first.audio_loss, second.audio_loss)


def test_rows_of_codes_that_sound_alike_begin_alike():
    model, _ = tiny_speech_lm()
    ids = model.config.speech_ids
    rows = model.get_input_embeddings().weight[ids.audio_offset : ids.audio_stop].detach()
    vectors = model.codec.codebook_vectors()
    first = torch.nn.functional.pdist(rows[: ids.codebook_size])
    true = torch.nn.functional.pdist((vectors[0] - vectors[0].mean(0)) / vectors[0].std(0))
    assert float(torch.corrcoef(torch.stack([first, true]))[0, 1]) > 0.9
    # They are no less spread than the rows of text.
    text = model.get_input_embeddings().weight[: ids.audio_start].detach()
    assert 0.5 < float(rows.std() / text.std()) < 2


def test_both_tables_of_an_untied_model_are_begun():
    model, _ = tiny_speech_lm(tied=False)
    ids = model.config.speech_ids
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = table.weight[ids.audio_offset : ids.audio_stop]
        assert len(rows.unique(dim=0)) == len(rows)
        assert float(rows.std(0).mean()) > 0.1 * float(table.weight[: ids.audio_start].std(0).mean())


def test_another_codec_is_refused():
    model, _ = tiny_speech_lm()
    other = tiny_codec()
    with torch.no_grad():
        for name, buffer in other.named_buffers():
            if "codebook" in name or "embed" in name:
                buffer.add_(1.0)
    with pytest.raises(ValueError, match="fingerprint"):
        model.attach_codec(other)
    with pytest.raises(ValueError, match="codebooks of"):
        model.attach_codec(tiny_codec(codebook_size=8))


def test_a_codec_that_is_not_there_is_told(tmp_path):
    model, processor = tiny_speech_lm()
    model.save_pretrained(tmp_path)
    again = SpeechLMForConditionalGeneration.from_pretrained(tmp_path).eval()
    with pytest.raises(ValueError, match="No codec is attached. Load tiny-codec"):
        again.generate_speech("hi", processor)


def test_a_copy_shares_the_codec():
    model, _ = tiny_speech_lm()
    assert copy.deepcopy(model).codec is model.codec


def test_a_processor_of_another_vocabulary_is_refused():
    codec = tiny_codec()
    processor = tiny_processor(codec)
    with pytest.raises(ValueError, match="rows"):
        SpeechLMForConditionalGeneration.from_causal_lm(tiny_lm(vocab_size=8), codec, processor)
    with pytest.raises(ValueError, match="it is that of another model"):
        SpeechLMForConditionalGeneration.from_causal_lm(tiny_lm(vocab_size=340), codec, processor)


def train(model, batch, steps=150, rate=1e-2):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return float(loss)


@pytest.mark.parametrize("alignment", ["none", "word", "phone"])
def test_one_batch_is_overfitted_and_ends_by_itself(alignment):
    model, processor = tiny_speech_lm(text_alignment=alignment)
    rows = [tiny_row("hi tim"), tiny_row("die", 1, 5)]
    assert train(model, batch_of(processor, rows)) < 0.05
    # A batch, with left padding, and each text alone.
    spoken = model.generate_speech([row["text"] for row in rows], processor, temperature=0)
    assert spoken.ended.all()
    for number, row in enumerate(rows):
        alone = model.generate_speech(row["text"], processor, temperature=0)
        for said, place in ((alone, 0), (spoken, number)):
            length = int(said.audio_codes_mask[place].sum())
            assert length == row["num_frames"]
            codes = torch.tensor(row["audio_codes"]).reshape(2, -1)
            assert torch.equal(said.audio_codes[place, :, :length], codes)
        assert int(alone.audio_mask.sum()) == alone.audio_values.shape[-1] == row["num_frames"] * 16
        torch.testing.assert_close(
            spoken.audio_values[number, :, : alone.audio_values.shape[-1]], alone.audio_values[0], atol=1e-5, rtol=1e-4
        )
    if alignment == "phone":
        assert spoken.pieces[0] == ["pau", "hh", "ay", "t", "ay", "m", "pau"]
        assert [word for word, _, _ in spoken.word_times[0]] == ["hi", "tim"]
        assert spoken.piece_times[0][-1, 1] == pytest.approx(7 / 50)
    if alignment == "word":
        assert [word for word, _, _ in spoken.word_times[0]] == ["hi", "tim"]


@pytest.mark.parametrize("alignment", ["none", "word", "phone"])
def test_a_batch_gives_what_single_texts_give_at_temperature_one(alignment):
    model, processor = tiny_speech_lm(text_alignment=alignment)
    texts = ["hi tim", "die", "lime lime hi"]
    generators = [torch.Generator().manual_seed(number) for number in range(3)]
    spoken = model.generate_speech(texts, processor, generators=generators, max_frames=9)
    for number, text in enumerate(texts):
        alone = model.generate_speech(
            text, processor, generators=[torch.Generator().manual_seed(number)], max_frames=9
        )
        length = alone.audio_codes.shape[-1]
        assert torch.equal(spoken.audio_codes[number, :, :length], alone.audio_codes[0])
        assert spoken.ended[number] == alone.ended[0]


def test_random_weights_say_each_phone_once_in_order_and_end():
    model, processor = tiny_speech_lm(text_alignment="phone")
    model.set_piece_frames([[1, 4]] * len(model.config.piece_labels))
    for seed in range(5):
        spoken = model.generate_speech(
            ["tim die", "hi"], processor, generators=[torch.Generator().manual_seed(seed + n) for n in (0, 9)]
        )
        assert spoken.ended.all()
        assert not spoken.num_dropped.any()
        assert spoken.pieces[0] == ["pau", "t", "ay", "m", "d", "ay", "pau"]
        lengths = spoken.piece_times[0].diff(dim=-1).flatten() * 50
        assert ((lengths > 0.5) & (lengths < 4.5)).all()


def test_given_durations_are_kept():
    model, processor = tiny_speech_lm(text_alignment="phone")
    spoken = model.generate_speech("hi", processor, durations=[[2, 3, 1, 2]])
    assert (spoken.piece_times[0].diff(dim=-1).flatten() * 50).round().tolist() == [2, 3, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), ("  ", "empty"), ("zebra", "zebra"), ([], "at least one text")],
    ids=["empty", "blank", "unknown word", "no text"],
)
def test_a_text_that_cannot_be_said_is_told(text, message):
    model, processor = tiny_speech_lm(text_alignment="phone")
    with pytest.raises(ValueError, match=message):
        model.generate_speech(text, processor)


def test_a_prompt_beyond_the_context_is_told():
    model, processor = tiny_speech_lm(text_alignment="phone", max_position_embeddings=24)
    with pytest.raises(ValueError, match="but the model has 24; say it in parts"):
        model.generate_speech("hi tim die lime hi tim die lime", processor)


@pytest.mark.parametrize("alignment", ["none", "phone"])
def test_limits_are_those_of_each_text_and_count_frames(alignment):
    model, processor = tiny_speech_lm(text_alignment=alignment)
    model.config.frames_per_character = [1.0, 2.0]
    texts = ["die", "hi tim lime die hi tim", "tim"]
    for max_frames in (None, 4):
        spoken = model.generate_speech(texts, processor, temperature=0, max_frames=max_frames)
        for number, text in enumerate(texts):
            alone = model.generate_speech(text, processor, temperature=0, max_frames=max_frames)
            length = alone.audio_codes.shape[-1]
            assert max_frames is None or length <= max_frames
            assert int(spoken.audio_codes_mask[number].sum()) == length
            assert torch.equal(spoken.audio_codes[number, :, :length], alone.audio_codes[0])
            assert spoken.ended[number] == alone.ended[0]


def test_a_cut_text_has_not_ended():
    model, processor = tiny_speech_lm()
    spoken = model.generate_speech(["hi", "die"], processor, max_frames=3, min_frames=3, temperature=0)
    assert spoken.audio_codes_mask.sum(-1).tolist() == [3, 3]
    assert spoken.ended.tolist() == [False, False]


def test_arguments_that_cannot_be_kept_are_refused():
    model, processor = tiny_speech_lm(text_alignment="phone")
    with pytest.raises(ValueError, match="`pieces` of 'hi' is empty"):
        model.generate_speech(["die", "hi"], processor, pieces=[["d", "ay"], []])
    with pytest.raises(ValueError, match="one a text \\(2\\), but has 1"):
        model.generate_speech(["die", "hi"], processor, generators=[torch.Generator()])
    with pytest.raises(ValueError, match="training mode"):
        model.train().generate_speech("hi", processor)
    model, processor = tiny_speech_lm()
    with pytest.raises(ValueError, match="`max_frames` is 5, but `min_frames` is 50"):
        model.generate_speech("hi", processor, min_frames=50, max_frames=5)


@pytest.mark.parametrize("alignment", ["none", "word"])
def test_letters_that_the_vocabulary_lacks_are_told(alignment):
    model, processor = tiny_speech_lm(text_alignment=alignment)
    with pytest.raises(ValueError, match="'hi €5' has characters or words that the model's vocabulary lacks"):
        model.generate_speech("hi €5", processor)


@pytest.mark.parametrize("kind", ["encodec", "dac", "mimi"])
def test_a_codec_of_transformers_speaks(kind, make_transformers_codec):
    codec, extractor = make_transformers_codec(kind)
    processor = SpeechLMProcessor.from_tokenizer(
        build_speech_vocabulary(), codec, extractor, num_codebooks=2, codec_name=kind
    )
    model = SpeechLMForConditionalGeneration.from_causal_lm(
        tiny_lm(vocab_size=processor.audio_offset), processor.codec, processor
    )
    spoken = model.generate_speech(["hi tim", "die"], processor, max_frames=6, min_frames=4, temperature=0)
    alone = model.generate_speech("die", processor, max_frames=6, min_frames=4, temperature=0)
    length = int(alone.audio_mask.sum())
    assert length > 0
    torch.testing.assert_close(spoken.audio_values[1, :, :length], alone.audio_values[0, :, :length])


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_losses_do_not_depend_on_the_side_of_the_padding(kind):
    model, processor = tiny_speech_lm(kind)
    items = [processor.row_inputs(tiny_row("hi tim")), processor.row_inputs(tiny_row("die", 1, 5))]
    found = []
    for side in ("left", "right"):
        found.append(model(**pad_sequences(items, processor.pad_token_id, side)).loss)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_a_batch_beyond_the_context_is_refused_in_training():
    model, processor = tiny_speech_lm(max_position_embeddings=24)
    with pytest.raises(ValueError, match="positions, but the language model has 24"):
        model(**batch_of(processor, [tiny_row("hi tim")]))
