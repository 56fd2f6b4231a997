# SPDX-License-Identifier: Apache-2.0
"""A manifest of two labels by six speakers, and a study with a tiny encoder on it."""

import json

import numpy as np
import pytest
import soundfile

from speech_tokenizers.training.studies.token_study.arguments import (
    EncoderArguments,
    TaskArguments,
    TokenStudyArguments,
)


RATE = 16000
LABELS = {"high": 880.0, "low": 220.0}
SPEAKERS = {"anna": "train", "bert": "train", "cleo": "train", "dora": "dev", "emil": "test", "fred": "test"}


@pytest.fixture(scope="session")
def two_labels(tmp_path_factory):
    """Manifest of two tones, two takes a speaker: 24 clips of 0.5 s, with silence of 0.2 s at either end."""
    folder = tmp_path_factory.mktemp("two-labels")
    rows = []
    for number, (speaker, split) in enumerate(SPEAKERS.items()):
        for label, pitch in LABELS.items():
            for take in range(2):
                generator = np.random.default_rng([number, len(label), take])
                times = np.arange(round(0.1 * RATE)) / RATE
                tone = 0.4 * np.sin(2 * np.pi * pitch * (1 + 0.05 * number) * times) + generator.normal(0, 0.01, 1600)
                silence = np.zeros(round(0.2 * RATE))
                name = f"{speaker}-{label}-{take}.wav"
                soundfile.write(folder / name, np.concatenate([silence, tone, silence]), RATE)
                rows.append({"file_name": name, "target": label, "split": split, "speaker": speaker, "take": take})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def tiny_whisper(whisper_folder):
    """Folder of a Whisper of two layers and 16 features, with random weights."""
    return whisper_folder


@pytest.fixture
def study(two_labels, tiny_whisper, tmp_path):
    """Function: a study of one task, `tone`, with changes of its section; its output is new."""

    def make(output_dir=None, systems=None, seeds=(0,), **task):
        encoder = EncoderArguments(
            str(tiny_whisper), layers=[1, 2], num_units=6, bpe_tokens=12, fit_seconds=60.0, fit_epochs=5
        )
        settings = {"manifest": str(two_labels), "task": "keyword", **task}
        return TokenStudyArguments(
            str(output_dir or tmp_path / "study"),
            encoder,
            {"tone": TaskArguments(**settings)},
            seeds=list(seeds),
            systems=systems or {},
        )

    return make
