# SPDX-License-Identifier: Apache-2.0
import json
import random

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from speech_tokenizers.evaluation.recognition import (
    ErrorRate,
    VoskRecognizer,
    count_errors,
    folder_fingerprint,
    load_recognizer,
    text_normalizer,
)


def naive_distance(hypothesis: list[str], reference: list[str]) -> int:
    """Levenshtein distance by the full table."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(reference) + 1)] for i in range(len(hypothesis) + 1)]
    for i, said in enumerate(hypothesis, 1):
        for j, true in enumerate(reference, 1):
            substituted = table[i - 1][j - 1] + (said != true)
            table[i][j] = min(substituted, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


def test_error_rates_of_a_hand_computed_case():
    # One substitution and one insertion against three words.
    assert count_errors("the bat sat down", "the cat sat") == (2, 3)
    assert count_errors("bat", "cat", "character") == (1, 3)
    rate = ErrorRate().compute(predictions=["the bat sat down", "a"], references=["the cat sat", "a"])
    assert rate == {"wer": pytest.approx(50.0), "num_clips": 2}
    assert ErrorRate("character").compute(predictions=["bat"], references=["cat"])["cer"] == pytest.approx(100 / 3)


def test_error_counts_equal_a_naive_version():
    draw = random.Random(0)
    for _ in range(30):
        said, true = ([draw.choice("abc") for _ in range(draw.randint(1, 8))] for _ in range(2))
        assert count_errors(" ".join(said), " ".join(true)) == (naive_distance(said, true), len(true))


def test_an_empty_reference_counts_insertions_only():
    assert count_errors("two words", "") == (2, 0)
    assert ErrorRate().compute(predictions=["two words"], references=[""])["wer"] is None


def test_case_punctuation_and_spelling_of_numbers_do_not_count():
    normalize = text_normalizer()
    assert normalize("Twenty-one cats, isn't it?") == normalize("21 cats is not it")
    with pytest.raises(ValueError, match="'word' or 'character'"):
        ErrorRate("syllable")


@pytest.fixture
def ctc_folder(tmp_path):
    folder = tmp_path / "tiny-ctc"
    folder.mkdir()
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<unk>", "|", *"abcdefgh"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), bos_token=None, eos_token=None).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 8),
        conv_stride=(20, 16),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


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
