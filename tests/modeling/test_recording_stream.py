# SPDX-License-Identifier: Apache-2.0
"""All streams have one rule for bad input, for the recording after the last, and for one that was left."""

import numpy as np
import pytest
import torch

from helpers.tiny_codecs import OURS, THEIRS
from speech_tokenizers import CodecStream, LatentStream, UnitStream, WindowedEncoder
from speech_tokenizers.modeling.codec_layers import StreamingCache
from speech_tokenizers.modeling.unit_streaming import WindowedUnitStream


SPEAKING = [name for name in (*OURS, *THEIRS) if name not in ("kmeans", "dc_spin")]
SPEAKING += ["kmeans-vocoder", "dc_spin-vocoder"]
BAD_SAMPLES = [
    (lambda good: good.masked_fill(good > 0, torch.nan), ValueError, "`input_values` has NaN or infinity in row 0"),
    (lambda good: good.masked_fill(good > 0, -torch.inf), ValueError, "NaN or infinity"),
    (lambda good: (good * 32767).short(), TypeError, "tensor of floating point, but is torch.int16"),
    (lambda good: good.numpy(), TypeError, "tensor of floating point, but is ndarray"),
    (lambda good: good.tolist(), TypeError, "tensor of floating point, but is list"),
    (lambda good: good[0], ValueError, r"must have shape \(batch, 1, num_samples\), but has \(1, 3000\)"),
    (lambda good: good.expand(1, 2, -1), ValueError, "must be mono"),
    (lambda good: good.expand(2, 1, -1), ValueError, "recording"),
    (lambda good: good[:0], ValueError, "is empty"),
    (lambda good: good * 1e30, ValueError, "is no audio"),
    (lambda good: good * 32768, ValueError, "divide 16-bit integers by 32768"),
]


def tokens_name(model) -> str:
    return "audio_codes" if model.kind == "codes" else "latents"


def time_of(model) -> int:
    return -1 if model.kind == "codes" else -2


def encoded(model, stream, parts) -> torch.Tensor:
    return torch.cat([*map(stream.encode, parts), stream.finish_encode()], dim=time_of(model))


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_bad_samples_raise_and_leave_the_recording_as_it_was(name, make_model, signal):
    model, recording = make_model(name), signal(1, 9000)
    parts = recording.split(3000, dim=-1)
    expected = encoded(model, model.encode_stream(), parts)
    stream = model.encode_stream()
    tokens = [stream.encode(parts[0])]
    for spoil, error, message in BAD_SAMPLES:
        with pytest.raises(error, match=message):
            stream.encode(spoil(parts[1]))
    tokens += [stream.encode(part) for part in parts[1:]]
    assert torch.equal(torch.cat([*tokens, stream.finish_encode()], dim=time_of(model)), expected)


@pytest.mark.parametrize("name", SPEAKING)
def test_bad_tokens_raise_and_leave_the_recording_as_it_was(name, make_model, signal):
    model = make_model(name)
    with torch.no_grad():
        tokens = model.encode(signal(1, 9000))[tokens_name(model)]
    time = time_of(model)
    first, second = tokens.narrow(time, 0, 2), tokens.narrow(time, 2, tokens.shape[time] - 2)
    stream = model.decode_stream()
    expected = torch.cat([stream.decode(first), stream.decode(second), stream.finish_decode()], dim=-1)
    bad = [(second.tolist(), TypeError, "but is list"), (second[0], ValueError, "must have shape")]
    if model.kind == "codes":
        bad += [
            (second - model.codebook_size, ValueError, "must lie between 0 and"),
            (second + model.codebook_size, ValueError, "must lie between 0 and"),
            (second.float(), TypeError, "must be integers"),
            (second.repeat(1, 50, 1), ValueError, "codebooks"),
        ]
    else:
        bad += [
            (second * torch.nan, ValueError, "`latents` has NaN or infinity"),
            (second.long(), TypeError, "tensor of floating point"),
            (second[..., :1], ValueError, "must have shape"),
        ]
    bad.append((second.expand(2, -1, -1), ValueError, "recording"))
    samples = [stream.decode(first)]
    for tokens, error, message in bad:
        with pytest.raises(error, match=message):
            stream.decode(tokens)
    samples = torch.cat([*samples, stream.decode(second), stream.finish_decode()], dim=-1)
    assert torch.equal(samples, expected)


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_a_stream_begins_anew_once_it_has_finished(name, make_model, signal):
    model, first, second = make_model(name), signal(1, 7001), signal(1, 5003, seed=1)
    stream = model.encode_stream()
    results = [encoded(model, stream, recording.split(999, dim=-1)) for recording in (first, second, first)]
    fresh = [encoded(model, model.encode_stream(), [recording]) for recording in (first, second)]
    for result, expected in zip(results, [*fresh, fresh[0]], strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SPEAKING)
def test_a_stream_decodes_one_recording_after_the_other(name, make_model, signal):
    model = make_model(name)
    with torch.no_grad():
        tokens = [model.encode(signal(1, count))[tokens_name(model)] for count in (7001, 5003)]
    stream = model.decode_stream()
    results = []
    for recording in (*tokens, tokens[0]):
        parts = recording.split(2, dim=time_of(model))
        results.append(torch.cat([*map(stream.decode, parts), stream.finish_decode()], dim=-1))
    assert torch.equal(results[0], results[2])
    fresh = model.decode_stream()
    expected = torch.cat([fresh.decode(tokens[1]), fresh.finish_decode()], dim=-1)
    torch.testing.assert_close(results[1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_a_recording_that_was_left_does_not_reach_the_next_after_reset(name, make_model, signal):
    model, recording = make_model(name), signal(1, 5003)
    stream = model.encode_stream()
    stream.encode(signal(1, 4321, seed=5))
    stream.reset()
    torch.testing.assert_close(
        encoded(model, stream, [recording]), encoded(model, model.encode_stream(), [recording]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_a_stream_without_a_frame_raises_and_begins_anew(name, make_model, signal):
    model, recording = make_model(name), signal(1, 5003)
    stream = model.encode_stream()
    for pushed in ([], [recording[..., :0]]):
        for part in pushed:
            assert stream.encode(part).shape[time_of(model)] == 0
        with pytest.raises(ValueError, match="stream is empty|has 0 samples"):
            stream.finish_encode()
    assert encoded(model, stream, [recording]).shape[time_of(model)] > 0


@pytest.mark.parametrize("name", ["rvq", "causal", "cst", "kmeans", "encodec"])
def test_a_buffer_that_the_caller_fills_again_changes_nothing(name, make_model, signal):
    model, recording = make_model(name), signal(1, 6000)
    stream, buffer, tokens = model.encode_stream(), torch.empty(1, 1, 500), []
    for part in recording.split(500, dim=-1):
        buffer.copy_(part)
        tokens.append(stream.encode(buffer))
    tokens = torch.cat([*tokens, stream.finish_encode()], dim=time_of(model))
    torch.testing.assert_close(tokens, encoded(model, model.encode_stream(), [recording]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["rvq", "causal", "cst", "kmeans", "dac"])
def test_chunks_of_one_sample_give_the_tokens_of_the_whole(name, make_model, signal):
    model, recording = make_model(name), signal(1, 777)
    tokens = encoded(model, model.encode_stream(), recording.split(1, dim=-1))
    torch.testing.assert_close(tokens, encoded(model, model.encode_stream(), [recording]), atol=1e-5, rtol=0)


def test_an_error_within_a_push_leaves_the_recording_as_it_was(make_model, signal, monkeypatch):
    model, recording = make_model("causal"), signal(1, 800)
    expected = encoded(model, model.encode_stream(), [recording])
    stream = model.encode_stream()
    tokens = [stream.encode(recording[..., :400])]
    real, calls = type(model).encode, []

    def fails_in_the_second_window(self, *args, **kwargs):
        calls.append(1)
        outputs = real(self, *args, **kwargs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return outputs

    stream.window = 5
    monkeypatch.setattr(type(model), "encode", fails_in_the_second_window)
    stream._states["encode"].window = 5
    with pytest.raises(KeyboardInterrupt):
        stream.encode(recording[..., 400:])
    tokens += [stream.encode(recording[..., 400:]), stream.finish_encode()]
    assert torch.equal(torch.cat(tokens, dim=-1), expected)


@pytest.mark.parametrize("name", ["rvq", "kmeans-vocoder", "dac"])
def test_both_directions_of_a_stream_are_apart(name, make_model, signal):
    model = make_model(name)
    recording = signal(1, 6400)
    with torch.no_grad():
        codes = model.encode(recording).audio_codes
    stream, alone = model.encode_stream(), model.decode_stream()
    stream.encode(recording)
    samples = torch.cat([stream.decode(codes), stream.finish_decode()], dim=-1)
    expected = torch.cat([alone.decode(codes), alone.finish_decode()], dim=-1)
    assert torch.equal(samples, expected)
    assert torch.equal(stream.finish_encode()[..., -1:], codes[..., -1:])


@pytest.mark.parametrize("name", ["rvq", "cst", "kmeans", "dc_spin", "dac"])
def test_a_model_in_training_mode_is_not_streamed(name, make_model):
    model = make_model(name)
    getattr(model, "model", model).train()
    with pytest.raises(ValueError, match="training mode"):
        model.encode_stream()


def test_chunks_of_a_unit_stream_are_checked_by_the_same_rule(make_model):
    stream = UnitStream(make_model("kmeans"))
    with pytest.raises(ValueError, match="`samples` has NaN or infinity"):
        stream.push(torch.tensor([0.0, torch.nan]))
    for wrong in (np.zeros(9, np.float32), [0.0] * 9):
        with pytest.raises(TypeError, match="`samples` must be a tensor"):
            stream.push(wrong)
    assert stream.flush().shape == (2, 0)


def test_a_codec_stream_needs_the_codes_that_it_is_asked_for(make_model):
    with pytest.raises(ValueError, match="has no codebooks"):
        CodecStream(make_model("cst"))
    for num_quantizers in (0, 1.5, True, 5):
        with pytest.raises(ValueError, match="`num_quantizers` must"):
            CodecStream(make_model("rvq"), num_quantizers)


NO_SECONDS = [float("nan"), float("inf"), -1, "2", None, True]


@pytest.mark.parametrize("value", [*NO_SECONDS, 0])
def test_a_window_lasts_a_number_of_seconds(value, make_model):
    for name, new in (
        ("rvq", lambda model: CodecStream(model, window_seconds=value)),
        ("cst", lambda model: LatentStream(model, window_seconds=value)),
        ("kmeans", lambda model: UnitStream(model, chunk_seconds=value)),
        ("kmeans", lambda model: WindowedEncoder(model, window_seconds=value)),
        ("kmeans", lambda model: WindowedUnitStream(model, decode_seconds=value)),
    ):
        with pytest.raises(ValueError, match="_seconds` must be a number of seconds above 0"):
            new(make_model(name))


@pytest.mark.parametrize("value", NO_SECONDS)
def test_a_context_lasts_a_number_of_seconds(value, make_model):
    model = make_model("kmeans")
    for new in (
        lambda: UnitStream(model, left_context_seconds=value),
        lambda: UnitStream(model, right_context_seconds=value),
        lambda: WindowedEncoder(model, context_seconds=value),
    ):
        with pytest.raises(ValueError, match="_seconds` must be a number of seconds, 0 or more"):
            new()


@pytest.mark.parametrize(
    ("stream", "names"),
    [
        (CodecStream, ("kmeans", "dc_spin-vocoder", "dac")),
        (LatentStream, ("kmeans", "vibevoice")),
        (UnitStream, ("rvq", "cst", "dac")),
        (WindowedUnitStream, ("rvq", "cst", "dac")),
        (WindowedEncoder, ("rvq", "cst", "dac")),
    ],
)
def test_a_stream_that_does_not_fit_the_model_is_not_built(stream, names, make_model):
    for name in names:
        with pytest.raises(TypeError, match=r"cannot be streamed by .*`encode_stream\(\)`"):
            stream(make_model(name))


def test_a_cache_of_another_recording_is_refused(make_model, signal):
    model, cache = make_model("causal"), StreamingCache()
    model.encode(signal(1, 80), padding_cache=cache)
    with pytest.raises(ValueError, match="the past of a batch of 1, but this chunk has 2"):
        model.encode(signal(2, 80), padding_cache=cache)
    model.encode(signal(1, 81), padding_cache=cache)
    with pytest.raises(ValueError, match="a stream that has ended"):
        model.encode(signal(1, 80), padding_cache=cache)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["rvq", "causal", "cst", "kmeans-vocoder", "dc_spin-vocoder", "dac", "mimi"])
def test_streams_serve_models_and_chunks_of_any_float_type(name, dtype, make_model, signal):
    model, recording = make_model(name).to(dtype), signal(1, 4000)
    types = (torch.float32, torch.float16, torch.float64, torch.bfloat16)
    parts = [part.to(kind) for part, kind in zip(recording.split(1000, dim=-1), types, strict=True)]
    tokens = encoded(model, model.encode_stream(), parts)
    with torch.no_grad():
        whole = model.encode(torch.cat([part.double() for part in parts], dim=-1))
    assert tokens.shape == whole[tokens_name(model)].shape
    stream = model.decode_stream()
    samples = torch.cat([stream.decode(tokens), stream.finish_decode()], dim=-1)
    assert samples.isfinite().all()
    with torch.no_grad():
        expected = model.decode(**{tokens_name(model): tokens}).audio_values
    assert samples.shape == expected.shape
