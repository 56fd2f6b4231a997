# SPDX-License-Identifier: Apache-2.0
"""The command `make-manifest`: the manifest of an understanding task, from a table of recordings or a corpus."""

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_tokenizers.commands.frame import UsageError, say


if TYPE_CHECKING:
    from speech_tokenizers.processing.metadata_files import MetadataRow

_LAYOUTS = ("librispeech", "speech-commands", "ravdess", "slurp", "covost", "iemocap")
_SPLITS = ("train", "dev", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "metadata",
        metavar="METADATA",
        type=Path,
        help="a table of recordings (JSON lines, CSV or Parquet), or with --layout the folder of a corpus",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, type=Path, help="the manifest to write, a .jsonl file"
    )
    parser.add_argument(
        "--target",
        metavar="COLUMN",
        help="column of the answers; COLUMN.NAME is one entry of a column of objects, such as slots.size",
    )
    parser.add_argument("--layout", choices=_LAYOUTS, help="layout of a public corpus as it unpacks")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="folder of the recordings (default: METADATA's)")
    parser.add_argument("--speaker", metavar="COLUMN", help="column of the speakers, if it is called otherwise")
    parser.add_argument("--filter", metavar="COLUMN=VALUE[,VALUE]", nargs="+", default=[], help="rows to keep")
    parser.add_argument(
        "--strip-stress", action="store_true", help="write ARPAbet phones without stress digits and word bars"
    )
    splits = parser.add_mutually_exclusive_group()
    splits.add_argument("--split-column", metavar="COLUMN", default="split", help="column of the splits")
    splits.add_argument(
        "--lists",
        metavar="SPLIT=FILE",
        nargs="+",
        help="text files of names, such as train=a.txt dev=b.txt test=c.txt; rows in none are left out",
    )
    splits.add_argument(
        "--split-by",
        metavar="COLUMN",
        help="column, such as speaker, whose values are dealt, one after another: a fifth is test, a tenth dev, with"
        " the labels that a split lacks first",
    )
    parser.add_argument(
        "--seed", type=int, help="seed of the deal of --split-by (default: the last values by name are test, then dev)"
    )
    parser.add_argument(
        "--group",
        metavar="COLUMN",
        nargs="*",
        help="columns that must not cross splits; none given: nothing is checked (default: speaker, voice and scene)",
    )
    parser.add_argument("--closed", action="store_true", help="refuse labels that training lacks, or a single one")
    parser.add_argument("--overwrite", action="store_true", help="replace the manifest if it is there")


def run(args: argparse.Namespace) -> int:
    from speech_tokenizers.processing.corpus_layouts import LAYOUTS, read_layout
    from speech_tokenizers.processing.metadata_files import read_metadata
    from speech_tokenizers.processing.task_manifests import manifest_of
    from speech_tokenizers.processing.whole_files import write_whole

    if args.output.suffix.lower() != ".jsonl":
        raise UsageError(f"--output {args.output} must end in .jsonl: manifests are written as JSON lines.")
    if args.output.exists() and not args.overwrite:
        raise UsageError(f"{args.output} is there already; pass --overwrite to replace it.")
    if args.layout is None:
        root = args.metadata.parent if args.folder is None else args.folder
        rows = read_metadata(args.metadata, root)
    else:
        if args.folder is not None:
            raise UsageError("--folder is for tables; with --layout, METADATA is the folder.")
        root = args.metadata
        rows = read_layout(args.layout, root)
    target = args.target or (None if args.layout is None else LAYOUTS[args.layout].target)
    if target is None:
        raise UsageError(f"--target names the column of the answers; there are {', '.join(_columns(rows))}.")

    rows = _filtered(rows, args.filter)
    if args.speaker is not None:
        rows = _with_speakers(rows, args.speaker)
    if args.lists:
        rows = _split_by_lists(rows, args.lists)
    # Before splits are made, so that every speaker that counts has an answer.
    rows = _with_targets(rows, target, args.strip_stress)
    by = None if args.lists else _dealt_by(rows, args)
    if by is not None:
        rows = _split_by_groups(rows, by, args.closed, args.seed)
    elif args.seed is not None:
        raise UsageError("--seed is for splits that are made here; pass --split-by COLUMN, or leave it out.")
    elif not args.lists:
        rows = _with_splits(rows, args.split_column)
    written = [(_kept(row.fields), row) for row in rows]
    group = None if args.group is None else tuple(args.group)
    manifest = manifest_of(
        args.metadata, [row._replace(fields=fields) for fields, row in written], root, group, args.closed
    )
    # Names count from the manifest's own folder; the `id` stays, wherever that is.
    place = args.output.absolute().parent
    lines = [
        {**fields, "file_name": Path(os.path.relpath(root / fields["file_name"], place)).as_posix()}
        for fields, _ in written
    ]
    write_whole(args.output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    counts = Counter(clip.split for clip in manifest.clips)
    what = f"{len(manifest.labels)} different answers in training"
    checked = ", ".join(manifest.group_columns)
    print(f"{args.output}: {', '.join(f'{counts[split]} {split}' for split in _SPLITS)}; {what}")
    if args.closed:
        for split in _SPLITS:
            found = Counter(clip.target for clip in manifest.of(split))
            if found:
                print(f"{split}: {', '.join(f'{label} {found[label]}' for label in manifest.labels)}")
            if by is None and found and (lacking := [label for label in manifest.labels if not found[label]]):
                say(f"{split} has no clip of {', '.join(lacking)}; split by hand, so that each label can be measured")
    print(f"no {checked} crosses splits" if checked else "whether speakers cross splits was not checked")
    return 0


def _columns(rows: Sequence["MetadataRow"]) -> list[str]:
    return list(dict.fromkeys(name for _, fields in rows for name in fields))


def _check_column(rows: Sequence["MetadataRow"], column: str, option: str) -> None:
    from speech_tokenizers.processing.metadata_files import probably_meant

    if column not in (known := _columns(rows)):
        raise UsageError(
            f"{option}: there is no column {column!r}; there are {', '.join(known)}{probably_meant(column, known)}."
        )


def _filtered(rows: list["MetadataRow"], filters: Sequence[str]) -> list["MetadataRow"]:
    from speech_tokenizers.processing.recordings import parse_filter

    for column, values in parse_filter(filters).items():
        _check_column(rows, column, "--filter")
        kept = [row for row in rows if row.fields.get(column) in values]
        if not kept:
            there = sorted({repr(row.fields.get(column)) for row in rows})
            raise UsageError(f"--filter {column}={','.join(values)} keeps no row; there is {', '.join(there[:5])}.")
        rows = kept
    return rows


def _with_targets(rows: list["MetadataRow"], target: str, strip_stress: bool) -> list["MetadataRow"]:
    column, _, entry = (target, "", "") if target in _columns(rows) else target.partition(".")
    _check_column(rows, column, "--target")
    found, missing = [], 0
    for row in rows:
        value = _answer(row, column, entry)
        if value and strip_stress:
            value = " ".join(re.sub(r"\d", "", value).replace("|", " ").split())
        if not value:
            missing += 1
            continue
        found.append(row._replace(fields={**row.fields, "target": value}))
    if not found:
        raise UsageError(f"--target {target}: none of the {len(rows)} rows has it.")
    if missing:
        say(f"{missing} of {len(rows)} rows have no {target} and are left out")
    return found


def _answer(row: "MetadataRow", column: str, entry: str) -> str:
    from speech_tokenizers.processing.metadata_files import TableError

    value = row.fields.get(column)
    if isinstance(value, str) and (entry or value.lstrip().startswith("{")):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise TableError(row.place, f"`{column}` is no object of JSON ({error.msg}); correct it.") from error
    if entry:
        if value is not None and not isinstance(value, Mapping):
            raise TableError(
                row.place, f"`{column}` is no object, of which {entry!r} could be an entry; name another."
            )
        value = (value or {}).get(entry)
    if isinstance(value, Mapping):
        return slots_text(value, row.place)
    if isinstance(value, list):
        raise TableError(row.place, f"`{column}` is a list, but answers are texts or objects; name another column.")
    return "" if value is None else str(value).strip()


def slots_text(slots: Mapping[str, Any], place: str) -> str:
    """
    Slots as a text to answer: `name: value; name: value`, in the order of the names. Those that are empty are left
    out.

    Args:
        slots (mapping): Value of each slot.
        place (`str`): Where they stand, for the message.

    Raises:
        ValueError: If a name or value holds the marks that part them.
    """
    from speech_tokenizers.processing.metadata_files import TableError

    parts = []
    for name in sorted(slots):
        value = slots[name]
        if value is None or not str(value).strip():
            continue
        if ";" in f"{name}{value}" or ":" in name:
            raise TableError(place, f"the slot {name!r} is {value!r}, but `;` and `:` part slots; write it otherwise.")
        parts.append(f"{name}: {str(value).strip()}")
    return "; ".join(parts)


def _with_speakers(rows: list["MetadataRow"], column: str) -> list["MetadataRow"]:
    from speech_tokenizers.processing.task_manifests import GROUP_COLUMNS

    _check_column(rows, column, "--speaker")
    name = column if column in GROUP_COLUMNS else "speaker"
    return [row._replace(fields={**row.fields, name: row.fields.get(column)}) for row in rows]


def _dealt_by(rows: list["MetadataRow"], args: argparse.Namespace) -> str | None:
    # Column whose values are dealt into splits; none where there are splits.
    if args.split_by is None and args.layout is not None and not any(row.fields.get("split") for row in rows):
        return "scene" if "scene" in _columns(rows) else "speaker"
    return args.split_by


def _with_splits(rows: list["MetadataRow"], column: str) -> list["MetadataRow"]:
    from speech_tokenizers.processing.task_manifests import OTHER_SPLIT_NAMES

    _check_column(rows, column, "--split-column")
    found = []
    for row in rows:
        given = row.fields.get(column)
        meant = OTHER_SPLIT_NAMES.get(str(given).lower(), given)
        # An ambiguous name stays, and is refused with its row.
        found.append(row._replace(fields={**row.fields, "split": meant if meant in _SPLITS else given}))
    return found


def _split_by_lists(rows: list["MetadataRow"], lists: Sequence[str]) -> list["MetadataRow"]:
    from speech_tokenizers.processing.metadata_files import chosen_names

    splits: dict[str, str] = {}
    names = {row.fields["file_name"] for row in rows}
    for given in lists:
        split, equals, path = given.partition("=")
        if not equals or split not in _SPLITS:
            raise UsageError(f"--lists takes train=FILE, dev=FILE and test=FILE, but got {given!r}.")
        for name in chosen_names(path, names, "the rows"):
            if splits.setdefault(name, split) != split:
                raise UsageError(f"--lists: {name!r} is in the lists of {splits[name]} and {split}; keep it in one.")
    found = [
        row._replace(fields={**row.fields, "split": splits[row.fields["file_name"]]})
        for row in rows
        if row.fields["file_name"] in splits
    ]
    if len(found) < len(rows):
        say(f"{len(rows) - len(found)} of {len(rows)} rows are in no list and left out")
    return found


def _split_by_groups(rows: list["MetadataRow"], column: str, is_closed: bool, seed: int | None) -> list["MetadataRow"]:
    from speech_tokenizers.processing.metadata_files import TableError
    from speech_tokenizers.processing.task_splits import NUM_SPLITS, deal_groups, groups_of_labels

    _check_column(rows, column, "--split-by")
    for place, fields in rows:
        if fields.get(column) is None:
            raise TableError(place, f"`{column}` is not given, by which splits are to be made; give it.")
    groups = [str(row.fields[column]) for row in rows]
    labels = [row.fields["target"] for row in rows]
    if (number := len(set(groups))) < NUM_SPLITS:
        raise UsageError(f"--split-by {column}: three splits need three values, but there are {number}.")
    if seed is not None and seed < 0:
        raise UsageError(f"--seed must not be negative, but is {seed}.")
    where = deal_groups(groups, labels, is_closed, seed)
    test, dev = (sorted(group for group, split in where.items() if split == name) for name in ("test", "dev"))
    told = f"{', '.join(_few(test))} test; {', '.join(_few(dev)) or 'none'} dev; others train"
    say(f"splits are made here, by {column}: {told}")
    missing: dict[tuple[str, str], list[str]] = {}
    for label, found in sorted(groups_of_labels(groups, labels).items()):
        lacking = [name for name in _SPLITS if name not in {where[group] for group in found}]
        if lacking and (is_closed or len(found) >= NUM_SPLITS):
            why = f"every {column} that has it is needed elsewhere for other answers"
            if len(found) < NUM_SPLITS:
                why = f"three splits need it of three different {column}s, but there is it of {len(found)}"
            missing.setdefault((" and ".join(lacking), why), []).append(label)
    for (lacking_in, why), names in missing.items():
        say(
            f"{', '.join(_few(names))}: not in {lacking_in}, since {why}; record more, leave it out by --filter, or"
            " pass another --split-by or --seed"
        )
    return [
        row._replace(fields={**row.fields, "split": where[group]}) for row, group in zip(rows, groups, strict=True)
    ]


def _few(names: Sequence[str]) -> list[str]:
    return [*names] if len(names) <= 4 else [names[0], "...", names[-1]]


def _kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    # Known first, then what else is a plain value.
    first = ("file_name", "id", "target", "split")
    own = {**fields, "id": fields.get("id") or fields["file_name"]}
    others = {
        name: value for name, value in fields.items() if name not in first and not isinstance(value, list | dict)
    }
    return {**{name: own[name] for name in first}, **{k: v for k, v in others.items() if v is not None}}
