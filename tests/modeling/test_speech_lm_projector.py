# SPDX-License-Identifier: Apache-2.0
"""Truths about recordings that are read as features through a projector (`audio_in="embeds"`), and never written."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel

from helpers.tiny_codecs import make_kmeans
from helpers.tiny_speaking_lm import ARCHITECTURES, tiny_lm, tiny_row, tiny_speech_lm
from helpers.tiny_speech_lm import bpe_tokenizer, make_row, tiny_codec, waveform
from speech_tokenizers import KMeansUnitsFeatureExtractor, RVQCodecFeatureExtractor
from speech_tokenizers.evaluation.understanding.answering import constant_row
from speech_tokenizers.modeling.configuration_speech_lm import SpeechLMConfig
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.speech_lm_frames import ProjectedFrames, stacked_frames
from speech_tokenizers.modeling.speech_lm_sequences import pad_sequences


SOURCES = ("features", "quantized", "both")


def hearing(source="features", stack=2, architecture="llama"):
    """A model that hears, and its processor."""
    codec, extractor = tiny_codec(), RVQCodecFeatureExtractor()
    processor = SpeechLMProcessor.from_tokenizer(
        bpe_tokenizer(), codec, extractor, audio_in="embeds", latent_source=source, projector_stack=stack
    )
    lm = tiny_lm(architecture, vocab_size=processor.audio_offset)
    model = SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, processor)
    model.frames.set_statistics(torch.zeros(processor.latent_dim), torch.ones(processor.latent_dim))
    return model, processor


def rows_of(processor, lengths=(5, 8)):
    """Rows with codes, and with latents where the processor reads them."""
    rows = []
    for seed, num_frames in enumerate(lengths):
        row = make_row(processor, num_frames, seed)
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(num_frames, processor.codec.latent_dim, generator=generator)
        row |= {"latent_dim": processor.codec.latent_dim, "audio_latents": latents.flatten().tolist()}
        rows.append(row)
    return rows


def batch_of(processor, rows, side="right"):
    return pad_sequences([processor.row_inputs(row, "asr") for row in rows], processor.pad_token_id, side)


def test_frames_are_stacked_and_the_last_is_repeated():
    frames = torch.arange(10.0).view(5, 2)
    stacked = stacked_frames(frames, 2)
    assert stacked.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 8, 9]]
    assert torch.equal(stacked_frames(frames, 1), frames)
    assert stacked_frames(frames[:1], 4).shape == (1, 8)


@pytest.mark.parametrize("source", SOURCES)
def test_a_clip_takes_a_position_for_each_stack(source):
    model, processor = hearing(source)
    for row in rows_of(processor):
        sequence = processor.row_inputs(row, "asr")
        assert int(sequence["audio_mask"].sum()) == -(-row["num_frames"] // 2)
        assert sequence["labels"].shape == sequence["input_ids"].shape
        assert sequence["audio_latents"].shape[-1] == 2 * processor.latent_dim == model.config.frame_size


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_read_is_as_large_as_words(architecture):
    model, processor = hearing(architecture=architecture)
    batch = batch_of(processor, rows_of(processor))
    read = model.embed_inputs(**{name: batch[name] for name in ("input_ids", "audio_latents", "audio_mask")})
    frames = read[batch["audio_mask"].bool()].square().mean().sqrt()
    words = model.get_input_embeddings()(torch.arange(processor.audio_offset)).square().mean().sqrt()
    torch.testing.assert_close(frames, words, rtol=1e-3, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("source", SOURCES)
def test_batched_equals_single(source, side):
    model, processor = hearing(source)
    rows = rows_of(processor)
    together = model(**batch_of(processor, rows, side))
    alone = [model(**batch_of(processor, [row])) for row in rows]
    sums = together.target_losses.sum(-1)
    torch.testing.assert_close(sums, torch.cat([one.target_losses.sum(-1) for one in alone]), rtol=1e-4, atol=1e-5)


def test_an_answer_does_not_read_itself_and_reads_all_frames():
    model, processor = hearing()
    batch = batch_of(processor, rows_of(processor, (6,)))
    first = int(batch["labels"][0].ne(-100).nonzero()[0])
    latents = batch["audio_latents"].clone().requires_grad_()
    logits = model(**{**batch, "audio_latents": latents, "labels": None}).logits
    gradient = torch.autograd.grad(logits[0, first - 1].square().sum(), latents)[0][0]
    assert bool((gradient[batch["audio_mask"][0].bool()].abs().sum(-1) > 0).all())
    changed = batch["input_ids"].clone()
    changed[0, first] = processor.tokenizer.eos_token_id
    other = model(**{**batch, "input_ids": changed, "labels": None}).logits
    torch.testing.assert_close(other[0, :first], logits[0, :first].detach())


@pytest.mark.parametrize("source", SOURCES)
def test_a_recording_reads_as_its_rows_do(source):
    model, processor = hearing(source)
    audio = waveform(900)
    codec = processor.codec
    encoded = codec.encode(**codec.batch_features([audio], processor.feature_extractor))
    row = {
        "id": "a",
        "text": "hello",
        "audio_codes": encoded.audio_codes[0].flatten().tolist(),
        "num_quantizers": codec.num_quantizers,
        "num_frames": encoded.audio_codes.shape[2],
        "audio_latents": encoded.latents[0].flatten().tolist(),
        "latent_dim": codec.latent_dim,
        "codec_fingerprint": processor.codec_fingerprint,
    }
    (heard,) = [processor.clip_values(audio=audio)]
    torch.testing.assert_close(processor.row_frames(row), heard, rtol=1e-4, atol=1e-5)
    prompt = processor.task_prompt("asr")
    sequence = processor.row_inputs(row, "asr")
    inputs = processor(text=prompt, audio=audio)
    length = inputs["input_ids"].shape[1]
    assert inputs["input_ids"][0].tolist() == sequence["input_ids"][:length].tolist()
    torch.testing.assert_close(inputs["audio_latents"][0], sequence["audio_latents"][:length], rtol=1e-4, atol=1e-5)


def test_units_are_read_by_their_centroids():
    codec = make_kmeans()
    processor = SpeechLMProcessor.from_tokenizer(
        bpe_tokenizer(), codec, KMeansUnitsFeatureExtractor(), audio_in="embeds", latent_source="quantized"
    )
    audio = waveform(8000)
    units = codec.encode(torch.from_numpy(audio)[None, None]).audio_codes
    torch.testing.assert_close(processor.clip_values(audio=audio), codec.dequantize(units)[0])
    torch.testing.assert_close(processor.clip_values(audio_codes=units[0]), codec.dequantize(units)[0])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_generation_is_greedy_over_the_whole_sequence(architecture):
    model, processor = hearing(architecture=architecture)
    (row,) = rows_of(processor, (7,))
    prompt = processor.row_inputs(row, "asr")
    length = int(prompt["labels"].ne(-100).nonzero()[0])
    inputs = {name: prompt[name][None, :length] for name in ("input_ids", "audio_latents", "audio_mask")}
    written = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=-1)[0, -5:]
    ids, latents, mask = inputs["input_ids"], inputs["audio_latents"], inputs["audio_mask"]
    for expected in written.tolist():
        logits = model(input_ids=ids, audio_latents=latents, audio_mask=mask).logits
        assert int(logits[0, -1].argmax()) == expected
        ids = torch.cat([ids, torch.tensor([[expected]])], dim=1)
        latents, mask = (torch.nn.functional.pad(part, pad) for part, pad in ((latents, (0, 0, 0, 1)), (mask, (0, 1))))


def test_training_moves_the_projector_and_a_copy_reads_the_same(tmp_path):
    model, processor = hearing("both")
    batch = batch_of(processor, rows_of(processor))
    model.train()
    loss = model(**batch).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.frames.parameters())
    model.eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    copy = AutoModel.from_pretrained(tmp_path)
    loaded = SpeechLMProcessor.from_pretrained(tmp_path)
    loaded.attach_codec(processor.codec)
    loaded.check_model(copy)
    again = batch_of(loaded, rows_of(loaded))
    torch.testing.assert_close(copy(**again).loss, model(**batch).loss)
    assert isinstance(copy.frames, ProjectedFrames)
    for before, after in zip(model.frames.parameters(), copy.frames.parameters(), strict=True):
        assert torch.equal(before, after)


def test_statistics_stay_in_single_precision():
    model, _ = hearing()
    model.to(torch.bfloat16)
    assert model.frames.statistics.mean.dtype == torch.float32
    assert model.frames.hidden.weight.dtype == torch.bfloat16


def test_what_cannot_be_is_refused():
    _, processor = hearing()
    row = rows_of(processor)[0]
    with pytest.raises(ValueError, match="only hears"):
        processor.row_inputs(row, "tts")
    with pytest.raises(ValueError, match="only hears"):
        processor.task_prompt("tts", "hello")
    with pytest.raises(ValueError, match="`audio_latents` are needed"):
        processor.row_inputs({**row, "audio_latents": None}, "asr")
    with pytest.raises(ValueError, match="given as codes"):
        processor.clip_values(audio_codes=np.zeros((4, 3), dtype=np.int64))
    _, both = hearing("both")
    with pytest.raises(ValueError, match="give the recording"):
        both.clip_values(audio_latents=torch.zeros(3, both.codec.latent_dim))
    with pytest.raises(ValueError, match="`audio_codes` are needed"):
        both.row_inputs({**rows_of(both)[0], "audio_codes": None}, "asr")
    with pytest.raises(ValueError, match="layout='continuous'"):
        SpeechLMProcessor.from_tokenizer(
            bpe_tokenizer(), tiny_codec(), RVQCodecFeatureExtractor(), layout="flat", audio_in="embeds"
        )
    for fields, message in (
        ({"layout": "flat", "audio_in": "embeds"}, "layout='continuous'"),
        ({"layout": "continuous", "latent_dim": 4, "latent_source": "both"}, "audio_in='embeds'"),
        ({"layout": "continuous", "latent_dim": 4, "audio_in": "embeds", "projector_stack": 0}, "at least 1"),
        ({"audio_in": "ears"}, "must be one of"),
    ):
        with pytest.raises(StrictDataclassClassValidationError, match=message):
            SpeechLMConfig(**fields)


@pytest.mark.parametrize("layout", ["embeds", "flat"])
def test_scores_at_the_positions_before_targets_are_enough(layout):
    model, processor = hearing() if layout == "embeds" else tiny_speech_lm()
    rows = rows_of(processor) if layout == "embeds" else [tiny_row("hi", 0, 5), tiny_row("hi tim", 1, 9)]
    batch = batch_of(processor, rows)
    whole = model(**batch)
    kept = batch["labels"][:, 1:].ne(-100).any(0).nonzero()[:, 0]
    chosen = model(**batch, logits_to_keep=kept)
    torch.testing.assert_close(chosen.loss, whole.loss)
    torch.testing.assert_close(chosen.target_losses, whole.target_losses)
    assert chosen.logits.shape[1] == len(kept) < whole.logits.shape[1]
    with pytest.raises(ValueError, match="lacks position"):
        model(**batch, logits_to_keep=kept[1:])
    with pytest.raises(ValueError, match="in order"):
        model(**batch, logits_to_keep=kept.flip(0))


@pytest.mark.parametrize("source", SOURCES)
def test_answers_are_scored_as_whole_sequences_are(source):
    model, processor = hearing(source)
    rows, answers = rows_of(processor), ["hello", "hello there my friend", "again"]
    inputs = processor.task_inputs("asr", rows)
    scores = model.score_answers(inputs, answers, processor)
    for place, row in enumerate(rows):
        for number, answer in enumerate(answers):
            batch = batch_of(processor, [{**row, "text": answer}])
            labels = batch.pop("labels")
            expected, _ = model.score(batch.pop("input_ids"), labels, **batch)
            torch.testing.assert_close(scores[place, number], expected[0], rtol=1e-4, atol=1e-4)


def test_free_answers_of_a_batch_are_those_of_single_clips():
    model, processor = hearing()
    rows = rows_of(processor, (5, 12, 8))
    together = model.answer(processor.task_inputs("asr", rows), processor, max_new_tokens=6)
    alone = [model.answer(processor.task_inputs("asr", row), processor, max_new_tokens=6) for row in rows]
    assert together.texts == [text for answer in alone for text in answer.texts]


@pytest.mark.parametrize("source", SOURCES)
def test_a_row_without_audio_can_be_read(source):
    model, processor = hearing(source)
    inputs = processor.task_inputs("asr", constant_row(processor))
    assert int(inputs["audio_mask"].sum()) == 1
    assert model.score_answers(inputs, ["hello"], processor).isfinite().all()
