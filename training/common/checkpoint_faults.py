# SPDX-License-Identifier: Apache-2.0
"""What a full disk or a crash does to checkpoints, found before one is loaded; and the newest that is sound."""

import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tqdm import tqdm


class NoSoundCheckpoint(ValueError):
    """There are checkpoints, and all of them are damaged; the message says what to do."""


def file_fault(path: Path) -> str | None:
    """
    What is wrong with a file of a checkpoint: that it is missing, empty, cut off, or has other bytes than were
    written. `None` where nothing is found; files that are neither JSON, safetensors nor PyTorch's are not looked into.

    Args:
        path (`Path`): The file.
    """
    try:
        if path.stat().st_size == 0:
            return "is empty"
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        elif path.suffix in (".pt", ".pth", ".checkpoint"):
            with zipfile.ZipFile(path) as file:
                if (broken := file.testzip()) is not None:
                    return f"is damaged (its part {broken} has other bytes than were written)"
    except FileNotFoundError:
        return "is missing"
    except (ValueError, SafetensorError, zipfile.BadZipFile, OSError, EOFError) as error:
        return f"is damaged ({' '.join(str(error).split())[:200]})"
    return None


def remove_damaged(path: Path, consequence: str) -> None:
    """
    Remove a file that is damaged, and say so; for files that can be made anew.

    Args:
        path (`Path`): The file, which need not exist.
        consequence (`str`): What happens then, for the message.
    """
    if path.is_file() and (fault := file_fault(path)) is not None:
        tqdm.write(f"{path} {fault}; {consequence}.", file=sys.stderr)
        path.unlink()


def checkpoint_fault(folder: Path, required: Iterable[str]) -> str | None:
    """
    The first thing that is wrong with a checkpoint, such as `optimizer.pt is empty`; `None` if nothing is.

    Args:
        folder (`Path`): The checkpoint.
        required (iterable of `str`): Names of files that it must have; a `*` stands for any text.
    """
    for name in required:
        if not any(folder.glob(name)):
            return f"{name} is missing"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if (fault := file_fault(path)) is not None:
            return f"{path.relative_to(folder)} {fault}"
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            return f"{missing[0]} is missing"
    return None


def newest_sound(checkpoints: Sequence[Path], fault: Callable[[Path], str | None]) -> Path | None:
    """
    The newest checkpoint that is sound. Damaged ones that are newer are said and set aside, as `damaged-NAME`, so that
    they take no sound one's place.

    Args:
        checkpoints (sequence of `Path`): Folders, oldest first.
        fault (callable): Function that says what is wrong with one, or `None`.

    Returns:
        `Path`: The folder; `None` if there are no checkpoints.

    Raises:
        NoSoundCheckpoint: If there are some, and all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for folder in reversed(checkpoints):
        found = fault(folder)
        if found is None:
            for other, reason in damaged:
                aside = set_aside(other, "damaged")
                words = f"{other}: {reason}; going on from {folder.name}. What is left of it is now {aside.name}."
                tqdm.write(words, file=sys.stderr)
            return folder
        damaged.append((folder, found))
    if damaged:
        listed = "; ".join(f"{folder}: {reason}" for folder, reason in damaged)
        raise NoSoundCheckpoint(
            f"No checkpoint is sound ({listed}). Put a copy back, or delete these folders to begin anew."
        )
    return None


def set_aside(folder: Path, why: str) -> Path:
    """Rename a checkpoint to `WHY-NAME`, under which it counts no longer; returns the new folder."""
    number = 0
    while (aside := folder.with_name(f"{why}-{folder.name}{f'-{number}' if number else ''}")).exists():
        number += 1
    os.replace(folder, aside)
    return aside
