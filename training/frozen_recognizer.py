# SPDX-License-Identifier: Apache-2.0
"""A frozen CTC recogniser that sends gradients back to the waveform that it hears."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

from speech_tokenizers.modeling.encoder_geometry import WHISPER_HOP_LENGTH
from speech_tokenizers.modeling.modeling_speech_encoder_ctc import SpeechEncoderForCTC
from speech_tokenizers.modeling.speech_encoders import select_layer, shortened_positions
from speech_tokenizers.processing.ctc_labels import CTCLabels


class FrozenRecognizer:
    r"""
    Any `AutoModelForCTC` on waveforms, or a [`SpeechEncoderForCTC`] on an encoder of waveforms or on Whisper's.

    Args:
        name_or_path (`str`): Folder or Hub id, with its feature extractor and tokenizer.
        device (`torch.device`): Where it runs.
    """

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu"):
        self.model: Any = AutoModelForCTC.from_pretrained(name_or_path, dtype=torch.float32)
        self.model.eval().requires_grad_(False).to(device)
        self.feature_extractor = AutoFeatureExtractor.from_pretrained(name_or_path)
        self.labels = CTCLabels(AutoTokenizer.from_pretrained(name_or_path))
        self.sampling_rate: int = self.feature_extractor.sampling_rate

    def __call__(self, waveforms: torch.Tensor) -> torch.Tensor:
        r"""
        Args:
            waveforms (`torch.Tensor` of shape `(batch, num_samples)`): In [-1, 1], at `sampling_rate`, all of one
                length.

        Returns:
            `torch.Tensor` of shape `(batch, num_frames, num_labels)`: Logits.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms = waveforms.float()
            if not isinstance(self.model, SpeechEncoderForCTC):
                return self.model(self._normalized(waveforms)).logits
            states = self._states(self.model.encoder, waveforms)
            return self.model(encoder_states=states).logits

    def _states(self, encoder: nn.Module, waveforms: torch.Tensor) -> torch.Tensor:
        # What `SpeechEncoderForCTC.encode` computes, with gradients.
        if self.model.main_input_name == "input_values":
            outputs = encoder(self._normalized(waveforms), output_hidden_states=True)
            return self._read(outputs)
        num_samples = waveforms.shape[-1]
        if self.model.config.window == "tight":
            num_frames = -(-num_samples // WHISPER_HOP_LENGTH)
            num_steps = num_frames * WHISPER_HOP_LENGTH // self.feature_extractor.hop_length
            with shortened_positions(encoder, num_frames):
                return self._read(encoder(self._log_mel(waveforms, num_steps), output_hidden_states=True))
        num_steps = self.feature_extractor.nb_max_frames
        states = self._read(encoder(self._log_mel(waveforms, num_steps), output_hidden_states=True))
        return states[:, :, : -(-num_samples // WHISPER_HOP_LENGTH)]

    def _read(self, outputs: Any) -> torch.Tensor:
        if self.model.config.layer == "weighted":
            return torch.stack(outputs.hidden_states, dim=1)
        return select_layer(outputs, self.model.config.layer)[:, None]

    def _normalized(self, waveforms: torch.Tensor) -> torch.Tensor:
        if not getattr(self.feature_extractor, "do_normalize", False):
            return waveforms
        centred = waveforms - waveforms.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-7).sqrt()

    def _log_mel(self, waveforms: torch.Tensor, num_steps: int) -> torch.Tensor:
        # Whisper's spectrogram of the recording in silence, its first steps.
        extractor = self.feature_extractor
        length = max(waveforms.shape[-1], num_steps * extractor.hop_length) + extractor.n_fft
        padded = F.pad(waveforms, (0, length - waveforms.shape[-1]))
        window = torch.hann_window(extractor.n_fft, device=waveforms.device)
        spectrum = torch.stft(padded, extractor.n_fft, extractor.hop_length, window=window, return_complex=True)
        filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32, device=waveforms.device)
        power = torch.view_as_real(spectrum[..., :num_steps]).square().sum(-1)
        log_mel = (filters.T @ power).clamp(min=1e-10).log10()
        loudest = log_mel.detach().amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log_mel, loudest - 8.0) + 4.0) / 4.0
