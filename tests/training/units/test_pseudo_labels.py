# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: aligned with the frames, those of the labeler, written once and resumed after a kill."""

import numpy as np
import pytest
import torch

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.modeling.configuration_cst import CSTConfig
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_cst import CSTModel
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.units.mfcc import mfcc_features
from speech_tokenizers.training.units.pseudo_labels import (
    MfccLabeler,
    TokenLabeler,
    as_float,
    frame_labels,
    label_all,
)


class LoudnessLabeler:
    """A label for each 160 samples: whether their mean is above 0. Counts what it is asked."""

    label_rate, num_labels = 100.0, 2
    description = {"kind": "loudness"}

    def __init__(self, fail_after=None):
        self.fail_after, self.asked = fail_after, 0

    def __call__(self, waveforms):
        if self.asked == self.fail_after:
            raise KeyboardInterrupt
        self.asked += 1
        return [(row[: len(row) // 160 * 160].reshape(-1, 160).mean(1) > 0).astype(np.int64) for row in waveforms]


@pytest.fixture
def decoded(audio_folder, tmp_path):
    return decode_all(load_recordings(str(audio_folder)), 16000, tmp_path / "audio", show_progress=False)


def test_labels_of_frames_by_hand():
    labels = np.arange(10, 18)
    # Two labels a frame: frame f has label 2 f, and there is none for the fifth frame.
    assert frame_labels(labels, 100.0, 50.0, 0, 5).tolist() == [10, 12, 14, 16, -100]
    assert frame_labels(labels, 100.0, 50.0, 2, 2).tolist() == [14, 16]
    # Half a label a frame: each label lasts two frames.
    assert frame_labels(labels[:2], 25.0, 50.0, 0, 5).tolist() == [10, 10, 11, 11, -100]
    # 75 to 50: floor(1.5 f).
    assert frame_labels(labels, 75.0, 50.0, 1, 4).tolist() == [11, 13, 14, 16]


def test_equal_rates_that_are_no_round_numbers_are_the_identity():
    labels = np.arange(1000)
    assert frame_labels(labels, 16000 / 320 * 1.1, 55.0, 0, 1000).tolist() == labels.tolist()


def test_labels_are_the_labeler_s(decoded, tmp_path):
    labels = label_all(decoded, LoudnessLabeler(), tmp_path / "labels", batch_seconds=0.6, show_progress=False)
    assert len(labels) == len(decoded)
    for row, recording in zip(labels, decoded, strict=True):
        assert row.tolist() == LoudnessLabeler()([as_float(recording)])[0].tolist()
    everything = np.concatenate(list(labels))
    np.testing.assert_allclose(labels.shares(), [np.mean(everything == 0), np.mean(everything == 1)])


def test_a_second_call_labels_nothing(decoded, tmp_path):
    label_all(decoded, LoudnessLabeler(), tmp_path, show_progress=False)
    labeler = LoudnessLabeler()
    again = label_all(decoded, labeler, tmp_path, show_progress=False)
    assert labeler.asked == 0
    assert len(again) == len(decoded)


@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_call_goes_on(decoded, tmp_path, torn):
    whole = label_all(decoded, LoudnessLabeler(), tmp_path / "whole", batch_seconds=0.6, show_progress=False)
    interrupted = LoudnessLabeler(fail_after=2)
    with pytest.raises(KeyboardInterrupt):
        label_all(decoded, interrupted, tmp_path / "resumed", batch_seconds=0.6, show_progress=False)
    if torn:  # a kill amid writing: labels that are not noted, and a note that is not whole
        with next((tmp_path / "resumed").glob("*.partial")).open("ab") as file:
            file.write(b"\x01" * 7)
        with next((tmp_path / "resumed").glob("*.done")).open("ab") as file:
            file.write(b"\x01" * 3)
    rest = LoudnessLabeler()
    resumed = label_all(decoded, rest, tmp_path / "resumed", batch_seconds=0.6, show_progress=False)
    complete = LoudnessLabeler()
    label_all(decoded, complete, tmp_path / "third", batch_seconds=0.6, show_progress=False)
    assert rest.asked == complete.asked - 2
    assert [row.tolist() for row in resumed] == [row.tolist() for row in whole]
    assert {path.suffix for path in (tmp_path / "resumed").iterdir()} == {".json", ".labels"}


def test_recordings_that_are_too_short_get_no_labels(decoded, tmp_path):
    labels = label_all(decoded, LoudnessLabeler(), tmp_path, min_seconds=0.35, show_progress=False)
    assert [len(row) > 0 for row in labels] == [len(recording) >= 5600 for recording in decoded]
    assert 0 < sum(len(row) == 0 for row in labels) < len(decoded)


def test_mfcc_labels_are_the_nearest_centroids(decoded, tmp_path):
    features = torch.as_tensor(mfcc_features(as_float(decoded[0]), 16000))
    centroids = features[[3, 10, 20]]
    labels = label_all(decoded, MfccLabeler(centroids), tmp_path, show_progress=False)
    assert labels.label_rate == 100.0
    assert labels[0][[3, 10, 20]].tolist() == [0, 1, 2]
    assert labels[0].tolist() == torch.cdist(features.double(), centroids.double()).argmin(1).tolist()
    # 25 ms every 10 ms, all within the recording: frame f of HuBERT, 25 ms every 20 ms, has label 2 f.
    assert len(labels[0]) == (len(decoded[0]) - 400) // 160 + 1


def test_labels_less_the_mean_are_other_labels_of_their_own(decoded, tmp_path):
    features = mfcc_features(as_float(decoded[0]), 16000, subtract_mean=True)
    labeler = MfccLabeler(features[[3, 10, 20]], subtract_mean=True)
    plain = label_all(decoded, MfccLabeler(features[[3, 10, 20]]), tmp_path, show_progress=False)
    labels = label_all(decoded, labeler, tmp_path, show_progress=False)
    assert labels[0][[3, 10, 20]].tolist() == [0, 1, 2]
    assert labels[0].tolist() != plain[0].tolist()


@pytest.mark.parametrize("codebook", [0, 2])
def test_codes_of_a_codec_are_those_of_the_recording_alone(decoded, tmp_path, codebook):
    torch.manual_seed(0)
    config = RVQCodecConfig(
        downsampling_ratios=(4, 5, 8),
        num_filters=4,
        hidden_size=16,
        encoder_hidden_size=16,
        decoder_hidden_size=16,
        encoder_num_layers=1,
        decoder_num_layers=1,
        num_quantizers=3,
        codebook_size=16,
    )
    model = RVQCodecModel(config).eval()
    labels = label_all(decoded, TokenLabeler(model, codebook=codebook), tmp_path, show_progress=False)
    assert (labels.label_rate, labels.num_labels) == (100.0, 16)
    for row, recording in zip(labels, decoded, strict=True):
        with torch.no_grad():
            codes = model.encode(torch.from_numpy(as_float(recording))[None, None]).audio_codes
        assert row.tolist() == codes[0, codebook].tolist()
    with pytest.raises(ValueError, match="`codebook` must lie below 3, but got 3"):
        TokenLabeler(model, codebook=3)


def test_units_of_a_layer_are_those_of_the_recording_alone(decoded, tmp_path):
    torch.manual_seed(0)
    encoder = tiny_hubert(conv_dim=(8,) * 7)
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder, layers=[1], codebook_size=12)).eval()
    model.set_centroids(torch.randn(1, 12, 16))
    labels = label_all(decoded, TokenLabeler(model), tmp_path, show_progress=False)
    assert (labels.label_rate, labels.num_labels) == (50.0, 12)
    for row, recording in zip(labels, decoded, strict=True):
        assert row.tolist() == model.encode(torch.from_numpy(as_float(recording))[None]).audio_codes[0, 0].tolist()


def test_other_weights_are_other_labels(decoded):
    """Else labels that were kept would be taken for those of another model."""
    one, same, other = (MfccLabeler(torch.full((2, 39), value)) for value in (0.0, 0.0, 1.0))
    assert one.description == same.description != other.description


def test_vectors_are_kept_as_a_model_gives_them(decoded, tmp_path):
    config = CSTConfig.from_preset(
        "cst-fast-16khz",
        hidden_size=4,
        network_hidden_size=8,
        encoder_hidden_size=8,
        decoder_hidden_size=8,
        encoder_num_layers=1,
        decoder_num_layers=1,
    )
    labeler = TokenLabeler(CSTModel(config))
    latents = label_all(decoded, labeler, tmp_path, show_progress=False)
    assert latents.label_rate == 25.0
    for index in range(len(decoded)):
        alone = labeler.model.encode(torch.from_numpy(as_float(decoded[index]))[None, None]).latents[0]
        np.testing.assert_allclose(latents[index], alone.detach().numpy(), atol=1e-5)
    # Read again without encoding.
    labeler.model.encode = None
    np.testing.assert_array_equal(label_all(decoded, labeler, tmp_path)[1], latents[1])
