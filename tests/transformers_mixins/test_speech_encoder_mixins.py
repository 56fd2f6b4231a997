# SPDX-License-Identifier: Apache-2.0
"""transformers' own common tests, on the models that are built on a speech encoder of transformers."""

import unittest
from unittest import mock

import pytest
import torch
import transformers_common_tests
from transformers import HubertConfig
from transformers import initialization as init

from helpers.attention import AttentionTests
from helpers.tiny_models import tiny_hubert
from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
from speech_tokenizers.modeling.configuration_hubert_masked_prediction import HubertMaskedPredictionConfig
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.configuration_speech_encoder_ctc import SpeechEncoderCTCConfig
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.modeling.modeling_hubert_masked_prediction import HubertForMaskedPrediction
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansQuantizer, KMeansUnitsModel
from speech_tokenizers.modeling.modeling_speech_encoder_ctc import SpeechEncoderForCTC


if transformers_common_tests.unavailable:
    pytest.skip(transformers_common_tests.unavailable, allow_module_level=True)

from transformers_common_tests.test_configuration_common import ConfigTester
from transformers_common_tests.test_modeling_common import ModelTesterMixin


class SpeechEncoderModelTester:
    """
    Args:
        test (`SpeechEncoderMixins`): Has the configuration's class and fields.
    """

    batch_size, num_samples, seq_length = 2, 400, 19

    def __init__(self, test):
        self.test, self.is_training = test, test.is_training

    def get_config(self):
        fields = self.test.fields
        if issubclass(self.test.config_class, HubertConfig):
            return tiny_hubert(self.test.config_class, **fields)
        return self.test.config_class(encoder_config=tiny_hubert(), **fields)

    def waveforms(self) -> torch.Tensor:
        """(batch, num_samples), in [-1, 1]."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(self.batch_size, self.num_samples, generator=generator) * 2 - 1

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        return config, {"input_values": self.waveforms(), **self.test.further_inputs(config)}


class SpeechEncoderMixins(AttentionTests, ModelTesterMixin):
    """What a family adds is its classes, the fields of a tiny configuration, and the inputs beside the waveforms."""

    config_class: type
    fields: dict = {}
    is_training = True
    _is_composite = True
    mask_name = "attention_mask"
    has_attentions = True
    test_resize_embeddings = False
    # Runs a test that transformers keeps from configurations without its own copyright line.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = SpeechEncoderModelTester(self)

    def further_inputs(self, config) -> dict[str, torch.Tensor]:
        return {}

    def test_config(self):
        ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, common_properties=[], **self.fields
        ).run_common_tests()

    def padded_batch(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs[self.mask_name] = torch.ones(2, self.model_tester.num_samples, dtype=torch.long)
        inputs[self.mask_name][1, 250:] = 0
        return config, inputs

    def test_a_tuple_of_outputs_begins_with_the_loss(self):
        """As in all models of transformers."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        (model_class,) = self.all_model_classes
        # In training HuBERT skips layers at random, which leaves none in one of a hundred runs.
        model = model_class(config).eval()
        outputs = model(**self._prepare_for_class(inputs, model_class, return_labels=True))
        if self.is_training:
            assert outputs[0] is outputs.loss
        else:
            assert outputs.get("loss") is None


class DCSpinUnitsMixinsTest(SpeechEncoderMixins, unittest.TestCase):
    all_model_classes = (DCSpinModel,)
    config_class = DCSpinConfig
    is_training = False
    mask_name = "padding_mask"
    fields = {
        "encoder_layer": 2,
        "trainable_layers": 1,
        "projection_dim": 8,
        "primary_codebook_size": 12,
        "auxiliary_codebook_size": 20,
    }


class DCSpinLossesMixinsTest(DCSpinUnitsMixinsTest):
    """Of a second view, which makes the model return losses in place of units."""

    is_training = True

    def further_inputs(self, config):
        return {"perturbed_values": self.model_tester.waveforms().flip(0)}


class SpinUnitsMixinsTest(DCSpinUnitsMixinsTest):
    fields = {"encoder_layer": 1, "trainable_layers": 0, "projection_dim": 8, "auxiliary_codebook_size": None}


class FittedUnitsModel(KMeansUnitsModel):
    """Has centroids from the beginning, without which there are no units."""

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, KMeansQuantizer):
            count = module.centroids.numel()
            init.copy_(module.centroids, torch.arange(count).mul(0.7).sin().view_as(module.centroids))


class KMeansUnitsMixinsTest(SpeechEncoderMixins, unittest.TestCase):
    all_model_classes = (FittedUnitsModel,)
    config_class = KMeansUnitsConfig
    is_training = False
    mask_name = "padding_mask"
    fields = {"layers": [1, 2], "num_stages": 2, "codebook_size": 12, "normalization": "standardize"}

    def test_init_weights_can_init_buffers(self):
        # Of a model that is not fitted, the centroids are zeros.
        with mock.patch.object(type(self), "all_model_classes", (KMeansUnitsModel,)):
            super().test_init_weights_can_init_buffers()


class NumberedMasksModel(HubertForMaskedPrediction):
    """Returns truth values as numbers."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if isinstance(outputs, tuple):
            return tuple(self.numbered(value) for value in outputs)
        return type(outputs)(**{name: self.numbered(value) for name, value in outputs.items()})

    @staticmethod
    def numbered(value):
        return value if isinstance(value, tuple) else value + 0


class HubertForMaskedPredictionMixinsTest(SpeechEncoderMixins, unittest.TestCase):
    all_model_classes = (HubertForMaskedPrediction,)
    config_class = HubertMaskedPredictionConfig
    keeps_float32 = False
    _is_composite = False
    fields = {"label_vocab_size": 12, "final_dim": 8, "mask_length": 2}

    def further_inputs(self, config):
        # The model would draw another mask at each call.
        labels = torch.arange(2 * 19).view(2, 19) % 12
        return {"labels": labels, "mask_time_indices": labels % 3 == 0}

    def test_model_outputs_equivalence(self):
        # The test subtracts outputs, which torch refuses for truth values.
        with mock.patch.object(type(self), "all_model_classes", (NumberedMasksModel,)):
            super().test_model_outputs_equivalence()


class SpeechEncoderForCTCMixinsTest(SpeechEncoderMixins, unittest.TestCase):
    all_model_classes = (SpeechEncoderForCTC,)
    config_class = SpeechEncoderCTCConfig
    keeps_float32 = False
    fields = {"vocab_size": 12, "kernel_size": 3}
