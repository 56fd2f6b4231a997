# SPDX-License-Identifier: Apache-2.0
"""
Layers that the codecs share: padded and streaming convolutions, SEANet (waveform rate) and ConvNeXt (frame rate)
networks.

Every layer maps (batch, channels, length) to (batch, channels, length) and takes two optional arguments:

- `lengths` (batch,): the real length of each item of a right-padded batch at this layer's input. What lies beyond is
  replaced by the padding that the item would get alone, so a batch gives each item exactly what it gets alone.
- `cache`: the past of a stream (causal layers only), so that chunks give exactly what the whole gives.

Lengths are Python integers or tensors that never leave their device: nothing here waits for the device.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


# Frames of context after which an LSTM's state no longer depends on its start, for windows over long files (10 s at
# 50 Hz).
LSTM_CONTEXT = 512


class StreamingCache:
    """The past inputs and recurrent states of one stream, by layer. Start a new one for a new stream."""

    def __init__(self):
        self.states = {}
        self.batch_sizes = {}  # by network; 0 once its stream has ended

    def follow(self, network: nn.Module, batch_size: int, is_last: bool) -> None:
        """
        Note the next chunk of a network.

        Args:
            network (`nn.Module`): The network that the chunk goes through.
            batch_size (`int`): Number of items.
            is_last (`bool`): Whether the chunk ends the stream, since it is no whole number of frames.

        Raises:
            ValueError: If the chunk does not continue the stream that the cache has the past of.
        """
        expected = self.batch_sizes.get(network, batch_size)
        if expected == 0:
            raise ValueError(
                "`padding_cache` has the past of a stream that has ended: its last chunk was no multiple of"
                " `hop_length`. Start a new `StreamingCache`, or use `CodecStream` for chunks of any length."
            )
        if expected != batch_size:
            raise ValueError(
                f"`padding_cache` has the past of a batch of {expected}, but this chunk has {batch_size} items; start"
                " a new `StreamingCache` for another recording."
            )
        self.batch_sizes[network] = 0 if is_last else batch_size

    def copied(self) -> "StreamingCache":
        """A cache of its own with the same past; what is in it is replaced, never changed."""
        copy = StreamingCache()
        copy.states, copy.batch_sizes = dict(self.states), dict(self.batch_sizes)
        return copy

    def prepend(self, layer: nn.Module, hidden_states: torch.Tensor, length: int, name: str = "") -> torch.Tensor:
        """Put the last `length` steps before this chunk in front of it (at first zeros) and keep the new last ones."""
        if length == 0:
            return hidden_states
        past = self.states.get((layer, name))
        if past is None:
            past = hidden_states.new_zeros(*hidden_states.shape[:-1], length)
        extended = torch.cat([past, hidden_states], dim=-1)
        self.states[layer, name] = extended[..., -length:]
        return extended


def ceil_divide(length, divisor: int):
    """Rounded-up quotient, of an integer or an integer tensor."""
    return (length + divisor - 1) // divisor


def mask_beyond(hidden_states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Zero (batch, ..., length) from each item's length on."""
    positions = torch.arange(hidden_states.shape[-1], device=hidden_states.device)
    keep = positions < lengths.unsqueeze(-1)
    return hidden_states * keep.view(len(lengths), *[1] * (hidden_states.dim() - 2), -1).to(hidden_states.dtype)


def pad_ragged(hidden_states, lengths, left: int, right: int, item_right, mode: str) -> torch.Tensor:
    """
    Pad every item of a right-padded batch as it would be padded alone.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch, channels, length)`): Padded batch.
        lengths (`torch.Tensor` of shape `(batch,)`): Real lengths.
        left, right (`int`): Padding on either side of the batch, in steps.
        item_right (`torch.Tensor` of shape `(batch,)`): Padding that each item would get alone on its right, in steps.
        mode (`str`): Kind of padding: `"constant"`, `"reflect"` or `"replicate"`.

    Returns:
        (batch, channels, left + length + right); what lies beyond an item's padding is not defined.
    """
    length = hidden_states.shape[-1]
    if mode == "constant":
        return F.pad(mask_beyond(hidden_states, lengths), (left, right))
    lengths = lengths.unsqueeze(-1)
    index = torch.arange(-left, length + right, device=hidden_states.device).expand(
        len(lengths), -1
    )  # (B, left + T + right)
    if mode == "replicate":
        source, real = index.clamp(min=0).minimum(lengths - 1), None
    else:
        # An item shorter than its padding is first filled up with zeros, then reflected.
        filled = lengths.maximum(item_right.clamp(min=left).unsqueeze(-1) + 1)
        source = torch.where(index < filled, index.abs(), 2 * (filled - 1) - index)
        real = (source < lengths) & (source >= 0)
    source = source.clamp(0, length - 1)
    padded = hidden_states.gather(-1, source.unsqueeze(1).expand(-1, hidden_states.shape[1], -1))
    return padded if real is None else padded * real.unsqueeze(1).to(padded.dtype)


def pad_reflect(hidden_states: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """Reflection of any length: what is shorter than its padding is first filled up with zeros (as EnCodec does)."""
    missing = max(left, right) + 1 - hidden_states.shape[-1]
    if missing <= 0:
        return F.pad(hidden_states, (left, right), mode="reflect")
    padded = F.pad(F.pad(hidden_states, (0, missing)), (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - missing]


class CodecLayer(nn.Module):
    """A layer that keeps the length; the base of those that do not."""

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        raise NotImplementedError

    def output_length(self, length):
        """Length after this layer, of an integer or an integer tensor."""
        return length

    def input_span(self, first: int, last: int) -> tuple[int, int]:
        """First and last input step that the output steps from `first` to `last` depend on."""
        return first, last


class CodecSequential(CodecLayer):
    """Layers in a row, as `layers`."""

    def __init__(self, *layers: CodecLayer):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        for layer in self.layers:
            hidden_states = layer(hidden_states, lengths, cache)
            lengths = None if lengths is None else layer.output_length(lengths)
        return hidden_states

    def output_length(self, length):
        for layer in self.layers:
            length = layer.output_length(length)
        return length

    def input_span(self, first: int, last: int) -> tuple[int, int]:
        for layer in reversed(self.layers):
            first, last = layer.input_span(first, last)
        return first, last


class Elu(CodecLayer):
    """Exponential linear unit."""

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        return F.elu(hidden_states)


class Snake(CodecLayer):
    """x + sin(alpha x)^2 / alpha with a learnt alpha per channel (arXiv 2006.08195)."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, num_channels, 1))

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        return hidden_states + torch.sin(self.alpha * hidden_states).square() / (self.alpha + 1e-9)


def make_activation(config, num_channels: int) -> CodecLayer:
    """The configured activation for `num_channels` channels."""
    return Snake(num_channels) if config.activation == "snake" else Elu()


class SlidingWindow(CodecLayer):
    """
    The padding of a layer that slides a window over its input, so that a length T gives ceil(T / stride) steps.

    Args:
        config ([`RVQCodecConfig`]): Configuration of the codec, for its `causal` and `pad_mode`.
        kernel_size, stride, dilation (`int`): Sizes of the window, in steps. The window must not be shorter than its
            stride.
    """

    def __init__(self, config, kernel_size: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.span = (kernel_size - 1) * dilation + 1
        self.stride = stride
        self.pad_mode = config.pad_mode
        total = self.span - stride
        if total < 0:
            raise ValueError(f"`kernel_size` ({kernel_size}) must be at least the stride ({stride}).")
        self.pad_right = 0 if config.causal else total // 2
        self.pad_left = total - self.pad_right

    def pad(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        """(batch, channels, T) -> (batch, channels, padded T), in whole strides."""
        surplus = ceil_divide(hidden_states.shape[-1], self.stride) * self.stride - hidden_states.shape[-1]
        right = self.pad_right + surplus
        if cache is not None:
            extended = cache.prepend(self, hidden_states, self.pad_left)
            return F.pad(extended, (0, surplus)) if surplus else extended
        if self.pad_left + right == 0:
            return hidden_states
        if lengths is not None:
            item_right = self.pad_right + -lengths % self.stride
            return pad_ragged(hidden_states, lengths, self.pad_left, right, item_right, self.pad_mode)
        if self.pad_mode == "reflect":
            return pad_reflect(hidden_states, self.pad_left, right)
        return F.pad(hidden_states, (self.pad_left, right), mode=self.pad_mode)

    def output_length(self, length):
        return ceil_divide(length, self.stride)

    def input_span(self, first: int, last: int) -> tuple[int, int]:
        return first * self.stride - self.pad_left, last * self.stride - self.pad_left + self.span - 1


class CodecConv1d(SlidingWindow):
    """Convolution (batch, in_channels, T) -> (batch, out_channels, ceil(T / stride))."""

    def __init__(
        self,
        config,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ):
        super().__init__(config, kernel_size, stride, dilation)
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, dilation=dilation, groups=groups)
        if config.use_weight_norm and groups == 1:
            self.conv = weight_norm(self.conv)

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        return self.conv(self.pad(hidden_states, lengths, cache))


class PointwiseConv1d(CodecConv1d):
    """A 1x1 convolution as one matrix product, which is faster at the frame rate: many channels, few steps."""

    def __init__(self, config, in_channels: int, out_channels: int):
        super().__init__(config, in_channels, out_channels, 1)

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        return F.linear(hidden_states.transpose(1, 2), self.conv.weight.squeeze(-1), self.conv.bias).transpose(1, 2)


class CodecConvTranspose1d(CodecLayer):
    """Transposed convolution (batch, in_channels, T) -> (batch, out_channels, T * stride)."""

    def __init__(self, config, in_channels: int, out_channels: int, kernel_size: int, stride: int):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.conv = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride)
        if config.use_weight_norm:
            self.conv = weight_norm(self.conv)
        total = kernel_size - stride
        trim_right = math.ceil(total * config.trim_right_ratio) if config.causal else total // 2
        self.trim_left = total - trim_right

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        length = hidden_states.shape[-1]
        if cache is not None:
            return self._stream(hidden_states, length, cache)
        if lengths is not None:
            hidden_states = mask_beyond(hidden_states, lengths)
        return self.conv(hidden_states)[..., self.trim_left : self.trim_left + length * self.stride]

    def _stream(self, hidden_states, length: int, cache: StreamingCache) -> torch.Tensor:
        # One product and a sum of shifted pieces: PyTorch's own kernel is slow on a few frames.
        overlap = ceil_divide(self.kernel_size, self.stride)
        hidden_states = cache.prepend(self, hidden_states, overlap - 1)
        weight, missing = self.conv.weight, overlap * self.stride - self.kernel_size
        if missing:
            weight = F.pad(weight, (0, missing))
        pieces = hidden_states.transpose(1, 2) @ weight.flatten(1)  # (B, F, C_out * overlap * stride)
        pieces = pieces.unflatten(-1, (-1, overlap, self.stride))
        shifted = [pieces[:, overlap - 1 - k : overlap - 1 - k + length, :, k] for k in range(overlap)]
        return sum(shifted).transpose(1, 2).flatten(2) + self.conv.bias.unsqueeze(-1)

    def output_length(self, length):
        return length * self.stride

    def input_span(self, first: int, last: int) -> tuple[int, int]:
        first, last = first + self.trim_left, last + self.trim_left
        return ceil_divide(first - self.kernel_size + 1, self.stride), last // self.stride


class LSTMWeights(nn.Module):
    """The parameters of an `nn.LSTM` under its names. (The module itself is one that `torch.compile` cannot trace.)"""

    def __init__(self, num_channels: int, num_layers: int, bidirectional: bool):
        super().__init__()
        self.hidden_size, self.num_layers, self.bidirectional = num_channels, num_layers, bidirectional
        for layer in range(num_layers):
            width = num_channels * (2 if bidirectional and layer > 0 else 1)
            for suffix in (f"l{layer}", f"l{layer}_reverse")[: 1 + bidirectional]:
                self.register_parameter(f"weight_ih_{suffix}", nn.Parameter(torch.empty(4 * num_channels, width)))
                self.register_parameter(
                    f"weight_hh_{suffix}", nn.Parameter(torch.empty(4 * num_channels, num_channels))
                )
                self.register_parameter(f"bias_ih_{suffix}", nn.Parameter(torch.empty(4 * num_channels)))
                self.register_parameter(f"bias_hh_{suffix}", nn.Parameter(torch.empty(4 * num_channels)))


class CodecLSTM(CodecLayer):
    """
    Long short-term memory with a skip connection: y + x, and for two directions y + [x, x] with twice the channels.
    """

    def __init__(self, num_channels: int, num_layers: int, bidirectional: bool):
        super().__init__()
        self.lstm = LSTMWeights(num_channels, num_layers, bidirectional)

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        inputs = hidden_states.permute(2, 0, 1)  # (T, B, C)
        if not self.lstm.bidirectional:
            zeros = inputs.new_zeros(self.lstm.num_layers, inputs.shape[1], self.lstm.hidden_size)
            state = (zeros, zeros) if cache is None else cache.states.get((self, ""), (zeros, zeros))
            outputs, *state = self._run(inputs, state, [f"l{layer}" for layer in range(self.lstm.num_layers)])
            if cache is not None:
                cache.states[self, ""] = tuple(state)
            return (outputs + inputs).permute(1, 2, 0)

        zeros = inputs.new_zeros(1, inputs.shape[1], self.lstm.hidden_size)
        outputs = inputs
        for layer in range(self.lstm.num_layers):
            forwards, *_ = self._run(outputs, (zeros, zeros), [f"l{layer}"])
            backwards, *_ = self._run(self._reverse(outputs, lengths), (zeros, zeros), [f"l{layer}_reverse"])
            outputs = torch.cat([forwards, self._reverse(backwards, lengths)], dim=-1)
        return (outputs + inputs.repeat(1, 1, 2)).permute(1, 2, 0)

    def _run(self, inputs, state, suffixes):
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self.lstm, f"{kind}_{suffix}") for suffix in suffixes for kind in kinds]
        if len(inputs) == 1:
            return self._step(inputs, state, weights)
        return torch.lstm(inputs, state, weights, True, len(suffixes), 0.0, self.training, False, False)

    @staticmethod
    def _step(inputs, state, weights):
        # A single step, as streams take it: the kernel behind `torch.lstm` prepares the weights anew at each call.
        hidden_states, hidden_state, cell_state = inputs[0], [], []
        for layer, (hidden, cell) in enumerate(zip(*state, strict=True)):
            weight_ih, weight_hh, bias_ih, bias_hh = weights[4 * layer : 4 * layer + 4]
            gates = F.linear(hidden_states, weight_ih, bias_ih) + F.linear(hidden, weight_hh, bias_hh)
            opened, kept, candidate, shown = gates.chunk(4, dim=-1)
            cell = kept.sigmoid() * cell + opened.sigmoid() * candidate.tanh()
            hidden_states = shown.sigmoid() * cell.tanh()
            hidden_state.append(hidden_states)
            cell_state.append(cell)
        return hidden_states.unsqueeze(0), torch.stack(hidden_state), torch.stack(cell_state)

    @staticmethod
    def _reverse(inputs: torch.Tensor, lengths) -> torch.Tensor:
        """Turn each item's real steps around; the padding stays behind them."""
        if lengths is None:
            return inputs.flip(0)
        positions = torch.arange(len(inputs), device=inputs.device).unsqueeze(-1)  # (T, 1)
        source = torch.where(positions < lengths, lengths - 1 - positions, positions)  # (T, B)
        return inputs.gather(0, source.unsqueeze(-1).expand_as(inputs))

    def input_span(self, first: int, last: int) -> tuple[int, int]:
        return first - LSTM_CONTEXT, last + LSTM_CONTEXT * self.lstm.bidirectional


class ResidualUnit(CodecLayer):
    """activation, dilated convolution, activation, 1x1 convolution, beside a shortcut (SEANet, arXiv 2009.02095)."""

    def __init__(self, config, num_channels: int, dilation: int):
        super().__init__()
        inner = num_channels // config.compress
        self.block = nn.ModuleList(
            [
                make_activation(config, num_channels),
                CodecConv1d(config, num_channels, inner, config.residual_kernel_size, dilation=dilation),
                make_activation(config, inner),
                CodecConv1d(config, inner, num_channels, 1),
            ]
        )
        self.shortcut = CodecConv1d(config, num_channels, num_channels, 1) if config.use_conv_shortcut else None

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        residual = hidden_states if self.shortcut is None else self.shortcut(hidden_states)
        for layer in self.block:
            hidden_states = layer(hidden_states, lengths, cache)
        return residual + hidden_states

    def input_span(self, first: int, last: int) -> tuple[int, int]:
        return self.block[1].input_span(first, last)


class SEANetEncoder(CodecSequential):
    """
    Waveform (batch, 1, T) -> latents (batch, hidden_size, ceil(T / hop_length)) (SoundStream, arXiv 2107.03312).

    Args:
        config ([`CodecConfig`]): Sizes of the network.
        out_channels (`int`, *optional*): Channels of the latents. Defaults to `config.hidden_size`.
    """

    def __init__(self, config, out_channels: int | None = None):
        channels = config.num_filters
        layers = [CodecConv1d(config, 1, channels, config.kernel_size)]
        for ratio in config.downsampling_ratios:
            dilations = (config.dilation_growth_rate**j for j in range(config.num_residual_layers))
            layers += [ResidualUnit(config, channels, dilation) for dilation in dilations]
            layers += [make_activation(config, channels)]
            layers += [CodecConv1d(config, channels, 2 * channels, 2 * ratio, stride=ratio)]
            channels *= 2
        if config.encoder_lstm != "none":
            layers += [CodecLSTM(channels, config.num_lstm_layers, config.encoder_lstm == "bidirectional")]
            channels *= 2 if config.encoder_lstm == "bidirectional" else 1
        layers += [make_activation(config, channels)]
        layers += [CodecConv1d(config, channels, out_channels or config.hidden_size, config.last_kernel_size)]
        super().__init__(*layers)


class SEANetDecoder(CodecSequential):
    """
    Latents (batch, hidden_size, F) -> waveform (batch, 1, F * hop_length).

    Args:
        config ([`CodecConfig`]): Sizes of the network.
        in_channels (`int`, *optional*): Channels of the latents. Defaults to `config.hidden_size`.
    """

    def __init__(self, config, in_channels: int | None = None):
        channels = config.num_filters * 2 ** len(config.downsampling_ratios)
        layers = [CodecConv1d(config, in_channels or config.hidden_size, channels, config.last_kernel_size)]
        if config.decoder_lstm != "none":
            layers += [CodecLSTM(channels, config.num_lstm_layers, config.decoder_lstm == "bidirectional")]
            if config.decoder_lstm == "bidirectional":
                layers += [CodecConv1d(config, 2 * channels, channels, 1)]
        for ratio in reversed(config.downsampling_ratios):
            layers += [make_activation(config, channels)]
            layers += [CodecConvTranspose1d(config, channels, channels // 2, 2 * ratio, stride=ratio)]
            channels //= 2
            dilations = (config.dilation_growth_rate**j for j in range(config.num_residual_layers))
            layers += [ResidualUnit(config, channels, dilation) for dilation in dilations]
        layers += [make_activation(config, channels), CodecConv1d(config, channels, 1, config.kernel_size)]
        super().__init__(*layers)
