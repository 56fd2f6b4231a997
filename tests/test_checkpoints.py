# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by name or folder."""

import pytest

from speech_tokenizers import UnitVocoderConfig, UnitVocoderModel, list_checkpoints, load
from speech_tokenizers.checkpoints import DEFAULT_CHECKPOINT, DEFAULT_UNITS


@pytest.mark.skipif(not list_checkpoints(), reason="this tree carries no checkpoint")
@pytest.mark.parametrize("name", [DEFAULT_CHECKPOINT, DEFAULT_UNITS])
def test_the_checkpoints_of_the_demo_are_carried(name):
    model, feature_extractor = load(name)
    assert not model.training
    assert feature_extractor.sampling_rate == model.sampling_rate == 16000


def test_what_is_no_checkpoint_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no folder and no checkpoint of this installation"):
        load("rvq")
    with pytest.raises(ValueError, match=r"has no config\.json; name a saved model's folder"):
        load(tmp_path)


def test_a_vocoder_alone_says_how_to_load_it(tmp_path):
    sizes = {"hidden_size": 8, "decoder_hidden_size": 8, "decoder_num_layers": 1, "hop_length": 20}
    UnitVocoderModel(UnitVocoderConfig(codebook_size=4, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json.*`AutoModel\.from_pretrained`"):
        load(tmp_path)
