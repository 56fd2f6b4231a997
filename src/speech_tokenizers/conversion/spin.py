# SPDX-License-Identifier: Apache-2.0
"""
Convert checkpoints of Spin, as its trainer (PyTorch Lightning) saves them, into folders of this package.

Before a folder appears, the model in it is compared with [`SpinNetwork`], which computes from the weights under their
original names what the model has to compute.
"""

import argparse
import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.utils import logging

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
from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
from speech_tokenizers.modeling.hub_export import save_pretrained_with_code
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.processing.feature_extraction_dc_spin import DCSpinFeatureExtractor
from speech_tokenizers.processing.whole_files import whole_folder


# Original names -> ours, in this order.
RENAMED = [
    (r"^loss_module\.codebook\.weight$", "primary.codebook"),
    (r"^pred_head\.layers\.0\.", "primary_projection."),
    (r"^encoder\.model\.(layer_norm\.)", r"encoder.feature_projection.\1"),
    (r"^encoder\.model\.post_extract_proj\.", "encoder.feature_projection.projection."),
    (r"^encoder\.model\.mask_emb$", "encoder.masked_spec_embed"),
    (r"^encoder\.model\.", "encoder."),
    (r"(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(feature_extractor\.conv_layers\.0)\.2\.", r"\1.layer_norm."),
    (r"pos_conv\.0\.weight_g$", "pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"pos_conv\.0\.weight_v$", "pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"pos_conv\.0\.", "pos_conv_embed.conv."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
    (r"\.relative_attention_bias\.", ".rel_attn_embed."),
    (r"\.grep_linear\.", ".gru_rel_pos_linear."),
    (r"\.grep_a$", ".gru_rel_pos_const"),
]
# What is left over from HuBERT's own pre-training, and has no part in Spin.
LEFT_OVER = re.compile(r"^encoder\.model\.(label_embs_concat|final_proj\..*)$")
# Kernels and strides of the convolutional front end, and the buckets of WavLM's attention: the shapes of the weights
# do not tell all of them.
CONV_KERNELS, CONV_STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
MAX_BUCKET_DISTANCE = 800
# Far above the rounding of float32 in networks of this depth, far below any error of a conversion.
_TOLERANCE = 1e-3


class _Inert:
    """Made in place of an object that the conversion does not need."""

    def __init__(self, *args: Any):
        pass


# What Lightning is known to save beside tensors and plain values, and what is made of it.
_STAND_INS = [
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (OrderedDict, "lightning.pytorch.utilities.parsing.AttributeDict"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (OrderedDict, "lightning.fabric.utilities.data.AttributeDict"),
    (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_Inert, "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor"),
    (_Inert, "argparse.Namespace"),
    (_Inert, "pathlib.PosixPath"),
]


def convert_spin(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    num_attention_heads: int | None = None,
    with_code: bool = False,
    overwrite: bool = False,
) -> DCSpinModel:
    """
    Convert a checkpoint of Spin on HuBERT-base or WavLM-base, such as `spin_hubert_256.ckpt`.

    The folder appears when it is complete and checked.

    Args:
        checkpoint (`str` or `Path`): Checkpoint that Spin's trainer saved. Nothing in it is executed.
        output (`str` or `Path`): Folder to write.
        num_attention_heads (`int`, *optional*): Number of attention heads of the encoder. Defaults to that in WavLM's
            weights, or else to one for each 64 dimensions.
        with_code (`bool`, *optional*, defaults to `False`): Whether to write the code of the classes too, so that the
            folder loads with `trust_remote_code=True` where this package is not installed.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace the model in `output`, if there is one.

    Returns:
        [`DCSpinModel`]: Model as loaded from the folder, with one codebook.

    Raises:
        CheckpointError: If the file is not what it should be, or the conversion is not exact.
        ValueError: If `output` exists.
        OSError: If a file cannot be read or written.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    check_output(output, overwrite)
    state, settings = read_spin_checkpoint(checkpoint)
    config = spin_config_of(state, settings, checkpoint, num_attention_heads)
    model, renamed = make_model(
        lambda: DCSpinModel(config).eval(), lambda shapes: rename_spin_state(state, shapes, checkpoint), checkpoint
    )
    model.load_state_dict(renamed, strict=True)

    waveforms = _test_signal()
    compare_with_spin(model, SpinNetwork(state, model.encoder.config.num_attention_heads), waveforms, checkpoint)

    with whole_folder(output) as folder:
        feature_extractor = DCSpinFeatureExtractor(sampling_rate=model.sampling_rate, hop_length=model.hop_length)
        if with_code:
            save_pretrained_with_code(model, feature_extractor, folder)
        else:
            # The default would undo any renaming that transformers knows of.
            model.save_pretrained(folder, save_original_format=False)
            feature_extractor.save_pretrained(folder)
        loaded, _ = load(folder)
        if not torch.equal(loaded.encode(waveforms).audio_codes, model.encode(waveforms).audio_codes):
            raise CheckpointError(output, "what was written does not load as it was converted, so it was removed.")
    return loaded


def read_spin_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    Read the weights under their original names, and the settings (`model` of the original's recipe) if there are any.

    Raises:
        CheckpointError: If the file holds what could run code, or is no checkpoint of Spin.
    """
    content = read_checkpoint_file(path, _STAND_INS)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        keys = some_names(map(str, content)) if isinstance(content, dict) and content else "no weights"
        raise CheckpointError(path, f"holds {keys}; expected what Spin's trainer saves, with the key `state_dict`.")
    state = check_state(state, path)
    if missing := [name for name in ("loss_module.codebook.weight", "pred_head.layers.0.weight") if name not in state]:
        raise CheckpointError(path, f"has no {' and no '.join(missing)}, so it is no checkpoint of Spin.")
    # Newer versions of PyTorch name the two parts of a normalised weight otherwise.
    newer = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    pattern = "|".join(map(re.escape, newer))
    state = {re.sub(pattern, lambda match: newer[match.group()], name): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not LEFT_OVER.match(name)}
    return state, next(_settings_in(content.get("hyper_parameters")), {})


def _settings_in(parameters: Any) -> Iterator[dict[str, Any]]:
    if isinstance(parameters, dict):
        if isinstance(parameters.get("model"), dict):
            yield parameters["model"]
        for value in parameters.values():
            yield from _settings_in(value)


def spin_config_of(
    state: Mapping[str, torch.Tensor], settings: Mapping[str, Any], path: Path, num_attention_heads: int | None = None
) -> DCSpinConfig:
    """
    Our configuration of the network, by the shapes of its weights and the settings of its training.

    Args:
        state (`Mapping`): The weights under their original names.
        settings (`Mapping`): `encoder` and `loss` of the original's recipe; what is missing is as in its release.
        path (`Path`): Path of the checkpoint, which errors name.
        num_attention_heads (`int`, *optional*): Number of attention heads of the encoder; see [`convert_spin`].

    Raises:
        CheckpointError: If it is another network than Spin's.
    """
    try:
        return _read_spin_config(state, settings, path, num_attention_heads)
    except KeyError as error:
        raise CheckpointError(path, f"lacks {error.args[0]}, which Spin on HuBERT-base or WavLM-base has.") from error
    except (StrictDataclassError, ValueError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise
        # Shapes of other weights, or settings of other types.
        raise CheckpointError(path, f"describes no Spin ({' '.join(str(error).split())})") from error


def _read_spin_config(
    state: Mapping[str, torch.Tensor], settings: Mapping[str, Any], path: Path, num_attention_heads: int | None
) -> DCSpinConfig:
    prefix = "encoder.model."
    layers = {
        int(match[1]) for name in state if (match := re.match(r"encoder\.model\.encoder\.layers\.(\d+)\.", name))
    }
    hidden_size = len(state[f"{prefix}post_extract_proj.weight"])
    convolutions = [state[f"{prefix}feature_extractor.conv_layers.{index}.0.weight"] for index in range(7)]
    direction = state[f"{prefix}encoder.pos_conv.0.weight_v"]
    inner_size = len(state[f"{prefix}encoder.layers.0.fc1.weight"])
    if [convolution.shape[2] for convolution in convolutions] != list(CONV_KERNELS):
        raise CheckpointError(
            path, "has other convolutions than HuBERT-base and WavLM-base, so its strides are unknown."
        )
    gate = state.get(f"{prefix}encoder.layers.0.self_attn.grep_a")
    if num_attention_heads is None:
        num_attention_heads = hidden_size // 64 if gate is None else gate.shape[1]
    if num_attention_heads < 1 or hidden_size % num_attention_heads:
        raise CheckpointError(
            path,
            f"has {hidden_size} dimensions, which {num_attention_heads} heads cannot share; give the number of heads "
            "(`num_attention_heads`).",
        )
    fields = {
        "hidden_size": hidden_size,
        "num_hidden_layers": len(layers),
        "num_attention_heads": num_attention_heads,
        "intermediate_size": inner_size,
        "conv_dim": [len(convolution) for convolution in convolutions],
        "conv_kernel": list(CONV_KERNELS),
        "conv_stride": list(CONV_STRIDES),
        "num_conv_pos_embeddings": direction.shape[2],
        "num_conv_pos_embedding_groups": hidden_size // direction.shape[1],
    }
    if gate is not None:
        buckets = state.get(f"{prefix}encoder.layers.0.self_attn.relative_attention_bias.weight")
        if buckets is None:
            raise CheckpointError(path, "has WavLM's gates, but not its relative positions.")
        fields |= {"num_buckets": len(buckets), "max_bucket_distance": MAX_BUCKET_DISTANCE}
    encoder, loss = (dict(settings.get(name) or {}) for name in ("encoder", "loss"))
    encoder_layer = encoder.get("use_layer", len(layers))
    frozen = [layer for layer in encoder.get("freeze_layers", []) if isinstance(layer, int)]
    trainable_layers = 0 if encoder.get("freeze_all") else encoder_layer - max(frozen, default=encoder_layer - 2)
    codebook = state["loss_module.codebook.weight"]
    return DCSpinConfig(
        encoder_config=AutoConfig.for_model("hubert" if gate is None else "wavlm", **fields),
        encoder_layer=encoder_layer,
        projection_dim=codebook.shape[1],
        primary_codebook_size=len(codebook),
        auxiliary_codebook_size=None,
        trainable_layers=trainable_layers,
        temperature=loss.get("temp", 0.1),
        sinkhorn_epsilon=loss.get("epsilon", 0.02),
        sinkhorn_iterations=loss.get("sinkhorn_iters", 3),
        hard_target=loss.get("hard_target", False),
        target_mix=loss.get("prob_ratio", 1.0),
        normalize_latents=loss.get("l2_norm", True),
        do_normalize=encoder.get("normalize", False),
    )


def rename_spin(name: str) -> str:
    """Our name of the original's parameter `name`."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def rename_spin_state(state: Mapping[str, torch.Tensor], model: DCSpinModel, path: Path) -> dict[str, torch.Tensor]:
    """
    The original's weights under the names of `model`.

    Raises:
        CheckpointError: If a weight is missing, unexpected, of another shape, or not finite.
    """
    expected = model.state_dict()
    renamed = {rename_spin(name): value for name, value in state.items()}
    unexpected = [name for name in state if rename_spin(name) not in expected]
    missing = [name for name in expected if name not in renamed]
    if unexpected or missing:
        raise CheckpointError(
            path,
            f"holds another network than Spin's: {len(missing)} weights are missing"
            f"{f' (here named {some_names(missing)})' if missing else ''}, {len(unexpected)} are unexpected"
            f"{f' ({some_names(unexpected)})' if unexpected else ''}.",
        )
    for name, value in state.items():
        compare_tensor(path, name, value, expected[rename_spin(name)].shape)
    return renamed


class SpinNetwork:
    """
    Spin on HuBERT-base or WavLM-base at inference, computed from its weights under their original names.

    Args:
        state (`Mapping[str, torch.Tensor]`): The original's weights.
        num_attention_heads (`int`): Number of attention heads of the encoder.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], num_attention_heads: int):
        self.state = {name.removeprefix("encoder.model."): value.float() for name, value in state.items()}
        self.num_attention_heads = num_attention_heads

    def latents(self, waveforms: torch.Tensor, layer: int) -> torch.Tensor:
        """(batch, 1, num_samples) -> projected output of a layer, of unit length, (batch, num_frames, dim)."""
        hidden = waveforms
        for index, stride in enumerate(CONV_STRIDES):
            name = f"feature_extractor.conv_layers.{index}"
            hidden = F.conv1d(hidden, self.state[f"{name}.0.weight"], stride=stride)
            if index == 0:
                weight, bias = self._parameters(f"{name}.2")
                hidden = F.group_norm(hidden, len(weight), weight, bias)
            hidden = F.gelu(hidden)
        hidden = self._linear("post_extract_proj", self._layer_norm("layer_norm", hidden.transpose(1, 2)))
        hidden = self._layer_norm("encoder.layer_norm", hidden + self._positions(hidden))
        for index in range(layer):
            name = f"encoder.layers.{index}"
            hidden = hidden + self._attention(f"{name}.self_attn", hidden)
            hidden = self._layer_norm(f"{name}.self_attn_layer_norm", hidden)
            inner = F.gelu(self._linear(f"{name}.fc1", hidden))
            hidden = self._layer_norm(f"{name}.final_layer_norm", hidden + self._linear(f"{name}.fc2", inner))
        return F.normalize(self._linear("pred_head.layers.0", hidden), dim=-1)

    def logits(self, latents: torch.Tensor) -> torch.Tensor:
        """Similarities of latents and codes."""
        return latents @ self.state["loss_module.codebook.weight"].T

    def _parameters(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def _linear(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return F.linear(values, *self._parameters(name))

    def _layer_norm(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(values, values.shape[-1:], *self._parameters(name))

    def _positions(self, hidden: torch.Tensor) -> torch.Tensor:
        # A grouped convolution whose weight has a length for each place of the kernel.
        name = "encoder.pos_conv.0"
        direction = self.state[f"{name}.weight_v"]
        weight = self.state[f"{name}.weight_g"] * direction / direction.square().sum((0, 1), keepdim=True).sqrt()
        kernel, groups = direction.shape[2], hidden.shape[-1] // direction.shape[1]
        inputs = F.pad(hidden.transpose(1, 2), (kernel // 2, kernel - 1 - kernel // 2))
        return F.gelu(F.conv1d(inputs, weight, self.state[f"{name}.bias"], groups=groups)).transpose(1, 2)

    def _attention(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        heads = self.num_attention_heads
        queries, keys, values = (
            self._linear(f"{name}.{kind}_proj", hidden).unflatten(-1, (heads, -1)).transpose(1, 2) for kind in "qkv"
        )
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        if f"{name}.grep_a" in self.state:
            # WavLM, section III-C of arXiv 2110.13900: a bias by relative position, gated by what is heard.
            heard = hidden.unflatten(-1, (heads, -1)).transpose(1, 2)
            gates = self._linear(f"{name}.grep_linear", heard).unflatten(-1, (2, 4)).sum(-1).sigmoid()
            update, reset = gates[..., :1], gates[..., 1:]
            gate = update * (reset * self.state[f"{name}.grep_a"] - 1) + 2
            scores = scores + gate * self._position_bias(hidden.shape[1])
        return self._linear(f"{name}.out_proj", (scores.softmax(-1) @ values).transpose(1, 2).flatten(2))

    def _position_bias(self, length: int) -> torch.Tensor:
        # As in T5: half of the buckets look ahead; of each half, one half are exact and the other logarithmic.
        table = self.state["encoder.layers.0.self_attn.relative_attention_bias.weight"]  # (buckets, heads)
        half = len(table) // 2
        exact = half // 2
        offsets = torch.arange(length) - torch.arange(length)[:, None]
        distances = offsets.abs()
        ratio = (distances.clamp(min=1).float() / exact).log() / math.log(MAX_BUCKET_DISTANCE / exact)
        far = (exact + ratio * (half - exact)).long().clamp(max=half - 1)
        buckets = torch.where(distances < exact, distances, far) + (offsets > 0) * half
        return table[buckets].permute(2, 0, 1)


@torch.no_grad()
def compare_with_spin(
    model: DCSpinModel, original: SpinNetwork, waveforms: torch.Tensor, path: Path
) -> dict[str, float]:
    """
    Compare projected frames and codes of a converted model with those of the original's weights.

    Returns:
        `dict[str, float]`: Largest difference of the latents, which have unit length, and the amount by which a code's
            similarity falls short of the largest.
        similarity falls short of the largest.

    Raises:
        CheckpointError: If one differs by more than rounding.
    """
    outputs = model.encode(waveforms)
    latents = original.latents(waveforms, model.config.encoder_layer)
    logits = original.logits(latents)
    chosen = logits.gather(-1, outputs.audio_codes[:, 0, :, None])[..., 0]
    differences = {
        "latents": float((outputs.latents - latents).abs().max()),
        "codes": float((logits.amax(-1) - chosen).max()),
    }
    for name, difference in differences.items():
        if not difference < _TOLERANCE:  # nor is NaN
            raise CheckpointError(
                path,
                f"the converted model gives other {name} than the original's weights (by {difference:.2g}), so "
                "nothing was written.",
            )
    return differences


def _test_signal() -> torch.Tensor:
    # Gliding, noisy tones, (2, 1, num_samples).
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(16080) / 16000
    pitch = torch.tensor([120.0, 210.0]).view(2, 1, 1)
    tone = sum(torch.sin(2 * torch.pi * k * (pitch + 20 * time) * time) / k for k in range(1, 8))
    return 0.2 * tone + 0.02 * torch.randn(2, 1, len(time), generator=generator)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `convert-spin`."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="file that Spin's trainer saved (.ckpt)")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="the folder to write")
    parser.add_argument(
        "--num-attention-heads", type=int, help="attention heads of the encoder, if it is no base model"
    )
    parser.add_argument(
        "--with-code", action="store_true", help="write the code too, for use without this package installed"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model in the folder")


def run(args: argparse.Namespace) -> int:
    """Run `convert-spin`."""
    logging.disable_progress_bar()
    model = convert_spin(args.checkpoint, args.output, args.num_attention_heads, args.with_code, args.overwrite)
    encoder = type(model.encoder).__name__
    print(f"{args.output}: {model.config.codebook_size} units on a {encoder}, equal to the original's")
    return 0


__all__ = ["convert_spin"]
