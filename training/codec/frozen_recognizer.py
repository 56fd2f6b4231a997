# SPDX-License-Identifier: Apache-2.0
"""A frozen CTC recogniser that sends gradients back to the waveform that it hears."""

from typing import Any

import torch
from transformers import AutoModelForCTC, AutoTokenizer

from speech_tokenizers.modeling.modeling_speech_encoder_ctc import SpeechEncoderForCTC
from speech_tokenizers.modeling.speech_encoders import load_pretrained, select_layer
from speech_tokenizers.processing.ctc_labels import CTCLabels
from speech_tokenizers.training.codec.frozen_encoder import FrozenEncoder, normalized, with_a_frame


class FrozenRecognizer:
    """
    Any `AutoModelForCTC` on waveforms, or a [`SpeechEncoderForCTC`] on an encoder of waveforms or on Whisper's.

    Args:
        name_or_path (`str`): Folder or Hub id of the recogniser, with its feature extractor and tokenizer.
        device (`torch.device`): Device that it runs on.
    """

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu"):
        self.model, self.feature_extractor = load_pretrained(name_or_path, "recognition.recognizer", AutoModelForCTC)
        self.model.eval().requires_grad_(False).to(device)
        self.labels = CTCLabels(AutoTokenizer.from_pretrained(name_or_path))
        self.encoder = None
        if isinstance(self.model, SpeechEncoderForCTC):
            window = getattr(self.model.config, "window", "padded")
            self.encoder = FrozenEncoder(self.model.encoder, self.feature_extractor, window)
        self.sampling_rate: int = self.feature_extractor.sampling_rate

    def __call__(self, waveforms: torch.Tensor) -> torch.Tensor:
        """
        Args:
            waveforms (`torch.Tensor` of shape `(batch, num_samples)`): Waveforms in [-1, 1], at `sampling_rate`, all
                of one length.

        Returns:
            `torch.Tensor` of shape `(batch, num_frames, num_labels)`: Logits.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms = waveforms.float()
            if self.encoder is None:
                waveforms = with_a_frame(normalized(waveforms, self.feature_extractor), self.model.config)
                return self.model(waveforms).logits
            # What `SpeechEncoderForCTC.encode` computes, with gradients.
            return self.model(encoder_states=self._read(self.encoder(waveforms))).logits

    def _read(self, outputs: Any) -> torch.Tensor:
        if self.model.config.layer == "weighted":
            return torch.stack(outputs.hidden_states, dim=1)
        return select_layer(outputs, self.model.config.layer)[:, None]
