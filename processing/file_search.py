# SPDX-License-Identifier: Apache-2.0
"""Files, folders and globs that a user names, as files. Links are followed, and each real folder is searched once."""

import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .audio_bytes import AudioFileError


def find_files(patterns: Iterable[str | os.PathLike[str]], suffixes: Iterable[str]) -> list[tuple[Path, Path]]:
    """
    Expand files, folders and globs into files.

    Links to folders are followed. A folder that can be reached in several ways, e.g. by a link to a folder above, is
    searched once: by its own name if that lies in the searched folder, else by the first link to it. A linked file
    counts as a file of its own, since its name says where its output goes. A link that leads nowhere, or to itself by
    way of others, is found as well: whoever opens it tells of it.

    Args:
        patterns (iterable of `str` or `Path`):
            Files (taken as they are), folders (searched recursively for `suffixes`, hidden entries skipped) and globs
            (`**` crosses folders; folders that match are searched like folders named outright).
        suffixes (iterable of `str`): Lower-case suffixes that count inside folders, such as `.wav`.

    Returns:
        `list[tuple[Path, Path]]`: Each file once, in the order of `patterns` and sorted within each, with its path
        relative to the folder that was searched (or the fixed part of the glob), from which an output can keep the
        layout.

    Raises:
        AudioFileError: If a pattern matches nothing, or a folder cannot be read.
    """
    suffixes = tuple(suffixes)
    found: dict[tuple[str, str], tuple[Path, Path]] = {}
    for named in patterns:
        pattern, path = os.fspath(named), Path(named)
        if os.path.isdir(path):
            matches = _files_below(path, path, suffixes)
            if not matches:
                raise AudioFileError(pattern, f"this folder holds no file that ends in {', '.join(suffixes)}.")
        elif os.path.exists(path):
            matches = [(path, Path(path.name))]
        elif glob.has_magic(pattern):
            base = _fixed_part(path)
            matches = []
            for match in sorted(_matches(base, path.parts[len(base.parts) :]), key=str):
                if os.path.isdir(match):
                    matches += _files_below(match, base, suffixes)
                else:
                    matches.append((match, match.relative_to(base)))
            if not matches:
                raise AudioFileError(pattern, "no file matches this pattern.")
        else:
            raise AudioFileError(pattern, "no such file or folder; check the spelling.")
        for file, relative in matches:
            # The folder as it is, but the file by the name that was given to it.
            found.setdefault((os.path.realpath(file.parent), file.name), (file, relative))
    return list(found.values())


def _files_below(folder: Path, base: Path, suffixes: tuple[str, ...]) -> list[tuple[Path, Path]]:
    # Sorted, so that a run over a folder is repeatable; names with a leading dot are other programs' bookkeeping.
    files = [
        entry
        for parent in _folders_below(folder)
        for entry in _entries(parent)
        if entry.suffix.lower() in suffixes and not os.path.isdir(entry)
    ]
    return sorted(((file, file.relative_to(base)) for file in files), key=lambda found: _place(found[1]))


def _folders_below(folder: Path) -> Iterator[Path]:
    # The folder and all below it, each real one once, and by its own name rather than by a link.
    seen: set[str] = set()
    links = [folder]
    while links:
        waiting = [links.pop(0)]
        while waiting:
            parent = waiting.pop(0)
            real = os.path.realpath(parent)
            if real in seen:
                continue
            seen.add(real)
            yield parent
            for entry in _entries(parent):
                if os.path.isdir(entry):
                    (links if entry.is_symlink() else waiting).append(entry)


def _entries(folder: Path, hidden: bool = False) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise AudioFileError(folder, f"cannot be searched ({error.strerror}); check its permissions.") from error
    return [folder / name for name in names if hidden or not name.startswith(".")]


def _matches(folder: Path, pattern: tuple[str, ...]) -> Iterator[Path]:
    # What `glob` finds, but without running in circles where a link leads to a folder above.
    if not pattern:
        yield folder
    elif not os.path.isdir(folder):
        return
    elif pattern[0] == "**":
        for parent in _folders_below(folder):
            if len(pattern) > 1:
                yield from _matches(parent, pattern[1:])
            else:
                yield from (entry for entry in _entries(parent) if not os.path.isdir(entry))
    elif glob.has_magic(pattern[0]):
        for entry in _entries(folder, hidden=pattern[0].startswith(".")):
            if fnmatch.fnmatch(entry.name, pattern[0]):
                yield from _matches(entry, pattern[1:])
    elif os.path.lexists(folder / pattern[0]):
        yield from _matches(folder / pattern[0], pattern[1:])


def _place(path: Path) -> list[tuple[bool, str]]:
    # For sorting: the files of a folder stand before its folders.
    return [*((True, part) for part in path.parts[:-1]), (False, path.name)]


def _fixed_part(pattern: Path) -> Path:
    # The folder above the first component with a wildcard.
    fixed: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


__all__ = ["find_files"]
