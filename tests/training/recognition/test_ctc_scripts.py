# SPDX-License-Identifier: Apache-2.0
"""Texts of any script become the labels of whole words, and letters without a label are never lost."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel, TrainingArguments, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.processing.ctc_labels import CTCLabels, build_tokenizer, tokenizer_of
from speech_tokenizers.processing.recordings import load_recordings
from speech_tokenizers.training.recognition.ctc_targets import (
    LabelErrorRate,
    UnusableText,
    learnable_labels,
    reference_labels,
)
from speech_tokenizers.training.recognition.ctc_training import train_recognizer


def written(labels: CTCLabels, text: str) -> str:
    return labels.join(labels.sequence(text)).replace("|", " ")


def labels_of(*texts: str) -> CTCLabels:
    return CTCLabels(build_tokenizer(texts, "character"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ΛΟΓΟΣ", "λογος"),
        ("ΛΌΓΟΣ, ΣΟΦΊΑ Σ’", "λόγος σοφία σ"),
        ("İSTANBUL", "istanbul"),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
        ("น้ำ ไม่", "น้ำ ไม่"),
        ("한국어", "한국어"),
        ("ｶﾞｰﾙ", "ガール"),
        ("tiếng Việt", "tiếng việt"),
        ("Straße", "straße"),
        ("l’été", "l'été"),
        ("‘well-known’", "well known"),
        ("نامه\u200cای", "نامه\u200cای"),
        ("שָׁלוֹם", "שָׁלוֹם"),
    ],
)
def test_a_vocabulary_writes_whole_words_of_its_texts(text, expected):
    for form in (text, text.upper(), text.lower()):
        if form.upper() == text.upper() and "ß" not in text:
            assert written(labels_of(text), form) == expected
    assert written(labels_of(text), text) == expected
    assert not labels_of(text).unknown_in(text)


@pytest.mark.parametrize(
    ("vocabulary", "text", "expected"),
    [
        ("STRAEß", "strasse", "STRASSE"),
        ("STRAE", "Straße", "STRASSE"),
        ("ΛΌΓΟΣ", "λόγος", "ΛΌΓΟΣ"),
        ("Iti'sS", "It’s", "It's"),
        ("abAB'", "Ab", "Ab"),
        ("ve\u0301t", "vét", "ve\u0301t"),
        (sorted(set("\u1112\u1161\u11ab")), "한", "\u1112\u1161\u11ab"),
        ("นา\u0e33\u0e49", "น้ำ", "น้ำ"),
    ],
)
def test_a_foreign_vocabulary_writes_words_in_its_own_case_and_form(vocabulary, text, expected):
    labels = CTCLabels(tokenizer_of(dict.fromkeys(vocabulary), "character"))
    assert written(labels, text) == expected


def test_letters_outside_the_vocabulary_stay_in_references_and_are_refused_in_training():
    labels = labels_of("hallo world")
    assert written(labels, "hällo wörld") == "h<unk>llo w<unk>rld"
    assert labels.unknown_in("hällo wörld, äh") == ["ä", "ö"]
    assert reference_labels(labels, "hällo wörld") == labels.sequence("hällo wörld")
    with pytest.raises(UnusableText, match="no label for \\('ä', 'ö'\\): 'hällo wörld'"):
        learnable_labels(labels, "hällo wörld")
    phones = CTCLabels(build_tokenizer(["AH0 B"], "phone"))
    assert written(phones, "AH1 ZH | B") == "AH <unk>   B"
    with pytest.raises(UnusableText, match="'ZH'"):
        learnable_labels(phones, "AH1 ZH | B")


def test_a_vocabulary_without_an_unknown_label_names_the_letter():
    tokenizer = SimpleNamespace(
        pad_token_id=0,
        unk_token="<unk>",
        word_delimiter_token="|",
        all_special_tokens=["<pad>"],
        get_vocab=lambda: {"<pad>": 0, "|": 1, "a": 2},
    )
    assert CTCLabels(tokenizer).sequence("a a") == [2, 1, 2]
    with pytest.raises(UnusableText, match="neither 'ö' nor"):
        reference_labels(CTCLabels(tokenizer), "aö")


@pytest.mark.parametrize("text", ["ab 2", "ab ²", "ab ½", "ab ٣", "ab Ⅷ 3"])
def test_numbers_are_refused_in_any_script_unless_the_vocabulary_has_them(text):
    for label in (learnable_labels, reference_labels):
        with pytest.raises(UnusableText, match="digits"):
            label(labels_of("ab viii"), text)
    with_digits = CTCLabels(tokenizer_of("ab23", "character"))
    assert learnable_labels(with_digits, "ab 2") == [3, 4, 2, 5]


def test_an_unknown_letter_is_an_error_whatever_is_written_there():
    labels = labels_of("abc")
    true = np.array([labels.sequence("äb")])
    blank, unknown, a, b = 0, labels.unknown, *labels.sequence("ab")
    for path, errors in (([a, blank, b], 1), ([unknown, b, blank], 1), ([blank, blank, b], 1), ([b, a, blank], 2)):
        rates = LabelErrorRate(labels)(SimpleNamespace(predictions=np.array([path]), label_ids=true))
        assert rates == {"character_error_rate": 50 * errors, "word_error_rate": 100}
    perfect = SimpleNamespace(predictions=np.array([[a, b]]), label_ids=np.array([labels.sequence("ab")]))
    assert LabelErrorRate(labels)(perfect) == {"character_error_rate": 0, "word_error_rate": 0}


def test_evaluation_keeps_recordings_with_unknown_letters(tmp_path, capsys):
    torch.manual_seed(0)
    AutoModel.from_config(tiny_hubert()).save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "encoder")
    rows = [("hallo", "train"), ("hällo", "test"), ("hällo 2", "test")]
    for index in range(len(rows)):
        noise = np.random.default_rng(index).standard_normal(8000)
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * noise, 16000)
    lines = [
        json.dumps({"file_name": f"{index}.wav", "text": text, "split": split})
        for index, (text, split) in enumerate(rows)
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train, test = (load_recordings(str(tmp_path), {"split": split}) for split in ("train", "test"))
    args = TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=1, report_to="none", use_cpu=True)
    trainer = train_recognizer(str(tmp_path / "encoder"), train, test, "character", args)
    [sequence] = [trainer.eval_dataset[index]["labels"] for index in range(len(trainer.eval_dataset))]
    labels = CTCLabels(build_tokenizer(["hallo"], "character"))
    assert labels.join(sequence) == "h<unk>llo"
    error = capsys.readouterr().err
    assert "left out of evaluation: 2.wav: its text has digits" in error
    assert "1.wav" not in error


@pytest.mark.parametrize("capitals", [False, True])
def test_turkish_capitals_are_those_of_turkish_letters(capitals):
    names = "ABDEIKLMRTUZÇĞİÖŞÜ" if capitals else "abdeıklmrtuzçğiöşü"
    labels = CTCLabels(tokenizer_of(names, "character"), "tr")
    texts = ("Işık ılık İZMİR", "ışık ılık izmir", "IŞIK ILIK İZMİR")
    assert {written(labels, text) for text in texts} == {texts[2 if capitals else 1]}
    assert CTCLabels(build_tokenizer(texts, "character", "tr")).language == "tr"
    assert written(CTCLabels(build_tokenizer(texts, "character", "tr")), texts[0]) == texts[1]
    assert labels_of("a").language is None
