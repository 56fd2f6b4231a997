# SPDX-License-Identifier: Apache-2.0
"""
Convert checkpoints of SpeechTokenizer and DM-Codec, whose networks are the same, into folders of this package.

Before a folder appears, the codec in it is compared with [`LineageNetwork`], which computes from the weights under
their original names what the codec has to compute.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from speech_tokenizers.coding.loading import load
from speech_tokenizers.conversion.foreign_files import (
    CheckpointError,
    check_output,
    check_state,
    compare_tensor,
    make_model,
    read_checkpoint_file,
    some_names,
)
from speech_tokenizers.modeling.configuration_dm_codec import DMCodecConfig
from speech_tokenizers.modeling.hub_export import save_pretrained_with_code
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel
from speech_tokenizers.processing.feature_extraction_dm_codec import DMCodecFeatureExtractor
from speech_tokenizers.processing.whole_files import whole_folder


# Fields of the original config.json that describe the network, and the types of their values.
CONFIG_FIELDS: dict[str, Any] = {
    "sample_rate": int,
    "n_filters": int,
    "strides": list,
    "dimension": int,
    "semantic_dimension": int,
    "bidirectional": bool,
    "dilation_base": int,
    "residual_kernel_size": int,
    "n_residual_layers": int,
    "lstm_layers": int,
    "activation": str,
    "codebook_size": int,
    "n_q": int,
}
# Original names -> ours, in this order. The original's layers have the same positions.
RENAMED = [
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(conv\.conv|convtr\.convtr)\.", ".conv."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.embed$", r"quantizer.quantizers.\1.codebook"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.embed_avg$", r"quantizer.quantizers.\1.codebook_sum"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.cluster_size$", r"quantizer.quantizers.\1.cluster_size"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.inited$", r"quantizer.quantizers.\1.initialized"),
]
PROJECTIONS = ("semantic", "contextual", "shared")
# Far above the rounding of float32 in networks of this depth, far below any error of a conversion.
_TOLERANCE = 1e-3
# So many layers are made in no time, and the weights then say what is wrong.
_FEW_LAYERS = 100
_LONGEST_DILATION_BITS = 16


class Conversion(NamedTuple):
    """
    What [`convert_checkpoint`] did.

    Args:
        model ([`DMCodecModel`]): The codec, as loaded from the folder that was written.
        ignored_fields (`list[str]`): Fields of the original config that describe its training, not its network.
    """

    model: DMCodecModel
    ignored_fields: list[str]


def convert_checkpoint(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    projection: str = "semantic",
    with_code: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """
    Convert a checkpoint of SpeechTokenizer (with ELU or Snake) or DM-Codec.

    All weights are kept, with the moving averages of the codebooks, so that training can continue. The folder appears
    when it is complete and checked.

    Args:
        checkpoint (`str` or `Path`): The model's state dict, or what the original trainer saved, as PyTorch or
            safetensors file. Nothing in it is executed.
        output (`str` or `Path`): Folder to write.
        config (`str` or `Path`, *optional*): The original's config.json. Defaults to the one beside the checkpoint.
        projection (`str`, *optional*, defaults to `"semantic"`): Features that the original's `transform` layer was
            trained for: `"semantic"`, those of a speech model (SpeechTokenizer); `"contextual"`, those of a language
            model; or `"shared"`, both (DM-Codec).
        with_code (`bool`, *optional*, defaults to `False`): Whether to write the code of the classes too, so that the
            folder loads with `trust_remote_code=True` where this package is not installed.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace the model in `output`, if there is one.

    Returns:
        [`Conversion`]: The codec and the ignored fields of the config.

    Raises:
        CheckpointError: If a file is not what it should be, or the conversion is not exact.
        ValueError: If `projection` is unknown, or `output` exists.
        OSError: If a file cannot be read or written.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    config_path = checkpoint.with_name("config.json") if config is None else Path(config)
    check_output(output, overwrite)
    fields, ignored_fields = read_config(config_path)
    state = read_checkpoint(checkpoint)
    check_counts(fields, len(state), config_path)
    codec_config = codec_config_of(fields, projection, config_path)
    model, renamed = make_model(
        lambda: DMCodecModel(codec_config).eval(),
        lambda shapes: rename_state(state, fields, shapes, checkpoint),
        config_path,
    )
    model.load_state_dict(renamed, strict=True)

    waveform = _test_signal(model)
    compare_with_original(model, LineageNetwork(state, fields), waveform, checkpoint)

    with whole_folder(output) as folder:
        feature_extractor = DMCodecFeatureExtractor(sampling_rate=model.sampling_rate)
        if with_code:
            save_pretrained_with_code(model, feature_extractor, folder)
        else:
            # The default would undo any renaming that transformers knows of.
            model.save_pretrained(folder, save_original_format=False)
            feature_extractor.save_pretrained(folder)
        loaded, _ = load(folder)
        _compare_saved(model, loaded, waveform, output)
    return Conversion(loaded, ignored_fields)


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Fields of the original's config.json that describe the network, and the names of the others."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            path, "there is no such file; name the config.json of the checkpoint (`config`)."
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is no JSON file ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(path, "holds no fields.")
    if missing := [name for name in CONFIG_FIELDS if name not in content]:
        raise CheckpointError(
            path, f"lacks {', '.join(missing)}; a config.json of SpeechTokenizer or DM-Codec has these fields."
        )
    for name, kind in CONFIG_FIELDS.items():
        if type(content[name]) is not kind:
            raise CheckpointError(path, f"`{name}` must be of type {kind.__name__}, but is {content[name]!r}.")
    return {name: content[name] for name in CONFIG_FIELDS}, sorted(set(content) - set(CONFIG_FIELDS))


def check_counts(fields: Mapping[str, Any], num_tensors: int, path: Path) -> None:
    """
    Check what the config counts, before layers are made by it.

    Args:
        fields (`Mapping[str, Any]`): The fields of the original's config.
        num_tensors (`int`): Number of tensors of the checkpoint.
        path (`Path`): The config, for messages.

    Raises:
        CheckpointError: If it describes more layers than there are tensors, or longer dilations than speech has use
            for.
    """
    counts = {name: fields[name] for name in ("n_q", "n_residual_layers", "lstm_layers")}
    counts["strides"] = len(fields["strides"])
    for name, count in counts.items():
        if count > max(num_tensors, _FEW_LAYERS):
            raise CheckpointError(
                path, f"`{name}` describes {count} layers, but the weights are {num_tensors} tensors in all."
            )
    deepest = max(fields["n_residual_layers"] - 1, 0)
    # The logarithm, since the power itself may have millions of digits.
    if deepest * math.log2(max(abs(fields["dilation_base"]), 1)) > _LONGEST_DILATION_BITS:
        raise CheckpointError(
            path,
            f"`dilation_base` is {fields['dilation_base']}, which makes dilations of more than 65,536 steps.",
        )


def codec_config_of(fields: Mapping[str, Any], projection: str, path: Path) -> DMCodecConfig:
    """Our configuration of the network that the original's `fields` describe; `path` is named in errors."""
    if projection not in PROJECTIONS:
        raise ValueError(f"`projection` must be one of {PROJECTIONS}, but got {projection!r}.")
    features = fields["semantic_dimension"]
    lstm = fields["lstm_layers"] > 0
    try:
        return DMCodecConfig(
            sampling_rate=fields["sample_rate"],
            num_filters=fields["n_filters"],
            hidden_size=fields["dimension"],
            downsampling_ratios=fields["strides"][::-1],
            residual_kernel_size=fields["residual_kernel_size"],
            num_residual_layers=fields["n_residual_layers"],
            dilation_growth_rate=fields["dilation_base"],
            num_lstm_layers=fields["lstm_layers"] or 1,
            encoder_lstm=("bidirectional" if fields["bidirectional"] else "unidirectional") if lstm else "none",
            decoder_lstm="unidirectional" if lstm else "none",
            activation=fields["activation"].lower(),
            pad_mode="reflect",
            num_quantizers=fields["n_q"],
            codebook_size=fields["codebook_size"],
            semantic_dimension=None if projection == "contextual" else features,
            contextual_dimension=None if projection == "semantic" else features,
            share_projection=projection == "shared",
        )
    except StrictDataclassError as error:
        raise CheckpointError(path, f"describes no codec ({' '.join(str(error).split())})") from error


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """
    Read the state dict of the original model under its original names, without the `module.` of data parallelism.

    Raises:
        CheckpointError: If the file holds anything but tensors and plain values, or something else than a model.
    """
    content = read_checkpoint_file(path)
    state = content
    if isinstance(content, dict) and isinstance(content.get("generator"), dict):
        state = content["generator"]  # what the original trainer saves, beside discriminators and optimizers
    if (
        not isinstance(state, dict)
        or not state
        or not any(isinstance(value, torch.Tensor) for value in state.values())
    ):
        found = (
            f"keys such as {some_names(map(str, content))}" if isinstance(content, dict) and content else "no weights"
        )
        raise CheckpointError(
            path,
            f"holds {found}; expected the state dict of a SpeechTokenizer or DM-Codec, or of their trainer "
            "(with the key `generator`).",
        )
    state = check_state(state, path)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    # Newer versions of PyTorch name the two parts of a normalised weight otherwise.
    newer = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    pattern = "|".join(map(re.escape, newer))
    return {re.sub(pattern, lambda match: newer[match.group()], name): value for name, value in state.items()}


def rename(name: str, projection: str = "semantic") -> str:
    """Our name of the original's parameter or buffer `name`; its `transform` is the projection of this kind."""
    name = re.sub(r"^transform\.", f"{projection}_projection.", name)
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def rename_state(
    state: Mapping[str, torch.Tensor], fields: Mapping[str, Any], model: DMCodecModel, path: Path
) -> dict[str, torch.Tensor]:
    """
    The original's weights under the names, and in the shapes, of `model`.

    Raises:
        CheckpointError: If a weight is missing, unexpected, of another shape, or not finite.
    """
    projection = "contextual" if model.config.semantic_dimension is None else "semantic"
    expected = model.state_dict()
    original_names = {rename(name, projection): name for name in state}
    renamed = {ours: state[name] for ours, name in original_names.items()}
    absent = {"quantizer.num_updates"}  # which the original does not count
    if fields["dimension"] == fields["semantic_dimension"]:
        # The original then has no layer here.
        absent |= {f"{projection}_projection.weight", f"{projection}_projection.bias"}

    unexpected = [name for ours, name in original_names.items() if ours not in expected]
    missing = [name for name in expected if name not in renamed and name not in absent]
    if unexpected or missing:
        raise CheckpointError(
            path,
            f"does not hold the network that its config describes: {len(missing)} weights are missing"
            f"{f' (here named {some_names(missing)})' if missing else ''}, {len(unexpected)} are unexpected"
            f"{f' ({some_names(unexpected)})' if unexpected else ''}.",
        )
    for ours, name in original_names.items():
        value = renamed[ours]
        if ours.endswith(".initialized"):
            value = renamed[ours] = value.reshape(-1)[:1].squeeze() > 0
        compare_tensor(
            path, name, value, expected[ours].shape, "its config implies {}; is it the config of another checkpoint?"
        )
    renamed.setdefault("quantizer.num_updates", torch.zeros((), dtype=expected["quantizer.num_updates"].dtype))
    for name in absent - renamed.keys():
        size = fields["dimension"]
        renamed[name] = torch.eye(size) if name.endswith("weight") else torch.zeros(size)
    return renamed


class LineageNetwork:
    """
    The network of SpeechTokenizer and DM-Codec at inference, computed from its weights under their original names.

    Args:
        state (`Mapping[str, torch.Tensor]`): The original's state dict.
        fields (`Mapping[str, Any]`): The fields of the original's config.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], fields: Mapping[str, Any]):
        self.state, self.fields = state, fields

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, 1, num_samples) -> latents (batch, num_frames, dimension)."""
        fields = self.fields
        hidden_states, position = self._convolution("encoder.model.0", waveform), 1
        for ratio in reversed(fields["strides"]):
            for layer in range(fields["n_residual_layers"]):
                name = f"encoder.model.{position + layer}"
                hidden_states = self._residual_unit(name, hidden_states, fields["dilation_base"] ** layer)
            position += fields["n_residual_layers"]
            hidden_states = self._activation(f"encoder.model.{position}", hidden_states)
            hidden_states = self._convolution(f"encoder.model.{position + 1}", hidden_states, stride=ratio)
            position += 2
        if fields["lstm_layers"]:
            hidden_states = self._lstm(f"encoder.model.{position}", hidden_states, fields["bidirectional"])
            position += 1
        hidden_states = self._activation(f"encoder.model.{position}", hidden_states)
        return self._convolution(f"encoder.model.{position + 1}", hidden_states).transpose(1, 2)

    def distances(self, latents: torch.Tensor, audio_codes: torch.Tensor) -> torch.Tensor:
        """
        How much farther than the nearest entry each chosen one is, relative to the farthest: (batch, num_quantizers,
        num_frames), 0 where the codes are the nearest.
        """
        residual, excess = latents, []
        for stage, codes in enumerate(audio_codes.unbind(dim=1)):
            codebook = self.state[f"quantizer.vq.layers.{stage}._codebook.embed"].float()
            distances = torch.cdist(residual, codebook, compute_mode="donot_use_mm_for_euclid_dist")  # (B, F, K)
            chosen = distances.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
            excess.append((chosen - distances.amin(dim=-1)) / distances.amax(dim=-1))
            residual = residual - codebook[codes]
        return torch.stack(excess, dim=1)

    def decode(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """(batch, num_quantizers, num_frames) -> waveform (batch, 1, num_frames * hop)."""
        fields = self.fields
        codebooks = [
            self.state[f"quantizer.vq.layers.{stage}._codebook.embed"].float() for stage in range(audio_codes.shape[1])
        ]
        quantized = sum(codebook[codes] for codebook, codes in zip(codebooks, audio_codes.unbind(dim=1), strict=True))
        hidden_states, position = self._convolution("decoder.model.0", quantized.transpose(1, 2)), 1
        if fields["lstm_layers"]:
            hidden_states = self._lstm("decoder.model.1", hidden_states, bidirectional=False)
            position += 1
        for ratio in fields["strides"]:
            hidden_states = self._activation(f"decoder.model.{position}", hidden_states)
            hidden_states = self._transposed_convolution(f"decoder.model.{position + 1}", hidden_states, ratio)
            position += 2
            for layer in range(fields["n_residual_layers"]):
                name = f"decoder.model.{position + layer}"
                hidden_states = self._residual_unit(name, hidden_states, fields["dilation_base"] ** layer)
            position += fields["n_residual_layers"]
        hidden_states = self._activation(f"decoder.model.{position}", hidden_states)
        return self._convolution(f"decoder.model.{position + 1}", hidden_states)

    def features(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """(batch, num_quantizers, num_frames) -> what distillation compares, (batch, num_frames, features)."""
        first = self.state["quantizer.vq.layers.0._codebook.embed"].float()[audio_codes[:, 0]]
        if "transform.weight" not in self.state:
            return first
        return F.linear(first, self.state["transform.weight"].float(), self.state["transform.bias"].float())

    def _weight_and_bias(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        # Weight normalisation: a length and a direction for each slice of the first dimension.
        magnitude, direction = self.state[f"{name}.weight_g"].float(), self.state[f"{name}.weight_v"].float()
        norm = direction.flatten(1).norm(dim=1).view(-1, 1, 1)
        return magnitude * direction / norm, self.state[f"{name}.bias"].float()

    def _convolution(self, name: str, hidden_states: torch.Tensor, stride: int = 1, dilation: int = 1) -> torch.Tensor:
        weight, bias = self._weight_and_bias(f"{name}.conv.conv")
        total = (weight.shape[-1] - 1) * dilation + 1 - stride
        surplus = -hidden_states.shape[-1] % stride
        padded = F.pad(hidden_states, (total - total // 2, total // 2 + surplus), mode="reflect")
        return F.conv1d(padded, weight, bias, stride, dilation=dilation)

    def _transposed_convolution(self, name: str, hidden_states: torch.Tensor, stride: int) -> torch.Tensor:
        weight, bias = self._weight_and_bias(f"{name}.convtr.convtr")
        surplus = weight.shape[-1] - stride
        output = F.conv_transpose1d(hidden_states, weight, bias, stride)
        return output[..., surplus - surplus // 2 : output.shape[-1] - surplus // 2]

    def _residual_unit(self, name: str, hidden_states: torch.Tensor, dilation: int) -> torch.Tensor:
        inner = self._activation(f"{name}.block.0", hidden_states)
        inner = self._convolution(f"{name}.block.1", inner, dilation=dilation)
        inner = self._convolution(f"{name}.block.3", self._activation(f"{name}.block.2", inner))
        return inner + self._convolution(f"{name}.shortcut", hidden_states)

    def _activation(self, name: str, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.fields["activation"].lower() == "elu":
            return F.elu(hidden_states)
        alpha = self.state[f"{name}.alpha"].float()
        return hidden_states + (alpha * hidden_states).sin().square() / (alpha + 1e-9)

    def _lstm(self, name: str, hidden_states: torch.Tensor, bidirectional: bool) -> torch.Tensor:
        size, prefix = hidden_states.shape[1], f"{name}.lstm."
        lstm = nn.LSTM(size, size, self.fields["lstm_layers"], batch_first=True, bidirectional=bidirectional)
        lstm.load_state_dict(
            {key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)}
        )
        inputs = hidden_states.transpose(1, 2)
        return (lstm(inputs)[0] + inputs.repeat(1, 1, 1 + bidirectional)).transpose(1, 2)


@torch.no_grad()
def compare_with_original(
    model: DMCodecModel, original: LineageNetwork, waveform: torch.Tensor, path: Path
) -> dict[str, float]:
    """
    Compare latents, codes and decoded waveform of a converted codec with those of the original's weights.

    Returns:
        `dict[str, float]`: The largest difference of each, relative to its largest value.

    Raises:
        CheckpointError: If one differs by more than rounding.
    """
    outputs, latents = model(waveform, return_loss=False), original.encode(waveform)
    codes = outputs.audio_codes
    projected = outputs.contextual_features if outputs.semantic_features is None else outputs.semantic_features
    compared = {
        "latents": (outputs.latents, latents),
        "waveform": (model.decode(codes).audio_values, original.decode(codes)),
        "features": (projected, original.features(codes)),
    }
    differences = {name: float((ours - its).abs().max() / its.abs().max()) for name, (ours, its) in compared.items()}
    differences["codes"] = float(original.distances(latents, codes).max())
    for name, difference in differences.items():
        if not difference < _TOLERANCE:  # nor is NaN
            raise CheckpointError(
                path,
                f"the converted codec gives other {name} than the original's weights (by {difference:.2g} of the "
                "largest), so nothing was written; is it the config of another checkpoint?",
            )
    return differences


@torch.no_grad()
def _compare_saved(model: DMCodecModel, loaded: Any, waveform: torch.Tensor, path: Path) -> None:
    expected, state = model.state_dict(), loaded.state_dict()
    same = expected.keys() == state.keys() and all(torch.equal(expected[name], state[name]) for name in expected)
    codes = model.encode(waveform).audio_codes
    same = same and torch.equal(loaded.encode(waveform).audio_codes, codes)
    if not (same and torch.equal(loaded.decode(codes).audio_values, model.decode(codes).audio_values)):
        raise CheckpointError(path, "what was written does not load as it was converted, so it was removed.")


def _test_signal(model: DMCodecModel) -> torch.Tensor:
    """A gliding, noisy tone of fifty frames and a bit, (2, 1, num_samples)."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(50 * model.hop_length + model.hop_length // 3) / model.sampling_rate
    pitch = torch.tensor([120.0, 310.0]).view(2, 1, 1)
    tone = sum(torch.sin(2 * torch.pi * k * (pitch + 20 * time) * time) / k for k in range(1, 8))
    envelope = 0.5 + 0.5 * torch.sin(2 * torch.pi * 3 * time)
    return 0.2 * envelope * tone + 0.02 * torch.randn(2, 1, len(time), generator=generator)


__all__ = ["CheckpointError", "Conversion", "convert_checkpoint"]
