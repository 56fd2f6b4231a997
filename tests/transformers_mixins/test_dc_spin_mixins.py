# SPDX-License-Identifier: Apache-2.0
"""transformers' own common tests, on the units of DC-Spin and of Spin."""

import unittest

import pytest
import torch
import transformers_common_tests
from transformers import HubertConfig

from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel


if transformers_common_tests.unavailable:
    pytest.skip(transformers_common_tests.unavailable, allow_module_level=True)

from transformers_common_tests.test_configuration_common import ConfigTester
from transformers_common_tests.test_modeling_common import ModelTesterMixin


NOT_TOKENS = "Units are made of waveforms; there are no token embeddings."
NO_LAYER_OUTPUTS = "The output is units, not a hidden state per layer."


class DCSpinModelTester:
    batch_size = 2
    is_training = False  # tests/modeling/test_modeling_dc_spin.py says what learns, and what is frozen

    def __init__(self, **fields):
        self.fields = fields

    def get_config(self) -> DCSpinConfig:
        encoder_config = HubertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            conv_dim=(8, 8),
            conv_kernel=(10, 4),
            conv_stride=(5, 4),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        )
        return DCSpinConfig(encoder_config=encoder_config, **self.fields)

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        waveform = torch.rand(self.batch_size, 1, 400, generator=generator) * 2 - 1
        return self.get_config(), {"input_values": waveform}


class DCSpinMixinsTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (DCSpinModel,)
    is_encoder_decoder = False
    has_attentions = False
    test_resize_embeddings = False
    # Runs a test that transformers keeps from configurations without its own copyright line.
    test_can_init_all_missing_weights_before_2023 = True
    fields = {
        "encoder_layer": 2,
        "trainable_layers": 1,
        "projection_dim": 8,
        "primary_codebook_size": 12,
        "auxiliary_codebook_size": 20,
    }

    def setUp(self):
        self.model_tester = DCSpinModelTester(**self.fields)

    @unittest.skip(NO_LAYER_OUTPUTS)
    def test_hidden_states_output(self):
        pass

    @unittest.skip(NO_LAYER_OUTPUTS)
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip(NOT_TOKENS)
    def test_model_get_set_embeddings(self):
        pass

    def test_config(self):
        ConfigTester(
            self, config_class=DCSpinConfig, has_text_modality=False, common_properties=[], **self.fields
        ).run_common_tests()


class SpinMixinsTest(DCSpinMixinsTest):
    fields = {"encoder_layer": 1, "trainable_layers": 0, "projection_dim": 8, "auxiliary_codebook_size": None}
