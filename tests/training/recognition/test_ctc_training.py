# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import TrainingArguments, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.processing.recordings import load_recordings, parse_filter
from speech_tokenizers.processing.word_alignment import load_word_aligner
from speech_tokenizers.training.recognition.ctc_training import pad_batch, train_recognizer


FREQUENCIES = {"a": 400.0, "b": 1300.0, "c": 3100.0}


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """An untrained encoder of 50 frames a second, whose random filters tell tones apart."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = tiny_hubert(
        Wav2Vec2Config,
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=32,
        conv_dim=(32, 32),
        conv_kernel=(40, 16),
        conv_stride=(20, 16),
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speech_folder(tmp_path_factory):
    """Words of tones of 0.1 s a letter, with pauses between words of 0.1 s; and one recording that no one can read."""
    folder = tmp_path_factory.mktemp("speech")
    draw = np.random.default_rng(0)
    rows = []
    for index in range(40):
        words = [
            "".join(draw.permutation(list(FREQUENCIES))[: draw.integers(1, 4)]) for _ in range(draw.integers(1, 4))
        ]
        # Silence is heard between words alone, so that a boundary can be told from it.
        pause = np.zeros(1600)
        tones = [
            [np.sin(2 * np.pi * FREQUENCIES[letter] * np.arange(1600) / 16000) for letter in word] for word in words
        ]
        audio = 0.5 * np.concatenate([sound for word in tones for sound in [pause, *word]][1:])
        audio += 0.001 * draw.standard_normal(len(audio))
        soundfile.write(folder / f"{index}.wav", audio, 16000)
        phones = " | ".join(" ".join(f"{letter.upper()}1" for letter in word) for word in words)
        row = {"file_name": f"{index}.wav", "text": " ".join(words).upper(), "phones": phones}
        rows.append({**row, "split": "eval" if index >= 32 else "train"})
    soundfile.write(folder / "40.wav", audio, 16000)
    rows.append({"file_name": "40.wav", "text": "12", "phones": "", "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("unit", ["character", "phone"])
def test_it_learns_and_finds_words_where_they_are(unit, encoder_folder, speech_folder, tmp_path, capsys):
    recordings, held_out = (load_recordings(str(speech_folder), {"split": split}) for split in ("train", "eval"))
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        num_train_epochs=25,
        per_device_train_batch_size=8,
        learning_rate=0.05,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = train_recognizer(str(encoder_folder), recordings, held_out, unit, args, kernel_size=3)
    assert trainer.state.log_history[-1][f"eval_{unit}_error_rate"] < 15
    # What cannot be learnt from is named.
    assert "left out of training: 40.wav: its text has" in capsys.readouterr().err

    row = held_out[0]
    audio, _ = soundfile.read(row["audio"]["path"], dtype="float32")
    text = row["text"] if unit == "character" else row["phones"]
    words = load_word_aligner(str(tmp_path / "out")).align(audio, text)
    start = 0.0
    for word, name in zip(words, row["text"].split(), strict=True):
        assert word.start == pytest.approx(start, abs=0.04)
        assert word.end == pytest.approx(start + 0.1 * len(name), abs=0.04)
        start += 0.1 * len(name) + 0.1


def test_batches_are_padded():
    items = [
        {"encoder_states": torch.ones(2, 3, 4), "labels": [1, 2]},
        {"encoder_states": torch.ones(2, 5, 4), "labels": [3]},
    ]
    batch = pad_batch(items)
    assert batch["encoder_states"].sum(dim=(1, 3)).tolist() == [[8, 8, 8, 0, 0], [8, 8, 8, 8, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[1, 2], [3, -100]]


def test_a_missing_column_is_named(encoder_folder, speech_folder, tmp_path):
    recordings = load_recordings(str(speech_folder))
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="`column` is 'words'"):
        train_recognizer(str(encoder_folder), recordings, None, "phone", args, column="words")


def test_filters_are_parsed():
    assert parse_filter(["split=train", "source=a,b"]) == {"split": ["train"], "source": ["a", "b"]}
    with pytest.raises(ValueError, match="COLUMN=VALUE"):
        parse_filter(["split"])
