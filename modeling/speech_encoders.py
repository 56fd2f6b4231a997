# SPDX-License-Identifier: Apache-2.0
"""Run the speech encoders of transformers on waveforms of any length, with the time of every frame."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoFeatureExtractor, AutoModel

from .checked_loading import check_tensors, quiet_report
from .encoder_geometry import (
    WHISPER_HOP_LENGTH,
    WHISPER_SAMPLING_RATE,
    frame_geometry,
    has_fixed_window,
    num_encoder_layers,
)
from .mixed_precision import guard_convolutions
from .model_names import find_model
from .padding_invariance import frame_mask, num_conv_frames, num_mask_frames


# Encoders whose padded rows see nothing of the padding, once `make_padding_invariant` has changed them.
EXACT_IN_BATCHES = ("hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")


def load_pretrained(
    name_or_path: str, argument: str = "name_or_path", auto_class: Any = AutoModel, **kwargs: Any
) -> tuple[Any, Any]:
    """
    A model of transformers in float32, with its feature extractor.

    Args:
        name_or_path (`str`): Folder or Hub id.
        argument (`str`, *optional*, defaults to `"name_or_path"`): Name of the argument or field, for messages.
        auto_class (*optional*, defaults to `AutoModel`): Class whose `from_pretrained` loads the model.
        kwargs: Arguments of `from_pretrained`, such as `revision`.

    Raises:
        ValueError: If there is no such model, or weights of it are missing or not finite.
        OSError: If it cannot be downloaded, or a file is damaged.
    """
    place = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
    found = find_model(name_or_path, argument=argument, **place)
    # Left to itself, transformers asks whether to run code, and takes the "y" of any input.
    kwargs["trust_remote_code"] = place["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
    with quiet_report():
        model, info = auto_class.from_pretrained(found, dtype=torch.float32, output_loading_info=True, **kwargs)
    # Parts that no feature comes from, and which checkpoints of other tasks lack.
    unused = ("masked_spec_embed", "pooler.", "lm_head.")
    expected = {name for name in model.state_dict() if not any(part in name for part in unused)}
    check_tensors(model, info, found, strict=False, expected=expected)
    return model, AutoFeatureExtractor.from_pretrained(found, **place)


def encoder_of(model: Any) -> Any:
    """The encoder of an encoder-decoder; any other model itself."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def check_layer(layer: int | str, num_layers: int) -> int | str:
    """
    Args:
        layer (`int` or `str`): Layer that features are read from: `"average"` (mean over the embedding output and all
            layers), `"last"` (the output of the model), or a layer counted from 1; 0 is the embedding output.
        num_layers (`int`): Number of layers of the model.

    Raises:
        ValueError: If there is no such layer.
    """
    if layer not in ("average", "last") and type(layer) is not int:
        raise ValueError(f"`layer` must be 'average', 'last' or a whole number, but got {layer!r}.")
    if not isinstance(layer, str) and not 0 <= layer <= num_layers:
        raise ValueError(f"`layer` must lie between 0 and {num_layers}, but got {layer}.")
    return layer


def select_layer(outputs: Any, layer: int | str) -> torch.Tensor:
    """Hidden states (batch, length, hidden_size) of a model's output with `hidden_states`; see [`check_layer`]."""
    if layer == "average":
        return torch.stack(outputs.hidden_states).mean(dim=0)
    return outputs.last_hidden_state if layer == "last" else outputs.hidden_states[layer]


@contextmanager
def shortened_positions(encoder: Any, num_frames: int) -> Iterator[None]:
    """Let Whisper's encoder take inputs of `num_frames` frames, and those alone."""
    # transformers refuses other lengths than its table of positions has.
    positions, full_length = encoder.embed_positions, encoder.config.max_source_positions
    encoder.embed_positions = nn.Embedding.from_pretrained(positions.weight[:num_frames])
    encoder.config.max_source_positions = num_frames
    try:
        yield
    finally:
        encoder.embed_positions, encoder.config.max_source_positions = positions, full_length


@contextmanager
def _frame_rule(encoder: Any, frame_rule: str) -> Iterator[None]:
    # Within, the encoder takes its frame mask by the rule; transformers knows only that of the convolutions.
    if frame_rule == "conv":
        yield
        return

    def frames_that_count(num_frames: int, attention_mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        lengths = attention_mask.sum(-1)
        rows = num_mask_frames(encoder.config, lengths, attention_mask.shape[1], frame_rule)
        return frame_mask(rows, num_frames)

    encoder._get_feature_vector_attention_mask = frames_that_count
    try:
        yield
    finally:
        del encoder._get_feature_vector_attention_mask


def transformer_layers(encoder: Any) -> nn.ModuleList:
    """The transformer layers of a speech encoder."""
    return encoder.layers if has_fixed_window(encoder.config) else encoder.encoder.layers


@contextmanager
def recorded_layers(encoder: Any, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """
    Within, calls of the encoder leave the states `(batch, num_frames, hidden_size)` of these layers in a dict.

    Args:
        encoder (`PreTrainedModel`): A speech encoder.
        layers (sequence of `int`): Layers, counted from 1; 0 is the input of the first. The states of the last one are
            those before the final layer norm that some encoders have, so that it does not matter whether others
            follow.
    """
    states: dict[int, torch.Tensor] = {}

    def record_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[0] = args[0] if args else kwargs["hidden_states"]

    def recorder_of(layer: int) -> Callable[..., None]:
        def record_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            states[layer] = output[0] if isinstance(output, tuple) else output

        return record_output

    modules = transformer_layers(encoder)
    handles = [
        modules[layer - 1].register_forward_hook(recorder_of(layer))
        if layer
        else modules[0].register_forward_pre_hook(record_input, with_kwargs=True)
        for layer in set(layers)
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def waveform_states(
    encoder: Any,
    waveforms: torch.Tensor,
    num_samples: torch.Tensor,
    layers: Sequence[int],
    frame_rule: str = "conv",
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    States of an encoder with a convolutional front end on the waveform. Rows get what they get alone, if
    [`make_padding_invariant`] was called; encoders other than `EXACT_IN_BATCHES` hear them one by one.

    Args:
        encoder (`PreTrainedModel`): Speech encoder on the waveform, such as a `HubertModel`.
        waveforms (`torch.Tensor` of shape `(batch, num_samples)`): Waveforms, padded on the right.
        num_samples (`torch.Tensor` of shape `(batch,)`): Real samples of each row.
        layers (sequence of `int`): Layers whose states are returned; see [`recorded_layers`].
        frame_rule (`str`): Rule for the real frames of a padded row; see [`num_mask_frames`].

    Returns:
        The states `(batch, len(layers), num_frames, hidden_size)`, and the number of frames of each row, `(batch,)`.
    """
    longest = waveforms.shape[1]
    if encoder.config.model_type not in EXACT_IN_BATCHES and len(waveforms) > 1:
        rows = [
            waveform_states(encoder, row[None, :length], length[None], layers)
            for row, length in zip(waveforms, num_samples, strict=True)
        ]
        num_frames = torch.cat([count for _, count in rows])
        states = [F.pad(state, (0, 0, 0, int(num_frames.max()) - state.shape[2])) for state, _ in rows]
        return torch.cat(states), num_frames
    mask = None
    if bool((num_samples < longest).any()):
        mask = frame_mask(num_samples, longest).long()
    with _frame_rule(encoder, frame_rule), recorded_layers(encoder, layers) as recorded:
        encoder(waveforms, attention_mask=mask)
    states = torch.stack([recorded[layer] for layer in layers], dim=1)
    if states.shape[2] != num_conv_frames(encoder.config, longest):
        raise ValueError(
            f"The encoder, a `{encoder.config.model_type}`, gives {states.shape[2]} frames for {longest} samples, and "
            f"its convolutions {num_conv_frames(encoder.config, longest)}: the times of its frames are not known."
        )
    return states, num_mask_frames(encoder.config, num_samples, longest, frame_rule)


def spectrogram_states(
    encoder: Any,
    feature_extractor: Any,
    waveforms: torch.Tensor,
    num_samples: torch.Tensor,
    layers: Sequence[int],
    window: str = "padded",
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    States of Whisper's encoder.

    Args:
        encoder (`PreTrainedModel`): Whisper's encoder.
        feature_extractor (`WhisperFeatureExtractor`): Feature extractor that makes the spectrogram.
        waveforms, num_samples, layers: Arguments as in [`waveform_states`].
        window (`str`): Form of the input; see [`WaveformEncoder`]. With `"tight"`, rows of different lengths are heard
            one by one.

    Returns:
        As [`waveform_states`].

    Raises:
        ValueError: If a row is longer than the encoder's window.
    """
    if int(num_samples.max()) > feature_extractor.n_samples:
        seconds, limit = int(num_samples.max()) / WHISPER_SAMPLING_RATE, feature_extractor.n_samples
        raise ValueError(
            f"`input_values` is {seconds:.1f} s long, but the encoder hears {limit / WHISPER_SAMPLING_RATE:g} s; "
            "encode longer recordings in windows, with `WindowedEncoder`."
        )
    num_frames = -(-num_samples // WHISPER_HOP_LENGTH)
    arrays = [row[:length].float().cpu().numpy() for row, length in zip(waveforms, num_samples.tolist(), strict=True)]
    with torch.autocast(encoder.device.type, enabled=False):  # the extractor goes through NumPy, which has no bfloat16
        inputs = feature_extractor(
            arrays, sampling_rate=WHISPER_SAMPLING_RATE, return_tensors="pt", device=str(encoder.device)
        )
    spectrograms = inputs["input_features"].to(encoder.device, encoder.dtype)

    def states_of(part: torch.Tensor, length: int) -> torch.Tensor:
        with recorded_layers(encoder, layers) as recorded:
            encoder(part)
        return torch.stack([recorded[layer][:, :length] for layer in layers], dim=1)

    longest = int(num_frames.max())
    if window == "padded":
        return states_of(spectrograms, longest), num_frames
    states = spectrograms.new_zeros(len(waveforms), len(layers), longest, encoder.config.hidden_size)
    for length in num_frames.unique().tolist():
        rows = num_frames == length
        steps = length * WHISPER_HOP_LENGTH // feature_extractor.hop_length
        with shortened_positions(encoder, length):
            states[rows, :, :length] = states_of(spectrograms[rows, :, :steps], length)
    return states, num_frames


class WaveformEncoder:
    """
    A speech encoder of transformers (HuBERT, WavLM, wav2vec 2.0, Whisper's encoder, ...) in evaluation mode.

    Args:
        encoder (`PreTrainedModel`): The encoder; of an encoder-decoder, its encoder.
        feature_extractor (`FeatureExtractionMixin`): The encoder's feature extractor.
        window (`str`, *optional*, defaults to `"padded"`): Form of the input of Whisper, whose encoder always hears 30
            seconds. `"padded"` fills them up with silence, as in its training. `"tight"` drops the positions after the
            end, which costs a fraction of the time and changes the features somewhat.

    Raises:
        ValueError: If `window` is neither.
    """

    def __init__(self, encoder: nn.Module, feature_extractor: Any, window: str = "padded"):
        if window not in ("padded", "tight"):
            raise ValueError(f"`window` must be 'padded' or 'tight', but got {window!r}.")
        self.encoder = guard_convolutions(encoder).eval()
        self.feature_extractor = feature_extractor
        self.window = window

    @classmethod
    def from_pretrained(cls, name_or_path: str, window: str = "padded", **kwargs) -> "WaveformEncoder":
        """
        Args:
            name_or_path (`str`): Folder or Hub id of any model that `AutoModel` knows; of an encoder-decoder the
                encoder is taken.
            window (`str`): Form of Whisper's input; see the class.
            kwargs: Arguments of `from_pretrained`, such as `revision`.

        Raises:
            ValueError, OSError: See [`load_pretrained`].
        """
        model, feature_extractor = load_pretrained(name_or_path, **kwargs)
        return cls(encoder_of(model), feature_extractor, window)

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the encoder expects, in Hz."""
        return self.feature_extractor.sampling_rate

    @property
    def hidden_size(self) -> int:
        """Dimension of the features."""
        return self.encoder.config.hidden_size

    @property
    def num_layers(self) -> int:
        """Layers of the encoder."""
        return num_encoder_layers(self.encoder.config)

    @property
    def has_fixed_window(self) -> bool:
        """Whether the encoder takes inputs of one length only, as Whisper's does."""
        return has_fixed_window(self.encoder.config)

    def __call__(self, waveforms: torch.Tensor, layer: int | str = "last") -> tuple[torch.Tensor, torch.Tensor]:
        """
        Features of waveforms of one length. Different lengths are different calls: padding would change the features.

        Args:
            waveforms (`torch.Tensor` of shape `(batch, num_samples)`): Waveforms in [-1, 1], at the encoder's rate.
                Gradients do not flow.
            layer (`int` or `str`): Layer that the features are read from; see [`check_layer`].

        Returns:
            Features `(batch, num_frames, hidden_size)` and the centre of each frame in seconds, `(num_frames,)`.
        """
        check_layer(layer, self.num_layers)
        if not self.has_fixed_window:
            features = self._run(waveforms, layer)
            return features, self._centres(features.shape[1], waveforms.shape[-1])
        longest = self.feature_extractor.n_samples
        parts = [self._run_window(part, layer) for part in waveforms.split(longest, dim=-1)]
        features = torch.cat(parts, dim=1)
        return features, torch.arange(features.shape[1]) * WHISPER_HOP_LENGTH / self.sampling_rate

    def _run_window(self, waveforms, layer):
        num_frames = math.ceil(waveforms.shape[-1] / WHISPER_HOP_LENGTH)
        if self.window == "padded":
            return self._run(waveforms, layer)[:, :num_frames]
        num_steps = num_frames * WHISPER_HOP_LENGTH // self.feature_extractor.hop_length
        with shortened_positions(self.encoder, num_frames):
            return self._run(waveforms, layer, num_steps)

    @torch.no_grad()
    def _run(self, waveforms, layer, num_steps=None):
        arrays = list(waveforms.float().cpu().numpy())
        with torch.autocast("cpu", enabled=False):  # the extractor goes through NumPy, which has no bfloat16
            inputs = self.feature_extractor(arrays, sampling_rate=self.sampling_rate, return_tensors="pt")
        values = inputs[self.encoder.main_input_name][..., :num_steps].to(self.encoder.device, self.encoder.dtype)
        return select_layer(self.encoder(values, output_hidden_states=True), layer).float()

    def _centres(self, num_frames: int, num_samples: int) -> torch.Tensor:
        config = self.encoder.config
        frames = torch.arange(num_frames)
        if hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):
            # The middle of what a frame of the convolutional front end hears.
            hop, span = frame_geometry(config)
            return (frames * hop + (span - 1) / 2) / self.sampling_rate
        return (frames + 0.5) * num_samples / self.sampling_rate / num_frames
