# SPDX-License-Identifier: Apache-2.0
"""A model of other sizes starts from what a trained one has learnt, and says what came from where."""

import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
from speech_tokenizers.training.codec.codec_building import build_model
from speech_tokenizers.training.codec.codec_recipe import train_from_recipe
from speech_tokenizers.training.codec.warm_start import warm_start


HOP = 160
SIZES = {
    "encoder_type": "stft",
    "decoder_type": "istft",
    "downsampling_ratios": (4, 5, 8),
    "hidden_size": 8,
    "encoder_hidden_size": 16,
    "decoder_hidden_size": 12,
    "encoder_num_layers": 1,
    "decoder_num_layers": 2,
    "num_quantizers": 2,
    "codebook_size": 8,
    "n_fft": 2 * HOP,
    "use_weight_norm": False,
    "decoder_spectra": 1,
    "decoder_complex_residual": False,
}


def new_codec(**changes) -> RVQCodecModel:
    return RVQCodecModel(RVQCodecConfig(**{**SIZES, **changes})).eval()


@pytest.fixture
def trained(tmp_path):
    """A codec and the folder that it is saved in."""
    torch.manual_seed(0)
    codec = new_codec()
    codec.save_pretrained(tmp_path / "trained")
    return codec, str(tmp_path / "trained")


def let_it_hum(codec: RVQCodecModel, cycles_per_hop: int) -> torch.Tensor:
    """Let the head always say one sinusoid, whose period divides a hop; gives that signal, (num_samples,)."""
    head, inverse = codec.decoder.layers[-2:]
    time = torch.arange(inverse.n_fft) - inverse.trim_left
    tone = 0.3 * torch.cos(2 * math.pi * cycles_per_hop * time / HOP + 0.7)
    spectrum = torch.fft.rfft(tone * inverse.window)
    with torch.no_grad():
        head.conv.weight.zero_()
        head.conv.bias.copy_(torch.cat([spectrum.abs().clamp(min=1e-6).log(), spectrum.angle()]))
    return 0.3 * torch.cos(2 * math.pi * cycles_per_hop * torch.arange(10 * HOP) / HOP + 0.7)


@pytest.mark.parametrize("spectra", [2, 4])
def test_a_finer_head_begins_in_phase_with_the_old_one(tmp_path, spectra):
    old = new_codec()
    tone = let_it_hum(old, 7)
    old.save_pretrained(tmp_path)
    latents = torch.randn(1, 10, 8)
    middle = slice(2 * HOP, -2 * HOP)  # windows at either end overlap with fewer others
    torch.testing.assert_close(old.decode(latents=latents).audio_values[0, 0, middle], tone[middle])

    new = new_codec(decoder_spectra=spectra, decoder_complex_residual=True)
    warm_start(str(tmp_path), new)
    decoded = new.decode(latents=latents).audio_values[0, 0, middle]
    assert torch.corrcoef(torch.stack([decoded, tone[middle]]))[0, 1] > 0.97
    assert float(decoded.detach().std() / tone[middle].std()) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("changes", [{"decoder_n_fft": 4 * HOP}, {"decoder_n_fft": HOP, "decoder_spectra": 2}])
def test_another_window_keeps_frequency_phase_and_level(tmp_path, changes):
    old = new_codec()
    tone = let_it_hum(old, 12)[2 * HOP : -2 * HOP]
    old.save_pretrained(tmp_path)
    new = new_codec(**changes)
    warm_start(str(tmp_path), new)
    decoded = new.decode(latents=torch.randn(1, 10, 8)).audio_values[0, 0, 2 * HOP : -2 * HOP]
    assert torch.corrcoef(torch.stack([decoded, tone]))[0, 1] > 0.95
    assert float(decoded.detach().std() / tone.std()) == pytest.approx(1, rel=0.4)


def test_a_head_of_equal_size_and_other_meaning_is_converted(tmp_path):
    old = new_codec(decoder_spectra=2)
    old.save_pretrained(tmp_path)
    new = new_codec(decoder_spectra=1, decoder_complex_residual=True)
    assert new.decoder.layers[-2].conv.weight.shape == old.decoder.layers[-2].conv.weight.shape
    origins = warm_start(str(tmp_path), new)
    assert origins["decoder.layers.5"] == "converted from 2 spectra of 320 samples a frame, the residual begins at 0"
    assert not new.decoder.layers[-2].conv.bias[2 * (HOP + 1) :].any()


def test_a_finer_head_of_finer_heads_and_with_weight_norm_keeps_the_signal(tmp_path):
    torch.manual_seed(1)
    old = new_codec(decoder_spectra=2, use_weight_norm=True)
    old.save_pretrained(tmp_path)
    new = new_codec(decoder_spectra=2, use_weight_norm=True, decoder_complex_residual=True)
    warm_start(str(tmp_path), new)
    latents = torch.randn(1, 6, 8)
    torch.testing.assert_close(new.decode(latents=latents).audio_values, old.decode(latents=latents).audio_values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"causal": True}, "`model.warm_start` keeps `causal`"),
        ({"sampling_rate": 24000}, "`model.warm_start` keeps `sampling_rate`"),
        ({"downsampling_ratios": (4, 5, 4), "decoder_n_fft": 320}, "a warm start keeps their length"),
    ],
)
def test_another_rate_or_look_ahead_is_refused(trained, changes, message):
    with pytest.raises(ValueError, match=message):
        warm_start(trained[1], new_codec(**changes))


def test_a_residual_that_is_dropped_is_told(tmp_path):
    new_codec(decoder_complex_residual=True).save_pretrained(tmp_path)
    assert any("the residual is dropped" in origin for origin in warm_start(str(tmp_path), new_codec()).values())


def test_codebooks_of_other_latents_start_anew(trained):
    old, folder = trained
    for quantizer in old.quantizer.quantizers:
        quantizer.initialized.fill_(True)
    old.save_pretrained(folder)
    kept, changed = new_codec(encoder_num_layers=2), new_codec(n_fft=4 * HOP, decoder_n_fft=2 * HOP)
    warm_start(folder, kept)
    origins = warm_start(folder, changed)
    assert all(quantizer.initialized for quantizer in kept.quantizer.quantizers)
    assert not any(quantizer.initialized for quantizer in changed.quantizer.quantizers)
    assert origins["quantizer.quantizers.1.codebook"] == "new, fitted when training starts"


def test_added_blocks_change_nothing_at_first(trained):
    old, folder = trained
    new = new_codec(decoder_num_layers=4, encoder_num_layers=3)
    origins = warm_start(folder, new)
    waveform = 0.1 * torch.randn(1, 1, 2000)
    before, after = old(waveform), new(waveform)
    torch.testing.assert_close(after.latents, before.latents)
    torch.testing.assert_close(after.audio_values, before.audio_values)
    assert origins["decoder.layers.4"] == origins["encoder.layers.4"] == "new block, begins as the identity"
    assert origins["decoder.layers.3"] == "taken over"
    with pytest.raises(ValueError, match="`decoder` has 1 blocks fewer than before"):
        warm_start(folder, new_codec(decoder_num_layers=1))


def test_every_part_says_where_it_comes_from(trained):
    old, folder = trained
    new = new_codec(decoder_spectra=2, decoder_complex_residual=True, codebook_size=16)
    origins = warm_start(folder, new)
    assert origins["encoder.layers.1"] == "taken over"
    assert origins["decoder.layers.5"] == "converted from 1 spectra of 320 samples a frame, the residual begins at 0"
    assert origins["quantizer.quantizers.0.codebook"] == "new, fitted when training starts"
    assert origins["quantizer.num_updates"] == "taken over"
    torch.testing.assert_close(new.encoder.state_dict(), old.encoder.state_dict(), rtol=0, atol=0)


def test_a_model_of_another_kind_is_refused(trained):
    seanet = RVQCodecModel(RVQCodecConfig(num_filters=4, hidden_size=6, num_quantizers=2, codebook_size=4))
    with pytest.raises(ValueError, match="Nothing of .* fits the new model"):
        warm_start(trained[1], seanet)


def test_a_recipe_starts_warm_and_keeps_the_origins(trained, recipe_file, tmp_path):
    start = ["model.preset=null", f"model.pretrained={trained[1]}", "model.warm_start=true"]
    start += ["model.overrides=null", "model.overrides.decoder_spectra=2", "max_steps=1"]
    trainer = train_from_recipe(str(recipe_file(adversarial={"discriminators": {}})), start)
    kept = json.loads((tmp_path / "run" / "warm_start.json").read_text(encoding="utf-8"))
    assert kept["pretrained"] == trained[1]
    assert kept["parts"]["decoder.layers.5"].startswith("converted from 1 spectra")
    assert trainer.unwrapped_model.config.decoder_spectra == 2


def test_a_preset_of_another_family_starts_from_trained_weights(trained, make_args):
    sizes = {name: value for name, value in SIZES.items() if not name.endswith("_type")}
    args = make_args(model={"preset": "dm-codec-fast-16khz", "pretrained": trained[1], "warm_start": True})
    args.model.overrides = {**sizes, "semantic_dimension": 6}
    told = {}
    model = build_model(args, told.update)
    assert isinstance(model, DMCodecModel)
    assert told["semantic_projection"] == "new"
    torch.testing.assert_close(model.encoder.state_dict(), trained[0].encoder.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"pretrained": "x"}, "or model.warm_start=true"),
        ({"warm_start": True}, "`model.warm_start` needs trained weights"),
        ({"preset": None}, "`model` needs `preset`, for a new model, or `pretrained`"),
    ],
)
def test_contradictory_starts_are_refused(make_args, model, message):
    with pytest.raises(ValueError, match=message):
        make_args(model=model)


def test_a_model_stored_in_half_precision_starts_in_float32_and_its_sizes_are_checked(trained, make_args):
    trained[0].half().save_pretrained(trained[1])
    model = {"preset": None, "pretrained": trained[1], "warm_start": True}

    def changed(**overrides):
        args = make_args(model=model)
        args.model.overrides = overrides
        return args

    started = build_model(changed(decoder_spectra=2))
    assert {value.dtype for value in started.state_dict().values() if value.is_floating_point()} == {torch.float32}
    with pytest.raises(
        StrictDataclassClassValidationError, match=r"`n_fft` \(500\) must be a multiple of `hop_length`"
    ):
        build_model(changed(n_fft=500))


def test_sizes_that_change_without_a_warm_start_say_what_to_give(trained, make_args):
    RVQCodecFeatureExtractor().save_pretrained(trained[1])
    args = make_args(model={"preset": None, "pretrained": trained[1]})
    args.model.overrides = {"decoder_spectra": 2}
    with pytest.raises(ValueError, match="give model.warm_start=true"):
        build_model(args)
