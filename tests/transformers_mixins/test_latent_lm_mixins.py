# SPDX-License-Identifier: Apache-2.0
"""transformers' own common tests, on the language model of continuous tokens."""

import unittest

import pytest
import torch
import transformers_common_tests
from transformers import LlamaConfig

from helpers.attention import AttentionTests
from speech_tokenizers.modeling.configuration_latent_lm import LatentLMConfig
from speech_tokenizers.modeling.modeling_latent_lm import LatentLanguageModel


if transformers_common_tests.unavailable:
    pytest.skip(transformers_common_tests.unavailable, allow_module_level=True)

from transformers_common_tests.test_configuration_common import ConfigTester
from transformers_common_tests.test_modeling_common import ModelTesterMixin


class LatentLanguageModelTester:
    batch_size, num_frames = 2, 7
    is_training = True

    def __init__(self, **fields):
        self.fields = fields

    def get_config(self) -> LatentLMConfig:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        text_config = LlamaConfig(vocab_size=1, bos_token_id=0, eos_token_id=0, **sizes)
        return LatentLMConfig(text_config=text_config, latent_dim=4, **self.fields)

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(self.batch_size, self.num_frames, 4, generator=generator)
        return self.get_config(), {"latents": latents, "ended": torch.tensor([1, 0])}


class FlowMixinsTest(AttentionTests, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LatentLanguageModel,)
    has_attentions = True
    _is_composite = True
    test_resize_embeddings = False
    # Runs a test that transformers keeps from configurations without its own copyright line.
    test_can_init_all_missing_weights_before_2023 = True
    fields = {"head": "flow", "head_options": {"num_layers": 1, "hidden_size": 12}}

    def setUp(self):
        self.model_tester = LatentLanguageModelTester(**self.fields)

    def padded_batch(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return config, inputs | {"latents_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}

    def test_config(self):
        tester = ConfigTester(
            self,
            config_class=LatentLMConfig,
            has_text_modality=False,
            common_properties=["hidden_size"],
            **self.fields,
        )
        tester.run_common_tests()


class GaussianMixinsTest(FlowMixinsTest):
    fields = {"head": "gaussian", "head_options": {"objective": "melle", "num_layers": 1, "hidden_size": 12}}
