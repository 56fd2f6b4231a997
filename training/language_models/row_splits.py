# SPDX-License-Identifier: Apache-2.0
"""Rows of the splits that a recipe names, so that none is learnt that was set apart."""

from pathlib import Path
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
        ValueError: If a split is not there, or the list is empty; or if none is named and there are several, or rows
            to learn from are of another one than `train` or `training`, or held-out ones are of that.
    """
    values = _splits(rows)
    known = sorted({*values} - {""})
    told = f"`{setting}`: the rows are of the {'split' if len(known) == 1 else 'splits'} {', '.join(known) or 'none'}"
    if splits is not None:
        chosen = [splits] if isinstance(splits, str) else splits
        if not chosen:
            raise ValueError(f"`{setting}_split` names no split; {told}. Choose among them.")
        if missing := [name for name in chosen if name not in known]:
            raise ValueError(f"`{setting}_split` is {missing[0]!r}, but there is no such row; {told}.")
        return rows.select([number for number, value in enumerate(values) if value in chosen])
    if len(known) > 1:
        raise ValueError(f"{told}; choose by `{setting}_split={_likely(known, setting)}`.")
    if known and is_for_training(known[0]) != (setting == "data.train"):
        other = "is not named as one to learn from" if setting == "data.train" else "is for learning"
        raise ValueError(
            f"{told}, which {other}; give rows of another by `encode-rows --split`, or say that these are meant by"
            f" `{setting}_split={known[0]}`."
        )
    return rows


def check_apart(train_folder: str, train_rows: Any, eval_folder: str, eval_rows: Any) -> None:
    """
    Check that no row is both learnt from and measured on.

    Args:
        train_folder (`str`), eval_folder (`str`): Folders of the rows.
        train_rows (`datasets.Dataset`), eval_rows (`datasets.Dataset`): The rows that were chosen of them.

    Raises:
        ValueError: If both are of one folder and of the same splits, or without any.
    """
    is_one = Path(train_folder).resolve() == Path(eval_folder).resolve()
    if is_one and (common := sorted({*_splits(train_rows)} & {*_splits(eval_rows)})):
        named = ", ".join(name or "rows without a split" for name in common)
        raise ValueError(
            f"`data.train` and `data.eval` are one folder, of which both have {named}; give each other rows by"
            " `data.train_split` and `data.eval_split`, or leave out `data.eval`."
        )


def is_for_training(split: str) -> bool:
    """Whether a split has the name of the one that is learnt from."""
    return OTHER_SPLIT_NAMES.get(split.lower(), split.lower()) == "train"


def _splits(rows: Any) -> list[str]:
    # The split of each row; empty where it has none.
    if SPLIT_COLUMN not in rows.column_names:
        return [""] * len(rows)
    return ["" if value is None else str(value).strip() for value in rows[SPLIT_COLUMN]]


def _likely(known: list[str], setting: str) -> str:
    fitting = [name for name in known if is_for_training(name) == (setting == "data.train")]
    # Among those of a name that we do not know, the parts of corpora such as `train-clean-100`.
    begin = [name for name in fitting or known if name.lower().startswith("train") == (setting == "data.train")]
    return (begin or fitting or known)[0]


__all__ = ["check_apart", "is_for_training", "rows_of_split"]
