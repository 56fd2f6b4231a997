# SPDX-License-Identifier: Apache-2.0
"""What DM-Codec's configuration adds to the RVQ codec's, keeps and refuses."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from speech_tokenizers.modeling.configuration_dm_codec import DM_CODEC_PRESETS, DMCodecConfig
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel


@pytest.mark.parametrize("name", DM_CODEC_PRESETS)
def test_presets_survive_a_file(name, tmp_path):
    config = DMCodecConfig.from_preset(name)
    config.save_pretrained(tmp_path)
    loaded = DMCodecConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (config.sampling_rate, config.frame_rate, config.bits_per_second) == (16000, 50.0, 4000.0)


@pytest.mark.parametrize("name", ["dm-codec-16khz", "speechtokenizer-16khz"])
def test_the_network_of_the_papers_is_a_preset(name):
    config = DMCodecConfig.from_preset(name)
    assert (config.num_filters, config.hidden_size, config.semantic_dimension) == (64, 1024, 768)
    assert (config.encoder_lstm, config.decoder_lstm) == ("bidirectional", "unidirectional")
    assert (config.pad_mode, config.activation) == ("reflect", "elu")
    with torch.device("meta"):
        # The count of the published checkpoint, whose one projection serves both teachers.
        assert sum(parameter.numel() for parameter in DMCodecModel(config).parameters()) == 103_675_586


def test_preset_overrides_are_fields():
    assert DMCodecConfig.from_preset("dm-codec-fast-16khz", contextual_dimension=384).contextual_dimension == 384
    with pytest.raises(ValueError, match=r"names no field of DMCodecConfig: \['contextual_size'\]"):
        DMCodecConfig.from_preset("dm-codec-fast-16khz", contextual_size=384)
    with pytest.raises(ValueError, match="`name` must be one of .*'dm-codec-16khz'.*, but got 'fast-16khz'"):
        DMCodecConfig.from_preset("fast-16khz")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"semantic_dimension": 0}, r"`semantic_dimension` must be at least 1, but got 0"),
        ({"contextual_dimension": -1}, r"`contextual_dimension` must be at least 1, but got -1"),
        ({"semantic_stage": 0}, r"`semantic_stage` must lie between 1 and 8, but got 0"),
        ({"contextual_stage": 9}, r"`contextual_stage` must lie between 1 and 8, but got 9"),
        ({"contextual_stage": "last"}, r"`contextual_stage` must be a number, 'mean' or 'sum', but got 'last'"),
        ({"semantic_stage": 1.0}, r"semantic_stage"),
        ({"share_projection": True, "semantic_dimension": 4}, r"`share_projection` needs .* equal.* 4 and None"),
        ({"num_quantizers": 0}, r"`num_quantizers` must be at least 1"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        DMCodecConfig(**fields)


def test_without_projections_it_describes_an_rvq_codec():
    ours, plain = DMCodecConfig().to_dict(), RVQCodecConfig().to_dict()
    assert {name: ours[name] for name in plain if name != "model_type"} == {
        name: value for name, value in plain.items() if name != "model_type"
    }
