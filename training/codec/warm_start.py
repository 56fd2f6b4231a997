# SPDX-License-Identifier: Apache-2.0
"""Weights of a trained model for one whose networks differ from it: a finer head, more blocks, another window."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from speech_tokenizers.coding.loading import find_checkpoint
from speech_tokenizers.modeling.spectral_layers import ConvNeXtBlock, InverseSpectrum, SpectralDecoder, SpectralEncoder
from speech_tokenizers.modeling.vector_quantization import VectorQuantizer
from speech_tokenizers.training.codec.latent_revival import assign_weights


@torch.no_grad()
def warm_start(pretrained: str, new: nn.Module) -> dict[str, str]:
    """
    Copy into a model what a trained one has learnt. The networks of the two may differ in size.

    Tensors of the same name and shape are taken over. Spectral networks may have more ConvNeXt blocks: the new ones,
    put behind the old ones, begin as the identity. An inverse-STFT head may have more spectra a frame, another window
    or a residual: each new spectrum begins as the old one nearest to it, its phase moved by the time between their
    centres, and the residual begins at zero. Codebooks start anew where the encoder before them does not stay as it
    was. Everything else stays as it is in the new model.

    Args:
        pretrained (`str`): Folder, name or Hub id of the trained model.
        new (`nn.Module`): Untrained model of the same or another family, which is changed in place.

    Returns:
        `dict`: Origin of each part of the new model, by the part's name.

    Raises:
        ValueError: If the new model has another sampling rate or frame rate, is causal where the trained one is not or
            the other way round, or has fewer blocks in a spectral network, or if nothing could be taken over.
    """
    old = load_trained(pretrained)
    for name in ("sampling_rate", "causal"):
        before, after = (getattr(model.config, name, None) for model in (old, new))
        if None not in (before, after) and before != after:
            raise ValueError(
                f"`model.warm_start` keeps `{name}`, but {pretrained!r} has {before}, and the new model {after}."
            )
    before, origins = old.state_dict(), {}
    blocks = _added_blocks(old, new)
    changed_heads = _changed_heads(old, new)
    for name, value in new.state_dict().items():
        source = _old_name(name, blocks)
        if any(name.startswith(f"{path}.layers.{index}.") for path, index in changed_heads):
            origins[name] = "new"
        elif source in before and before[source].shape == value.shape:
            value.copy_(before[source])
            origins[name] = "taken over" if source == name else f"taken over from {source}"
        elif source is None:
            origins[name] = "new block, begins as the identity"
            if name.endswith(".scale"):
                value.zero_()
        else:
            origins[name] = "new"
    if not any(origins[name].startswith("taken over") for name, _ in new.named_parameters()):
        raise ValueError(
            f"Nothing of {pretrained!r} fits the new model; `model.warm_start` needs networks of the same kind."
        )
    if any(origin == "new" for name, origin in origins.items() if name.startswith(("encoder.", "quantizer."))):
        origins |= _forget_codebooks(new)
    for (path, index), (old_decoder, new_decoder) in changed_heads.items():
        origins |= _convert_head(f"{path}.layers.{index}.", old_decoder, new_decoder)
    return _by_part(origins)


def load_trained(pretrained: str) -> PreTrainedModel:
    """A trained model in float32."""
    return AutoModel.from_pretrained(find_checkpoint(pretrained), dtype=torch.float32)


def _modules(model: nn.Module, kind: type) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def _added_blocks(old: nn.Module, new: nn.Module) -> dict[str, tuple[int, int]]:
    # By the name of a spectral network: the layer from which on blocks were added, and their number.
    added = {}
    for name, network in _modules(new, (SpectralDecoder, SpectralEncoder)).items():
        before = _modules(old, type(network)).get(name)
        if before is None:
            continue
        count = len(network.layers) - len(before.layers)
        if count < 0:
            raise ValueError(f"`{name}` has {-count} blocks fewer than before; blocks can only be added.")
        last = max(index for index, layer in enumerate(before.layers) if isinstance(layer, ConvNeXtBlock))
        added[name] = last + 1, count
    return added


def _old_name(name: str, blocks: Mapping[str, tuple[int, int]]) -> str | None:
    # The name before blocks were added, or `None` for what belongs to an added block.
    for network, (first, count) in blocks.items():
        if match := re.match(rf"({re.escape(network)}\.layers\.)(\d+)(\..+)", name):
            index = int(match[2])
            if first <= index < first + count:
                return None
            return f"{match[1]}{index - count if index >= first + count else index}{match[3]}"
    return name


def _changed_heads(old: nn.Module, new: nn.Module) -> dict[tuple[str, int], tuple[SpectralDecoder, SpectralDecoder]]:
    # Old and new decoder, by the new one's name and the layer of its head, where what the head says has changed.
    decoders, changed = _modules(new, SpectralDecoder), {}
    for path, old_decoder in _modules(old, SpectralDecoder).items():
        if path not in decoders:
            continue
        before, after = old_decoder.layers[-1], decoders[path].layers[-1]
        if before.hop_length != after.hop_length:
            raise ValueError(
                f"`{path}` had frames of {before.hop_length} samples and would have {after.hop_length}; a"
                " warm start keeps their length."
            )
        kinds = [(head.num_spectra, head.n_fft, head.has_residual) for head in (before, after)]
        if kinds[0] != kinds[1]:
            changed[path, len(decoders[path].layers) - 2] = old_decoder, decoders[path]
    return changed


def _forget_codebooks(new: nn.Module) -> dict[str, str]:
    # Codebooks of other latents, or of another size, are none.
    forgotten = {}
    for path, quantizer in _modules(new, VectorQuantizer).items():
        quantizer.initialized.fill_(False)
        for name in quantizer.state_dict():
            forgotten[f"{path}.{name}"] = "new, fitted when training starts"
    return forgotten


def _convert_head(prefix: str, old: SpectralDecoder, new: SpectralDecoder) -> dict[str, str]:
    # Write the weights of a changed head; gives the origins of what it wrote.
    (source, before), (target, after) = (decoder.layers[-2:] for decoder in (old, new))
    weights = [layer.conv.weight.clone() for layer in (source, target)]
    if weights[0].shape[1:] != weights[1].shape[1:]:
        return {}
    # Polar and residual part of each old spectrum: (parts, spectra, 2, bins, width).
    old_weight, old_bias = (_by_spectrum(value, before) for value in (weights[0], source.conv.bias))
    new_weight, new_bias = (_by_spectrum(value, after) for value in (weights[1], target.conv.bias))
    new_weight.zero_(), new_bias.zero_()
    bins = torch.arange(after.n_fft // 2 + 1)
    nearest = (bins * before.n_fft / after.n_fft).round().long()
    parts = min(1 + before.has_residual, 1 + after.has_residual)
    gains = []
    for spectrum in range(after.num_spectra):
        centre = _centre(after, spectrum)
        old_spectrum = min(range(before.num_spectra), key=lambda k: (abs(_centre(before, k) - centre), k))
        delay = centre - _centre(before, old_spectrum)
        # A window's phase is that of its first sample, half a window before its centre.
        turn = 2 * math.pi * bins / after.n_fft * delay + math.pi * (nearest - bins)
        for part in range(parts):
            new_weight[part, spectrum] = old_weight[part, old_spectrum][:, nearest]
            new_bias[part, spectrum] = old_bias[part, old_spectrum][:, nearest]
        new_bias[0, spectrum, 1] += turn
        # Moving the phase moves the old Hann window with it; of its power, this share stays under the new one.
        gains.append((2 + math.cos(2 * math.pi * delay / after.n_fft)) / 3)
    # A longer window holds more of the signal.
    new_bias[0, :, 0] += math.log(after.n_fft / before.n_fft) - math.log(sum(gains) / len(gains))
    assign_weights(target.conv, weights[1], target.conv.bias.clone())
    origin = f"converted from {before.num_spectra} spectra of {before.n_fft} samples a frame"
    origin += ", the residual begins at 0" if parts <= after.has_residual else ""
    origin += ", the residual is dropped" if parts <= before.has_residual else ""
    return {prefix + name: origin for name in target.state_dict()}


def _centre(head: InverseSpectrum, spectrum: int) -> float:
    # Samples from the beginning of a frame to the centre of the window of a spectrum.
    return spectrum * head.spectrum_hop - head.trim_left + head.n_fft / 2


def _by_spectrum(value: torch.Tensor, head: InverseSpectrum) -> torch.Tensor:
    # A view (parts, spectra, 2, bins, ...) of (channels, ...).
    return value.unflatten(0, (1 + head.has_residual, head.num_spectra, 2, -1))


def _by_part(origins: Mapping[str, str]) -> dict[str, str]:
    # One line for neighbouring tensors of one origin: by layers of `encoder`, `decoder`, ..., then by these.
    grouped: dict[str, dict[str, str]] = {}
    for name, origin in origins.items():
        match = re.match(r"(.*?\.layers\.\d+|[^.]+)", name)
        grouped.setdefault(match[0] if match else name, {})[name] = origin
    parts: dict[str, str] = {}
    for part, tensors in grouped.items():
        kinds = {origin.split(" from ")[0] if origin.startswith("taken") else origin for origin in tensors.values()}
        parts |= {part: kinds.pop()} if len(kinds) == 1 else tensors
    return parts
