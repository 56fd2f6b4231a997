# SPDX-License-Identifier: Apache-2.0
"""The JSON files of a model that may be anybody's: looked at before anything is made of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


# Bytes. The largest of the released checkpoints have some thousands, and those with thousands of labels a million.
LARGEST = 10_000_000
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
# Arguments of `from_pretrained` that say where a file is.
_PLACE = ("revision", "token", "cache_dir", "local_files_only", "subfolder")


def read_settings(
    checkpoint: str, name: str, place: dict[str, Any], *, trusted: bool = False
) -> dict[str, Any] | None:
    """
    Fields of a JSON file of a model. It is fetched, if it lies on the Hub, and nothing in it is followed.

    Args:
        checkpoint (`str`): Folder or Hub id.
        name (`str`): The file.
        place (`dict`): Arguments of `from_pretrained` that say where a repository is.
        trusted (`bool`, *optional*, defaults to `False`): Whether code that the file names may be run.

    Returns:
        `dict`: Its fields; `None` if there is no such file.

    Raises:
        ModelFilesError: If the file is damaged, far too large, or would lead to code that is not trusted.
        OSError: If it cannot be downloaded.
    """
    from speech_tokenizers.modeling.checked_loading import ModelFilesError, read_fields

    path, shown = _fetched(checkpoint, name, place)
    if path is None:
        return None
    if (size := path.stat().st_size) > LARGEST:
        raise ModelFilesError(shown, f"has {size / 1e6:.0f} MB, where settings have a few thousand bytes; not read.")
    try:
        fields = read_fields(path)
    except ModelFilesError as error:
        raise ModelFilesError(shown, str(error).removeprefix(f"{path}: ")) from error
    if not trusted:
        for where, reason in _dangers(fields):
            raise ModelFilesError(shown, f"{where} {reason}")
    return fields


def _fetched(checkpoint: str, name: str, place: dict[str, Any]) -> tuple[Path | None, str]:
    # The file on this machine, and what messages call it.
    from transformers.utils import cached_file

    if Path(checkpoint).is_dir():
        path = Path(checkpoint, place.get("subfolder") or "", name)
        return (path if path.is_file() else None), str(path)
    found = cached_file(
        checkpoint,
        name,
        _raise_exceptions_for_missing_entries=False,
        **{key: place[key] for key in _PLACE if place.get(key) is not None},
    )
    return (None if found is None else Path(found)), f"{checkpoint} ({name})"


def _dangers(fields: dict[str, Any], inside: str = "") -> Iterator[tuple[str, str]]:
    # What leads to code of others, or to files elsewhere, though transformers would ask or know its own.
    for key, value in fields.items():
        where = f"`{inside}{key}`"
        if key == "auto_map" and inside.startswith(("text_config", "encoder_config", "vocoder_config")):
            yield where, "names code of a part of the model, which is not run; no model of this package has any."
        if key in _KERNELS:
            for chosen in value.values() if isinstance(value, dict) else [value]:
                if isinstance(chosen, str) and "/" in chosen:
                    yield where, f"asks for compiled code of {chosen}, which is not fetched; remove the field."
        if key == "transformers_weights":
            yield where, f"names the weights' file, {value!r}, which is model.safetensors; remove the field."
        if isinstance(value, dict):
            yield from _dangers(value, f"{inside}{key}.")


def refuse_adapter(checkpoint: str, place: dict[str, Any]) -> None:
    """
    Tell of a whole model that has an adapter's file beside it: transformers would load the model that this names in
    place of the one that is there.

    Args:
        checkpoint (`str`): Folder or Hub id.
        place (`dict`): Arguments of `from_pretrained` that say where a repository is.

    Raises:
        ModelFilesError: If there is such a file.
        OSError: If that cannot be found out.
    """
    from speech_tokenizers.modeling.checked_loading import ModelFilesError

    path, shown = _fetched(checkpoint, "adapter_config.json", place)
    if path is not None:
        raise ModelFilesError(
            shown,
            "is that of an adapter, which leads to another model than the one beside it; remove the file, or keep the"
            " adapter in a folder of its own.",
        )


def refuse_untrusted_code(checkpoint: str, fields: dict[str, Any], name: str) -> None:
    """
    Tell of a model whose class comes with code, from its repository or from another one.

    Args:
        checkpoint (`str`): Folder or Hub id.
        fields (`dict`): Fields of its configuration, of a type that is not installed.
        name (`str`): The file, for messages.

    Raises:
        ModelFilesError: Always.
    """
    from speech_tokenizers.modeling.checked_loading import ModelFilesError

    named = fields.get("auto_map")
    references = [str(value) for value in named.values()] if isinstance(named, dict) else []
    others = sorted({value.partition("--")[0] for value in references if "--" in value})
    whose = f"of another repository, {', '.join(others)}" if others else "that the repository brings"
    raise ModelFilesError(
        _fetched_name(checkpoint, name),
        f"`model_type` is {fields.get('model_type')!r}, which needs code {whose}; it was not run. Read it, and pass"
        " `trust_remote_code=True` to `load` only if you trust whoever can change it.",
    )


def _fetched_name(checkpoint: str, name: str) -> str:
    return str(Path(checkpoint, name)) if Path(checkpoint).is_dir() else f"{checkpoint} ({name})"


__all__ = ["LARGEST", "read_settings", "refuse_adapter", "refuse_untrusted_code"]
