# SPDX-License-Identifier: Apache-2.0
"""The word error rate of spoken units, with a recogniser that reads levels and a vocoder that gives them."""

import json
import types

import numpy as np
import pytest
import soundfile
import torch
from transformers import HubertConfig

from speech_tokenizers.evaluation.clip_results import ResultsFile
from speech_tokenizers.evaluation.recognition import text_normalizer
from speech_tokenizers.evaluation.units import resynthesis as unit_resynthesis
from speech_tokenizers.evaluation.units.comparison import read_spoken_clips
from speech_tokenizers.evaluation.units.encoded_clips import UNITS_VERSION, EncodedClips, UnitSettings
from speech_tokenizers.evaluation.units.resynthesis import measure_resynthesis, resynthesize
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel


pytest.importorskip("jiwer")
WORDS = ("zero", "alpha", "bravo", "charlie", "delta")


class LevelReader:
    """Hears the level of each tenth of a second, in tenths, as a word."""

    name = key = "reader"

    def __init__(self):
        self.num_heard = 0

    def told(self, language: str) -> "LevelReader":
        self.language = language
        return self

    def transcribe(self, audio: np.ndarray) -> str:
        self.num_heard += 1
        levels = np.round(10 * audio[: len(audio) // 1600 * 1600].reshape(-1, 1600).mean(1)).astype(int)
        return " ".join(WORDS[level] for level in levels)


class Levels:
    """Codes that are levels; a vocoder that speaks every fourth one wrongly if it is told to."""

    sampling_rate, frame_rate, codebook_size = 16000, 10.0, 5
    device = torch.device("cpu")
    name = key = "levels"

    def __init__(self, is_wrong: bool = False):
        self.model = types.SimpleNamespace(decode=self.decode, voice_arguments=lambda voice: {})
        self.is_wrong = is_wrong

    def encode(self, audio: np.ndarray) -> np.ndarray:
        return np.round(10 * audio.reshape(-1, 1600).mean(1)).astype(np.int64)[None]

    def decode(self, audio_codes: torch.Tensor):
        levels = audio_codes[0, 0].clone()
        if self.is_wrong:
            levels[::4] = 0
        return types.SimpleNamespace(audio_values=levels.repeat_interleave(1600)[None, None] / 10)


@pytest.fixture
def reader(monkeypatch):
    reader = LevelReader()
    monkeypatch.setattr(unit_resynthesis, "find_model", lambda name, **_: name)
    monkeypatch.setattr(unit_resynthesis, "load_recognizer", lambda name, language: reader.told(language))
    return reader


@pytest.fixture
def clips(tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for number in range(4):
        levels = generator.integers(1, 5, 8)
        soundfile.write(tmp_path / f"{number}.wav", np.repeat(levels / 10, 1600), 16000, subtype="FLOAT")
        rows.append({"file_name": f"{number}.wav", "speaker": str(number), "text": " ".join(WORDS[k] for k in levels)})
    rows[3]["text"] = ""
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_spoken_clips(str(tmp_path), {})


def measure(system, clips, folder, **settings):
    encoded = EncodedClips(system, clips, ResultsFile(folder / "results.jsonl", UNITS_VERSION))
    encoded.encode(False)
    return measure_resynthesis(encoded, UnitSettings(recognizer="reader", **settings)).scores


def test_two_words_of_eight_that_are_spoken_wrongly_are_a_quarter(clips, reader, tmp_path):
    scores = measure(Levels(is_wrong=True), clips, tmp_path)
    assert scores["resynthesis_wer"]["value"] == pytest.approx(25.0)
    assert scores["resynthesis_wer[recordings]"]["value"] == 0.0
    assert scores["resynthesis_wer"]["num_clips"] == 3  # one has no text


def test_what_was_heard_once_is_not_heard_again(clips, reader, tmp_path):
    before = measure(Levels(), clips, tmp_path)
    num_heard = reader.num_heard
    assert num_heard == 6
    assert measure(Levels(), clips, tmp_path) == before
    assert reader.num_heard == num_heard


def test_the_language_reaches_the_recogniser_and_the_normalisation(clips, reader, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        unit_resynthesis, "text_normalizer", lambda language: told.append(language) or text_normalizer(language)
    )
    measure(Levels(), clips, tmp_path, language="de")
    assert {reader.language, *told} == {"de"}


def test_clips_are_limited(clips, reader, tmp_path):
    assert measure(Levels(), clips, tmp_path, resynthesis_clips=2)["resynthesis_wer"]["num_clips"] == 2


def test_the_voice_is_one_of_the_vocoders():
    config = UnitVocoderConfig(
        codebook_size=5, hidden_size=8, decoder_hidden_size=16, decoder_num_layers=1, speaker_names=["ann", "ben"]
    )
    encoder = HubertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        conv_dim=(4,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    units = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder, layers=[1], codebook_size=5)).eval()
    units.attach_vocoder(UnitVocoderModel(config).eval())
    system = types.SimpleNamespace(model=units, device=torch.device("cpu"), sampling_rate=16000)
    codes = np.array([[1, 2, 3]])
    assert resynthesize(system, codes).shape == (960,)
    assert np.array_equal(resynthesize(system, codes), resynthesize(system, codes, "ann"))
    assert not np.allclose(resynthesize(system, codes), resynthesize(system, codes, "ben"))
    with pytest.raises(ValueError, match="no voice 'eve'"):
        resynthesize(system, codes, "eve")
