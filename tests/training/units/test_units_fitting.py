# SPDX-License-Identifier: Apache-2.0
"""Units fitted on recordings: the same in one process or two, stopped or not, and those that the model then gives."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from helpers.processes import run_ranks, start
from helpers.tiny_models import write_tiny_hubert
from speech_tokenizers import cli
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.units import units_fitting
from speech_tokenizers.training.units.units_fitting import draw_excerpts, fit_on_recordings, fit_units, write_features


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Folder of a tiny HuBERT of two layers with random weights."""
    return write_tiny_hubert(
        tmp_path_factory.mktemp("encoder"), conv_dim=(8, 8, 8), conv_kernel=(10, 4, 4), conv_stride=(5, 4, 4)
    )


@pytest.fixture(scope="module")
def decoded(audio_folder, tmp_path_factory):
    return decode_all(load_recordings(str(audio_folder)), 16000, tmp_path_factory.mktemp("decoded"))


def make_model(encoder, **fields) -> KMeansUnitsModel:
    return KMeansUnitsModel.from_encoder(str(encoder), **{"layers": [2], "codebook_size": 6, **fields})


def all_frames(model, recordings) -> torch.Tensor:
    """Frames of whole recordings, one at a time, `(num_streams, num_frames, hidden_size)`."""
    waveforms = [torch.from_numpy(recording / np.float32(32767.0)) for recording in recordings]
    return torch.cat([model.features(waveform[None, None])[0][0] for waveform in waveforms], dim=1)


def test_features_are_those_of_the_recordings_alone(encoder, decoded, tmp_path):
    model = make_model(encoder, layers=[1, 2])
    excerpts = draw_excerpts(decoded, 10**6, model.frame_span)
    assert sorted(excerpt.recording for excerpt in excerpts) == list(range(len(decoded)))
    features = write_features(model, decoded, excerpts, tmp_path / "frames.npy", 1.0, dtype="float32")
    expected = all_frames(model, decoded)
    assert features.shape == tuple(expected.shape)

    def ordered(frames):
        return frames[:, np.lexsort(frames[0].round(3).T)]

    np.testing.assert_allclose(ordered(np.asarray(features)), ordered(expected.numpy()), atol=1e-4)


def test_long_recordings_are_cut_and_enough_is_enough(encoder, decoded):
    rate = decoded.sampling_rate
    parts = draw_excerpts(decoded, rate // 10, 50, seed=1)
    lengths = np.diff(decoded.starts)
    assert sum(part.num_samples for part in parts) > 0.95 * lengths.sum()
    assert max(part.num_samples for part in parts) == rate // 10
    some = draw_excerpts(decoded, rate // 10, 50, fit_seconds=0.5, seed=1)
    assert some == parts[: len(some)]
    assert 0.5 <= sum(part.num_samples for part in some) / rate <= 0.6
    assert draw_excerpts(decoded, rate // 10, 50, seed=2) != parts
    with pytest.raises(ValueError, match="Not one of"):
        draw_excerpts(decoded, 10**9, 10**9)


@pytest.mark.parametrize(
    "fields",
    [{}, {"normalization": "standardize"}, {"normalization": "layer_norm", "layers": [1, 2], "num_stages": 2}],
    ids=str,
)
def test_the_fitted_model_codes_with_the_least_distortion(encoder, decoded, tmp_path, fields):
    [(model, fit)] = fit_on_recordings(make_model(encoder, **fields), decoded, tmp_path, num_init=2)
    frames = all_frames(model, decoded)  # normalised as the model does it
    streams = []
    for recording in decoded:
        waveform = torch.from_numpy(recording / np.float32(32767.0))[None, None]
        codes = model.encode(waveform).audio_codes
        streams.append(model.dequantize(codes)[0].unflatten(-1, (model.config.num_streams, -1)).transpose(0, 1))
    decoded_frames = torch.cat(streams, dim=1)
    last_stages = fit.distortion[model.config.num_stages - 1 :: model.config.num_stages]
    for stream, distortion in enumerate(last_stages):
        # The frames were fitted in half precision.
        measured = (frames[stream] - decoded_frames[stream]).square().sum(-1).mean()
        assert float(measured) == pytest.approx(distortion, rel=1e-2)
    if fields.get("normalization") == "standardize":
        assert frames.mean(1).abs().max() < 2e-3
        assert (frames.std(1, correction=0) - 1).abs().max() < 2e-2
    if model.config.num_stages == 2:
        assert all(second < first for first, second in zip(fit.distortion[::2], fit.distortion[1::2], strict=True))
        assert all(second > first for first, second in zip(fit.explained[::2], fit.explained[1::2], strict=True))


def test_one_pass_serves_several_sizes(encoder, decoded, tmp_path, monkeypatch):
    passes = []
    original = units_fitting._features_of
    monkeypatch.setattr(units_fitting, "_features_of", lambda *args: passes.append(len(args[2])) or original(*args))
    model = make_model(encoder)
    fitted = fit_on_recordings(model, decoded, tmp_path, [3, 9], num_init=2)
    assert [part.config.codebook_size for part, _ in fitted] == [3, 9]
    assert fitted[1][1].distortion[0] < fitted[0][1].distortion[0]
    assert sum(passes) == len(decoded)
    [(alone, _)] = fit_on_recordings(make_model(encoder, codebook_size=9), decoded, tmp_path, num_init=2)
    assert sum(passes) == len(decoded)  # the same frames serve another command too
    assert torch.equal(alone.centroids, fitted[1][0].centroids)


def test_a_stopped_fit_continues_bit_for_bit(encoder, decoded, tmp_path, monkeypatch):
    options = {"num_init": 2, "batch_size": 64, "max_epochs": 40, "max_no_improvement": None, "checkpoint_steps": 1}
    [(whole, _)] = fit_on_recordings(make_model(encoder), decoded, tmp_path / "whole", batch_seconds=0.5, **options)

    original, calls = units_fitting._features_of, []

    def stops_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(units_fitting, "_features_of", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        fit_on_recordings(make_model(encoder), decoded, tmp_path / "cut", batch_seconds=0.5, **options)
    from speech_tokenizers.training.units import kmeans

    step, steps = kmeans._step, []

    def stops_at_the_fifth(*args):
        steps.append(args)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(kmeans, "_step", stops_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        fit_on_recordings(make_model(encoder), decoded, tmp_path / "cut", batch_seconds=0.5, **options)
    num_batches = len(calls) - 1  # one of them was tried twice
    [(resumed, _)] = fit_on_recordings(make_model(encoder), decoded, tmp_path / "cut", batch_seconds=0.5, **options)
    assert len(calls) - 1 == num_batches > 3
    assert torch.equal(resumed.centroids, whole.centroids)
    num_frames = sum(whole.get_encoded_length(len(recording)) for recording in decoded)
    assert len(steps) - 1 == 40 * num_frames // 64


def test_two_processes_find_the_same_centroids(encoder, audio_folder, tmp_path):
    command = ["-m", "speech_tokenizers", "fit-units", encoder, audio_folder, "--layers", "1", "--codebook-size", "5"]
    command += ["--batch-seconds", "0.5", "--max-epochs", "3", "-o"]
    alone = start(*command, tmp_path / "one")
    run_ranks(*command, tmp_path / "two")
    output, _ = alone.communicate(timeout=250)
    assert alone.returncode == 0, output
    name = "model.safetensors"
    one, two = (load_file(tmp_path / part / name)["quantizer.centroids"] for part in ("one", "two"))
    assert torch.equal(one, two)


def test_the_command_writes_models_that_load(encoder, audio_folder, tmp_path, capsys):
    arguments = ["fit-units", str(encoder), str(audio_folder), "-o", str(tmp_path / "units"), "--layers", "1", "2"]
    arguments += ["--separately", "--codebook-size", "4", "6"]
    assert cli.main(arguments) == 0
    assert "account for" in capsys.readouterr().out
    names = {"layer1-k4", "layer1-k6", "layer2-k4", "layer2-k6"}
    assert {path.name for path in (tmp_path / "units").iterdir()} == names
    assert {path.name for path in tmp_path.iterdir()} == {"units"}  # no frames are left behind
    for name in sorted(names):
        model = KMeansUnitsModel.from_pretrained(tmp_path / "units" / name)
        assert (model.config.layers, model.config.codebook_size) == ([int(name[5])], int(name[-1]))
        assert len(model.encoder.encoder.layers) == int(name[5])
        fit = json.loads((tmp_path / "units" / name / "fit.json").read_text(encoding="utf-8"))
        assert 0 < fit["explained"][0] < 1
        feature_extractor = KMeansUnitsFeatureExtractor.from_pretrained(tmp_path / "units" / name)
        assert (feature_extractor.sampling_rate, feature_extractor.hop_length) == (16000, 80)
    assert cli.main(arguments) == 2
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--layers", "3"], "between 0 and 2"),
        (["--codebook-size", "100000"], "there are only"),
        (["--filter", "split=train"], "no column 'split'"),
        (["--num-stages", "0"], "num_stages"),
        (["--batch-seconds", "0"], "--batch-seconds must be positive and finite, but is 0"),
        (["--max-seconds", "-1"], "--max-seconds must be positive, but is -1"),
        (["--fit-seconds", "0"], "--fit-seconds must be positive"),
        (["--max-epochs", "nan"], "--max-epochs must be positive"),
    ],
    ids=str,
)
def test_the_command_says_what_is_wrong(encoder, audio_folder, tmp_path, capsys, changes, message):
    arguments = ["fit-units", str(encoder), str(audio_folder), "-o", str(tmp_path / "units"), "--layers", "1"]
    assert cli.main([*arguments, *changes]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("speech-tokenizers fit-units: error: ")
    assert message in line
    assert not (tmp_path / "units").exists()


def test_what_cannot_be_read_is_named(encoder, audio_folder, tmp_path, capsys):
    folder = tmp_path / "speech"
    shutil.copytree(audio_folder, folder)
    soundfile.write(folder / "with-nan.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
    soundfile.write(folder / "too-short.wav", np.zeros(10), 16000)
    soundfile.write(folder / "slow.wav", np.sin(np.arange(4000) / 3), 8000)
    (folder / "broken.flac").write_bytes(b"fLaC" * 100)
    arguments = ["fit-units", str(encoder), str(folder), "--layers", "1", "--codebook-size", "4"]
    assert cli.main([*arguments, "-o", str(tmp_path / "new" / "units")]) == 0
    assert "3 cannot be read" in capsys.readouterr().err
    lines = (tmp_path / "new" / "units.rejected.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = {entry["name"]: entry["reason"] for entry in map(json.loads, lines)}
    assert sorted(reasons) == ["broken.flac", "empty.wav", "too-short.wav", "with-nan.wav"]
    assert "a frame of the encoder needs" in reasons["too-short.wav"]
    assert "NaN" in reasons["with-nan.wav"]
    assert "no samples" in reasons["empty.wav"]
    for name in reasons:
        shutil.copy(folder / name, tmp_path / "new")
    arguments[2] = str(tmp_path / "new")
    assert cli.main([*arguments, "-o", str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["missing", "other", "text"])
def test_encoders_that_are_none_are_refused(kind, audio_folder, tmp_path, capsys):
    folder = tmp_path / "encoder"
    if kind != "missing":
        folder.mkdir()
        config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        (folder / "config.json").write_text(json.dumps(config if kind == "text" else {}))
        if kind == "text":
            BertModel(BertConfig(**config, vocab_size=9, intermediate_size=8)).save_pretrained(folder)
    arguments = ["fit-units", str(folder), str(audio_folder), "-o", str(tmp_path / "units")]
    assert cli.main(arguments) == 2
    wrong = (
        f"`ENCODER` is '{folder}', but there is no such" if kind == "missing" else f"ENCODER {folder} cannot be used: "
    )
    assert f"error: {wrong}" in capsys.readouterr().err.splitlines()[-1]


def test_features_of_another_model_are_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match=r"must be \(1, num_frames, 16\)"):
        fit_units(make_model(encoder), np.zeros((2, 10, 16), dtype=np.float16), tmp_path)
