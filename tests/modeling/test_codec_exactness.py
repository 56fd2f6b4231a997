# SPDX-License-Identifier: Apache-2.0
"""
What a codec promises to the sample: padding, batching, streaming and windows change nothing.

Codes must agree in every single frame. Waveforms may differ by the rounding of a differently shaped matrix product.
"""

import gc
import itertools
import random

import pytest
import torch

from speech_tokenizers.modeling.codec_layers import LSTM_CONTEXT, StreamingCache
from speech_tokenizers.modeling.codec_streaming import CodecStream


HOP_LENGTH = 40
TOLERANCE = {"rtol": 0, "atol": 1e-5}

SEANET = [
    {"causal": causal, "pad_mode": pad_mode, "encoder_lstm": lstm, "decoder_lstm": lstm}
    for causal, pad_mode, lstm in itertools.product(
        (False, True), ("constant", "reflect", "replicate"), ("none", "unidirectional", "bidirectional")
    )
    if not (causal and lstm == "bidirectional")
]
SPECTRAL = [
    {"encoder_type": "stft", "decoder_type": "istft", "causal": causal, "pad_mode": pad_mode}
    for causal, pad_mode in itertools.product((False, True), ("constant", "reflect", "replicate"))
]
VARIANTS = [
    {"encoder_type": "stft", "decoder_type": "seanet", "decoder_lstm": "bidirectional"},
    {"encoder_type": "seanet", "decoder_type": "istft", "encoder_lstm": "bidirectional", "activation": "snake"},
    {"use_conv_shortcut": False, "num_residual_layers": 2, "dilation_growth_rate": 3, "kernel_size": 5},
    {"codebook_dim": 6, "use_weight_norm": False, "downsampling_ratios": (5, 4, 2), "last_kernel_size": 3},
    {"causal": True, "codebook_dim": 6, "num_residual_layers": 3, "residual_kernel_size": 5, "activation": "snake"},
    # DM-Codec, as converted from SpeechTokenizer and, at the frame rate, as released.
    {"encoder_lstm": "bidirectional", "pad_mode": "reflect", "semantic_dimension": 12},
    {"encoder_type": "stft", "decoder_type": "istft", "semantic_dimension": 12, "contextual_dimension": 10},
]
# Each overlap of the STFT windows pads differently; half a hop does not fit a window of an even number of hops.
OVERLAPS = [
    {"encoder_type": "stft", "decoder_type": "istft", "causal": causal, "n_fft": n_fft}
    for causal, n_fft in [(False, 80), (True, 80), (False, 40), (True, 40), (False, 120)]
]
# Several spectra a frame, each with a residual, of a window that is not the encoder's.
HEADS = [
    {"encoder_type": "stft", "decoder_type": "istft", "causal": causal, "decoder_spectra": spectra, **head}
    for causal in (False, True)
    for spectra, head in [
        (2, {"decoder_complex_residual": True}),
        (2, {"decoder_complex_residual": True, "decoder_n_fft": 80, "pad_mode": "reflect"}),
        (4, {"decoder_n_fft": 50}),
        (5, {"decoder_complex_residual": True, "decoder_n_fft": 24}),
    ]
]
ALL = SEANET + SPECTRAL + VARIANTS + OVERLAPS + HEADS
STREAMABLE = [
    {"causal": True, **overrides}
    for overrides in [
        {"encoder_lstm": "none", "decoder_lstm": "none"},
        {"encoder_lstm": "unidirectional", "decoder_lstm": "unidirectional"},
        {"encoder_type": "stft", "decoder_type": "istft"},
        {"encoder_type": "stft", "decoder_type": "seanet"},
        {"encoder_type": "seanet", "decoder_type": "istft", "activation": "snake"},
        {"encoder_type": "stft", "decoder_type": "istft", "n_fft": 80},
        *[head for head in HEADS if head["causal"] and head.get("pad_mode", "constant") == "constant"],
        {"num_residual_layers": 3, "residual_kernel_size": 5, "codebook_dim": 6, "use_conv_shortcut": False},
    ]
]
WINDOWED = [overrides for overrides in ALL if not overrides.get("causal") or overrides.get("pad_mode") != "constant"]


def describe(overrides: dict) -> str:
    return "-".join(f"{name}={value}" for name, value in overrides.items()) or "default"


def every(configs: list[dict]):
    return pytest.mark.parametrize("overrides", configs, ids=describe)


def pad_batch(items: list[torch.Tensor], side: str, filler: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad waveforms of shape (1, 1, length) into a batch and its mask; what is padded is no silence, to be noticed."""
    longest = max(item.shape[-1] for item in items)
    batch = torch.full((len(items), 1, longest), filler)
    mask = torch.zeros(len(items), longest, dtype=torch.long)
    for k, item in enumerate(items):
        place = slice(longest - item.shape[-1], None) if side == "left" else slice(0, item.shape[-1])
        batch[k, :, place] = item[0]
        mask[k, place] = 1
    return batch, mask


def random_pieces(total: int, rng: random.Random, longest: int) -> list[int]:
    pieces = []
    while total:
        pieces.append(min(total, rng.choice([1, rng.randint(1, longest)])))
        total -= pieces[-1]
    return pieces


def stream_encode(stream: CodecStream, waveform: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    chunks = waveform.split(sizes, dim=-1)
    return torch.cat([*(stream.encode(chunk) for chunk in chunks), stream.finish_encode()], dim=-1)


def stream_decode(stream: CodecStream, audio_codes: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    chunks = audio_codes.split(sizes, dim=-1)
    return torch.cat([*(stream.decode(chunk) for chunk in chunks), stream.finish_decode()], dim=-1)


@pytest.mark.parametrize("side", ["left", "right"])
@every(ALL)
@torch.no_grad()
def test_a_padded_batch_gives_each_item_what_it_gets_alone(codec, signal, overrides, side):
    model = codec(**overrides)
    rng = random.Random(side + describe(overrides))
    lengths = [1, HOP_LENGTH - 1, 2 * HOP_LENGTH, rng.randint(2, 300), rng.randint(2, 300), rng.randint(301, 900)]
    items = [signal(1, length, seed=length) for length in lengths]
    batch, mask = pad_batch(items, side, filler=0.9)

    together = model.encode(batch, padding_mask=mask)
    decoded = model.decode(together.audio_codes, audio_codes_mask=together.audio_codes_mask).audio_values
    whole = model(batch, padding_mask=mask, return_loss=False)

    assert torch.equal(whole.audio_codes, together.audio_codes)
    for k, item in enumerate(items):
        alone = model.encode(item)
        num_frames = model.get_encoded_length(item.shape[-1])
        frames = together.audio_codes_mask[k].bool()
        assert frames.sum() == num_frames == alone.audio_codes.shape[-1]
        assert frames[0 if side == "right" else -1]
        assert torch.equal(together.audio_codes[k, :, frames], alone.audio_codes[0])
        torch.testing.assert_close(together.latents[k, frames], alone.latents[0], **TOLERANCE)
        assert not together.audio_codes[k, :, ~frames].any()
        assert not together.latents[k, ~frames].any()

        samples = frames.repeat_interleave(HOP_LENGTH)
        alone_decoded = model.decode(alone.audio_codes).audio_values
        torch.testing.assert_close(decoded[k, :, samples], alone_decoded[0], **TOLERANCE)
        assert not decoded[k, :, ~samples].any()

        alone_whole = model(item, return_loss=False).audio_values
        torch.testing.assert_close(whole.audio_values[k, :, mask[k].bool()], alone_whole[0], **TOLERANCE)
        assert not whole.audio_values[k, :, ~mask[k].bool()].any()


@every([SEANET[0], SEANET[-1], SPECTRAL[0], VARIANTS[1]])
@torch.no_grad()
def test_a_mask_of_ones_changes_nothing(codec, signal, overrides):
    model, waveform = codec(**overrides), signal(3, 333)
    masked = model.encode(waveform, padding_mask=torch.ones(3, 333, dtype=torch.bool))
    plain = model.encode(waveform)
    assert torch.equal(masked.audio_codes, plain.audio_codes)
    torch.testing.assert_close(masked.latents, plain.latents, **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_latents_decode_in_a_padded_batch_as_alone(codec, signal, side):
    model = codec(decoder_lstm="bidirectional", pad_mode="reflect")
    items = [signal(1, length, seed=length) for length in (35, 120, 517)]
    batch, mask = pad_batch(items, side, filler=0.5)
    together = model.encode(batch, padding_mask=mask)
    decoded = model.decode(latents=together.latents, audio_codes_mask=together.audio_codes_mask).audio_values
    for k, item in enumerate(items):
        samples = together.audio_codes_mask[k].bool().repeat_interleave(HOP_LENGTH)
        alone = model.decode(latents=model.encode(item).latents).audio_values
        torch.testing.assert_close(decoded[k, :, samples], alone[0], **TOLERANCE)


@every([SEANET[0], SEANET[5], SPECTRAL[1], SPECTRAL[3], OVERLAPS[-1], VARIANTS[-2]])
@torch.no_grad()
def test_any_length_decodes_to_its_own_length(codec, signal, overrides):
    model = codec(**overrides)
    rng = random.Random(describe(overrides))
    for length in [*range(1, 3 * HOP_LENGTH + 1), *(rng.randint(121, 4000) for _ in range(5))]:
        waveform = signal(1, length, seed=length)
        audio_codes = model.encode(waveform).audio_codes
        assert audio_codes.shape == (1, 4, -(-length // HOP_LENGTH))
        decoded = model.decode(audio_codes, num_samples=length).audio_values
        assert decoded.shape == waveform.shape
        if length % 13 == 0:
            together = model(waveform, return_loss=False)
            assert torch.equal(together.audio_codes, audio_codes)
            torch.testing.assert_close(together.audio_values, decoded, **TOLERANCE)


@every([SEANET[0], SPECTRAL[0], {"codebook_dim": 6}, VARIANTS[-1]])
@torch.no_grad()
def test_k_quantizers_give_the_first_k_codebooks(codec, signal, overrides):
    model, waveform = codec(**overrides), signal(2, 700)
    audio_codes = model.encode(waveform).audio_codes
    for k in range(1, 5):
        assert torch.equal(model.encode(waveform, num_quantizers=k).audio_codes, audio_codes[:, :k])
        whole = model(waveform, num_quantizers=k, return_loss=False)
        assert torch.equal(whole.audio_codes, audio_codes[:, :k])
        decoded = model.decode(audio_codes[:, :k], num_samples=700).audio_values
        torch.testing.assert_close(decoded, whole.audio_values, **TOLERANCE)


@every([SEANET[0], SPECTRAL[0], {"codebook_dim": 6, "activation": "snake"}, *VARIANTS[-2:]])
@torch.no_grad()
def test_saving_and_loading_changes_no_bit(codec, signal, overrides, tmp_path):
    model, waveform = codec(**overrides), signal(2, 700)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    before, after = model(waveform), loaded(waveform)
    assert before.keys() == after.keys()
    for name in before:
        equal = torch.equal if isinstance(before[name], torch.Tensor) else lambda *pair: all(map(torch.equal, *pair))
        assert equal(before[name], after[name]), name
    expected, state = model.state_dict(), loaded.state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(expected[name], state[name]) for name in expected)


@torch.no_grad()
def test_removing_weight_norm_changes_no_code(new_codec, signal, tmp_path):
    model, waveform = new_codec(encoder_lstm="bidirectional"), signal(2, 700)
    before = model.encode(waveform)
    decoded = model.decode(before.audio_codes).audio_values
    model.remove_weight_norm()
    assert not any("parametrizations" in name for name in model.state_dict())
    model.save_pretrained(tmp_path)
    for folded in (model, type(model).from_pretrained(tmp_path)):
        after = folded.encode(waveform)
        assert torch.equal(after.audio_codes, before.audio_codes)
        torch.testing.assert_close(folded.decode(after.audio_codes).audio_values, decoded, **TOLERANCE)


@pytest.mark.parametrize("trial", range(3))
@every(STREAMABLE)
@torch.no_grad()
def test_a_causal_codec_streams_as_it_codes_offline(codec, signal, overrides, trial):
    model = codec(**overrides)
    rng = random.Random(f"{trial}{describe(overrides)}")
    length = rng.randint(1, 1500)
    waveform = signal(2, length, seed=trial)
    offline = model.encode(waveform).audio_codes
    whole_frames = [HOP_LENGTH] * (length // HOP_LENGTH) + [length % HOP_LENGTH]
    sizes = [random_pieces(length, rng, 200), [size for size in whole_frames if size], [length]][trial]
    streamed = stream_encode(CodecStream(model), waveform, sizes)
    assert torch.equal(streamed, offline)

    decoded = stream_decode(CodecStream(model), offline, random_pieces(offline.shape[-1], rng, [5, 1, 9][trial]))
    torch.testing.assert_close(decoded, model.decode(offline).audio_values, **TOLERANCE)


@every([STREAMABLE[0], STREAMABLE[2]])
@torch.no_grad()
def test_a_causal_stream_answers_each_frame_at_once(codec, signal, overrides):
    model = codec(**overrides)
    stream, frames = CodecStream(model), signal(1, 10 * HOP_LENGTH).split(HOP_LENGTH, dim=-1)
    for frame in frames:
        audio_codes = stream.encode(frame)
        assert audio_codes.shape == (1, 4, 1)
        assert stream.decode(audio_codes).shape == (1, 1, HOP_LENGTH)


@torch.no_grad()
def test_the_padding_cache_can_be_used_without_a_stream(codec, signal):
    model, waveform = codec(causal=True), signal(1, 10 * HOP_LENGTH + 7)
    offline = model.encode(waveform)
    cache = StreamingCache()
    chunks = waveform.split([3 * HOP_LENGTH, HOP_LENGTH, 6 * HOP_LENGTH + 7], dim=-1)
    streamed = [model.encode(chunk, padding_cache=cache).audio_codes for chunk in chunks]
    assert torch.equal(torch.cat(streamed, dim=-1), offline.audio_codes)


@torch.no_grad()
def test_two_streams_of_one_model_do_not_mix(codec, signal):
    model = codec(causal=True)
    first, second = signal(1, 400, seed=1), signal(1, 400, seed=2)
    streams = CodecStream(model), CodecStream(model)
    pieces = [[], []]
    for chunks in zip(first.split(60, dim=-1), second.split(60, dim=-1), strict=True):
        for stream, chunk, codes in zip(streams, chunks, pieces, strict=True):
            codes.append(stream.encode(chunk))
    for stream, codes, waveform in zip(streams, pieces, (first, second), strict=True):
        codes.append(stream.finish_encode())
        assert torch.equal(torch.cat(codes, dim=-1), model.encode(waveform).audio_codes)


@torch.no_grad()
def test_a_stream_can_use_fewer_codebooks(codec, signal):
    for overrides in ({"causal": True}, {}):
        model, waveform = codec(**overrides), signal(1, 900)
        streamed = stream_encode(CodecStream(model, num_quantizers=2), waveform, [250, 250, 400])
        assert torch.equal(streamed, model.encode(waveform, num_quantizers=2).audio_codes)


@every(WINDOWED)
@torch.no_grad()
def test_windows_give_the_codes_of_the_whole(codec, signal, overrides):
    model = codec(**overrides)
    rng = random.Random(describe(overrides))
    length = rng.randint(9000, 16000)
    waveform = signal(1, length, seed=length)
    whole = model.encode(waveform).audio_codes
    stream = CodecStream(model, window_seconds=0.1)
    assert torch.equal(stream_encode(stream, waveform, random_pieces(length, rng, 3000)), whole)

    decoded = stream_decode(CodecStream(model, window_seconds=0.1), whole, random_pieces(whole.shape[-1], rng, 70))
    torch.testing.assert_close(decoded, model.decode(whole).audio_values, **TOLERANCE)


@every([SEANET[0], SPECTRAL[0]])
@torch.no_grad()
def test_windows_of_short_recordings_give_the_codes_of_the_whole(codec, signal, overrides):
    model = codec(**overrides)
    for length in (1, HOP_LENGTH - 1, HOP_LENGTH, HOP_LENGTH + 1, 3 * HOP_LENGTH, 777):
        waveform = signal(1, length, seed=length)
        whole = model.encode(waveform).audio_codes
        assert torch.equal(stream_encode(CodecStream(model, window_seconds=0.1), waveform, [length]), whole)
        decoded = stream_decode(CodecStream(model, window_seconds=0.1), whole, [whole.shape[-1]])
        torch.testing.assert_close(decoded, model.decode(whole).audio_values, **TOLERANCE)


@every([{}, {"encoder_lstm": "bidirectional", "decoder_lstm": "bidirectional"}])
@torch.no_grad()
def test_windows_give_recurrent_layers_enough_context(codec, signal, overrides):
    model, waveform = codec(**overrides), signal(1, 1500 * HOP_LENGTH)
    whole = model.encode(waveform).audio_codes
    assert whole.shape[-1] > 2 * LSTM_CONTEXT
    streamed = stream_encode(CodecStream(model, window_seconds=1.0), waveform, [7000] * 8 + [4000])
    assert torch.equal(streamed, whole)
    decoded = stream_decode(CodecStream(model, window_seconds=1.0), whole, [700, 800])
    torch.testing.assert_close(decoded, model.decode(whole).audio_values, **TOLERANCE)


def retained_elements() -> int:
    gc.collect()
    return sum(value.numel() for value in gc.get_objects() if type(value) is torch.Tensor)


@every([{"causal": True}, {"encoder_lstm": "none", "decoder_lstm": "none"}, SPECTRAL[0]])
@torch.no_grad()
def test_a_stream_keeps_no_more_for_a_longer_recording(codec, signal, overrides):
    model = codec(**overrides)
    block, kept = signal(1, 2000), []
    before = retained_elements()
    stream = CodecStream(model, window_seconds=0.1)
    for _ in range(3):
        for _ in range(8):  # whole windows
            stream.decode(stream.encode(block))
        kept.append(retained_elements() - before)
    assert max(kept) == min(kept), kept
    assert max(kept) < 20 * block.numel(), kept
