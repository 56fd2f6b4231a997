# SPDX-License-Identifier: Apache-2.0
"""A voice that says levels: everything of a speech language model that its evaluation touches, and nothing more."""

import types
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import soundfile
import torch
from torch import nn

from speech_tokenizers.evaluation.speech_lm.synthesis import Voice
from speech_tokenizers.modeling.speech_lm_layouts import SpeechIds, flat_to_codes
from speech_tokenizers.modeling.speech_lm_unit_coding import UnitCoding
from speech_tokenizers.processing.speech_row_format import RowsFacts
from speech_tokenizers.processing.speech_rows import SpeechRowsWriter


WORDS = ("zero", "alpha", "bravo", "charlie", "delta", "echo")
FRAME_RATE, HOP = 100.0, 160


IDS = SpeechIds(audio_start=10, audio_end=11, audio_offset=12, num_codebooks=2, codebook_size=len(WORDS))


class LevelCodec:
    """The first codebook is a level in tenths, which lasts a frame of 10 ms; the second one says nothing."""

    codebook_size = len(WORDS)

    def fingerprint(self) -> str:
        return "levels"

    encoder_fingerprint = decoder_fingerprint = fingerprint

    def decode(self, audio_codes: torch.Tensor) -> types.SimpleNamespace:
        values = (audio_codes[:, :1].float() / 10).repeat_interleave(HOP, dim=-1)
        return types.SimpleNamespace(audio_values=values)


class WordProcessor:
    """Pieces are words, of one id each, or phones of these names, of which `pieces` may give others."""

    def speech_pieces(self, text: str) -> tuple[list[str], list[list[int]]]:
        return text.split(), self.piece_ids(text.split())

    def piece_ids(self, labels: list[str]) -> list[list[int]]:
        if unknown := [label for label in labels if label not in WORDS]:
            raise ValueError(f"no pronunciation of {', '.join(unknown)}")
        return [[WORDS.index(label)] for label in labels]


class LevelModel(nn.Module):
    """
    Speaks each word as 20 frames of its level. `misread` maps a word to the one that is said in its place (`None`
    skips it), `ends` says whether it ends by itself, `breaks_on` is a word on which generation fails. Streams say the
    same, 3 frames a chunk; `options` and `streamed` tell what was asked of either.
    """

    def __init__(self, alignment: str = "word", misread: dict | None = None, ends: bool = True):
        super().__init__()
        self.head = nn.Linear(1, 1)
        self.look_ahead_seconds = 0.05
        self.codec = LevelCodec()
        self.misread, self.ends, self.breaks_on = misread or {}, ends, None
        self.num_spoken, self.options, self.num_dropped = 0, [], 0
        self.streamed, self.num_closed = [], 0
        fields = {
            "layout": "flat",
            "text_alignment": alignment,
            "num_codebooks": 2,
            "codebook_size": len(WORDS),
            "frame_rate": FRAME_RATE,
            "sampling_rate": 16000,
            "codec_name": "levels",
            "latent_dim": 0,
        }
        told = {**fields, "misread": self.misread, "ends": ends}
        fields |= {"speech_ids": IDS, "unit_coding": "frames", "coding": UnitCoding()}
        self.config = types.SimpleNamespace(**fields, to_dict=lambda: told)

    def generate_speech(self, texts, processor, generators, durations=None, pieces=None, **options):
        (text,) = texts
        self.num_spoken += 1
        self.options.append((options, self._drawn(generators), durations, pieces))
        return self._said(text, processor, durations, pieces)

    def stream_speech(self, text, processor, generators, durations=None, pieces=None, **options):
        self.streamed.append((options, self._drawn(generators), durations, pieces))
        values = self._said(text, processor, durations, pieces).audio_values
        try:
            for start in range(0, max(values.shape[-1], 1), 3 * HOP):
                yield types.SimpleNamespace(audio_values=values[..., start : start + 3 * HOP])
        finally:
            self.num_closed += 1

    def _drawn(self, generators):
        (generator,) = generators
        return int(torch.randint(1000, (), generator=generator))

    def _said(self, text, processor, durations, pieces):
        if self.breaks_on in text.split():
            raise RuntimeError("the cache is full")
        asked = processor.speech_pieces(text)[0] if pieces is None else pieces[0]
        frames = [20] * len(asked) if durations is None else durations[0]
        if len(frames) != len(asked):
            raise ValueError(f"`durations` must have {len(asked)} entries")
        spoken = [(self.misread.get(word, word), count) for word, count in zip(asked, frames, strict=True)]
        written = []
        for word, count in spoken:
            if word is not None:
                code = WORDS.index(word)
                written += [code] if self.config.text_alignment != "none" else []
                written += [IDS.audio_offset + code, IDS.audio_offset + len(WORDS) + code] * count
        codes = flat_to_codes(torch.tensor(written, dtype=torch.long), IDS).audio_codes
        written += [IDS.audio_end] if self.ends else []
        values = self.codec.decode(codes[None]).audio_values
        return types.SimpleNamespace(
            audio_values=values,
            audio_mask=torch.ones(values.shape[0], values.shape[-1], dtype=torch.bool),
            audio_codes=codes[None],
            audio_codes_mask=torch.ones(1, codes.shape[1], dtype=torch.bool),
            ended=torch.tensor([self.ends]),
            num_dropped=torch.tensor([self.num_dropped]),
            # A start in the prompt is none of the speech.
            sequences=torch.tensor([[7, IDS.audio_start, 12, IDS.audio_end, 8, IDS.audio_start, *written]]),
        )


class LevelReader:
    """Hears each run of a level as the word of that level."""

    name = key = "reader"

    def __init__(self, name: str = "reader"):
        self.name = self.key = name
        self.num_heard = 0

    def transcribe(self, audio: np.ndarray) -> str:
        self.num_heard += 1
        levels = np.round(10 * audio[HOP // 2 :: HOP]).astype(int).tolist()
        changes = [level for level, before in zip(levels, [None, *levels], strict=False) if level != before]
        return " ".join(WORDS[level] for level in changes)


TEXTS = ("alpha bravo", "charlie delta alpha", "echo", "bravo echo delta")
FACTS = RowsFacts("levels", "levels", "levels", 2, len(WORDS), FRAME_RATE, 16000)


@pytest.fixture
def make_voice():
    """Function: a voice of a [`LevelModel`] with these properties; the model is `voice.model`."""

    def make(options: dict | None = None, seed: int = 0, **properties) -> Voice:
        return Voice(LevelModel(**properties), WordProcessor(), "levels-tts", options or {}, seed)

    return make


@pytest.fixture
def reader():
    """A recogniser of levels."""
    return LevelReader()


@pytest.fixture
def make_rows(tmp_path):
    """
    Function: a folder of rows of the texts, with words of 10, 11, 12 frames and so on, and a folder of recordings. A
    mistake of the codec turns every `delta` into `echo`. `changes` maps a row's number to fields with other values.
    """

    def make(changes: dict | None = None, texts=TEXTS) -> tuple[Path, Path]:
        rows, recordings, entries = tmp_path / "rows", tmp_path / "recordings", []
        recordings.mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            words, counts = text.split(), range(10, 10 + len(text.split()))
            levels = np.repeat([WORDS.index(word) for word in words], counts)
            soundfile.write(recordings / f"s{number}.wav", np.repeat(levels / 10, HOP), 16000, subtype="PCM_16")
            ends = np.cumsum(counts) / FRAME_RATE
            starts = [0.0, *ends[:-1]]
            entry = {
                "id": f"s{number}.wav",
                "text": text,
                "audio_codes": np.stack([np.where(levels == 4, 5, levels)] * 2),
                "seconds": len(levels) / FRAME_RATE,
            }
            for column, field in (("words", "word"), ("phones", "label")):
                entry[column] = [
                    {field: word, "start": start, "end": end}
                    for word, start, end in zip(words, starts, ends, strict=True)
                ]
            entries.append(entry | (changes or {}).get(number, {}))
        others = [pyarrow.field("split", pyarrow.string())] if any("split" in entry for entry in entries) else []
        with SpeechRowsWriter(rows, FACTS, others=others, overwrite=True) as writer:
            writer.write(0, entries, [entry["id"] for entry in entries])
            writer.finish(1)
        return rows, recordings

    return make
