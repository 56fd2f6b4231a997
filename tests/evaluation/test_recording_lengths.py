# SPDX-License-Identifier: Apache-2.0
"""Evaluations of recordings shorter than a frame, and longer than an encoder hears."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import synthetic_speech
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main
from speech_tokenizers.coding.file_coding import encode_blocks
from speech_tokenizers.evaluation.codec_systems import EncodingSystem, NeedsWindows
from speech_tokenizers.evaluation.peers import estimate_delay
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor


@pytest.fixture
def units_folder(tmp_path, monkeypatch):
    """Units that hear a second at once, as those of Whisper hear 30 s, and encode longer recordings in windows."""
    torch.manual_seed(0)
    HubertModel(tiny_hubert(conv_dim=(8,) * 7)).save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "hubert")
    model = KMeansUnitsModel.from_encoder(str(tmp_path / "hubert"), layers=[1], codebook_size=4)
    model.set_centroids(torch.randn(1, 4, 16))
    model.save_pretrained(tmp_path / "units")
    KMeansUnitsFeatureExtractor(sampling_rate=16000, hop_length=320).save_pretrained(tmp_path / "units")
    monkeypatch.setattr(KMeansUnitsModel, "longest_exact_stream", property(lambda model: 16000))
    return tmp_path / "units"


def test_a_long_clip_has_the_units_of_the_command(units_folder):
    system = EncodingSystem(
        KMeansUnitsModel.from_pretrained(units_folder),
        KMeansUnitsFeatureExtractor.from_pretrained(units_folder),
        "units",
    )
    audio = synthetic_speech(0, 3 * 16000)
    expected = torch.cat(list(encode_blocks(system.model, [torch.from_numpy(audio)])), dim=-1)
    assert np.array_equal(system.encode(audio), expected)
    assert system.encode(audio).shape == (1, 149)
    with pytest.raises(NeedsWindows, match=r"it is 3 s long and would be encoded in windows"):
        system.encode_frames(audio)
    assert system.encode_frames(audio[:16000]).features.shape == (49, 16)


def test_evaluate_units_names_clips_that_it_cannot_use_and_uses_them_where_it_can(units_folder, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    labels = []
    for seed, (name, seconds) in enumerate([("a", 1.0), ("b", 0.9), ("long", 1.5), ("short", 0.02), ("tiny", 0.005)]):
        soundfile.write(folder / f"{name}.wav", synthetic_speech(seed, round(16000 * seconds)), 16000)
        spans = [{"label": "ab"[k % 2], "start": k / 10, "end": (k + 1) / 10} for k in range(round(10 * seconds))]
        labels.append({"file_name": f"{name}.wav", "labels": spans})
    rows = [{"file_name": f"{name}.wav", "speaker": name} for name in ("a", "b", "long", "short", "tiny")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))

    def failures(*measures: str) -> dict[str, str]:
        command = f"evaluate units {units_folder} --data {folder} --output {tmp_path / 'out'}"
        labelled = ["--labels", str(tmp_path / "labels.jsonl"), "--measures", *measures]
        assert main([*command.split(), *labelled]) == 1
        [system] = json.loads((tmp_path / "out" / "units.json").read_text())["systems"]
        return {name: reason for reason, names in system["encoding_failures"].items() for name in names}

    found = failures("rate", "abx")
    assert found.keys() == {"long.wav", "short.wav", "tiny.wav"}
    assert "leave out the measures that need it" in found["long.wav"]
    assert "a frame needs 400" in found["tiny.wav"]
    assert failures("usage").keys() == {"short.wav", "tiny.wav"}


@pytest.mark.parametrize("num_samples", [1, 80, 320, 799, 4000])
def test_the_delay_of_a_clip_shorter_than_the_largest_delay_is_found(num_samples):
    recorded = synthetic_speech(0, num_samples)
    assert estimate_delay(recorded, recorded, 800) == 0
    if num_samples > 40:
        assert estimate_delay(np.pad(recorded, (7, 0))[:num_samples], recorded, 800) == 7


def test_evaluations_take_clips_of_five_milliseconds(make_rvq_codec, tmp_path, monkeypatch):
    for part in make_rvq_codec():
        part.save_pretrained(tmp_path / "codec")
    (tmp_path / "data").mkdir()
    for name, num_samples in (("tiny", 80), ("short", 320), ("a", 16000)):
        soundfile.write(tmp_path / "data" / f"{name}.wav", synthetic_speech(0, num_samples), 16000)
    listener = SimpleNamespace(name="ear", key="ear", transcribe=lambda audio: "a" * min(3, len(audio) // 80))
    monkeypatch.setattr(
        "speech_tokenizers.evaluation.reconstruction.comparison.load_recognizers", lambda *_: ([listener], {})
    )
    shared = [str(tmp_path / "codec"), "--data", str(tmp_path / "data")]
    assert main(["evaluate", *shared, "--output", str(tmp_path / "out"), "--metrics", "si_sdr"]) == 0
    assert main(["evaluate", "retention", *shared, "--output", str(tmp_path / "kept"), "--rates", "16000"]) == 0
