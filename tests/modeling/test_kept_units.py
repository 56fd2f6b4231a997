# SPDX-License-Identifier: Apache-2.0
"""K-means units of frames with directions appended, and those with a codebook of directions beside them."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.modeling.codec_interface import codebook_sizes
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.modeling.padding_invariance import frame_mask


FORMS = [
    {"kept_dims": 3},
    {"kept_dims": 3, "layers": [1, 2], "num_stages": 2, "normalization": "layer_norm"},
    {"kept_dims": 3, "kept_codebook_size": 4},
    {"kept_dims": 3, "kept_codebook_size": 4, "layers": [1, 2], "num_stages": 2},
    {"kept_dims": 3, "f0_bins": 8},
    {"kept_dims": 3, "kept_codebook_size": 4, "f0_bins": 6, "f0_stride": 2},
]
LENGTHS = torch.tensor([9000, 5005, 7400, 400])


def make(signal, **fields) -> KMeansUnitsModel:
    """Units of a tiny HuBERT, with random directions, whose centroids are some of their frames."""
    fields = {"layers": [2], "codebook_size": 12, **fields}
    config = KMeansUnitsConfig(encoder_config=tiny_hubert(conv_dim=[8] * 7), **fields)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = KMeansUnitsModel(config).eval()
        if config.kept_dims:
            streams, hidden, kept = config.num_streams, config.hidden_size, config.kept_dims
            base = {}
            if not config.kept_codebook_size:
                base = {"base_scale": torch.rand(streams) + 0.5, "base_offset": torch.randn(streams, hidden)}
            model.set_weighting(torch.randn(streams, hidden, kept), torch.randn(streams, kept), **base)
        frames = model.features(signal(4, 16000, seed=3))[0].transpose(1, 2).flatten(0, 1)  # (N, S, D)
        chosen = frames[torch.randperm(len(frames))[: config.codebook_size]]
        dim = model.centroids.shape[-1]
        tables = [
            chosen[:, s, :dim] * 0.2**stage for s in range(frames.shape[1]) for stage in range(config.num_stages)
        ]
        model.set_centroids(torch.stack(tables))
        if config.kept_codebook_size:
            model.set_kept_centroids(chosen[: config.kept_codebook_size, :, config.hidden_size :].flatten(1))
    return model


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_units_of_a_padded_batch_are_those_of_each_recording_alone(signal, fields):
    model = make(signal, **fields)
    waveforms = signal(len(LENGTHS), int(LENGTHS.max()))
    mask = frame_mask(LENGTHS, waveforms.shape[-1])
    batch = model.encode(waveforms * mask[:, None], mask.long())
    assert batch.audio_codes.shape[1] == model.num_quantizers == len(codebook_sizes(model))
    frame_dim = model.config.num_streams * (model.config.hidden_size + 3) + 2 * model.config.num_f0_rows
    assert batch.latents.shape[2] == model.latent_dim == frame_dim
    vectors = model.codebook_vectors()
    assert vectors.shape[:2] == (model.num_quantizers, model.codebook_size)
    if model.config.num_stages == model.config.num_streams == 1:  # what the codes add up to is what they stand for
        summed = sum(table[codes] for table, codes in zip(vectors, batch.audio_codes[0], strict=True))
        torch.testing.assert_close(summed, model.dequantize(batch.audio_codes)[0])
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model.encode(waveforms[row : row + 1, :, :length])
        num_frames = alone.audio_codes.shape[2]
        assert torch.equal(batch.audio_codes[row, :, :num_frames], alone.audio_codes[0])
        assert not batch.audio_codes[row, :, num_frames:].any()
        assert not batch.latents[row, num_frames:].any()
        torch.testing.assert_close(batch.latents[row, :num_frames], alone.latents[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_saved_and_loaded_units_are_the_same(signal, tmp_path, fields):
    model = make(signal, **fields)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, KMeansUnitsModel)
    waveforms = signal(2, 8000)
    expected, found = model.encode(waveforms), loaded.encode(waveforms)
    assert torch.equal(found.audio_codes, expected.audio_codes)
    assert torch.equal(found.latents, expected.latents)
    assert loaded.fingerprint() == model.fingerprint()
    assert loaded.encoder_fingerprint() == model.encoder_fingerprint()


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_streamed_units_are_those_of_the_whole(signal, fields):
    model = make(signal, **fields)
    waveforms = signal(1, 9000)
    stream = model.encode_stream()
    parts = [stream.encode(part) for part in waveforms.split(1234, dim=-1)]
    assert torch.equal(torch.cat([*parts, stream.finish_encode()], dim=-1), model.encode(waveforms).audio_codes)


@pytest.mark.parametrize("fields", FORMS[:4], ids=str)
def test_a_code_is_the_nearest_centroid(signal, fields):
    model = make(signal, **{**fields, "num_stages": 1})
    config, outputs = model.config, model.encode(signal(2, 8000))
    frames = outputs.latents.unflatten(2, (config.num_streams, -1))
    dim = model.centroids.shape[-1]
    for stream, table in enumerate(model.centroids):
        codes = torch.cdist(frames[:, :, stream, :dim].double(), table.double()).argmin(-1)
        assert torch.equal(outputs.audio_codes[:, stream], codes)
    if config.kept_codebook_size:
        kept = frames[..., config.hidden_size :].flatten(2)
        codes = torch.cdist(kept.double(), model.quantizer.kept_centroids.double()).argmin(-1)
        assert torch.equal(outputs.audio_codes[:, -1], codes)
        assert len(codes.unique()) > 1


@pytest.mark.parametrize("fields", FORMS[::2], ids=str)
def test_the_vectors_of_codes_sum_to_what_they_stand_for(signal, fields):
    model = make(signal, **fields)
    codes = model.encode(signal(2, 8000)).audio_codes
    vectors = model.codebook_vectors()
    assert vectors.shape == (model.num_quantizers, model.codebook_size, model.latent_dim)
    summed = sum(stage[code] for stage, code in zip(vectors, codes.unbind(1), strict=True))
    assert torch.equal(summed, model.dequantize(codes))
    assert summed.std() > 0


def test_vectors_of_several_streams_and_stages_sum_up_too(signal):
    model = make(signal, **FORMS[3])
    codes = model.encode(signal(2, 8000)).audio_codes
    summed = sum(stage[code] for stage, code in zip(model.codebook_vectors(), codes.unbind(1), strict=True))
    torch.testing.assert_close(summed, model.dequantize(codes))


def test_a_codebook_beside_changes_no_plain_code(signal):
    waveforms = signal(3, 9000)
    for fields in ({}, {"layers": [1, 2], "num_stages": 2}):
        plain, beside = make(signal, **fields), make(signal, kept_dims=3, kept_codebook_size=4, **fields)
        beside.set_centroids(plain.centroids)
        expected, found = plain.encode(waveforms), beside.encode(waveforms)
        assert torch.equal(found.audio_codes[:, :-1], expected.audio_codes)
        hidden = plain.config.hidden_size
        own = found.latents.unflatten(2, (plain.config.num_streams, -1))[..., :hidden].flatten(2)
        assert torch.equal(own, expected.latents)


def test_plain_units_have_no_tensor_more_than_before(signal):
    names = {name for name in make(signal).state_dict() if not name.startswith("encoder.")}
    assert names == {"quantizer.centroids", "quantizer.features_mean", "quantizer.features_std"}


def test_what_is_appended_decides_the_unit(signal):
    model, waveforms = make(signal, kept_dims=3), signal(1, 9000)
    codes = model.encode(waveforms).audio_codes
    quantizer = model.quantizer
    model.set_weighting(
        quantizer.kept_matrix * 100, quantizer.kept_offset, quantizer.base_scale, quantizer.base_offset
    )
    assert not torch.equal(model.encode(waveforms).audio_codes, codes)


def test_runs_are_merged_where_all_codebooks_stay(signal):
    model, waveforms = make(signal, **FORMS[2]), signal(1, 16000)
    frames, merged = model.encode(waveforms), model.encode(waveforms, deduplicate=True)
    expanded = merged.audio_codes[0].repeat_interleave(merged.durations[0], dim=1)
    assert torch.equal(expanded, frames.audio_codes[0])


def test_the_bit_rate_counts_each_codebook_by_its_size(signal):
    assert make(signal, kept_dims=3, codebook_size=16).bits_per_second == 50 * 4
    beside = make(signal, kept_dims=3, codebook_size=16, kept_codebook_size=4, layers=[1, 2])
    assert beside.bits_per_second == pytest.approx(50 * (4 + 4 + 2))
    assert codebook_sizes(beside) == (16, 16, 4)
    assert codebook_sizes(make(signal)) == (12,)


def test_a_vocoder_speaks_both_codebooks(signal):
    model = make(signal, **FORMS[2])
    sizes = {"num_quantizers": 2, "codebook_size": 12, "hop_length": 320}
    vocoder = UnitVocoderModel(
        UnitVocoderConfig(hidden_size=8, decoder_hidden_size=16, decoder_num_layers=1, **sizes)
    ).eval()
    model.attach_vocoder(vocoder)
    codes = model.encode(signal(1, 8000)).audio_codes
    spoken = model.decode(codes).audio_values
    codes[:, 1] = (codes[:, 1] + 1) % 4
    assert not torch.equal(model.decode(codes).audio_values, spoken)


def test_the_kept_codebook_tells_fingerprints_apart(signal):
    model = make(signal, **FORMS[2])
    before = model.fingerprint()
    model.set_kept_centroids(model.quantizer.kept_centroids + 1)
    assert model.fingerprint() != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kept_dims": -1}, "must not be negative"),
        ({"kept_codebook_size": 4}, "`kept_dims` is 0"),
        ({"kept_dims": 2, "kept_codebook_size": 1}, "between 2 and `codebook_size`, 100, but is 1"),
        ({"kept_dims": 2, "kept_codebook_size": 101}, "between 2 and `codebook_size`, 100, but is 101"),
    ],
)
def test_contradictory_configurations_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        KMeansUnitsConfig(**fields)


def test_what_does_not_fit_the_model_is_refused(signal):
    appended, beside, plain = make(signal, **FORMS[0]), make(signal, **FORMS[2]), make(signal)
    quantizer = appended.quantizer
    with pytest.raises(ValueError, match="keeps no directions"):
        plain.set_weighting(quantizer.kept_matrix, quantizer.kept_offset)
    with pytest.raises(ValueError, match="both needed"):
        appended.set_weighting(quantizer.kept_matrix, quantizer.kept_offset)
    with pytest.raises(ValueError, match="both needed"):
        beside.set_weighting(quantizer.kept_matrix, quantizer.kept_offset, quantizer.base_scale, quantizer.base_offset)
    with pytest.raises(ValueError, match=r"`matrix` must be finite, of shape \(1, 16, 3\)"):
        beside.set_weighting(quantizer.kept_matrix[:, :5], quantizer.kept_offset)
    with pytest.raises(ValueError, match="`offset` must be finite"):
        beside.set_weighting(quantizer.kept_matrix, quantizer.kept_offset * torch.nan)
    with pytest.raises(ValueError, match="no codebook of what is kept"):
        appended.set_kept_centroids(beside.quantizer.kept_centroids)
    with pytest.raises(ValueError, match="The last codebook has 4 codes, but `audio_codes` holds 5"):
        beside.dequantize(torch.tensor([[[0, 1], [3, 5]]]))
    beside.quantizer.kept_centroids.zero_()
    with pytest.raises(ValueError, match="no centroids yet"):
        beside.encode(signal(1, 8000))
