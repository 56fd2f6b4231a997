# SPDX-License-Identifier: Apache-2.0
"""Folders that are written whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    r"""
    A folder to fill, which takes the place of `folder` when the block ends without an error.

    What exists under the name `folder` is therefore complete.

    Args:
        folder (`Path`): Final place.

    Yields:
        `Path`: An empty folder beside it.
    """
    temporary = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
