# SPDX-License-Identifier: Apache-2.0
"""Teachers and frozen models hear crops shorter than a frame, and refuse those that they cannot hear."""

import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import synthetic_speech
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.processing.ctc_labels import build_tokenizer
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.codec.arguments import LanguageTeacherArguments, SpeechTeacherArguments
from speech_tokenizers.training.codec.frozen_encoder import FrozenEncoder
from speech_tokenizers.training.codec.frozen_recognizer import FrozenRecognizer
from speech_tokenizers.training.codec.sayings import Sayings
from speech_tokenizers.training.codec.teachers import SpeechTeacher


# A front end whose frames need 2560 samples.
WIDE = {"conv_dim": (8, 8), "conv_kernel": (10, 256), "conv_stride": (10, 4)}


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HubertModel(tiny_hubert(**WIDE)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("num_samples", [1, 80, 800, 2560])
def test_a_frozen_encoder_and_a_teacher_hear_what_is_shorter_than_a_frame(num_samples, wide_folder):
    encoder = FrozenEncoder(AutoModel.from_pretrained(wide_folder), AutoFeatureExtractor.from_pretrained(wide_folder))
    waveforms = torch.from_numpy(synthetic_speech(0, num_samples))[None]
    states = encoder(waveforms).last_hidden_state
    assert states.shape[1] == 1
    silence = torch.zeros(1, 2560 - num_samples)
    torch.testing.assert_close(states, encoder(torch.cat([waveforms, silence], dim=1)).last_hidden_state)
    teacher = SpeechTeacher(SpeechTeacherArguments(model=str(wide_folder), layer="last"))
    assert teacher.of_waveforms(waveforms)[0].shape[1] == 1


def test_crops_longer_than_whisper_hears_are_refused_by_the_name_of_the_option(whisper_folder):
    encoder = AutoModel.from_pretrained(whisper_folder).get_encoder()
    for window in ("padded", "tight"):
        frozen = FrozenEncoder(encoder, AutoFeatureExtractor.from_pretrained(whisper_folder), window)
        assert frozen(torch.zeros(1, 32000)).last_hidden_state.shape[1] == 100
        with pytest.raises(ValueError, match=r"crops are 2.5 s long, but the encoder hears 2 s; lower `data.segment"):
            frozen(torch.zeros(1, 40000))


def test_a_frozen_recogniser_hears_what_is_shorter_than_a_frame(tmp_path):
    tokenizer = build_tokenizer(["abc"], "character")
    config = tiny_hubert(Wav2Vec2Config, vocab_size=len(tokenizer), pad_token_id=0, feat_extract_norm="layer", **WIDE)
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert FrozenRecognizer(str(tmp_path))(torch.randn(2, 80)).shape == (2, 1, len(tokenizer))


def test_a_recording_in_which_its_words_are_not_found_counts_as_one_without_words(tmp_path, monkeypatch):
    class Aligner:
        key = "aligner"

        def align(self, audio, text):
            if len(audio) < 400:
                raise ValueError("`labels` need 7 frames, but there are 1.")
            return ["words"]

    monkeypatch.setattr("speech_tokenizers.training.codec.sayings.load_word_aligner", lambda name, device: Aligner())
    monkeypatch.setattr("speech_tokenizers.training.codec.sayings.find_model", lambda name, **_: name)
    for name, num_samples in (("a.wav", 16000), ("tiny.wav", 80)):
        soundfile.write(tmp_path / name, synthetic_speech(0, num_samples), 16000)
    rows = [{"file_name": name, "text": "abc cab"} for name in ("a.wav", "tiny.wav")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recordings = decode_all(load_recordings(str(tmp_path)), 16000, tmp_path / "cache", False)
    args = LanguageTeacherArguments(model="bert", alignment="ctc", aligner="aligner")
    sayings = Sayings(args, recordings, torch.device("cpu"))
    found = {
        name: sayings.utterance(index, np.asarray(recordings[index]), 16000).find_words()
        for index, name in enumerate(recordings.names)
    }
    assert found == {"a.wav": ["words"], "tiny.wav": []}
    assert sayings.unaligned == {"tiny.wav": "`labels` need 7 frames, but there are 1."}
