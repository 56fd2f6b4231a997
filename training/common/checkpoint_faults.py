# SPDX-License-Identifier: Apache-2.0
"""What a full disk or a crash does to checkpoints, found before one is loaded; and the newest that is sound."""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from speech_tokenizers.processing.whole_files import write_whole


# Sizes and digests of the files of a checkpoint, in its folder; written last.
CHECKSUMS = "checksums.json"
# Files of JSON that hold names and values.
_MAPPINGS = frozenset({"config.json", "trainer_state.json", "preprocessor_config.json", CHECKSUMS})


class NoSoundCheckpoint(ValueError):
    """There are checkpoints, and all of them are damaged; the message says what to do."""


def file_fault(path: Path) -> str | None:
    """
    What is wrong with a file of a checkpoint: that it is missing, empty, cut off, has other bytes than were written,
    or numbers that are not finite.

    `None` where nothing is found. Files that are neither JSON, safetensors nor PyTorch's are not looked into.

    Args:
        path (`Path`): The file.
    """
    try:
        if path.stat().st_size == 0:
            return "is empty"
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            if path.name in _MAPPINGS and not isinstance(content, dict):
                return f"is damaged (it holds {type(content).__name__} where names and values were written)"
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                    if not tensors.get_tensor(name).isfinite().all():
                        return f"has numbers that are not finite in `{name}`"
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
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (KeyError, TypeError, AttributeError):
            return f"{index.name} is damaged (it names no files of weights)"
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            return f"{missing[0]} is missing"
    return _checksum_fault(folder)


def write_checksums(folder: Path) -> None:
    """Write down the size and the SHA-256 of each file of a checkpoint, by which [`checkpoint_fault`] knows it."""
    path = folder / CHECKSUMS
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != path)
    sums = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": _sha256(file)} for file in files
    }
    write_whole(path, json.dumps(sums, indent=2))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum_fault(folder: Path) -> str | None:
    # Checkpoints of older versions have no sums.
    path = folder / CHECKSUMS
    if not path.is_file():
        return None
    for name, known in json.loads(path.read_text(encoding="utf-8")).items():
        file = folder / name
        if not isinstance(known, dict) or not {"size", "sha256"} <= set(known):
            return f"{CHECKSUMS} is damaged (it lacks the size or the sum of {name})"
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != known["size"]:
            return f"{name} is damaged (it has {file.stat().st_size} bytes, but {known['size']} were written)"
        if _sha256(file) != known["sha256"]:
            return f"{name} is damaged (it has other bytes than were written)"
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
