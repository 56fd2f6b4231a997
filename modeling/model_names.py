# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Whether a model that somebody names exists, told at once: a mistyped path is no reason to wait for the Hub."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id


# Seconds that the Hub has for saying whether it knows a name. Libraries that load from it ask again for half a minute.
_PATIENCE = 5.0


def find_model(
    name_or_path: str | os.PathLike[str],
    *,
    argument: str = "name_or_path",
    known: Iterable[str] = (),
    file: str = "config.json",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> str:
    """
    What `from_pretrained` takes: a folder, or the id of a repository of which it is known that it can be loaded.

    Args:
        name_or_path (`str` or `Path`): A local folder, where `~` is the home folder, or a Hub id.
        argument (`str`, *optional*, defaults to `"name_or_path"`): Name of the argument or option, for messages.
        known (iterable of `str`, *optional*): Other names that the user may have meant, for messages.
        file (`str`, *optional*, defaults to `"config.json"`): File that a downloaded copy is known by.
        revision, token, cache_dir, local_files_only: As `from_pretrained` takes them.

    Returns:
        `str`: The folder, or the Hub id. Where the Hub cannot be reached, the folder of its cached copy.

    Raises:
        ValueError: If there is neither such a folder nor such a repository, or if that cannot be found out.
    """
    name = os.fspath(name_or_path)
    if not name:
        raise ValueError(f"`{argument}` is empty; name a folder or a model.")
    # Not by `Path`, which raises where a name is too long to be a file's.
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise ValueError(f"`{argument}` is {name}, which is a file; name the folder that holds the model.")
    missing = f"`{argument}` is {name!r}, but there is no such file or folder, nor a repository of that name"
    hint = _similar(name, Path(path), known)
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(f"{missing}{hint}.") from None
    where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
    cached = try_to_load_from_cache(name, file, **where)
    copy = str(Path(cached).parent) if isinstance(cached, str) else None
    if local_files_only or is_offline_mode():
        if copy is None:
            why = "`local_files_only`" if local_files_only else "HF_HUB_OFFLINE is set"
            raise ValueError(f"{missing} among those downloaded, and the Hub is not asked ({why}){hint}.")
        return name
    try:
        HfApi(token=token).model_info(name, timeout=_PATIENCE)
    except RepositoryNotFoundError:
        raise ValueError(f"{missing} on the Hub, or none that you may read{hint}.") from None
    except HfHubHTTPError:
        return name  # the Hub knows it and refuses, for a reason that loading tells
    except OfflineModeIsEnabled:
        return name if copy is None else copy
    except Exception as error:  # noqa: BLE001 - the client's own errors, which differ among its versions
        if copy is None:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{missing} among those downloaded, and the Hub cannot be reached ({reason}){hint}."
            ) from None
        return copy
    return name


def _similar(name: str, path: Path, known: Iterable[str]) -> str:
    # Names nearby that a slip of the keyboard turns into this one.
    folder = path.parent
    try:
        beside = {entry.name: str(Path(name).with_name(entry.name)) for entry in folder.iterdir() if entry.is_dir()}
    except (OSError, ValueError):
        beside = {}
    candidates = {**{other: other for other in known}, **beside}
    found = difflib.get_close_matches(path.name, candidates, n=1, cutoff=0.7)
    return f"; did you mean {candidates[found[0]]}" if found else ""


__all__ = ["find_model"]
