# SPDX-License-Identifier: Apache-2.0
"""
transformers' own common tests, on the speech language model around four architectures.

Those of `generate` are not in the source distribution; test_speech_lm_generate.py stands in their place.
"""

import unittest
from unittest import mock

import pytest
import torch
import transformers_common_tests

from helpers.attention import AttentionTests
from helpers.tiny_speaking_lm import ARCHITECTURES
from speech_tokenizers.modeling.configuration_speech_lm import SpeechLMConfig
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration


if transformers_common_tests.unavailable:
    pytest.skip(transformers_common_tests.unavailable, allow_module_level=True)

from transformers.testing_utils import set_config_for_less_flaky_test
from transformers_common_tests import test_modeling_common
from transformers_common_tests.test_configuration_common import ConfigTester
from transformers_common_tests.test_modeling_common import ModelTesterMixin


def set_own_fields(config: SpeechLMConfig) -> None:
    """Set what makes comparisons steady, in the language model's configuration alone."""
    fields = set(vars(config))
    set_config_for_less_flaky_test(config)
    for name in set(vars(config)) - fields:
        delattr(config, name)


class SpeechLMModelTester:
    """
    Args:
        test (`SpeechLMMixins`): Says which language model is inside.
    """

    batch_size, seq_length, is_training = 2, 7, True
    num_hidden_layers, num_attention_heads, hidden_size = 2, 2, 32

    def __init__(self, test):
        self.test = test

    def get_config(self) -> SpeechLMConfig:
        ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        text_config = {"model_type": self.test.kind, "vocab_size": 64, "tie_word_embeddings": self.test.tied, **ends}
        sizes = {"num_codebooks": 2, "codebook_size": 16, "audio_offset": 32}
        return SpeechLMConfig(text_config={**text_config, **ARCHITECTURES[self.test.kind]}, **sizes)

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, 64, (self.batch_size, self.seq_length), generator=generator)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class SpeechLMMixins(AttentionTests, ModelTesterMixin):
    """What a case adds is the language model inside, and whether its two tables are one."""

    all_model_classes = (SpeechLMForConditionalGeneration,)
    kind: str
    tied = True
    has_attentions = True
    keeps_float32 = False
    _is_composite = True
    # Runs a test that transformers keeps from configurations without its own copyright line.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = SpeechLMModelTester(self)
        # The common tests set fields that only other configurations have; a file with such fields is refused here.
        patched = mock.patch.object(test_modeling_common, "set_config_for_less_flaky_test", set_own_fields)
        patched.start()
        self.addCleanup(patched.stop)

    def padded_batch(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs["attention_mask"][1, 4:] = 0
        return config, inputs | {"use_cache": False}

    def test_config(self):
        tester = ConfigTester(
            self, config_class=SpeechLMConfig, has_text_modality=False, common_properties=["num_codebooks"]
        )
        tester.run_common_tests()


class LlamaMixinsTest(SpeechLMMixins, unittest.TestCase):
    kind = "llama"


class UntiedLlamaMixinsTest(SpeechLMMixins, unittest.TestCase):
    kind, tied = "llama", False


class GPT2MixinsTest(SpeechLMMixins, unittest.TestCase):
    kind = "gpt2"


class OPTMixinsTest(SpeechLMMixins, unittest.TestCase):
    kind = "opt"


class Gemma3MixinsTest(SpeechLMMixins, unittest.TestCase):
    kind = "gemma3_text"
