# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""A CTC recogniser of characters or phones on a frozen speech encoder."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .checked_loading import CheckedLoading
from .configuration_speech_encoder_ctc import SpeechEncoderCTCConfig
from .encoder_geometry import first_frame_centre, frame_geometry, has_fixed_window
from .input_checks import (
    check_arguments,
    check_finite,
    check_floats,
    check_mask,
    check_whole_numbers,
    numbers_are_known,
)
from .mixed_precision import MixedPrecisionModel, guard_convolutions
from .padding_invariance import make_padding_invariant
from .speech_encoders import encoder_of, load_pretrained, select_layer, shortened_positions


# Added to the logits of all labels but the blank where a batch is padded; finite, so that half precision can hold it.
_NEVER = -1e4


class SpeechEncoderForCTC(MixedPrecisionModel, CheckedLoading, PreTrainedModel):
    """
    A frozen speech encoder and a linear map from its states to the labels of a CTC (Graves et al., 2006).

    Its feature extractor is the encoder's own.

    Args:
        config ([`SpeechEncoderCTCConfig`]): The encoder, and the layer that labels are read from.
    """

    config_class = SpeechEncoderCTCConfig
    # Of an instance, the name that its encoder has for it.
    main_input_name = "input_values"
    input_modalities = ("audio",)
    # The loss is a mean, which `Trainer` has to divide among accumulated batches itself.
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: SpeechEncoderCTCConfig):
        super().__init__(config)
        self.encoder = make_padding_invariant(encoder_of(AutoModel.from_config(config.encoder_config)))
        self.encoder.requires_grad_(False)
        self.main_input_name = self.encoder.main_input_name
        num_layers = 1
        if config.layer == "weighted":
            num_layers = config.num_encoder_layers + 1
            self.layer_weights = nn.Parameter(torch.zeros(num_layers))  # uniform after the softmax
        # Layers and dimensions of an encoder differ in scale by orders of magnitude; set by training.
        self.register_buffer("states_mean", torch.zeros(num_layers, config.hidden_size))
        self.register_buffer("states_std", torch.ones(num_layers, config.hidden_size))
        self.head = nn.Conv1d(
            config.hidden_size, config.vocab_size, config.kernel_size, padding=config.kernel_size // 2
        )
        self.post_init()

    @classmethod
    def from_encoder(cls, name_or_path: str, **fields: Any) -> tuple["SpeechEncoderForCTC", Any]:
        """
        A recogniser with an untrained map on a pretrained encoder.

        Args:
            name_or_path (`str`): Folder or Hub id of any speech model that `AutoModel` knows.
            fields: Fields of the [`SpeechEncoderCTCConfig`]. The encoder's configuration and the times of its frames
                are filled in.

        Returns:
            `tuple`: The model, and the feature extractor to save with it.

        Raises:
            ValueError: If there is no such encoder, or the times of its frames are not known.
        """
        pretrained, feature_extractor = load_pretrained(name_or_path)
        # So that the model knows where a padded recording ends.
        feature_extractor.return_attention_mask = True
        hop, _ = frame_geometry(pretrained.config)
        centre = first_frame_centre(pretrained.config)
        config = SpeechEncoderCTCConfig(
            encoder_config=pretrained.config, inputs_to_logits_ratio=hop, first_frame_centre=centre, **fields
        )
        model = cls(config)
        model.encoder = guard_convolutions(make_padding_invariant(encoder_of(pretrained))).requires_grad_(False)
        return model.eval(), feature_extractor

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.states_mean)
            init.ones_(self.states_std)
            if self.config.layer == "weighted":
                init.zeros_(self.layer_weights)

    def train(self, mode: bool = True) -> "SpeechEncoderForCTC":
        """The encoder stays in evaluation mode: it is frozen."""
        super().train(mode)
        self.encoder.eval().requires_grad_(False)
        return self

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        encoder_states: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutput:
        """
        Args:
            input_values, input_features (`torch.Tensor`): Output of the feature extractor: the one of the two that the
                encoder takes.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*): Mask with 1 for real steps of the
                inputs, or with `encoder_states` for real frames.
            labels (`torch.Tensor` of shape `(batch, num_labels)`, *optional*): Labels for the loss; -100 is ignored.
            encoder_states (`torch.Tensor` of shape `(batch, num_layers, num_frames, hidden_size)`, *optional*): States
                that [`~SpeechEncoderForCTC.encode`] returned, in place of the inputs.
            output_hidden_states, output_attentions (`bool`, *optional*): Whether to return what the encoder gives of
                them. There is nothing with `encoder_states`, nor with a tight window, which hears each row alone.
            kwargs: Other arguments that transformers passes to any model.

        Returns:
            `CausalLMOutput`: `logits` of shape `(batch, num_frames, vocab_size)`, where padded frames are blank, and
            with `labels` the `loss` per label.

        Raises:
            TypeError: If an input is no tensor of floating point, the mask no tensor, or another argument is given.
            ValueError: If there is not exactly one input, a number is not finite, the mask is malformed, a label is
                not in the vocabulary, or a row has more labels than frames.
        """
        check_arguments(kwargs)
        inputs = {"input_values": input_values, "input_features": input_features, "encoder_states": encoder_states}
        given = [name for name, value in inputs.items() if value is not None]
        if len(given) != 1 or given[0] not in (self.main_input_name, "encoder_states"):
            raise ValueError(
                f"`{self.main_input_name}` or `encoder_states` must be given, not both, but got"
                f" {' and '.join(given) or 'none'}."
            )
        recorded: dict[str, Any] = {}
        if encoder_states is None:
            wanted = {"hidden_states": output_hidden_states, "attentions": output_attentions}
            for name in wanted:
                if wanted[name] is None:
                    wanted[name] = getattr(self.config, f"output_{name}", False)
            encoder_states, frame_mask, outputs = self._encode(
                inputs[given[0]], attention_mask, bool(wanted["attentions"])
            )
            recorded = {name: outputs[name] for name, is_wanted in wanted.items() if is_wanted and name in outputs}
        else:
            check_floats(encoder_states, "encoder_states")
            shape = tuple(encoder_states.shape)
            wanted_shape = (*shape[:1], len(self.states_mean), *shape[2:3], self.config.hidden_size)
            if shape != wanted_shape or 0 in shape:
                raise ValueError(
                    f"`encoder_states` must have shape (batch, {len(self.states_mean)}, num_frames,"
                    f" {self.config.hidden_size}), but has {shape}."
                )
            batch_size, num_frames = shape[0], shape[2]
            frame_mask = torch.ones(batch_size, num_frames, dtype=torch.long, device=encoder_states.device)
            if attention_mask is not None:
                frame_mask = check_mask(attention_mask, "attention_mask", (batch_size, num_frames), "right")
        frame_mask = frame_mask.bool()

        states = (encoder_states.to(self.dtype) - self.states_mean[:, None]) / self.states_std[:, None]
        if self.config.layer == "weighted":
            states = torch.einsum("l,blfh->bfh", self.layer_weights.softmax(0), states)
        else:
            states = states[:, 0]
        # Zeros are what the convolution sees beyond the end of a recording that is not padded.
        states = states * frame_mask[..., None]
        logits = self.head(states.transpose(1, 2)).transpose(1, 2)
        is_blank = F.one_hot(torch.tensor(self.config.pad_token_id), self.config.vocab_size).to(logits)
        logits = torch.where(frame_mask[..., None], logits, _NEVER * (1 - is_blank))
        loss = None if labels is None else self._loss(logits, frame_mask, labels)
        return CausalLMOutput(loss=loss, logits=logits, **recorded)

    @torch.no_grad()
    def encode(
        self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Run the encoder.

        Args:
            inputs (`torch.Tensor`): Output of the feature extractor.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*): Mask with 1 for real steps.

        Returns:
            The states that labels are read from, `(batch, num_layers, num_frames, hidden_size)` with one layer unless
            they are weighted; and the mask of their frames, `(batch, num_frames)`.

        Raises:
            TypeError, ValueError: See [`~SpeechEncoderForCTC.forward`].
        """
        return self._encode(inputs, attention_mask)[:2]

    @torch.no_grad()
    def _encode(
        self, inputs: torch.Tensor, attention_mask: torch.Tensor | None, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        # What `encode` returns, and the encoder's own output, empty with a tight window.
        inputs = check_floats(inputs, self.main_input_name).to(self.encoder.dtype)
        self._check_shape(tuple(inputs.shape))
        if not self.training:
            check_finite(inputs, f"`{self.main_input_name}` has")
        lengths, outputs = None, {}
        if attention_mask is not None:
            num_steps = inputs.shape[-1 if self._has_fixed_window else 1]
            # Whisper's feature extractor masks samples unless the call, and not its configuration, asks for a mask.
            is_of_samples = self._has_fixed_window and torch.is_tensor(attention_mask)
            length = attention_mask.shape[-1] if is_of_samples else num_steps
            attention_mask = check_mask(attention_mask, "attention_mask", (len(inputs), length), "right")
            lengths = self._num_frames((attention_mask.sum(-1) * num_steps / length).ceil().long())
        if self._has_fixed_window and self.config.window == "tight":
            # Whisper attends to all that it is given, so recordings of unequal lengths are run one by one.
            if lengths is None:
                lengths = self._num_frames(torch.full((len(inputs),), inputs.shape[-1]))
            items = [self._run_tight(item[None], int(n)) for item, n in zip(inputs, lengths, strict=True)]
            longest = max(item.shape[2] for item in items)
            states = torch.cat([F.pad(item, (0, 0, 0, longest - item.shape[2])) for item in items])
        else:
            mask: dict[str, Any] = {} if self._has_fixed_window else {"attention_mask": attention_mask}
            if output_attentions:
                mask["output_attentions"] = True
            outputs = self.encoder(inputs, output_hidden_states=True, **mask, return_dict=True)
            states = self._states(outputs)
            longest = states.shape[2] if lengths is None else min(int(lengths.max()), states.shape[2])
            states = states[:, :, :longest]
        frames = torch.arange(longest, device=states.device)
        if lengths is None:
            return states, frames.new_ones(len(states), longest), outputs
        return states, (frames < lengths.to(states.device)[:, None]).long(), outputs

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if self.main_input_name == "input_values":
            wanted, fits = "(batch, num_samples)", len(shape) == 2
        elif self._has_fixed_window:
            num_bins = self.encoder.config.num_mel_bins
            wanted, fits = f"(batch, {num_bins}, num_steps)", len(shape) == 3 and shape[1] == num_bins
        else:
            wanted, fits = "(batch, num_steps, num_features)", len(shape) == 3
        if not fits or 0 in shape:
            raise ValueError(f"`{self.main_input_name}` must have shape {wanted}, but has {shape}.")

    @property
    def _has_fixed_window(self) -> bool:
        return has_fixed_window(self.encoder.config)

    def _num_frames(self, lengths: torch.Tensor) -> torch.Tensor:
        return self.encoder._get_feat_extract_output_lengths(lengths).long()

    def _run_tight(self, item: torch.Tensor, num_frames: int) -> torch.Tensor:
        with shortened_positions(self.encoder, num_frames):
            steps = num_frames * self.encoder.conv2.stride[0]
            item = F.pad(item, (0, max(0, steps - item.shape[-1])))[..., :steps]
            return self._states(self.encoder(item, output_hidden_states=True))

    def _states(self, outputs: Any) -> torch.Tensor:
        if self.config.layer == "weighted":
            return torch.stack(outputs.hidden_states, dim=1)
        return select_layer(outputs, self.config.layer)[:, None]

    def _loss(self, logits: torch.Tensor, frame_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        shape = (len(logits), labels.shape[-1] if torch.is_tensor(labels) and labels.dim() else 0)
        labels = check_whole_numbers(labels, "labels", shape, -100, self.config.vocab_size - 1)
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        label_lengths = (labels >= 0).sum(-1)
        if numbers_are_known() and bool((label_lengths > frame_mask.sum(-1)).any()):
            row = int((label_lengths > frame_mask.sum(-1)).long().argmax())
            raise ValueError(
                f"`labels` has {int(label_lengths[row])} labels in row {row}, but there are"
                f" {int(frame_mask[row].sum())} frames; leave the recording out."
            )
        with torch.backends.cudnn.flags(enabled=False):
            return F.ctc_loss(
                log_probs,
                labels[labels >= 0],
                frame_mask.sum(-1),
                label_lengths,
                blank=self.config.pad_token_id,
                reduction="sum",
                zero_infinity=True,
            ) / label_lengths.sum().clamp(min=1)


__all__ = ["SpeechEncoderForCTC"]
