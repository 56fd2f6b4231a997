# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from transformers import (
    DacConfig,
    DacFeatureExtractor,
    DacModel,
    EncodecConfig,
    EncodecFeatureExtractor,
    EncodecModel,
    MimiConfig,
    MimiModel,
)

from speech_tokenizers.evaluation.codec_systems import ModelSystem
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


def make_rvq_codec(seed: int = 0) -> tuple[RVQCodecModel, RVQCodecFeatureExtractor]:
    torch.manual_seed(seed)
    config = RVQCodecConfig.from_preset(
        "fast-16khz",
        hidden_size=16,
        encoder_hidden_size=16,
        decoder_hidden_size=16,
        encoder_num_layers=1,
        decoder_num_layers=1,
        num_quantizers=4,
        codebook_size=32,
    )
    return RVQCodecModel(config).eval(), RVQCodecFeatureExtractor(sampling_rate=16000, hop_length=320)


def make_encodec() -> tuple[EncodecModel, EncodecFeatureExtractor]:
    torch.manual_seed(0)
    config = EncodecConfig(
        target_bandwidths=[0.5, 1.0, 2.0],
        sampling_rate=16000,
        hidden_size=16,
        codebook_dim=16,
        num_filters=4,
        codebook_size=1024,
        upsampling_ratios=[8, 5, 4, 2],
    )
    return EncodecModel(config).eval(), EncodecFeatureExtractor(sampling_rate=16000)


def make_dac() -> tuple[DacModel, DacFeatureExtractor]:
    torch.manual_seed(0)
    config = DacConfig(
        encoder_hidden_size=8,
        decoder_hidden_size=16,
        downsampling_ratios=[2, 4, 5, 8],
        n_codebooks=4,
        codebook_size=64,
        codebook_dim=4,
        sampling_rate=16000,
    )
    return DacModel(config).eval(), DacFeatureExtractor(sampling_rate=16000, hop_length=320)


def make_mimi() -> tuple[MimiModel, EncodecFeatureExtractor]:
    torch.manual_seed(0)
    config = MimiConfig(
        hidden_size=32,
        num_filters=4,
        codebook_size=64,
        codebook_dim=16,
        vector_quantization_hidden_dimension=16,
        num_quantizers=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=32,
        upsample_groups=32,
    )
    return MimiModel(config).eval(), EncodecFeatureExtractor(sampling_rate=24000)


@pytest.mark.parametrize(
    ("make", "kbps", "fewer"),
    [
        (make_rvq_codec, 50 * 4 * 5 / 1000, 2),
        (make_encodec, 2.0, 2),
        (make_dac, 50 * 4 * 6 / 1000, 2),
        (make_mimi, 12.5 * 4 * 6 / 1000, 2),
    ],
)
@pytest.mark.parametrize("all_quantizers", [True, False])
def test_our_and_transformers_codecs_run_through_one_interface(make, kbps, fewer, all_quantizers):
    model, feature_extractor = make()
    total = {make_encodec: 4}.get(make, 4)
    system = ModelSystem(model, feature_extractor, "codec", None if all_quantizers else fewer)
    audio = 0.1 * np.random.default_rng(0).standard_normal(system.sampling_rate * 2 + 77).astype(np.float32)
    coded = system.code(audio)
    count = total if all_quantizers else fewer
    assert coded.audio_values.shape == audio.shape
    assert np.isfinite(coded.audio_values).all()
    assert coded.audio_codes.shape[0] == count
    assert coded.num_bits == coded.audio_codes.size * math.log2(system.codebook_size)
    seconds = len(audio) / system.sampling_rate
    assert coded.num_bits / seconds / 1000 == pytest.approx(kbps * count / total, rel=0.06)
    assert coded.audio_codes.shape[1] / seconds == pytest.approx(system.frame_rate, rel=0.06)


def test_the_key_changes_with_weights_and_codebooks():
    keys = {
        ModelSystem(*make_rvq_codec(), "codec").key,
        ModelSystem(*make_rvq_codec(seed=1), "codec").key,
        ModelSystem(*make_rvq_codec(), "codec", 2).key,
    }
    model, feature_extractor = make_rvq_codec()
    with torch.no_grad():
        model.quantizer.quantizers[3].codebook[5, 0] += 1e-3
    keys.add(ModelSystem(model, feature_extractor, "codec").key)
    assert len(keys) == 4
    assert ModelSystem(*make_rvq_codec(), "codec").key in keys


def test_a_number_of_codebooks_that_a_codec_lacks_is_refused():
    with pytest.raises(ValueError, match="must lie between 1 and 4 for codec"):
        ModelSystem(*make_rvq_codec(), "codec", 5)
    with pytest.raises(ValueError, match="offers 0.5, 1, 2 kbps"):
        ModelSystem(*make_encodec(), "codec", 3)
