# SPDX-License-Identifier: Apache-2.0
"""Units of a stream against those of the whole recording."""

import json

import numpy as np
import pytest
import soundfile

from speech_tokenizers.evaluation.clip_results import ResultsFile
from speech_tokenizers.evaluation.codec_systems import EncodingSystem
from speech_tokenizers.evaluation.speed.units import random_units
from speech_tokenizers.evaluation.units import latency as unit_latency
from speech_tokenizers.evaluation.units.comparison import read_spoken_clips
from speech_tokenizers.evaluation.units.encoded_clips import UNITS_VERSION, EncodedClips, UnitSettings
from speech_tokenizers.evaluation.units.latency import StreamSetting, measure_streaming
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor


@pytest.fixture
def clips(tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * generator.standard_normal(12000), 16000, subtype="FLOAT")
        rows.append({"file_name": f"{number}.wav", "speaker": str(number)})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_spoken_clips(str(tmp_path), {})


@pytest.fixture
def system():
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": (16,) * 7}
    _, units = random_units(1, 50, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, **sizes)
    return EncodingSystem(units, KMeansUnitsFeatureExtractor(sampling_rate=16000), "units")


def measure(system, clips, folder):
    encoded = EncodedClips(system, clips, ResultsFile(folder / "results.jsonl", UNITS_VERSION))
    encoded.encode(False)
    return measure_streaming(encoded, UnitSettings(robustness_clips=2))


def test_a_stream_that_hears_all_gives_the_units_of_the_whole_and_another_does_not(
    system, clips, tmp_path, monkeypatch
):
    settings = (StreamSetting(0.1, 0.0, 0.0), StreamSetting(0.1, 2.0, 2.0))
    monkeypatch.setattr(unit_latency, "STREAM_SETTINGS", settings)
    measured = measure(system, clips, tmp_path)
    short, whole = measured.scores
    assert measured.scores[whole]["value"] == 0.0
    assert measured.details["streaming"][whole]["equal_frames"] == 1.0
    assert measured.scores[short]["value"] > 0.0
    assert measured.details["streaming"][short]["latency"] == pytest.approx((4 * 320 + 400) / 16000)
    assert measured.scores[short]["num_clips"] == 2
    # Both are kept, so that nothing is encoded again.
    monkeypatch.setattr(unit_latency.UnitStream, "push", None)
    assert measure(system, clips, tmp_path) == measured


def test_a_codec_is_not_streamed_so(make_rvq_codec, clips, tmp_path):
    with pytest.raises(ValueError, match="see `CodecStream`"):
        measure(EncodingSystem(*make_rvq_codec(), "codec"), clips, tmp_path)
