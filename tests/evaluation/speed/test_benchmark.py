# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from speech_tokenizers.cli import main
from speech_tokenizers.evaluation.report_pages import Section
from speech_tokenizers.evaluation.speed import benchmark as speed_and_memory
from speech_tokenizers.evaluation.speed import command as benchmark
from speech_tokenizers.evaluation.speed import tokens as latent_speed
from speech_tokenizers.evaluation.speed import units as unit_speed
from speech_tokenizers.evaluation.speed.benchmark import encodec_of_same_shape
from speech_tokenizers.evaluation.speed.report import SECTIONS, describe
from speech_tokenizers.evaluation.speed.timing import compare_times, interleave, num_parameters, synthetic_sound
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor


def run(*arguments: str) -> int:
    return main(["benchmark", *arguments])


def test_speed_ups_are_medians_of_the_rounds_ratios():
    rows = compare_times({"base": [2.0, 4.0, 9.0], "fast": [1.0, 1.0, 3.0]}, "base", 10.0)
    assert [row["speed_up"] for row in rows] == [1.0, 3.0]
    assert rows[1]["speed_up_range"] == [2.0, 4.0]
    assert rows[1]["real_time_factor"] == 0.1


def test_functions_take_turns():
    calls = []
    times = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert calls == ["a", "b"] * 4  # once untimed
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_both_encodecs_have_the_same_layers():
    sizes = {"num_filters": 4, "hidden_size": 16, "num_quantizers": 3}
    config = RVQCodecConfig.from_preset(speed_and_memory.ENCODEC_PRESET, **sizes)
    ours, theirs = RVQCodecModel(config), encodec_of_same_shape(config)
    assert num_parameters(theirs.encoder) == num_parameters(ours.encoder)
    assert num_parameters(theirs.decoder) == num_parameters(ours.decoder)
    assert theirs.config.num_quantizers == 3
    audio = torch.from_numpy(synthetic_sound(8000, 16000))[None, None]
    with torch.inference_mode():
        codes = theirs.eval().encode(audio, bandwidth=theirs.config.target_bandwidths[-1]).audio_codes
        assert codes.shape[1:] == ours.eval().encode(audio).audio_codes.shape


def test_every_section_is_measured_and_described():
    assert list(speed_and_memory.MEASURES) == list(SECTIONS) == list(benchmark.SECTIONS)


def test_a_measure_that_was_skipped_says_why():
    assert describe("memory", {"skipped": "needs Linux"}) == Section(SECTIONS["memory"][0], "Skipped: needs Linux.")


def test_the_command_writes_what_it_measured(tmp_path, monkeypatch, capsys, read_page):
    small = {"encoder_hidden_size": 16, "decoder_hidden_size": 32, "encoder_num_layers": 1, "decoder_num_layers": 1}
    preset = speed_and_memory.RVQCodecConfig.from_preset

    def shrunken(name, **overrides):
        sizes = small if name == speed_and_memory.FAST_PRESET else {"num_filters": 4, "hidden_size": 16}
        return preset(name, **{**sizes, **overrides})

    monkeypatch.setattr(speed_and_memory.RVQCodecConfig, "from_preset", shrunken)
    sections = ["encodec", "decoders", "bf16", "streaming", "memory"]
    arguments = ["--seconds", "0.5", "--repeats", "1", "--memory-minutes", "0.1", "--output", str(tmp_path)]
    assert run("--sections", *sections, *arguments) == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())["sections"]
    assert [row["name"] for row in report["encodec"]["encode"]] == [
        "transformers fp32",
        "fp32",
        "fp32, weight norm folded",
        "bf16",
    ]
    assert len(report["decoders"]["decode"]) == 3
    assert 0 <= report["bf16"]["code_agreement"] <= 1
    assert report["streaming"]["wall"]["p95_ms"] > 0
    if "skipped" not in report["memory"]:
        assert report["memory"]["num_frames"] == 6 * 50
        assert report["memory"]["num_samples"] == 6 * 16000
        assert report["memory"]["extra_bytes"] > 0
    printed = capsys.readouterr().out
    assert (tmp_path / "benchmark.md").read_text() in printed
    assert "of codes equal" in printed
    assert "| encode, 0.5 s of audio | seconds |" in printed
    page = read_page((tmp_path / "benchmark.html").read_text())
    # Two sections that are timed both ways, one that decodes.
    assert page.tags.count("table") == 2 + 1 + 2


TINY_HUBERT = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def tiny_units(make=unit_speed.random_units):
    return make(2, 8, **TINY_HUBERT)


def test_units_are_compared_with_their_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(unit_speed, "random_units", tiny_units)
    arguments = ["--sections", "units", "--seconds", "0.5", "--repeats", "1", "--output", str(tmp_path)]
    assert run(*arguments) == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())["sections"]["units"]
    assert [row["name"] for row in report["encode"]] == ["HubertModel", "units"]
    assert report["encode"][1]["speed_up"] > 0


def test_the_encoder_and_its_units_hear_the_same():
    encoder, units = tiny_units()
    audio = torch.from_numpy(synthetic_sound(8000, 16000))[None]
    with torch.no_grad():
        expected = encoder(audio).last_hidden_state
    features, _ = units.features(audio)
    torch.testing.assert_close(features[0], expected)
    # Nothing is left as the memory was, by which the measurement of memory would fail now and then.
    assert torch.equal(units.quantizer.features_mean, torch.zeros_like(units.quantizer.features_mean))
    assert torch.equal(units.quantizer.features_std, torch.ones_like(units.quantizer.features_std))


def test_windows_change_units_near_their_edges_only(tmp_path):
    _, units = tiny_units()
    recording = torch.from_numpy(synthetic_sound(4 * 16000, 16000))
    effect = unit_speed.window_effect(units, recording, 1.0, 0.2)
    assert 0 < effect["unit_edit_distance"] < 100
    assert 0 < effect["frames_equal"] < 1
    assert effect["seconds"] == 4
    # One window that holds all of it changes nothing.
    whole = unit_speed.window_effect(units, recording, 5.0, 0.0)
    assert (whole["unit_edit_distance"], whole["frames_equal"]) == (0, 1)


def test_memory_of_units_is_reported_with_what_windows_change(tmp_path):
    _, units = tiny_units()
    units.save_pretrained(tmp_path / "units")
    KMeansUnitsFeatureExtractor().save_pretrained(tmp_path / "units")
    arguments = ["--sections", "memory", "--model", str(tmp_path / "units"), "--memory-minutes", "0.5"]
    assert run(*arguments, "--output", str(tmp_path)) == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())["sections"]["memory"]
    if "skipped" not in report:
        assert report["num_frames"] == units.get_encoded_length(30 * 16000)
        assert report["window_effect"]["seconds"] == 30
        assert "decode_seconds" not in report
        assert "unit edit distance of" in (tmp_path / "benchmark.md").read_text()


def test_every_streamed_preset_of_tokens_answers_without_look_ahead():
    for preset, overrides in latent_speed.STREAMING_TOKENS.items():
        config = latent_speed.CSTConfig.from_preset(preset, **overrides, num_filters=2, encoder_hidden_size=8)
        assert latent_speed.CSTModel(config).is_streamable


def test_streaming_of_tokens_is_timed(tmp_path, monkeypatch, make_cst, capsys):
    small = {"hidden_size": 4, "num_filters": 2, "encoder_hidden_size": 8, "decoder_hidden_size": 8}
    small |= {"encoder_num_layers": 1, "decoder_num_layers": 1, "network_hidden_size": 8}
    preset = latent_speed.CSTConfig.from_preset
    monkeypatch.setattr(
        latent_speed.CSTConfig, "from_preset", lambda name, **overrides: preset(name, **{**small, **overrides})
    )
    arguments = ["--sections", "tokens", "--seconds", "1", "--repeats", "1", "--output", str(tmp_path)]
    assert run(*arguments) == 0
    rows = json.loads((tmp_path / "benchmark.json").read_text())["sections"]["tokens"]["models"]
    assert [row["name"] for row in rows] == [
        "cst-streaming-16khz (random weights)",
        "cst-fast-16khz causal (random weights)",
    ]
    for row, frame_ms in zip(rows, (80, 40), strict=True):
        assert row["is_streamable"]
        assert row["frame_ms"] == frame_ms
        for side in ("encode", "decode"):
            # A call's share of the whole: its median takes as long as a frame of that real-time factor, or less.
            assert 0 < row[f"{side}_median_ms"] <= 3 * row[f"real_time_factor_{side}"] * frame_ms
    assert "| none, 80 ms a latent |" in (tmp_path / "benchmark.md").read_text()

    for part in make_cst():
        part.save_pretrained(tmp_path / "cst")
    assert run(*arguments, "--model", str(tmp_path / "cst")) == 0
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["sections"]["tokens"]["models"]
    assert not row["is_streamable"]
    assert "| in windows |" in capsys.readouterr().out


def test_a_codec_has_no_tokens_to_time(tmp_path, tiny_checkpoint, capsys):
    assert run("--sections", "tokens", "--model", str(tiny_checkpoint)) == 0
    assert "has codebooks; `streaming` is of codecs" in capsys.readouterr().out


TINY_RECIPE = """
output_dir: unused
model:
  preset: fast-16khz
  overrides: {encoder_hidden_size: 16, decoder_hidden_size: 16, encoder_num_layers: 1, decoder_num_layers: 1}
data: {segment_seconds: 0.1, train_filter: {split: train}}
loss_weights: {mel: 1.0, waveform: 1.0, commitment: 1.0, adversarial: 1.0, feature_matching: 1.0}
adversarial: {start_step: 100, discriminators: {multi_period: {periods: [2], channels: [2, 2]}}}
global_batch_size: 2
weight_ema_decay: 0.9
"""


def test_a_training_step_is_profiled_by_a_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY_RECIPE)
    arguments = ["--sections", "training", "--repeats", "2", "--output", str(tmp_path)]
    assert run(*arguments, "--recipe", str(recipe), "mixed_precision=bf16") == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())["sections"]["training"]
    assert report["mixed_precision"] == "bf16"
    assert report["clock"] == "processor"
    assert {"data", "encoder forward", "quantizer", "decoder backward", "discriminators"} <= set(report["parts_ms"])
    assert set(report["losses_ms"]) == {"mel", "waveform"}
    assert report["audio_seconds_per_second"] == pytest.approx(2 * 0.1 / (report["step_ms"] / 1000))
    assert not (tmp_path / "unused").exists()
    printed = capsys.readouterr().out
    assert "| loss mel, forward and backward, by itself |" in printed
    assert "2 x 0.1 s on cpu, precision bf16, processor time" in printed

    assert run(*arguments, "--recipe", str(recipe), "loss_weights.mell=1") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean `mel`" in error


def test_a_model_that_the_recipe_does_not_train_skips_the_section_alone(tmp_path, make_cst, capsys):
    for part in make_cst():
        part.save_pretrained(tmp_path / "cst")
    assert run("--sections", "training", "--model", str(tmp_path / "cst"), "--output", str(tmp_path)) == 0
    assert "does not train a model like" in (tmp_path / "benchmark.md").read_text()


def test_a_missing_recording_is_one_line_and_exit_code_two(tmp_path, capsys):
    assert run("--sections", "bf16", "--audio", str(tmp_path / "missing.wav")) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("num_samples", [1, 16000])
def test_synthetic_sound_stays_in_range(num_samples):
    sound = synthetic_sound(num_samples, 16000)
    assert sound.shape == (num_samples,)
    assert abs(sound).max() < 1
