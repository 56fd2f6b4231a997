# SPDX-License-Identifier: Apache-2.0
"""Frozen speech encoders that send gradients back to the waveform that they hear, and a loss of their features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from speech_tokenizers.modeling.encoder_geometry import WHISPER_HOP_LENGTH, shortest_input
from speech_tokenizers.modeling.speech_encoders import (
    encoder_of,
    has_fixed_window,
    load_pretrained,
    num_encoder_layers,
    shortened_positions,
)
from speech_tokenizers.processing.recordings import DecodedRecordings
from speech_tokenizers.training.codec.arguments import SpeechFeatureArguments
from speech_tokenizers.training.codec.objectives import CodecObjective


# Number of recordings over which the variances of features are measured.
_NUM_MEASURED = 64


class FrozenEncoder:
    """
    Any speech encoder of transformers on waveforms, or Whisper's on its spectrogram, computed here with gradients.

    Args:
        encoder (`PreTrainedModel`): Encoder; of an encoder-decoder, the encoder part.
        feature_extractor (`FeatureExtractionMixin`): Feature extractor of the encoder.
        window (`str`, *optional*, defaults to `"padded"`): Window of Whisper; see [`WaveformEncoder`].
    """

    def __init__(self, encoder: Any, feature_extractor: Any, window: str = "padded"):
        self.encoder = encoder.eval().requires_grad_(False)
        self.feature_extractor = feature_extractor
        self.window = window

    def __call__(self, waveforms: torch.Tensor) -> Any:
        """
        Args:
            waveforms (`torch.Tensor` of shape `(batch, num_samples)`): Waveforms in [-1, 1], at the encoder's rate,
                all of one length. Silence follows those that are shorter than a frame.

        Returns:
            The encoder's outputs, `hidden_states` of shape `(batch, num_frames, hidden_size)` among them.

        Raises:
            ValueError: If they are longer than what Whisper's encoder hears.
        """
        if not has_fixed_window(self.encoder.config):
            waveforms = with_a_frame(normalized(waveforms, self.feature_extractor), self.encoder.config)
            return self.encoder(waveforms, output_hidden_states=True)
        longest, rate = self.feature_extractor.n_samples, self.feature_extractor.sampling_rate
        if waveforms.shape[-1] > longest:
            raise ValueError(
                f"The crops are {waveforms.shape[-1] / rate:g} s long, but the encoder hears {longest / rate:g} s;"
                " lower `data.segment_seconds`, or choose an encoder on the waveform."
            )
        num_frames = -(-waveforms.shape[-1] // WHISPER_HOP_LENGTH)
        if self.window == "tight":
            num_steps = num_frames * WHISPER_HOP_LENGTH // self.feature_extractor.hop_length
            with shortened_positions(self.encoder, num_frames):
                return self.encoder(self._log_mel(waveforms, num_steps), output_hidden_states=True)
        log_mel = self._log_mel(waveforms, self.feature_extractor.nb_max_frames)
        outputs = self.encoder(log_mel, output_hidden_states=True)
        outputs.hidden_states = tuple(states[:, :num_frames] for states in outputs.hidden_states)
        outputs.last_hidden_state = outputs.last_hidden_state[:, :num_frames]
        return outputs

    def _log_mel(self, waveforms: torch.Tensor, num_steps: int) -> torch.Tensor:
        # Whisper's spectrogram of the recording in silence, its first steps.
        extractor = self.feature_extractor
        length = max(waveforms.shape[-1], num_steps * extractor.hop_length) + extractor.n_fft
        padded = F.pad(waveforms.float(), (0, length - waveforms.shape[-1]))
        window = torch.hann_window(extractor.n_fft, device=waveforms.device)
        spectrum = torch.stft(padded, extractor.n_fft, extractor.hop_length, window=window, return_complex=True)
        filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32, device=waveforms.device)
        power = torch.view_as_real(spectrum[..., :num_steps]).square().sum(-1)
        with torch.autocast(waveforms.device.type, enabled=False):
            log_mel = (filters.T @ power).clamp(min=1e-10).log10()
        loudest = log_mel.detach().amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log_mel, loudest - 8.0) + 4.0) / 4.0


def with_a_frame(waveforms: torch.Tensor, config: Any) -> torch.Tensor:
    """Waveforms `(batch, num_samples)`, with silence after those that are too short for a frame of an encoder."""
    return F.pad(waveforms, (0, max(0, shortest_input(config) - waveforms.shape[-1])))


def normalized(waveforms: torch.Tensor, feature_extractor: Any) -> torch.Tensor:
    """Waveforms `(batch, num_samples)` of zero mean and unit variance, where the feature extractor makes them so."""
    if not getattr(feature_extractor, "do_normalize", False):
        return waveforms
    centred = waveforms - waveforms.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-7).sqrt()


def _cut_layers(encoder: Any, depth: int) -> None:
    # What nobody listens to is not computed.
    if has_fixed_window(encoder.config):
        # Whisper's norm after the last layer belongs to that layer.
        encoder.layers, encoder.layer_norm = encoder.layers[:depth], nn.Identity()
    elif isinstance(getattr(getattr(encoder, "encoder", None), "layers", None), nn.ModuleList):
        # HuBERT's kin report their last layer normed: one layer more leaves the others as they are.
        encoder.encoder.layers = encoder.encoder.layers[: depth + 1]


class SpeechFeatureObjective(CodecObjective):
    """
    Decoded speech that a frozen speech encoder takes for the recording: the mean squared difference of their features
    at some layers (a perceptual loss, arXiv 1603.08155, on speech). Each feature counts relative to its variance over
    the training data, since a few of them are hundreds of times larger than the rest.

    Args:
        args ([`SpeechFeatureArguments`]): Settings of the encoder, with the layers that are compared.
    """

    loss_names = ("speech_features",)

    def __init__(self, args: SpeechFeatureArguments):
        self.args = args

    def prepare(self, recordings: Any, model: Any, accelerator: Accelerator, folder: Path) -> None:
        """See [`CodecObjective`]."""
        args = self.args
        self.accelerator = accelerator
        try:
            # On a CPU the fused attention is the slower one for sequences as short as a crop.
            attention = "eager" if accelerator.device.type == "cpu" else None
            loaded, extractor = load_pretrained(
                args.model,
                "speech_features.model",
                revision=args.revision or "main",
                attn_implementation=attention,
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`speech_features.model` is {args.model!r}, which cannot be loaded ({' '.join(str(error).split())})."
            ) from error
        if extractor.sampling_rate != model.sampling_rate:
            raise ValueError(
                f"`speech_features.model` hears {extractor.sampling_rate} Hz, but the codec has {model.sampling_rate}"
                " Hz; choose another encoder."
            )
        encoder = encoder_of(loaded)
        num_layers, deepest = num_encoder_layers(encoder.config), max(args.layers)
        if deepest > num_layers:
            raise ValueError(f"`speech_features.layers` names layer {deepest}, but the encoder has {num_layers}.")
        if deepest < num_layers:
            _cut_layers(encoder, deepest)
        self.encoder = FrozenEncoder(encoder.to(accelerator.device), extractor, "tight")
        self.scales = self._measure(recordings, accelerator.device)

    @torch.no_grad()
    def _measure(self, recordings: Any, device: torch.device) -> dict[int, torch.Tensor]:
        # 1 / standard deviation of each feature, by layer, over the first two seconds of some recordings.
        if not isinstance(recordings, Sequence) and not isinstance(recordings, DecodedRecordings):
            raise ValueError("The features' variances are measured on decoded recordings; set `data.streaming=false`.")
        states: dict[int, list[torch.Tensor]] = {layer: [] for layer in self.args.layers}
        for index in np.unique(np.linspace(0, len(recordings) - 1, _NUM_MEASURED).astype(int)):
            start = np.asarray(recordings[int(index)][: 2 * self.encoder.feature_extractor.sampling_rate])
            start = start.astype(np.float32) / (32767.0 if start.dtype == np.int16 else 1.0)
            hidden_states = self.encoder(torch.from_numpy(start).to(device)[None]).hidden_states
            for layer, found in states.items():
                found.append(hidden_states[layer][0])
        deviations = {layer: torch.cat(found).std(dim=0) for layer, found in states.items()}
        return {layer: 1 / found.clamp(min=1e-4 * float(found.max()) + 1e-8) for layer, found in deviations.items()}

    def targets(self, recording: int, first_sample: int, num_samples: int) -> dict[str, torch.Tensor]:
        """See [`CodecObjective`]. The batch's waveforms are enough."""
        return {}

    def losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See [`CodecObjective`]."""
        with self.accelerator.autocast():
            with torch.no_grad():
                recorded = self.encoder(batch["input_values"][:, 0]).hidden_states
            decoded = self.encoder(outputs.audio_values[:, 0]).hidden_states
        terms = []
        for layer in self.args.layers:
            difference = decoded[layer].float() - recorded[layer].float()
            terms.append((difference * self.scales[layer]).square().mean())
        return {"speech_features": torch.stack(terms).mean()}
