# SPDX-License-Identifier: Apache-2.0
"""What a configuration derives, keeps and refuses."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from speech_tokenizers.modeling.configuration_rvq_codec import RVQ_CODEC_PRESETS, RVQCodecConfig
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel


def test_derived_values():
    config = RVQCodecConfig()
    assert config.hop_length == 320
    assert config.frame_rate == 50.0
    assert config.bits_per_second == 4000.0
    assert config.n_fft == 1280
    assert config.codebook_dim == config.hidden_size


def test_the_frame_rate_is_not_rounded():
    config = RVQCodecConfig(sampling_rate=22050, codebook_size=1000, num_quantizers=3)
    assert config.frame_rate == pytest.approx(68.90625)
    assert config.bits_per_second == pytest.approx(68.90625 * 3 * 9.965784284662087)


@pytest.mark.parametrize("name", RVQ_CODEC_PRESETS)
def test_presets_survive_a_file(name, tmp_path):
    config = RVQCodecConfig.from_preset(name)
    config.save_pretrained(tmp_path)
    loaded = RVQCodecConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.downsampling_ratios == list(config.downsampling_ratios)
    assert config.sampling_rate == 16000
    assert config.frame_rate == 50.0
    assert config.bits_per_second <= 4000


@pytest.mark.parametrize("has_field", [True, False])
def test_another_encoder_window_for_a_checkpoint_leaves_the_decoder_s(tmp_path, has_field):
    RVQCodecConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    if not has_field:  # as before it existed
        del saved["decoder_n_fft"]
        path.write_text(json.dumps(saved))
    config = RVQCodecConfig.from_pretrained(tmp_path, n_fft=640)
    assert (config.n_fft, config.decoder_n_fft) == (640, 1280)


@pytest.mark.parametrize("name", RVQ_CODEC_PRESETS)
def test_presets_build_a_codec(name):
    small = {"num_filters": 4, "hidden_size": 8, "codebook_size": 8}
    model = RVQCodecModel(RVQCodecConfig.from_preset(name, **small, encoder_hidden_size=8, decoder_hidden_size=8))
    assert model.config.hidden_size == 8
    assert model.hop_length == 320


def test_preset_overrides_are_fields():
    assert RVQCodecConfig.from_preset("fast-16khz", num_quantizers=4).bits_per_second == 2000
    with pytest.raises(ValueError, match=r"names no field of RVQCodecConfig: \['num_quantisers'\]"):
        RVQCodecConfig.from_preset("fast-16khz", num_quantisers=4)
    with pytest.raises(ValueError, match="`name` must be one of .*'fast-16khz'.*, but got 'quick'"):
        RVQCodecConfig.from_preset("quick")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_type": "conv"}, r"`encoder_type` must be one of .*'seanet'.*, but got 'conv'"),
        ({"decoder_type": "stft"}, r"`decoder_type` must be one of .*'istft'.*, but got 'stft'"),
        ({"activation": "relu"}, r"`activation` must be one of"),
        ({"pad_mode": "zeros"}, r"`pad_mode` must be one of"),
        ({"encoder_lstm": "both"}, r"`encoder_lstm` must be one of"),
        ({"decoder_lstm": True}, r"decoder_lstm"),
        ({"causal": True, "encoder_lstm": "bidirectional"}, r"`causal=True` contradicts a bidirectional LSTM"),
        ({"causal": True, "decoder_lstm": "bidirectional"}, r"`causal=True` contradicts a bidirectional LSTM"),
        ({"num_filters": 5, "compress": 2}, r"`num_filters` \(5\) must be a multiple of `compress` \(2\)"),
        ({"downsampling_ratios": ()}, r"`downsampling_ratios` must be positive strides"),
        ({"downsampling_ratios": (2, 0)}, r"`downsampling_ratios` must be positive strides"),
        ({"num_quantizers": 0}, r"`num_quantizers` must be at least 1, but got 0"),
        ({"codebook_size": 1}, r"`codebook_size` must be at least 2, but got 1"),
        ({"codebook_dim": 0}, r"`codebook_dim` must be at least 1"),
        ({"hidden_size": -3}, r"`hidden_size` must be at least 1"),
        ({"n_fft": 500}, r"`n_fft` \(500\) must be a multiple of `hop_length` \(320\)"),
        ({"downsampling_ratios": (3, 5), "n_fft": 30}, r"by an even number of samples"),
        ({"decoder_type": "istft", "decoder_spectra": 3}, r"`decoder_spectra` \(3\) must be at least 1 and divide"),
        (
            {"decoder_type": "istft", "decoder_spectra": 2, "decoder_n_fft": 400},
            r"`decoder_n_fft` \(400\) must be a multiple of `hop_length / decoder_spectra` \(160\)",
        ),
        (
            {"decoder_type": "istft", "decoder_spectra": 64, "decoder_n_fft": 20},
            r"`decoder_n_fft` \(20\) must exceed `hop_length / decoder_spectra` \(5\) by an even number",
        ),
        ({"quantizer_dropout": 1.5}, r"`quantizer_dropout` must lie between 0 and 1"),
        ({"dead_code_threshold": -0.1}, r"`dead_code_threshold` must lie between 0 and 1"),
        ({"trim_right_ratio": 2.0}, r"`trim_right_ratio` must lie between 0 and 1"),
        ({"ema_decay": 1.0}, r"`ema_decay` must lie strictly between 0 and 1"),
        ({"mel_loss_weight": -1.0}, r"`mel_loss_weight` must not be negative"),
        ({"kmeans_iterations": -1}, r"`kmeans_iterations` must not be negative"),
        ({"sampling_rate": 16000.0}, r"sampling_rate"),
        ({"num_filters": "32"}, r"num_filters"),
        ({"downsampling_ratios": 320}, r"downsampling_ratios"),
    ],
)
def test_contradictions_are_refused(fields, message):
    # What `@strict` makes of the `ValueError` of `validate_architecture` and of the `TypeError` of its own checks.
    with pytest.raises(StrictDataclassError, match=message):
        RVQCodecConfig(**fields)


def test_a_field_is_checked_when_it_is_changed_too():
    config = RVQCodecConfig()
    with pytest.raises(StrictDataclassError, match="num_quantizers"):
        config.num_quantizers = "many"
