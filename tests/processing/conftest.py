# SPDX-License-Identifier: Apache-2.0
"""The tiny recogniser that the tests of this folder run."""

import json

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from helpers.tiny_models import tiny_hubert


@pytest.fixture
def ctc_folder(tmp_path):
    folder = tmp_path / "tiny-ctc"
    folder.mkdir()
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<unk>", "|", *"abcdefgh"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), bos_token=None, eos_token=None).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    torch.manual_seed(0)
    config = tiny_hubert(
        Wav2Vec2Config,
        vocab_size=len(vocabulary),
        num_hidden_layers=1,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 8),
        conv_stride=(20, 16),
        pad_token_id=0,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder
