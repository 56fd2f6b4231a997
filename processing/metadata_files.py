# SPDX-License-Identifier: Apache-2.0
"""
Tables about recordings, read as they are written: JSON lines, CSV and lists of names.

Nothing is guessed. A cell is text, whatever it looks like: `0`, `NA`, `2020-01-01`. What cannot be read as it stands
is an error that names the file and the line.
"""

import codecs
import csv
import difflib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .audio_files import AUDIO_SUFFIXES


# What to do where a recording is named by a URL.
URL_ADVICE = "download the recording, and give its path"


class TableError(ValueError):
    """
    A table that cannot be read as it stands.

    Args:
        place (`str`): Where that is, such as `metadata.csv, line 3`.
        reason (`str`): Sentence that says what is wrong and what to do.
    """

    def __init__(self, place: str, reason: str):
        self.place, self.reason = place, reason
        super().__init__(f"{place}: {reason}")

    def __reduce__(self):
        return type(self), (self.place, self.reason)


class MetadataRow(NamedTuple):
    """
    What a table says of one recording.

    Args:
        place (`str`): Where that stands, such as `metadata.csv, line 3`; errors begin with it.
        fields (`dict`): Text, or `None` where nothing is given, by the name of the column. Lists and objects of JSON
            stay lists and dictionaries.
    """

    place: str
    fields: dict[str, Any]


def as_text(value: Any) -> Any:
    """
    A cell as text: `"true"`, `"7"` (also for 7.0), `"1.5"`; `None` for a missing value, which not-a-number is too.

    Lists, dictionaries and bytes are returned as they are.
    """
    if value is None or isinstance(value, str | bytes | list | tuple | dict) or hasattr(value, "__array__"):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def read_text_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """
    Numbers, from 1, and contents of the lines of a UTF-8 file.

    Lines end in a line feed, or a carriage return and a line feed. Other characters that Unicode calls line ends may
    stand within a line. A byte order mark at the beginning is left out.

    Raises:
        ValueError: If the file is not UTF-8; the message names the line.
        OSError: If the file cannot be read.
    """
    content = _decoded(Path(path))
    for number, line in enumerate(content.split("\n"), start=1):
        yield number, line.removesuffix("\r")


def read_json_lines(
    path: str | os.PathLike[str], may_be_unfinished: Callable[[str], bool] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """
    Numbers, from 1, and contents of the lines of a file of JSON objects, one a line. Lines of spaces are skipped.

    Numbers, `true` and `false` become the text that is written; within lists and objects they keep their type.

    Args:
        path (`str` or `Path`): The file, in UTF-8.
        may_be_unfinished (callable, *optional*): Whether a last line without a line feed, which is no JSON, is what an
            interrupted run left and to be skipped. Defaults to never.

    Raises:
        ValueError: If a line is no JSON object, or holds a key twice; the message names it.
        OSError: If the file cannot be read.
    """
    lines = list(read_text_lines(path))
    for number, line in lines:
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(
                line,
                parse_int=_WrittenNumber,
                parse_float=_WrittenNumber,
                parse_constant=_WrittenNumber,
                object_pairs_hook=_without_repeated_keys,
            )
            if isinstance(row, dict):
                if isinstance(name := row.get("file_name"), _WrittenNumber | bool):
                    raise ValueError(f"`file_name` is {json.dumps(name)}, but must be a string; put it in quotes.")
                row = {name: _written(value) for name, value in row.items()}
            json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            if number == len(lines) and may_be_unfinished is not None and may_be_unfinished(line):
                return
            what = f"no JSON ({error.msg}, character {error.pos + 1})"
            if number == len(lines) and line.lstrip().startswith("{"):
                what = f"no whole JSON object, as if the file were cut off ({error.msg})"
            elif line.strip() in ("[", "{"):
                what = "no whole JSON object, as if it were spread over several lines"
            raise TableError(place, f"{what}; write one object a line, such as {_EXAMPLE}.") from error
        except UnicodeEncodeError as error:
            raise TableError(place, "holds half of a surrogate pair, which is no character; correct it.") from error
        except RecursionError as error:
            raise TableError(place, f"is nested too deeply; write {_EXAMPLE}.") from error
        except ValueError as error:
            raise TableError(place, str(error)) from error
        if not isinstance(row, dict):
            raise TableError(
                place,
                f"an object with `file_name` was expected, such as {_EXAMPLE}, but got {line.strip()[:40]!r};"
                " write one object a line.",
            )
        yield number, row


_EXAMPLE = '{"file_name": "a.wav", "text": "what is said"}'


class _WrittenNumber(str):
    # A number of JSON, as it is written.

    __slots__ = ()


def _written(value: Any, is_within: bool = False) -> Any:
    if isinstance(value, _WrittenNumber):
        if not is_within:
            return str(value)
        return float(value) if set(value) & set(".eEnN") else int(value)
    if isinstance(value, bool) and not is_within:
        return as_text(value)
    if isinstance(value, list):
        return [_written(item, is_within=True) for item in value]
    if isinstance(value, dict):
        return {name: _written(item, is_within=True) for name, item in value.items()}
    return value


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} is given twice; keep one.")
    return found


def read_csv(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, str | None]]]:
    """
    Numbers, from 1, of the first lines of the rows of a CSV file, and the rows, by the names in its first line.

    Cells are parted by commas and stay text. An empty cell is `None`. Quotes surround whole cells; within these, two
    stand for one. Columns without a name are called by their number, such as `column 1`.

    Raises:
        ValueError: If there is no column `file_name`, a row has another number of cells than the first line, quotes
            are not closed, or a name stands for two columns; the message names the line.
        OSError: If the file cannot be read.
    """
    path = Path(path)
    content = _decoded(path)
    rows = _csv_rows(path, content)
    if not rows:
        raise ValueError(f"{path}, line 1: the file is empty; write the names of the columns, such as file_name,text.")
    first = rows[0]
    if first[1][0].lower().startswith("sep="):
        raise ValueError(f"{path}, line {first[0]}: {','.join(first[1])!r} is for Excel alone; delete this line.")
    if spaced := next((name for name in first[1] if name != name.strip()), None):
        raise ValueError(
            f"{path}, line {first[0]}: the column {spaced!r} has spaces around its name, and {spaced.strip()!r} was"
            " probably meant; remove them."
        )
    names = [name or f"column {position}" for position, name in enumerate(first[1], start=1)]
    if "file_name" not in names:
        hint = f"name it in this line{probably_meant('file_name', names)}"
        if any(mark in name for name in names for mark in "\t;|"):
            hint = "part the columns by commas"
        raise ValueError(f"{path}, line {first[0]}: must have a column `file_name`; it has {names}; {hint}.")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path}, line {first[0]}: two columns are named {repeated!r}; rename or remove one.")
    lines = io.StringIO(content, newline="").readlines()
    for number, cells, last in rows[1:]:
        if not any(cell.strip() for cell in cells):
            raise ValueError(f"{path}, line {number}: the row is empty; delete this line.")
        if len(cells) != len(names):
            hint = "put a text that holds commas or line breaks between double quotes"
            if len(cells) < len(names):
                hint = "give an empty cell where there is nothing to say; the file may have been cut off here"
            raise ValueError(
                f"{path}, line {number}: the number of cells is {len(cells)}, but line {first[0]} names {len(names)}"
                f" columns; {hint}."
            )
        for within in range(number + 1, last + 1):
            if _looks_like_row(lines[within - 1], len(names), path.parent):
                raise ValueError(
                    f"{path}, line {number}: a quote opens a cell that goes on over line {within}, which looks like a"
                    " row of its own; close the quote, or write two where one is meant."
                )
        yield number, {name: cell or None for name, cell in zip(names, cells, strict=True)}


def _csv_rows(path: Path, content: str) -> list[tuple[int, list[str], int]]:
    # First line, cells and last line of each row that is not blank.
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    limit = csv.field_size_limit(len(content) + 1)  # a text may be as long as it likes
    rows, number = [], 1
    try:
        for cells in reader:
            if cells:
                rows.append((number, cells, reader.line_num))
            number = reader.line_num + 1
    except csv.Error as error:
        what = str(error)
        if "unexpected end" in what:
            what = "a quote opens a cell here and is never closed"
        elif "expected after" in what:
            what = "a cell goes on after its closing quote, or quotes stand within one"
        raise ValueError(
            f"{path}, line {number}: {what}; put the whole cell between double quotes, and write two where one is"
            " meant."
        ) from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _looks_like_row(line: str, num_columns: int, folder: Path) -> bool:
    cells = [cell.strip('"\r\n') for cell in line.split(",")]
    return len(cells) >= num_columns and any(
        cell.lower().endswith(AUDIO_SUFFIXES) or (cell.strip() and "\0" not in cell and (folder / cell).is_file())
        for cell in cells
    )


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """
    The names in a text file, one a line, as they are written. Lines of spaces are skipped.

    Raises:
        ValueError: If the file is not UTF-8, or holds no name.
        OSError: If the file cannot be read.
    """
    names = [line for _, line in read_text_lines(path) if line.strip()]
    if not names:
        raise ValueError(f"{path}: holds no name; write a `file_name` on each line.")
    return names


def chosen_names(path: str | os.PathLike[str], known: Iterable[str | None], where: str) -> set[str]:
    """
    The names that a list chooses. Spaces around a name are left out where it is known without them only.

    Args:
        path (`str` or `Path`): Text file of names; see [`read_names`].
        known (iterable of `str`): Names there are.
        where (`str`): What has them, for the message.

    Raises:
        ValueError: If names are not known; the message says how many, and which first.
    """
    known = set(known)
    listed = read_names(path)
    chosen = {name if name in known else name.strip() for name in listed}
    if unknown := [name for name in listed if name not in known and name.strip() not in known]:
        example = next((name for name in sorted(filter(None, known))), None)
        hint = "" if example is None else f"; names there are such as {example!r}"
        raise ValueError(
            f"{path}: {len(unknown)} of {len(listed)} names are not in {where}, first {unknown[0]!r}{hint}."
        )
    return chosen


def read_metadata(path: str | os.PathLike[str], folder: Path | None = None) -> list[MetadataRow]:
    """
    The rows of a table of recordings.

    Args:
        path (`str` or `Path`): CSV (`.csv`), Parquet (`.parquet`) or else JSON lines, with a column `file_name`.
        folder (`Path`, *optional*): Folder that each `file_name` is relative to. Defaults to that of the file.

    Raises:
        ValueError: If it cannot be read as it stands, has no row, or a `file_name` is missing or leads out of the
            folder; the message names file, line and remedy.
        OSError: If the file cannot be read.
    """
    path = Path(path)
    rows = _read_rows(path)
    check_file_names(rows, path.parent if folder is None else folder)
    return rows


def check_file_names(rows: Iterable[MetadataRow], folder: Path) -> None:
    """
    Raises:
        ValueError: If the `file_name` of a row is missing or leads out of the folder.
    """
    for place, fields in rows:
        name = fields.get("file_name")
        if "file_name" not in fields:
            hint = probably_meant("file_name", fields)
            raise ValueError(
                f"{place}: must have a column `file_name`; it has {list(fields)}; give the path there{hint}."
            )
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{place}: `file_name` is {name!r}; give the path of a recording, such as 'a.wav'.")
        _check_name(name, place, folder)


def probably_meant(name: str, columns: Iterable[str]) -> str:
    """
    Words to add to a message about a column that is missing: which was probably meant; none if none is like it.

    Args:
        name (`str`): The column.
        columns (iterable of `str`): Those that are there.
    """
    plain = {_plain_name(column): column for column in columns}
    alike = difflib.get_close_matches(_plain_name(name), plain, n=1, cutoff=0.8)
    return f" ({plain[alike[0]]!r} was probably meant)" if alike else ""


def _plain_name(column: str) -> str:
    return "".join(filter(str.isalnum, column.casefold()))


def by_file_name(rows: Iterable[MetadataRow]) -> dict[str, MetadataRow]:
    """
    The rows by their `file_name`, in which `./a.wav` is `a.wav`.

    Raises:
        ValueError: If two rows have the same; the message names both.
    """
    found: dict[PurePosixPath, MetadataRow] = {}
    for row in rows:
        name = row.fields["file_name"]
        other = found.setdefault(PurePosixPath(name), row)
        if other is not row:
            raise ValueError(
                f"{row.place}: `file_name` {name!r} stands in {_place_within(other.place)} too; give each recording"
                " one row."
            )
    return {name.as_posix(): row for name, row in found.items()}


def _read_rows(path: Path) -> list[MetadataRow]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: is no whole Parquet file ({error}); copy it anew.") from error
        labels = _label_names(table.schema)
        rows = []
        for number, row in enumerate(table.to_pylist()):
            place = f"{path}, row {number} (from 0)"
            rows.append(MetadataRow(place, {k: _parquet_text(v, k, labels, place) for k, v in row.items()}))
        return _not_empty(path, rows)
    read: Callable[[Path], Iterator[tuple[int, dict[str, Any]]]] = read_csv if suffix == ".csv" else read_json_lines
    return _not_empty(path, [MetadataRow(f"{path}, line {number}", fields) for number, fields in read(path)])


def _label_names(schema: Any) -> dict[str, list[str]]:
    # Names of the classes of columns of labels, which `datasets` keeps beside the numbers.
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _parquet_text(value: Any, column: str, labels: dict[str, list[str]], place: str) -> Any:
    if isinstance(value, int) and column in labels and 0 <= value < len(labels[column]):
        return labels[column][value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise TableError(place, f"`{column}` is not UTF-8 ({error.reason}); write it as text.") from error
    return as_text(value)


def _not_empty(path: Path, rows: list[MetadataRow]) -> list[MetadataRow]:
    if not rows:
        raise ValueError(f"{path}, line 1: the file holds no recording; write a row for each, with its `file_name`.")
    return rows


def _check_name(name: str, place: str, folder: Path) -> None:
    if "://" in name and not (folder / name).exists():
        raise ValueError(f"{place}: `file_name` {name!r} is a URL, which is not read; {URL_ADVICE}.")
    if "\0" in name:
        raise ValueError(f"{place}: `file_name` {name!r} holds a NUL, which no path can; correct it.")
    if "\\" in name and not (folder / name).exists():
        raise ValueError(
            f"{place}: `file_name` {name!r} has backslashes, and there is no such file; part folders by `/`."
        )


def _place_within(place: str) -> str:
    return place.rsplit(", ", 1)[-1]


def as_columns(rows: Sequence[MetadataRow]) -> dict[str, Any]:
    """
    The columns of a table, as `datasets.Dataset.from_dict` takes them.

    Raises:
        ValueError: If a column holds values of different kinds; the message names two places.
    """
    import pyarrow

    columns = {}
    for name in dict.fromkeys(name for _, fields in rows for name in fields):
        values = [fields.get(name) for _, fields in rows]
        known: dict[str, str] = {}
        for (place, _), value in zip(rows, values, strict=True):
            kind = "list" if isinstance(value, list) else "object" if isinstance(value, dict) else "text"
            if value is not None:
                known.setdefault(kind, place)
            if len(known) > 1:
                (first, where), _ = known.items()
                raise ValueError(
                    f"{place}: `{name}` is a {kind}, but a {first} in {_place_within(where)}; write all alike."
                )
        if not known or "text" in known:
            columns[name] = pyarrow.array(values, pyarrow.string())
            continue
        if (unlike := _first_unlike(values)) is not None:
            raise ValueError(
                f"{rows[unlike].place}: `{name}` holds values of another type than the rows before it, or of mixed"
                " types; write all alike."
            )
        columns[name] = values
    return columns


def _first_unlike(values: list[Any]) -> int | None:
    # Index of the first value that one Arrow column cannot hold together with those before it.
    import pyarrow

    def fits(count: int) -> bool:
        try:
            pyarrow.array(values[:count])
        except (pyarrow.ArrowException, OverflowError):
            return False
        return True

    if fits(len(values)):
        return None
    low, high = 0, len(values)  # the first `low` fit, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]:
        raise ValueError(f"{path}, line 1: the file is UTF-16, or no text; save it as UTF-8.")
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        # A byte order mark shifts the position, but holds no line feed.
        line = content.removeprefix(codecs.BOM_UTF8).count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise ValueError(f"{path}, line {line}: is not UTF-8 (byte 0x{byte:02X}); save the file as UTF-8.") from error
