# SPDX-License-Identifier: Apache-2.0
"""All models refuse the same masks, samples, codes, latents and counts, and say which."""

import pytest
import torch
from transformers import HubertConfig

from helpers.tiny_codecs import ENCODER, OURS, THEIRS
from speech_tokenizers import (
    HubertForMaskedPrediction,
    HubertMaskedPredictionConfig,
    SpeechEncoderCTCConfig,
    SpeechEncoderForCTC,
)


ALL = (*OURS, *THEIRS)
SPEAKING = [name for name in ALL if name not in ("kmeans", "dc_spin")] + ["kmeans-vocoder", "dc_spin-vocoder"]
BAD_MASKS = {
    "twos": (lambda mask: mask.index_fill(0, torch.tensor(1), 2), ValueError, r"holds 2 in row 1"),
    "negative": (lambda mask: mask.index_fill(0, torch.tensor(1), -1), ValueError, r"holds -1 in row 1"),
    "halves": (lambda mask: mask.float().index_fill(0, torch.tensor(1), 0.5), ValueError, r"holds 0.5 in row 1"),
    "nan": (lambda mask: mask.float().index_fill(0, torch.tensor(0), torch.nan), ValueError, r"holds nan in row 0"),
    "zeros": (lambda mask: mask.index_fill(0, torch.tensor(1), 0), ValueError, r"has no 1 in row 1"),
    "hole": (lambda mask: mask.index_fill(1, torch.tensor(1), 0), ValueError, r"has 2 runs of ones in row 0"),
    "shape": (lambda mask: mask[:, 1:], ValueError, r"must have shape \(2, "),
    "one row": (lambda mask: mask[0], ValueError, r"must have shape \(2, "),
    "list": (lambda mask: mask.tolist(), TypeError, r"must be a tensor, but is list; `torch.as_tensor`"),
    "complex": (lambda mask: mask + 1j, TypeError, "must hold real numbers, 1 and 0, but is torch.complex64"),
    "numpy": (lambda mask: mask.numpy(), TypeError, r"must be a tensor, but is ndarray; `torch.as_tensor`"),
}


@pytest.mark.parametrize("bad", BAD_MASKS)
@pytest.mark.parametrize("name", ALL)
def test_a_malformed_mask_of_samples_is_refused(name, bad, make_model, signal):
    spoil, error, message = BAD_MASKS[bad]
    with pytest.raises(error, match="`padding_mask` " + message):
        make_model(name).encode(signal(2, 4000), spoil(torch.ones(2, 4000, dtype=torch.long)))


@pytest.mark.parametrize("bad", BAD_MASKS)
@pytest.mark.parametrize("name", SPEAKING)
@torch.no_grad()
def test_a_malformed_mask_of_frames_is_refused(name, bad, make_model, signal):
    model, (spoil, error, message) = make_model(name), BAD_MASKS[bad]
    encoded = model.encode(signal(2, 8000))
    tokens = "audio_codes" if model.kind == "codes" else "latents"
    with pytest.raises(error, match="`audio_codes_mask` " + message):
        model.decode(**{tokens: encoded[tokens]}, audio_codes_mask=spoil(encoded.audio_codes_mask))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_a_mask_of_any_type_says_the_same(name, dtype, make_model, signal):
    model, mask = make_model(name), torch.ones(2, 4000, dtype=torch.long)
    mask[1, 2500:] = 0
    tokens = "audio_codes" if model.kind == "codes" else "latents"
    expected, encoded = (model.encode(signal(2, 4000), each)[tokens] for each in (mask, mask.to(dtype)))
    assert torch.equal(encoded, expected)


@pytest.mark.parametrize("name", [name for name in (*OURS, *THEIRS) if name not in ("kmeans", "dc_spin")])
@torch.no_grad()
def test_padding_on_the_left_gives_the_tokens_of_the_row_alone(name, make_model, signal):
    model, waveforms, mask = make_model(name), signal(2, 9000), torch.ones(2, 9000)
    mask[1, :4000] = 0
    encoded = model.encode(waveforms * mask[:, None], mask)
    tokens = "audio_codes" if model.kind == "codes" else "latents"
    alone = model.encode(waveforms[1:, :, 4000:])[tokens][0]
    real = encoded.audio_codes_mask[1].bool()
    assert real[-1]
    assert not real[0]
    row = encoded[tokens][1][..., real] if model.kind == "codes" else encoded[tokens][1][real]
    torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["kmeans", "dc_spin"])
def test_units_are_padded_on_the_right(name, make_model, signal):
    mask = torch.ones(2, 4000)
    mask[1, :1000] = 0
    with pytest.raises(ValueError, match="row 1 begins with 0: pad on the right"):
        make_model(name).encode(signal(2, 4000), mask)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda good: good.tolist(), TypeError, "tensor of floating point, but is list; `torch.as_tensor`"),
        (lambda good: good.numpy(), TypeError, "tensor of floating point, but is ndarray"),
        (lambda good: None, TypeError, "but is NoneType"),
        (lambda good: (good * 9).long(), TypeError, "but is torch.int64; divide integers"),
        (lambda good: good > 0, TypeError, "but is torch.bool"),
        (lambda good: good + 0j, TypeError, "but is torch.complex64; give its real part"),
        (lambda good: good.masked_fill(good == good[1].max(), torch.nan), ValueError, "NaN or infinity in row 1"),
        (lambda good: good.masked_fill(good == good[0].max(), torch.inf), ValueError, "NaN or infinity in row 0"),
        (lambda good: good * 1e30, ValueError, "which is no audio"),
        (lambda good: good * 32768, ValueError, "divide 16-bit integers by 32768"),
        (lambda good: good[0, 0], ValueError, "must be mono"),
        (lambda good: good.expand(2, 2, -1), ValueError, "average the channels"),
        (lambda good: good[..., :0], ValueError, "is empty"),
        (lambda good: good[:0], ValueError, "is empty"),
        (lambda good: good.to_sparse(), TypeError, "is torch.sparse_coo; `to_dense`"),
        (lambda good: good.to("meta"), TypeError, "is on the device `meta`"),
        (lambda good: torch.nested.nested_tensor([*good]), TypeError, "is nested; pad it"),
    ],
)
@pytest.mark.parametrize("name", ["rvq", "causal", "cst", "kmeans", "dc_spin", "dac", "vibevoice"])
def test_what_is_no_waveform_is_refused(name, spoil, error, message, make_model, signal):
    with pytest.raises(error, match=message):
        make_model(name).encode(spoil(signal(2, 4000)))


@pytest.mark.parametrize("name", [name for name in SPEAKING if name not in ("cst", "vibevoice")])
@torch.no_grad()
def test_what_are_no_codes_is_refused(name, make_model, signal):
    model = make_model(name)
    codes = model.encode(signal(2, 4000)).audio_codes
    for call in (model.decode, model.dequantize) if name != "xcodec" else (model.decode,):
        for wrong, error, message in (
            (codes.index_fill(0, torch.tensor(1), -1), ValueError, "must lie between 0 and .*, but row 1 holds -1"),
            (codes + model.codebook_size, ValueError, "must lie between 0 and .*, but row 0 holds"),
            (codes.float(), TypeError, "must be integers, but is torch.float32"),
            (codes > 0, TypeError, "must be integers, but is torch.bool"),
            (codes.tolist(), TypeError, "but is list"),
            (codes.numpy(), TypeError, "but is ndarray"),
            (codes[0], ValueError, "must have shape"),
            (codes[..., :0], ValueError, "is empty"),
            (codes.repeat(1, 50, 1), ValueError, "codebooks"),
        ):
            with pytest.raises(error, match=message):
                call(wrong)


@pytest.mark.parametrize("name", ["rvq", "causal", "dm", "cst", "vibevoice"])
@torch.no_grad()
def test_what_are_no_latents_is_refused(name, make_model, signal):
    model = make_model(name)
    latents = model.encode(signal(2, 4000)).latents
    for wrong, error, message in (
        (latents.index_fill(0, torch.tensor(1), torch.nan), ValueError, "`latents` has NaN or infinity in row 1"),
        (latents + torch.inf, ValueError, "NaN or infinity in row 0"),
        (latents.long(), TypeError, "tensor of floating point, but is torch.int64"),
        (latents.tolist(), TypeError, "but is list"),
        (latents.numpy(), TypeError, "but is ndarray"),
        (latents[0], ValueError, "must have shape"),
        (latents[..., :1], ValueError, "must have shape"),
        (latents[:, :0], ValueError, "is empty"),
    ):
        with pytest.raises(error, match=message):
            model.decode(latents=wrong)


@pytest.mark.parametrize("name", [name for name in SPEAKING if name not in ("cst", "vibevoice")])
@torch.no_grad()
def test_what_stands_where_a_mask_is_0_does_not_matter(name, make_model, signal):
    model = make_model(name)
    encoded = model.encode(signal(2, 9000))
    mask = encoded.audio_codes_mask.clone()
    mask[1, mask.shape[1] // 2 :] = 0
    results = []
    for filler in (0, -100, 10**6):
        codes = torch.where(mask[:, None] > 0, encoded.audio_codes, filler)
        results.append(model.decode(codes, audio_codes_mask=mask).audio_values)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("number", [0, -1, 1.5, True, 99, "2", [1]])
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("cst", "vibevoice", "xcodec")])
def test_a_number_of_codebooks_is_a_whole_number_that_the_model_has(name, number, make_model, signal):
    model, waveforms = make_model(name), signal(1, 4000)
    calls = [
        lambda: model.encode_stream(num_quantizers=number),
        lambda: model.encode_features({"input_values": waveforms}, number),
    ]
    if name not in ("kmeans", "dc_spin"):
        calls.append(lambda: model.encode(waveforms, num_quantizers=number))
    for call in calls:
        with pytest.raises(ValueError, match="`num_quantizers` must"):
            call()


@pytest.mark.parametrize("number", [0, -5, 10, 3200.7, True, "9", [4000, 4000], 10**9, torch.tensor([1, 2, 3])])
@pytest.mark.parametrize("name", SPEAKING)
@torch.no_grad()
def test_a_length_is_a_whole_number_that_fits(name, number, make_model, signal):
    model = make_model(name)
    encoded = model.encode(signal(2, 4000))
    tokens = "audio_codes" if model.kind == "codes" else "latents"
    with pytest.raises(ValueError, match="`num_samples` must"):
        model.decode(**{tokens: encoded[tokens]}, num_samples=number)


@pytest.mark.parametrize("name", SPEAKING)
def test_nothing_to_decode_is_refused(name, make_model):
    with pytest.raises((ValueError, TypeError), match="audio_codes|latents"):
        make_model(name).decode()


def test_weights_that_give_no_numbers_give_no_tokens(make_model, signal):
    for name in ("rvq", "cst", "kmeans", "dc_spin"):
        model = make_model(name)
        for parameter in model.encoder.parameters():
            parameter.data.fill_(torch.nan)
        with pytest.raises(ValueError, match="The encoder gives NaN or infinity in row 0"):
            model.encode(signal(1, 4000))


@pytest.mark.parametrize(
    "durations", [torch.full((2, 5), 1.5), torch.tensor([[1] * 5, [0] * 5]), -torch.ones(2, 5).long(), [[1] * 5] * 2]
)
def test_durations_are_whole_numbers_and_each_row_has_a_frame(durations, make_model):
    vocoder = make_model("kmeans-vocoder").vocoder
    with pytest.raises((ValueError, TypeError), match="`durations`"):
        vocoder.decode(torch.zeros(2, 2, 5, dtype=torch.long), durations=durations)


@pytest.mark.parametrize("bad", BAD_MASKS)
def test_models_on_an_encoder_refuse_the_same_masks(bad, signal):
    spoil, error, message = BAD_MASKS[bad]
    mask = spoil(torch.ones(2, 4000, dtype=torch.long))
    recogniser = SpeechEncoderForCTC(SpeechEncoderCTCConfig(encoder_config=HubertConfig(**ENCODER), vocab_size=5))
    config = HubertMaskedPredictionConfig(**ENCODER, label_vocab_size=7, final_dim=8)
    for model in (recogniser.eval(), HubertForMaskedPrediction(config).eval()):
        if model is recogniser and bad == "shape":
            continue  # Whisper's extractor may mask samples where the encoder takes a spectrogram
        with pytest.raises(error, match="`attention_mask` " + message):
            model(signal(2, 4000)[:, 0], attention_mask=mask)
