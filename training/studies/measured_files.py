# SPDX-License-Identifier: Apache-2.0
"""What a study has measured, a JSON file each, which says what it was made of."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speech_tokenizers.processing.whole_files import write_whole


def read_measured(path: Path, key: str) -> dict[str, Any] | None:
    """
    What a file holds, or `None` where it is missing, damaged or was measured with other settings.

    Args:
        path (`Path`): File that [`write_measured`] wrote.
        key (`str`): Key of the settings.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        made_of = found["made_of"]
    except (ValueError, KeyError, TypeError):
        print(f"{path}: is damaged, and does not count", file=sys.stderr)
        return None
    if made_of != key:
        print(f"{path}: was measured with other settings, and does not count", file=sys.stderr)
        return None
    return found


def write_measured(path: Path, key: str, found: Mapping[str, Any]) -> None:
    """Write what was found with the settings of a key."""
    write_whole(path, json.dumps({"made_of": key, **found}, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """Dataclasses and arrays as plain values for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(part) for name, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value
