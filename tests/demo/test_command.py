# SPDX-License-Identifier: Apache-2.0
import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch

from helpers.tiny_models import tiny_hubert
from speech_tokenizers import (
    AudioCodes,
    KMeansUnitsConfig,
    KMeansUnitsFeatureExtractor,
    KMeansUnitsModel,
    list_checkpoints,
    load,
    load_audio,
    load_codes,
)
from speech_tokenizers.cli import main
from speech_tokenizers.demo.command import SENTENCE, measure
from speech_tokenizers.demo.spectrograms import spectrogram
from speech_tokenizers.demo.units import decoded_f0, draw_units
from speech_tokenizers.processing.unit_exports import load_unit_lines


@pytest.fixture
def tiny_units(tmp_path):
    """Folder of units of an untrained encoder, 50 frames a second."""
    torch.manual_seed(0)
    encoder = tiny_hubert(num_hidden_layers=1, conv_dim=(8, 8), conv_kernel=(40, 8), conv_stride=(40, 8))
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder, layers=[1], codebook_size=8))
    model.set_centroids(torch.randn(model.centroids.shape))
    model.save_pretrained(tmp_path / "units")
    KMeansUnitsFeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path / "units")
    return tmp_path / "units"


def test_the_demo_writes_its_results_and_prints_what_it_measured(tmp_path, tiny_checkpoint, capsys):
    assert main(["demo", "--model", str(tiny_checkpoint), "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for fact in ("bit rate", "real-time factor", "STOI", "PESQ"):
        assert fact in printed
    codes = load_codes(tmp_path / "codes.safetensors")
    assert isinstance(codes, AudioCodes)
    assert codes.seconds == pytest.approx(24.73)
    assert len(load_audio(tmp_path / "decoded.wav", 16000)) == codes.num_samples
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_takes_another_recording_and_refuses_a_broken_one(tmp_path, tiny_checkpoint, write_audio, capsys):
    path = write_audio(tmp_path / "a.wav", 1.0)
    assert main(["demo", "--model", str(tiny_checkpoint), "--audio", str(path), "-o", str(tmp_path / "out")]) == 0
    path.write_bytes(b"broken")
    assert main(["demo", "--model", str(tiny_checkpoint), "--audio", str(path), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") <= 2


def test_what_is_too_short_to_be_measured_is_said(tmp_path, tiny_checkpoint, write_audio, capsys):
    path = write_audio(tmp_path / "a.wav", 0.1)
    assert main(["demo", "--model", str(tiny_checkpoint), "--audio", str(path), "-o", str(tmp_path / "out")]) == 2
    assert "is shorter than 0.5 s" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_original_scores_full_marks():
    speech = np.random.default_rng(0).standard_normal(16000) * np.abs(np.sin(np.arange(16000) / 800))
    scores = measure(speech, speech, 16000)
    assert scores["STOI"].startswith("1.000")
    assert scores["ESTOI"].startswith("1.000")


def test_a_tone_peaks_at_its_frequency():
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 16000)
    assert (spectrogram(tone).argmax(axis=0) == round(1000 / 16000 * 512)).all()


def test_units_are_shown_in_runs(tmp_path, tiny_units, write_audio, capsys):
    path = write_audio(tmp_path / "a.wav", 5.0)
    assert main(["demo", "--model", str(tiny_units), "--audio", str(path), "-o", str(tmp_path / "out")]) == 0
    model, feature_extractor = load(tiny_units)
    inputs = feature_extractor(load_audio(path, 16000), sampling_rate=16000, return_tensors="pt")
    codes = model.encode(**inputs).audio_codes[0, 0].numpy()
    [line] = load_unit_lines(tmp_path / "out" / "units.jsonl")
    assert np.array_equal(np.repeat(line.units, line.durations), codes)
    assert f"{len(line.units)} of {len(codes)} frames" in capsys.readouterr().out
    assert (tmp_path / "out" / "units.png").read_bytes().startswith(b"\x89PNG")


def test_f0_is_drawn_as_its_codes_tell_it(tmp_path, tiny_units, capsys):
    model, feature_extractor = load(tiny_units)
    model.add_f0(8, f0_stride=2)
    model.save_pretrained(tiny_units)
    times = np.arange(24000) / 16000
    voice = np.where(times < 0.75, 0.3 * np.sin(2 * np.pi * 150 * times) * np.sin(2 * np.pi * 300 * times), 0.0)
    path = tmp_path / "voice.wav"
    soundfile.write(path, voice, 16000)
    assert main(["demo", "--model", str(tiny_units), "--audio", str(path), "-o", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "8 codes, one each 40 ms; " in told
    assert f"{50 * (3 + 3 / 2):.0f} bit/s" in told  # 8 units a frame, and 8 codes of F0 for two
    inputs = feature_extractor(load_audio(path, 16000), sampling_rate=16000, return_tensors="pt")
    codes = load(tiny_units)[0].encode(**inputs).audio_codes[0].numpy()
    contour = decoded_f0(load(tiny_units)[0], codes)
    assert np.array_equal(np.isnan(contour), codes[1] == 0)
    assert 0.3 < np.mean(np.isnan(contour)) < 0.7
    assert f"{100 * np.mean(codes[1] > 0):.0f} % voiced" in told


def test_a_run_is_drawn_where_it_is_and_as_long_as_it_lasts(tmp_path):
    rows = {}
    for durations in ([10, 40], [40, 10]):
        path = tmp_path / f"{durations[0]}.png"
        draw_units(np.zeros(16000), 16000, 320, np.array([0, 7]), np.array(durations), path)
        image = matplotlib.image.imread(path)[..., :3]
        colours, counts = np.unique((image * 255).astype(int).reshape(-1, 3), axis=0, return_counts=True)
        colourful = np.ptp(colours, axis=1) > 60  # the fields of the runs; all else is grey or pale
        rows[durations[0]] = sorted(counts[colourful])[-2:]
    assert rows[10] == pytest.approx(rows[40], rel=0.1)
    assert rows[10][1] / rows[10][0] == pytest.approx(4, rel=0.3)


@pytest.mark.skipif(not list_checkpoints(), reason="this tree carries no checkpoint")
def test_the_default_checkpoints_are_intelligible_and_use_many_units(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path)]) == 0
    codec, units, voice = capsys.readouterr().out.split("\n\n")
    scores = dict(line.split(maxsplit=1) for line in codec.splitlines())
    assert float(scores["STOI"].split()[0]) > 0.8
    facts = dict(line.split(maxsplit=1) for line in units.splitlines() if not line.startswith("in runs"))
    assert "50 frames/s" in facts["units"]
    [line] = load_unit_lines(tmp_path / "units.jsonl")
    assert len(np.unique(line.units)) > 40
    assert len(load_audio(tmp_path / "units.wav", 16000)) == len(load_audio(tmp_path / "decoded.wav", 16000))
    facts = dict(line.split(maxsplit=1) for line in voice.splitlines())
    assert SENTENCE in facts["voice"]
    assert facts["words"].startswith("The 0.")
    said = load_audio(tmp_path / "voice.wav", 16000)
    assert 2 < len(said) / 16000 < 5
    assert np.sqrt(np.mean(np.square(said))) > 0.01
