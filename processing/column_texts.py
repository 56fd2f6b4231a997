# SPDX-License-Identifier: Apache-2.0
"""Values of typed columns, of Parquet and of `datasets`, as the text that they stand for."""

from collections.abc import Iterable
from typing import Any

import datasets

from .metadata_files import TableError, as_text


def holds_one_value(feature: Any) -> bool:
    """Whether a column holds a number, a text, a date or the like, and neither lists, objects nor bytes."""
    is_bytes = isinstance(feature, datasets.Value) and "binary" in feature.dtype
    return isinstance(feature, datasets.Value | datasets.ClassLabel) and not is_bytes


def text_as_bytes(feature: Any, values: Iterable[Any]) -> bool:
    """Whether a column of bytes holds text: whether its first value is UTF-8."""
    if not (isinstance(feature, datasets.Value) and "binary" in feature.dtype):
        return False
    first = next((value for value in values if value is not None), None)
    try:
        return first is not None and b"\0" not in first and first.decode() is not None
    except UnicodeDecodeError:
        return False


def text_of(value: Any, feature: Any, column: str, place: str) -> Any:
    """
    A value as text; a label is its name, and bytes are UTF-8. See [`as_text`].

    Args:
        value: The value.
        feature (feature of `datasets`): Type of its column.
        column (`str`), place (`str`): Where it stands, for the message.

    Raises:
        TableError: If bytes are not UTF-8.
    """
    if isinstance(feature, datasets.ClassLabel) and isinstance(value, int):
        return feature.names[value] if feature.names and 0 <= value < len(feature.names) else as_text(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise TableError(place, f"`{column}` is not UTF-8 ({error.reason}); write it as text.") from error
    return as_text(value)
