# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""
Weights that are all there, finite and of the right sizes, or an error that names the file.

Left to itself, transformers draws what a file lacks at random, and loads what is not finite. Such a model codes speech
without an error, and wrongly.
"""

import contextlib
import contextvars
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging


logger = transformers_logging.get_logger(__name__)

_HALF = (torch.float16, torch.bfloat16)
_REAL_DTYPES = ("F16", "BF16", "F32", "F64")
# Bytes of zeros at the end of a file that are worth a look at where they begin, and bytes read at once.
_SUSPICIOUS_ZEROS, _ZEROS_READ = 256, 1 << 20
_LONGEST_NUMBER = 8  # bytes
_INTEGER_DTYPES = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
# Arguments of `from_pretrained` that say where a configuration is.
_PLACE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Fields that count modules, besides those that end in `num_layers`.
_COUNTS = ("num_quantizers", "num_stages", "num_residual_layers", "num_lstm_layers", "num_hidden_layers")
# Fields of a configuration that are no fields of its class: those that transformers sets or reads itself.
_NOT_OURS = {
    *("auto_map", "torch_dtype", "attn_implementation", "fusion_config", "distributed_config", "transformers_weights"),
    *("tie_word_embeddings", "tie_encoder_decoder", "num_labels", "use_cache", "torchscript", "pruned_heads"),
    *("is_decoder", "add_cross_attention", "tokenizer_class", "prefix", "finetuning_task", "task_specific_params"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
}


class StoredTensor(NamedTuple):
    """What a file says of a tensor in it: its type, such as `"F32"`, and its shape."""

    dtype: str
    shape: tuple[int, ...]


# The class that is being loaded, the file, and what that says of its tensors.
_being_loaded: contextvars.ContextVar[tuple[type, str, Mapping[str, StoredTensor]] | None] = contextvars.ContextVar(
    "_being_loaded", default=None
)


class ModelFilesError(ValueError):
    """A saved model is not what it should be. The message names the file and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")


class CheckedLoading:
    """
    A model that `from_pretrained` refuses to load where something is missing, unexpected or not finite.

    Only safetensors are read: other files of weights could run code.
    """

    # Whether the model reads weights outside of `forward`, where what lies on disk or elsewhere is not fetched.
    lies_on_one_device = False
    # Whether half precision changes what the model says: nearest entries are others then.
    warns_of_half = False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """
        As `PreTrainedModel.from_pretrained`, and checked.

        Parts that the saved configuration does not have, but the one given does, are new and drawn at random.

        Raises:
            ModelFilesError: If a file is missing, damaged or not safetensors; if a tensor is missing, unexpected, not
                finite, or of another shape than the configuration says; or if the files are another model's.
            ValueError: If `device_map` puts parts on several devices or on disk, and the model cannot be split.
        """
        source = pretrained_model_name_or_path
        if source is None or kwargs.get("gguf_file") is not None:
            return super().from_pretrained(  # type: ignore[misc]
                source, *model_args, output_loading_info=output_loading_info, **kwargs
            )
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError(
                "`use_safetensors` is False, but other files of weights could run code; they are not read."
            )
        weights_name = _weights_name(source, kwargs)
        stored: dict[str, StoredTensor] = {}
        if os.path.isdir(source):
            folder = Path(source, kwargs.get("subfolder") or "")
            fields = read_fields(folder / "config.json")
            stored = read_headers(folder, kwargs.get("variant"))
            if fields.get("quantization_config"):
                raise ModelFilesError(
                    folder / "config.json",
                    "asks for quantized weights (`quantization_config`), which no model of this package has; remove"
                    " the field.",
                )
            check_counts(fields, len(stored), folder / "config.json")
        kept = {name: kwargs[name] for name in _PLACE if kwargs.get(name) is not None}
        other_sizes = kwargs.pop("ignore_mismatched_sizes", False)
        device_map = kwargs.get("device_map")
        if cls.lies_on_one_device and device_map is not None:
            kwargs["device_map"] = _one_device(device_map, "max_memory" in kwargs)
        reading = _being_loaded.set(None if other_sizes else (cls, weights_name, stored))
        try:
            with quiet_report():
                model, info = super().from_pretrained(  # type: ignore[misc]
                    source,
                    *model_args,
                    output_loading_info=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    **kwargs,
                )
        except SafetensorError as error:
            raise ModelFilesError(weights_name, f"is no complete safetensors file ({error}).") from error
        finally:
            _being_loaded.reset(reading)
        _check_identity(model, source)
        expected = None
        if info["missing_keys"] or info["unexpected_keys"]:
            # Only now, since it takes a while. What the caller's own configuration added or left out is no damage.
            expected = model._saved_names(source, kept)
        check_tensors(model, info, weights_name, other_sizes=other_sizes, expected=expected)
        if cls.lies_on_one_device:
            _check_whole(model)
        if cls.warns_of_half and model.dtype in _HALF:
            _warn_of_half(model)
        return (model, info) if output_loading_info else model

    def _saved_names(self, source: Any, kept: Mapping[str, Any]) -> set[str]:
        model_class: Any = type(self)
        saved = model_class.config_class.from_pretrained(source, **kept)
        if saved.to_diff_dict() == self.config.to_diff_dict():  # type: ignore[attr-defined]
            return set(self.state_dict())  # type: ignore[attr-defined]
        with torch.device("meta"):
            return set(model_class(saved).state_dict())

    def post_init(self) -> None:
        """As in transformers, which calls this before weights are allocated; sizes are compared here already."""
        super().post_init()  # type: ignore[misc]
        loaded_class, path, stored = _being_loaded.get() or (None, "", {})
        if type(self) is not loaded_class:
            return
        for name, tensor in self.state_dict().items():  # type: ignore[attr-defined]
            if name not in stored:
                continue
            if stored[name].shape != tensor.shape:
                raise _other_shape(path, name, stored[name].shape, tensor.shape)
            if (stored[name].dtype in _INTEGER_DTYPES) == tensor.is_floating_point():
                kind = "real numbers" if tensor.is_floating_point() else "integers"
                raise ModelFilesError(path, f"`{name}` is stored as {stored[name].dtype}, but must hold {kind}.")
            if tensor.is_floating_point() and stored[name].dtype not in _REAL_DTYPES:
                raise ModelFilesError(
                    path, f"`{name}` is stored as {stored[name].dtype}, but must be one of {', '.join(_REAL_DTYPES)}."
                )

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # Through which `half`, `bfloat16`, `to` and all others go.
        before = self.dtype  # type: ignore[attr-defined]
        super()._apply(*args, **kwargs)  # type: ignore[misc]
        if self.warns_of_half and self.dtype in _HALF and before not in _HALF:  # type: ignore[attr-defined]
            _warn_of_half(self)
        return self


def check_tensors(
    model: nn.Module,
    info: Mapping[str, Any],
    path: str,
    *,
    other_sizes: bool = False,
    expected: set[str] | None = None,
    strict: bool = True,
) -> None:
    """
    Check what `from_pretrained` made of the files.

    Args:
        model (`nn.Module`): The loaded model.
        info (mapping): What `from_pretrained` returned for `output_loading_info=True`.
        path (`str`): The file, or the repository, for messages.
        other_sizes (`bool`, *optional*, defaults to `False`): Whether tensors of other shapes are the caller's wish.
        expected (`set` of `str`, *optional*): Names of the tensors that the saved configuration implies. Defaults to
            the model's.
        strict (`bool`, *optional*, defaults to `True`): Whether tensors that the model does not have are refused.

    Raises:
        ModelFilesError: If a tensor is missing, unexpected, not finite, or of another shape or kind.
    """
    tensors = model.state_dict()
    for name, found, wanted in sorted(info["mismatched_keys"]) if not other_sizes else ():
        raise _other_shape(path, name, found, wanted)
    for message in info.get("error_msgs") or ():
        raise ModelFilesError(path, f"cannot be loaded ({' '.join(str(message).split())}).")
    missing = sorted(info["missing_keys"])
    lost = [name for name in missing if expected is None or name in expected]
    if lost:
        raise ModelFilesError(
            path,
            f"lacks {len(lost)} of {len(tensors)} tensors of a {type(model).__name__} ({_some(lost)}), which would be"
            " drawn at random; fetch or save the model again.",
        )
    if missing:
        logger.warning(f"New in this model, so drawn at random: {_some(missing)} ({len(missing)} tensors).")
    foreign = sorted(name for name in info["unexpected_keys"] if expected is None or name not in expected)
    if foreign and strict:
        raise ModelFilesError(
            path,
            f"holds {len(foreign)} tensors that a {type(model).__name__} of this configuration does not have"
            f" ({_some(foreign)}); is config.json that of another model?",
        )
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            count = int((~tensor.isfinite()).sum())
            raise ModelFilesError(
                path,
                f"`{name}` holds {count} values that are not finite (NaN or infinity, in {tensor.dtype}); fetch the"
                " model again, or train it again if it was saved so.",
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity. What lies on no device, and integers, have none."""
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    # A sum is finite only if all is. It is several times faster than a look at each number, and it can overflow.
    if tensor.dtype in (torch.float32, torch.float64) and bool(tensor.sum().isfinite()):
        return True
    return bool(tensor.isfinite().all())


def read_fields(path: Path) -> dict[str, Any]:
    """
    Fields of a config.json or preprocessor_config.json.

    Raises:
        ModelFilesError: If there is no such file, or it holds no fields.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFilesError(path, "is missing; name the folder of a saved model.") from None
    except ValueError as error:
        raise ModelFilesError(path, f"is no JSON file ({error}).") from error
    except RecursionError as error:
        raise ModelFilesError(path, "is no JSON file (it is nested too deeply).") from error
    if not isinstance(fields, dict):
        raise ModelFilesError(path, "must hold named fields, in braces, but holds something else.")
    return fields


def read_headers(folder: Path, variant: str | None = None) -> dict[str, StoredTensor]:
    """
    Read what the files of weights in a folder say of themselves. Nothing is allocated, and nothing is executed.

    Args:
        folder (`Path`): Folder of a saved model.
        variant (`str`, *optional*): Part of the files' names, as `from_pretrained` takes it.

    Returns:
        `dict[str, StoredTensor]`: Type and shape of each tensor, by its name. Empty if there is no such file and
        transformers may know another.

    Raises:
        ModelFilesError: If a file is missing, damaged, or no safetensors.
    """
    kind = f".{variant}" if variant else ""
    path, index = folder / f"model{kind}.safetensors", folder / f"model.safetensors.index{kind}.json"
    if path.is_file():
        files = [path]
    elif index.is_file():
        files = _shards(index)
    else:
        pickled = sorted(
            entry.name for entry in folder.glob("*") if entry.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        )
        if pickled:
            raise ModelFilesError(
                folder,
                f"holds {_some(pickled)}, but no {path.name}. Pickled weights can run code, so they are never read;"
                f' if you trust the file, convert it: `safetensors.torch.save_file(torch.load("{pickled[0]}",'
                ' weights_only=True), "model.safetensors", {"format": "pt"})`.',
            )
        if any(entry.is_file() for entry in folder.glob("*.safetensors*")) or (folder / "distributed").exists():
            return {}
        raise ModelFilesError(folder, f"holds no {path.name}; name the folder of a saved model.")
    stored: dict[str, StoredTensor] = {}
    for file in files:
        if (damage := describe_damage(file)) is not None:
            raise ModelFilesError(file, damage)
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                part = tensors.get_slice(name)
                stored[name] = StoredTensor(part.get_dtype(), tuple(part.get_shape()))
    if not stored:
        raise ModelFilesError(files[0], "holds no tensors.")
    return stored


def describe_damage(path: Path) -> str | None:
    """Why a file is no complete safetensors file; `None` if it is one."""
    if (reason := describe_other_content(path)) is not None:
        return reason
    try:
        with safe_open(path, framework="pt"):
            return _describe_zeros(path)
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        return f"is no complete safetensors file ({' '.join(str(error).split())}); fetch or save it again."


def _describe_zeros(path: Path) -> str | None:
    # Downloads that claim their room first leave zeros where they stopped, in the middle of a tensor.
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        end = size
        while end > 0:
            file.seek(max(0, end - _ZEROS_READ))
            block = file.read(end - file.tell())
            if kept := block.rstrip(b"\0"):
                end -= len(block) - len(kept)
                break
            end -= len(block)
    if size - end < _SUSPICIOUS_ZEROS:
        return None
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        first, last = (8 + header_size + offset for offset in tensor["data_offsets"])
        # Whole rows of zeros may be meant, such as entries of a codebook that were never used. The last number before
        # them may end in zeros itself.
        row = (last - first) // tensor["shape"][0] if len(tensor["shape"]) > 1 else 1
        if first < end < last and (first - end) % row >= _LONGEST_NUMBER:
            return (
                f"holds nothing but zeros from byte {end} of {size} on, in the middle of `{name}`, as a download that"
                " was interrupted does; fetch it again."
            )
    return None


def describe_other_content(path: Path) -> str | None:
    """Why a file of weights holds none at all: it is empty, a pointer or a web page. `None` otherwise."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "is empty."
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not a checkpoint; download the file itself."
    return None


def _shards(index: Path) -> list[Path]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
        files = [index.with_name(name) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFilesError(index, "is no index of weights; fetch it again.") from error
    for file in files:
        if not file.is_file():
            raise ModelFilesError(index, f"names {file.name}, which is missing; fetch it too.")
    if not files:
        raise ModelFilesError(index, "names no files of weights; fetch it again.")
    return files


def _other_shape(path: str, name: str, found: Iterable[int], wanted: Iterable[int]) -> ModelFilesError:
    return ModelFilesError(
        path,
        f"`{name}` has shape {tuple(found)}, but the configuration implies {tuple(wanted)}; is it that of another"
        " model?",
    )


def _weights_name(source: Any, kwargs: Mapping[str, Any]) -> str:
    # For messages, where a model may be in several files.
    if not os.path.isdir(source):
        return str(source)
    folder, variant = Path(source, kwargs.get("subfolder") or ""), kwargs.get("variant")
    path = folder / f"model{f'.{variant}' if variant else ''}.safetensors"
    return str(path if path.is_file() else folder)


def check_counts(fields: Mapping[str, Any], num_tensors: int, path: Path) -> None:
    # Before modules are made: there are more layers than tensors only in a configuration that is damaged.
    for name, value in fields.items():
        if isinstance(value, dict):
            if name in ("encoder_config", "vocoder_config", "text_config"):
                check_counts(value, num_tensors, path)
        elif (
            (name in _COUNTS or name.endswith("num_layers"))
            and isinstance(value, int)
            and value > max(num_tensors, 100)
        ):
            raise ModelFilesError(path, f"`{name}` is {value}, but the weights are {num_tensors} tensors in all.")


def _check_identity(model: Any, source: Any) -> None:
    config, name = model.config, type(model).__name__
    path = Path(source, "config.json") if os.path.isdir(source) else source
    saved = config.architectures if isinstance(config.architectures, list) and config.architectures else [name]
    if name not in saved:
        raise ModelFilesError(path, f"describes a {saved[0]}, which cannot be loaded as a {name}.")
    known = {*type(config).__dataclass_fields__, *_NOT_OURS}
    unknown = {field for field in vars(config) if not field.startswith("_") and field not in known}
    if unknown:
        # Some configurations of transformers also have what follows from their fields.
        unknown -= set(vars(type(config)()))
    if unknown:
        raise ModelFilesError(
            path,
            f"has the field {min(unknown)}, which a {type(config).__name__} does not have; is it misspelt, or of a"
            " newer version of this package?",
        )


def _one_device(device_map: Any, is_limited: bool) -> Any:
    # "auto" and its like would part a small model among all devices.
    if isinstance(device_map, str) and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        if is_limited:
            return device_map
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return {"": "cpu" if accelerator is None else str(torch.device(accelerator.type, 0))}
    if isinstance(device_map, dict) and len(places := {str(device) for device in device_map.values()}) > 1:
        _refuse_split(places)
    if isinstance(device_map, dict) and "disk" in device_map.values():
        _refuse_split({"disk"})
    return device_map


def _check_whole(model: Any) -> None:
    places = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1 or "disk" in places or any(tensor.is_meta for tensor in model.state_dict().values()):
        _refuse_split(places)


def _refuse_split(places: Iterable[str]) -> None:
    raise ValueError(
        f"`device_map` puts parts of the model on {' and '.join(sorted(places))}, but it has to lie on one device as a"
        ' whole; give device_map="cpu" or device_map="cuda", without `max_memory`.'
    )


def _warn_of_half(model: Any) -> None:
    warnings.warn(
        f"The {type(model).__name__} computes in {model.dtype}, where some tokens are others than in float32; use one"
        " of them for all speech, and prefer float32.",
        stacklevel=1,  # one place, so that it is told once
    )


@contextlib.contextmanager
def quiet_report() -> Iterator[None]:
    """Within this context transformers does not tell on many lines what is an error here, or told in one."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "configuration_utils")]

    def keep(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in ("LOAD REPORT", "Can't set "))

    for chatty in loggers:
        chatty.addFilter(keep)
    try:
        yield
    finally:
        for chatty in loggers:
            chatty.removeFilter(keep)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


__all__ = ["CheckedLoading", "ModelFilesError"]
