# SPDX-License-Identifier: Apache-2.0
"""Speed of unit models against the plain forward pass of their encoders, and what windows change in their units."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from speech_tokenizers.coding.recording_coding import encode_recordings
from speech_tokenizers.evaluation.units.robustness import unit_edit_distance, unit_edits
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.windowed_encoding import WindowedEncoder
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.packing import pack_by_length


NUM_LAYERS = 6
CODEBOOK_SIZE = 500


def random_units(num_layers: int = NUM_LAYERS, codebook_size: int = CODEBOOK_SIZE, **overrides: Any):
    """
    A HuBERT of transformers with seeded random weights, and units of a copy of it with random centroids.

    Args:
        num_layers (`int`), codebook_size (`int`): Number of layers of the encoder, which all run, and number of
            centroids.
        overrides: Fields of the `HubertConfig` that differ from the base size.
    """
    torch.manual_seed(0)
    encoder = HubertModel(HubertConfig(num_hidden_layers=num_layers, **overrides)).eval()
    with torch.device("meta"):
        units = KMeansUnitsModel(
            KMeansUnitsModel.config_class(
                encoder_config=encoder.config, layers=[num_layers], codebook_size=codebook_size
            )
        )
    units = units.to_empty(device="cpu")
    units.encoder.load_state_dict(encoder.state_dict())
    shape = units.quantizer.features_mean.shape
    # `to_empty` leaves what the memory held before, which may be NaN.
    units.set_statistics(torch.zeros(shape), torch.ones(shape))
    units.set_centroids(torch.randn(units.centroids.shape, generator=torch.Generator().manual_seed(0)))
    return encoder, units.eval()


def plain_forward(
    encoder: HubertModel, waveforms: Sequence[np.ndarray], batch_samples: int, sampling_rate: int
) -> Callable[[], None]:
    """The encoder's forward pass over the recordings in padded batches, sorted by length, as one writes it."""
    feature_extractor = KMeansUnitsFeatureExtractor(sampling_rate=sampling_rate)
    lengths = [len(waveform) for waveform in waveforms]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])

    @torch.no_grad()
    def run() -> None:
        for batch in pack_by_length(lengths, order, batch_samples):
            inputs = feature_extractor(
                [waveforms[i] for i in batch], sampling_rate=sampling_rate, padding=True, return_tensors="pt"
            )
            encoder(inputs["input_values"][:, 0], attention_mask=inputs["padding_mask"])

    return run


def tokenization(units: KMeansUnitsModel, waveforms: Sequence[np.ndarray], batch_seconds: float) -> Callable[[], None]:
    """Function that does with the same recordings what the library does, up to the units."""
    feature_extractor = KMeansUnitsFeatureExtractor(sampling_rate=units.sampling_rate, hop_length=units.hop_length)

    def run() -> None:
        for result in encode_recordings(units, feature_extractor, waveforms, batch_seconds):
            if result.reason is not None:
                raise RuntimeError(result.reason)

    return run


def window_effect(
    model: Any, recording: torch.Tensor, window_seconds: float = 20.0, context_seconds: float = 2.0
) -> dict[str, float] | None:
    """
    Difference between the units of a recording in windows and those of the whole recording.

    Args:
        model ([`KMeansUnitsModel`] or alike): Model in evaluation mode.
        recording (`torch.Tensor` of shape `(num_samples,)`): Recording that is longer than a window with its context.
        window_seconds, context_seconds (`float`): Arguments of [`WindowedEncoder`], in seconds.

    Returns:
        `dict`: `unit_edit_distance` in percent, `frames_equal` as a share, and the lengths that were compared, in
        seconds. `None` if the encoder cannot hear the whole recording.
    """
    if model.longest_input is not None and len(recording) > model.longest_input:
        return None
    with torch.no_grad():
        whole = model.encode(recording[None, None].to(model.device)).audio_codes[0].cpu()
    windowed = WindowedEncoder(model, window_seconds, context_seconds, whole_samples=0).encode(recording)
    edits = unit_edits(whole.numpy(), windowed.numpy())
    return {
        "seconds": len(recording) / model.sampling_rate,
        "window_seconds": window_seconds,
        "context_seconds": context_seconds,
        "unit_edit_distance": float(unit_edit_distance(np.array(edits))),
        "frames_equal": float((whole == windowed).all(0).float().mean()),
    }
