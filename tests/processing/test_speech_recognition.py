# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from speech_tokenizers.processing import speech_recognition
from speech_tokenizers.processing.speech_recognition import VoskRecognizer, folder_fingerprint, load_recognizer


def test_a_transformers_folder_is_a_deterministic_recogniser(ctc_folder):
    audio = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    first, second = (load_recognizer(str(ctc_folder)) for _ in range(2))
    assert first.name == "tiny-ctc"
    assert first.key == second.key
    text = first.transcribe(audio)
    assert isinstance(text, str)
    assert text == first.transcribe(audio) == second.transcribe(audio)


def test_other_weights_have_another_key(ctc_folder):
    before = folder_fingerprint(ctc_folder)
    weights = ctc_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert folder_fingerprint(ctc_folder) != before


def test_a_folder_with_am_and_graph_is_vosk(tmp_path, monkeypatch):
    for name in ("am", "graph"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(VoskRecognizer, "__init__", lambda self, folder: setattr(self, "folder", folder))
    assert load_recognizer(str(tmp_path)).folder == str(tmp_path)


@pytest.mark.parametrize("num_samples", [47000, 48000, 48100, 100000])
def test_long_recordings_have_the_frames_of_one_window(num_samples, ctc_folder, monkeypatch):
    recognizer = load_recognizer(str(ctc_folder))
    audio = np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)
    expected = recognizer.logits(audio).shape
    monkeypatch.setattr(speech_recognition, "_WINDOW_SECONDS", 3)
    assert recognizer.logits(audio).shape == expected
