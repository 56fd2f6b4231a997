# SPDX-License-Identifier: Apache-2.0
"""transformers' own common tests, on the codecs, on continuous tokens and on the unit vocoder."""

import copy
import unittest
from unittest import mock

import numpy as np
import pytest
import torch
import transformers_common_tests
from torch import nn
from torch.nn.utils import parametrize

from speech_tokenizers.modeling.configuration_cst import CSTConfig
from speech_tokenizers.modeling.configuration_dm_codec import DMCodecConfig
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
from speech_tokenizers.modeling.modeling_cst import CSTModel
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.processing.feature_extraction_cst import CSTFeatureExtractor
from speech_tokenizers.processing.feature_extraction_dc_spin import DCSpinFeatureExtractor
from speech_tokenizers.processing.feature_extraction_dm_codec import DMCodecFeatureExtractor
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


if transformers_common_tests.unavailable:
    pytest.skip(transformers_common_tests.unavailable, allow_module_level=True)

from transformers_common_tests.test_configuration_common import ConfigTester
from transformers_common_tests.test_modeling_common import ModelTesterMixin
from transformers_common_tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin


class RVQCodecModelTester:
    batch_size = 3
    is_training = True

    def __init__(self, config_class, **overrides):
        self.config_class, self.overrides = config_class, overrides

    def get_config(self) -> RVQCodecConfig:
        sizes = {
            "downsampling_ratios": [2, 4],
            "num_filters": 4,
            "hidden_size": 12,
            "encoder_hidden_size": 12,
            "decoder_hidden_size": 12,
            "encoder_num_layers": 2,
            "decoder_num_layers": 2,
        }
        if issubclass(self.config_class, RVQCodecConfig):
            sizes |= {"num_quantizers": 3, "codebook_size": 16, "kmeans_iterations": 2}
        return self.config_class(**{**sizes, **self.overrides})

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        waveform = torch.rand(self.batch_size, 1, 160, generator=generator) * 2 - 1
        return self.get_config(), {"input_values": waveform}


class RVQCodecMixins(ModelTesterMixin):
    all_model_classes = (RVQCodecModel,)
    is_encoder_decoder = False
    has_attentions = False
    test_resize_embeddings = False
    # Runs a test that transformers keeps from configurations without its own copyright line.
    test_can_init_all_missing_weights_before_2023 = True
    overrides: dict = {}

    def setUp(self):
        self.model_tester = RVQCodecModelTester(self.all_model_classes[0].config_class, **self.overrides)

    def test_init_weights_can_init_buffers(self):
        # The test compares the buffers of two initialisations, and codebooks are drawn at random.
        with (
            mock.patch("torch.randn", torch.zeros),
            mock.patch("transformers.initialization.normal_", torch.nn.init.zeros_),
        ):
            super().test_init_weights_can_init_buffers()

    def test_weight_norm_is_initialised_after_loading_on_the_meta_device(self):
        """
        The common test leaves the tensors of parametrizations out, and a plain `init.normal_(module.weight)` would
        have no effect on them.
        """
        config = self.model_tester.get_config()
        (model_class,) = self.all_model_classes
        built = model_class(config)
        state = {name: value for name, value in built.state_dict().items() if "parametrizations" not in name}
        loaded = model_class.from_pretrained(None, config=copy.deepcopy(config), state_dict=state)
        normalised = {
            name: module for name, module in loaded.named_modules() if parametrize.is_parametrized(module, "weight")
        }
        assert bool(normalised) == config.use_weight_norm
        for name, module in normalised.items():
            magnitude, direction = (
                module.parametrizations.weight.original0,
                module.parametrizations.weight.original1,
            )
            norm = torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
            torch.testing.assert_close(magnitude, norm, msg=name)
            # kaiming_uniform_ with a = sqrt(5), torch's own initialisation of convolutions
            bound = (direction.shape[1] * direction.shape[2]) ** -0.5
            assert direction.abs().max() <= bound, name
            assert direction.abs().max() > 0.5 * bound, name
            assert len(direction.unique()) > 0.9 * direction.numel(), name


def run_config_tests(test: unittest.TestCase, config_class: type, **fields) -> None:
    tester = ConfigTester(
        test,
        config_class=config_class,
        has_text_modality=False,
        common_properties=["hidden_size"],
        hidden_size=37,
        **fields,
    )
    tester.run_common_tests()


class RVQCodecMixinsTest(RVQCodecMixins, unittest.TestCase):
    overrides = {"codebook_dim": 6}

    def test_config(self):
        run_config_tests(self, RVQCodecConfig)


class SnakeRVQCodecMixinsTest(RVQCodecMixins, unittest.TestCase):
    overrides = {"activation": "snake", "encoder_lstm": "bidirectional", "decoder_lstm": "none"}


class SpectralRVQCodecMixinsTest(RVQCodecMixins, unittest.TestCase):
    overrides = {"encoder_type": "stft", "decoder_type": "istft"}


class DMCodecMixinsTest(RVQCodecMixins, unittest.TestCase):
    all_model_classes = (DMCodecModel,)
    overrides = {
        "semantic_dimension": 10,
        "contextual_dimension": 9,
        "contextual_stage": "mean",
        "encoder_lstm": "bidirectional",
        "pad_mode": "reflect",
    }

    def test_config(self):
        run_config_tests(self, DMCodecConfig, semantic_dimension=10, contextual_dimension=10, share_projection=True)


class CSTMixinsTest(RVQCodecMixins, unittest.TestCase):
    all_model_classes = (CSTModel,)
    overrides = {"latent_stride": 2, "ctc_labels": ["<pad>", "a", "b"], "encoder_lstm": "bidirectional"}

    def test_config(self):
        run_config_tests(self, CSTConfig)


class SpectralCSTMixinsTest(RVQCodecMixins, unittest.TestCase):
    all_model_classes = (CSTModel,)
    overrides = {"encoder_type": "stft", "decoder_type": "istft", "bottleneck_type": "kl", "use_weight_norm": False}


class UnitVocoderModelTester:
    batch_size = 3
    is_training = True

    def __init__(self, overrides):
        self.overrides = overrides

    def get_config(self) -> UnitVocoderConfig:
        sizes = {"num_quantizers": 2, "codebook_size": 16, "hop_length": 20, "hidden_size": 12}
        sizes |= {"decoder_hidden_size": 16, "decoder_num_layers": 2, "predicts_durations": True}
        return UnitVocoderConfig(**sizes, **self.overrides)

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        inputs = {"audio_codes": torch.randint(16, (self.batch_size, 2, 9), generator=generator)}
        if "num_speakers" in self.overrides:
            inputs["speaker_ids"] = torch.arange(self.batch_size) % self.overrides["num_speakers"]
        if "speaker_embedding_dim" in self.overrides:
            dim = self.overrides["speaker_embedding_dim"]
            inputs["speaker_embeddings"] = torch.randn(self.batch_size, dim, generator=generator)
        return self.get_config(), inputs


class UnitVocoderMixinsTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (UnitVocoderModel,)
    is_encoder_decoder = False
    has_attentions = False
    keeps_float32 = False
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    overrides: dict = {}

    def setUp(self):
        self.model_tester = UnitVocoderModelTester(self.overrides)

    def test_config(self):
        run_config_tests(self, UnitVocoderConfig)


class NumberedVoicesMixinsTest(UnitVocoderMixinsTest):
    overrides = {"num_speakers": 2}


class EmbeddedVoicesMixinsTest(UnitVocoderMixinsTest):
    overrides = {"speaker_embedding_dim": 5}


class FeatureExtractorTester:
    """Waveforms of several lengths, as `SequenceFeatureExtractionTestMixin` wants them."""

    batch_size, min_seq_length, max_seq_length = 7, 400, 2000
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)
    feature_size, padding_value, sampling_rate = 1, 0.0, 16000

    def prepare_feat_extract_dict(self):
        return {
            "feature_size": self.feature_size,
            "padding_value": self.padding_value,
            "sampling_rate": self.sampling_rate,
        }

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        generator = np.random.default_rng(0)
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        lengths = [self.max_seq_length] * self.batch_size if equal_length else lengths
        waveforms = [generator.uniform(-1, 1, size=length).tolist() for length in lengths]
        return [np.asarray(waveform) for waveform in waveforms] if numpify else waveforms


class RVQCodecFeatureExtractorMixinsTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = RVQCodecFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractorTester()

    def test_attention_mask(self):
        """The models take a `padding_mask` in its place."""
        extractor = self.feature_extraction_class()
        inputs = self.feat_extract_tester.prepare_inputs_for_common()
        padded = extractor.pad({"input_values": inputs}, padding="longest", return_tensors="np")
        assert padded["padding_mask"].shape == padded["input_values"].shape
        assert padded["padding_mask"].sum(-1).tolist() == [len(waveform) for waveform in inputs]
        assert "attention_mask" not in padded

    def test_attention_mask_with_truncation(self):
        """See above."""
        extractor = self.feature_extraction_class()
        inputs = self.feat_extract_tester.prepare_inputs_for_common()
        shortest = min(map(len, inputs))
        padded = extractor.pad(
            {"input_values": inputs}, padding="max_length", max_length=shortest, truncation=True, return_tensors="np"
        )
        assert padded["padding_mask"].tolist() == [[1] * shortest] * len(inputs)


class DMCodecFeatureExtractorMixinsTest(RVQCodecFeatureExtractorMixinsTest):
    feature_extraction_class = DMCodecFeatureExtractor


class KMeansUnitsFeatureExtractorMixinsTest(RVQCodecFeatureExtractorMixinsTest):
    feature_extraction_class = KMeansUnitsFeatureExtractor


class DCSpinFeatureExtractorMixinsTest(RVQCodecFeatureExtractorMixinsTest):
    feature_extraction_class = DCSpinFeatureExtractor


class CSTFeatureExtractorMixinsTest(RVQCodecFeatureExtractorMixinsTest):
    feature_extraction_class = CSTFeatureExtractor


class FaultyRVQCodecModel(RVQCodecModel):
    """A parameter that `_init_weights` does not know."""

    def __init__(self, config):
        super().__init__(config)
        self.gain = nn.Parameter(torch.full((4,), 1.25))


class DetachedRVQCodecModel(RVQCodecModel):
    """A tensor that is neither parameter nor buffer."""

    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.ones(1)

    def forward(self, input_values, **kwargs):
        return super().forward(self.gain * input_values, **kwargs)


@pytest.mark.parametrize(
    ("model_class", "name", "message"),
    [
        (FaultyRVQCodecModel, "test_can_init_all_missing_weights", "not properly handled in `_init_weights"),
        (DetachedRVQCodecModel, "test_all_tensors_are_parameter_or_buffer", "meta"),
    ],
)
def test_the_common_tests_see_a_planted_fault(model_class, name, message):
    class Mixins(RVQCodecMixins, unittest.TestCase):
        all_model_classes = (model_class,)

    result = unittest.TestResult()
    Mixins(name).run(result)
    ((_, trace),) = result.failures + result.errors
    assert message in trace
