# SPDX-License-Identifier: Apache-2.0
"""An F0 codebook fitted to voices: bins that they fill alike, and the prior of their speakers."""

import json

import numpy as np
import pytest
import soundfile
import torch

from helpers.tiny_models import write_tiny_hubert
from helpers.voices import voice
from speech_tokenizers import cli, load
from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.processing.feature_extraction_dc_spin import DCSpinFeatureExtractor
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.units.f0_fitting import fit_f0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_tiny_hubert(
        tmp_path_factory.mktemp("encoder"), conv_dim=(8, 8, 8), conv_kernel=(10, 8, 4), conv_stride=(5, 8, 8)
    )


@pytest.fixture(scope="module")
def speech_folder(tmp_path_factory):
    """Two speakers an octave apart, who rise and fall by half an octave, with a speaker column."""
    folder = tmp_path_factory.mktemp("speech")
    lines = []
    for speaker, base in (("low", 100.0), ("high", 200.0)):
        for number, ratio in enumerate((1.41, 0.71)):
            waveform = voice(np.geomspace(base, base * ratio, 12000))[0].numpy()
            name = f"{speaker}{number}.wav"
            soundfile.write(folder / name, waveform, 16000)
            lines.append(json.dumps({"file_name": name, "speaker": speaker}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def fitted(encoder, folder, tmp_path, **options):
    model = KMeansUnitsModel.from_encoder(str(encoder), layers=[1], codebook_size=8)
    recordings = decode_all(load_recordings(str(folder)), 16000, tmp_path)
    return model, fit_f0(model, recordings, 8, **options), recordings


def test_bins_are_filled_alike_and_the_prior_is_the_speakers(encoder, speech_folder, tmp_path):
    model, fit, recordings = fitted(encoder, speech_folder, tmp_path)
    assert (fit.speakers, fit.by_speaker, fit.f0_bins) == (2, True, 8)
    assert fit.mean == model.config.f0_prior_mean == pytest.approx(np.log2(100 * 2**0.5), abs=0.03)
    assert fit.deviation == model.config.f0_prior_deviation == pytest.approx(1 / 12**0.5, abs=0.03)
    assert fit.voiced > 0.9
    counts = torch.zeros(8)
    for index in range(len(recordings)):
        mean = 7.64 if recordings.metadata["speaker"][index] == "high" else 6.64
        waveform = torch.from_numpy(recordings[index] / np.float32(32767))[None]
        mask = torch.ones(1, model.get_encoded_length(waveform.shape[1]))
        speaker = torch.tensor([[mean, fit.deviation]])
        codes, _ = model.f0_codebook.encode(waveform, torch.tensor([waveform.shape[1]]), mask, speaker)
        counts += torch.bincount(codes[0], minlength=8)
    assert counts[1:].max() < 1.5 * counts[1:].min()
    assert 2.5 < fit.entropy < 3


def test_without_speakers_each_recording_is_its_own(encoder, speech_folder, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in speech_folder.glob("*.wav"):
        (plain / path.name).write_bytes(path.read_bytes())
    _, fit, _ = fitted(encoder, plain, tmp_path / "cache", f0_stride=2)
    assert (fit.speakers, fit.by_speaker, fit.f0_stride) == (4, False, 2)
    assert fit.deviation == pytest.approx(0.5 / 12**0.5, abs=0.03)


def test_what_has_no_voice_is_refused_and_leaves_the_model_as_it_was(encoder, tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(size=16000) * 0.1, 16000)
    model = KMeansUnitsModel.from_encoder(str(encoder), layers=[1], codebook_size=8)
    with pytest.raises(ValueError, match="too little voice"):
        fit_f0(model, decode_all(load_recordings(str(folder)), 16000, tmp_path / "cache"), 8)
    assert model.f0_codebook is None
    assert model.config.num_quantizers == 1


def test_the_command_fits_units_with_f0(encoder, speech_folder, tmp_path):
    units = tmp_path / "units"
    arguments = ["fit-units", str(encoder), str(speech_folder), "-o", str(units), "--layers", "1"]
    assert cli.main([*arguments, "--codebook-size", "10", "--f0-bins", "8", "--f0-stride", "2"]) == 0
    model = KMeansUnitsModel.from_pretrained(units)
    assert (model.config.f0_bins, model.config.f0_stride, model.num_quantizers) == (8, 2, 2)
    facts = json.loads((units / "fit.json").read_text(encoding="utf-8"))
    assert facts["f0"]["speakers"] == 2
    assert facts["begun_with"]["f0-bins"] == 8
    codes = model.encode(voice(np.geomspace(100, 180, 16000))).audio_codes[0, 1]
    assert codes.unique().numel() > 4
    written = tmp_path / "units.jsonl"
    assert cli.main(["units", str(speech_folder), "--model", str(units), "-o", str(written), "--deduplicate"]) == 0
    assert len(written.read_text(encoding="utf-8").splitlines()) == 4


def write_kmeans(encoder, folder):
    torch.manual_seed(0)
    model = KMeansUnitsModel.from_encoder(str(encoder), layers=[1, 2], codebook_size=10)
    model.set_centroids(torch.randn(model.centroids.shape))
    model.save_pretrained(folder)
    KMeansUnitsFeatureExtractor(hop_length=model.hop_length).save_pretrained(folder)
    return model


def write_dc_spin(encoder, folder):
    torch.manual_seed(0)
    sizes = {"projection_dim": 8, "primary_codebook_size": 10, "auxiliary_codebook_size": 12}
    model = DCSpinModel.from_encoder(str(encoder), encoder_layer=1, trainable_layers=1, **sizes)
    model.save_pretrained(folder)
    DCSpinFeatureExtractor(hop_length=model.hop_length).save_pretrained(folder)
    return model


@pytest.mark.parametrize("write", [write_kmeans, write_dc_spin])
def test_a_command_adds_f0_to_fitted_units_whose_codes_stay(encoder, speech_folder, tmp_path, capsys, write):
    plain, output = write(encoder, tmp_path / "plain"), tmp_path / "with-f0"
    arguments = ["units", "add-f0", str(tmp_path / "plain"), str(speech_folder), "--f0-bins", "8"]
    assert cli.main([*arguments, "-o", str(output), "--f0-stride", "2"]) == 0
    assert "8 codes of F0" in capsys.readouterr().out
    model, feature_extractor = load(output)
    assert type(feature_extractor).__name__.startswith(type(model).__name__.removesuffix("Model"))
    assert (model.config.f0_bins, model.config.f0_stride) == (8, 2)
    speech = voice(np.geomspace(100, 180, 16000))
    codes = model.encode(speech).audio_codes
    assert torch.equal(codes[:, :-1], plain.encode(speech).audio_codes)
    assert codes[0, -1].unique().numel() > 3
    facts = json.loads((output / "f0.json").read_text(encoding="utf-8"))
    assert (facts["speakers"], facts["units"], facts["mean"]) == (2, plain.fingerprint(), model.config.f0_prior_mean)
    # It is what `fit_f0` finds.
    fit_f0(plain, decode_all(load_recordings(str(speech_folder)), 16000, tmp_path / "cache"), 8, 2)
    assert torch.equal(plain.encode(speech).audio_codes, codes)
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "with-f0", "cache"}

    assert cli.main([*arguments, "-o", str(output)]) == 2
    assert "with-f0 exists" in capsys.readouterr().err
    again = ["units", "add-f0", str(output), str(speech_folder), "--f0-bins", "8", "-o", str(tmp_path / "again")]
    assert cli.main(again) == 2
    assert "has an F0 codebook already" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_the_command_that_adds_f0_says_what_is_wrong(encoder, speech_folder, tmp_path, capsys):
    model = write_kmeans(encoder, tmp_path / "plain")
    noise = tmp_path / "noise"
    noise.mkdir()
    soundfile.write(noise / "a.wav", np.random.default_rng(0).normal(size=16000) * 0.1, 16000)
    sizes = {"hidden_size": 8, "decoder_hidden_size": 8, "decoder_num_layers": 1, "hop_length": model.hop_length}
    model.attach_vocoder(UnitVocoderModel(UnitVocoderConfig(num_quantizers=2, codebook_size=10, **sizes)))
    model.save_pretrained(tmp_path / "spoken")
    KMeansUnitsFeatureExtractor(hop_length=model.hop_length).save_pretrained(tmp_path / "spoken")
    cases = [
        ("plain", noise, ["--f0-bins", "8"], "too little voice"),
        ("plain", speech_folder, ["--f0-bins", "11"], "between 3 and the units' number, 10"),
        ("plain", speech_folder, ["--f0-bins", "8", "--f0-stride", "0"], "--f0-stride"),
        ("plain", speech_folder, ["--f0-bins", "8", "--max-seconds", "0"], "--max-seconds"),
        ("spoken", speech_folder, ["--f0-bins", "8"], "--drop-vocoder"),
    ]
    output = tmp_path / "out"
    for name, data, options, message in cases:
        command = ["units", "add-f0", str(tmp_path / name), str(data), "-o", str(output), *options]
        assert cli.main(command) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert {path.name for path in tmp_path.iterdir()} == {"plain", "noise", "spoken"}
    command = ["units", "add-f0", str(tmp_path / "spoken"), str(speech_folder), "-o", str(output)]
    assert cli.main([*command, "--f0-bins", "10", "--f0-stride", "2", "--drop-vocoder"]) == 0
    assert load(output)[0].vocoder is None
    capsys.readouterr()
    assert cli.main(["info", str(output)]) == 0
    told = capsys.readouterr().out
    assert "3 of 10 entries" in told
    assert "a codebook" not in told  # the codebook of F0 takes less than the others


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--f0-bins", "11"], "between 3 and --codebook-size, 10"),
        (["--f0-bins", "8", "--f0-stride", "0"], "--f0-stride"),
        (["--f0-stride", "2"], "--f0-bins too"),
    ],
    ids=str,
)
def test_the_command_says_what_is_wrong(encoder, speech_folder, tmp_path, capsys, changes, message):
    arguments = ["fit-units", str(encoder), str(speech_folder), "-o", str(tmp_path / "units"), "--layers", "1"]
    assert cli.main([*arguments, "--codebook-size", "10", *changes]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
