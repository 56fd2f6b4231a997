# SPDX-License-Identifier: Apache-2.0
"""Truths about speech language models: targets, ends, tables, files."""

import copy

import pytest
import torch
from transformers import AutoModel

from helpers.tiny_speaking_lm import ARCHITECTURES, tiny_codec, tiny_lm, tiny_processor, tiny_row, tiny_speech_lm
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration


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
    assert "decoder" not in str(model.config.to_dict())


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_custom_loop_equals_stock_greedy(kind):
    model, _ = tiny_speech_lm(kind)
    ids = torch.randint(8, model.config.audio_offset, (2, 9), generator=torch.Generator().manual_seed(0))
    stock = model.language_model.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=None)
    assert torch.equal(model.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=None), stock)
    grown = ids
    for _ in range(6):
        grown = torch.cat([grown, model(input_ids=grown).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(grown, stock)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("alignment", ["none", "word", "phone"])
def test_no_condition_reads_its_own_target(alignment, side):
    model, processor = tiny_speech_lm(text_alignment=alignment)
    batch = batch_of(processor, [tiny_row("hi tim"), tiny_row("die", 1, 5)], side)
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach()
    for row, position in ((0, 9), (1, int(batch["labels"][1].ne(-100).nonzero()[1]))):
        labels = torch.full_like(batch["labels"], -100)
        labels[row, position] = batch["labels"][row, position]
        assert labels[row, position] != -100
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
