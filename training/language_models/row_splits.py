# SPDX-License-Identifier: Apache-2.0
"""Rows of the splits that a recipe names, so that none is learnt that was set apart."""

from typing import Any

from speech_tokenizers.processing.task_manifests import OTHER_SPLIT_NAMES


SPLIT_COLUMN = "split"


def rows_of_split(rows: Any, setting: str, splits: str | list[str] | None) -> Any:
    """
    The rows of some splits. Rows without a split belong to all that are not chosen by one.

    Args:
        rows (`datasets.Dataset`): Rows, perhaps with a column `split`.
        setting (`str`): Setting that named their folder, `"data.train"` or `"data.eval"`, for messages.
        splits (`str` or `list[str]`, *optional*): The splits. Defaults to the only one that there is.

    Raises:
        ValueError: If a split is not there; or if none is named and there are several, or rows to learn from are
            held-out ones.
    """
    values = [_split(row) for row in rows[SPLIT_COLUMN]] if SPLIT_COLUMN in rows.column_names else [""] * len(rows)
    known = sorted({*values} - {""})
    told = f"`{setting}`: the rows are of the {'split' if len(known) == 1 else 'splits'} {', '.join(known) or 'none'}"
    if splits is not None:
        chosen = [splits] if isinstance(splits, str) else splits
        if missing := [name for name in chosen if name not in known]:
            raise ValueError(f"`{setting}_split` is {missing[0]!r}, but there is no such row; {told}.")
        return rows.select([number for number, value in enumerate(values) if value in chosen])
    if len(known) > 1:
        raise ValueError(f"{told}; choose by `{setting}_split={_likely(known, setting)}`.")
    if setting == "data.train" and known and is_held_out(known[0]):
        raise ValueError(
            f"{told}, which is for measuring; encode those to learn from by `encode-rows --split`, or say that these"
            f" are meant by `{setting}_split={known[0]}`."
        )
    return rows


def is_held_out(split: str) -> bool:
    """Whether a name of a split is one of those that are not learnt from."""
    meant = OTHER_SPLIT_NAMES.get(split.lower(), split.lower())
    return meant in ("dev", "test", "dev or test")


def _split(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _likely(known: list[str], setting: str) -> str:
    fitting = [name for name in known if is_held_out(name) == (setting == "data.eval")]
    return (fitting or known)[0]


__all__ = ["is_held_out", "rows_of_split"]
