# SPDX-License-Identifier: Apache-2.0
"""Metadata are read as they are written: every cell is text, every row stays, and errors name file and line."""

import json

import numpy as np
import pytest

from speech_tokenizers.processing.metadata_files import (
    as_text,
    by_file_name,
    read_json_lines,
    read_metadata,
    read_names,
)
from speech_tokenizers.processing.recordings import load_recordings, parse_filter


@pytest.fixture
def table(tmp_path):
    """A function: write metadata of a name and content, and return the path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def columns(path, *names):
    rows = load_recordings(str(path))
    return [tuple(row[name] for name in names) for row in rows]


@pytest.mark.parametrize(
    "text", ["0", "7", "007", "1.50", "1e3", "NA", "null", "None", "nan", "True", "2020-01-01", "-", " a ", "'", "#x"]
)
def test_a_text_of_csv_and_of_json_is_what_is_written(table, text):
    assert columns(table("a.csv", f"file_name,text\na.wav,{text}\n"), "file_name", "text") == [("a.wav", text)]
    row = json.dumps({"file_name": "a.wav", "text": text})
    assert columns(table("a.jsonl", row), "file_name", "text") == [("a.wav", text)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "file_name, text\na.wav, b\n",
            "a.csv, line 1: the column ' text' has spaces .* 'text' was probably",
        ),
        ("a.csv", "file_name\u00a0,text\na.wav,b\n", "line 1: .* 'file_name' was probably meant; remove them"),
        (
            "a.csv",
            "FileName,text\na.wav,b\n",
            r"line 1: must have a column `file_name`.*\('FileName' was probably meant",
        ),
        ("a.csv", "sep=,\nfile_name,text\na.wav,b\n", "line 1: 'sep=,' is for Excel alone; delete this line"),
        ("a.csv", "sep=;\nfile_name,text\na.wav,b\n", "line 1: 'sep=;' is for Excel alone; delete this line"),
        ("a.csv", "file_name,text\na.wav,b\n,\n", "line 3: the row is empty; delete this line"),
        ("a.csv", "file_name,text\n,,,\na.wav,b\n", "line 2: the row is empty; delete this line"),
        (
            "a.jsonl",
            '{"filename": "a.wav"}',
            r"line 1: must have a column `file_name`.*\('filename' was probably meant",
        ),
        ("a.csv", "file_name\nhttps://example.org/a.wav\n", "line 2: .* is a URL, which is not read; download"),
    ],
)
def test_what_other_programs_write_is_refused_with_what_was_probably_meant(table, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_metadata(table(name, content))


def test_a_filter_by_a_misspelt_column_names_the_one_that_is_there(table):
    path = table("metadata.jsonl", '{"file_name": "a.wav", "Speaker": "1"}')
    with pytest.raises(ValueError, match=r"no column 'speaker' to filter by.*\('Speaker' was probably meant\)"):
        load_recordings(str(path), {"speaker": "1"})


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.wav"}\n{"file_name": "b.wav", "audio": "c.wav"}\n',
            "metadata.jsonl, line 2",
        ),
        ("metadata.jsonl", '{"file_name": "a.wav", "audio": {"path": "c.wav"}}\n', "metadata.jsonl, line 1"),
        ("metadata.csv", "file_name,audio\na.wav,\nb.wav,c.wav\n", "metadata.csv, line 3"),
    ],
)
def test_a_column_of_audio_beside_the_file_name_is_refused(table, name, content, place):
    path = table(name, content)
    with pytest.raises(ValueError, match=f"{place}: `audio` stands beside `file_name`.*rename the column `audio`"):
        load_recordings(str(path))
    with pytest.raises(ValueError, match=place):
        load_recordings(str(path.parent))


def test_texts_that_are_all_dates_stay_texts(table):
    rows = [{"file_name": f"{day}.wav", "text": f"2020-01-0{day}"} for day in (1, 2)]
    path = table("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert columns(path, "text") == [("2020-01-01",), ("2020-01-02",)]


def test_numbers_of_json_are_the_text_that_is_written(table):
    path = table(
        "metadata.jsonl",
        '{"file_name": "a", "text": 0, "b": 1.50, "c": true, "d": null}\n{"file_name": "b", "text": "x", "b": "y"}\n',
    )
    assert columns(path, "text", "b", "c", "d") == [("0", "1.50", "true", None), ("x", "y", None, None)]


def test_numbers_within_lists_and_objects_stay_numbers(table):
    path = table(
        "metadata.jsonl", '{"file_name": "a", "words": [{"word": "x", "start": 0, "end": 0.5}], "v": [1, 2.5]}'
    )
    assert columns(path, "words", "v") == [([{"word": "x", "start": 0, "end": 0.5}], [1.0, 2.5])]


@pytest.mark.parametrize("text", ["a\u2028b", "a\u0085b", "a\x0bb", "a\x1cb", "\U0001f600", "\ufeffa", "a\x00b", "İ"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_text_may_hold_any_character(table, name, text):
    second = {"file_name": "b.wav", "text": "second"}
    if name.endswith("csv"):
        content = f"file_name,text\na.wav,{text}\nb.wav,second\n"
    else:
        content = "".join(
            json.dumps(row, ensure_ascii="\x00" in text or "\x0b" in text or "\x1c" in text) + "\n"
            for row in ({"file_name": "a.wav", "text": text}, second)
        )
    assert columns(table(name, content), "file_name", "text") == [("a.wav", text), ("b.wav", "second")]


def test_quotes_commas_and_line_breaks_of_csv_are_those_of_its_cells(table):
    path = table("a.csv", 'file_name,text\na.wav,"he said ""hi"", twice"\nb.wav,"two\nlines"\nc.wav,5" disc\n')
    assert columns(path, "text") == [('he said "hi", twice',), ("two\nlines",), ('5" disc',)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_line_ends_are_no_part_of_csv_cells(table, end):
    path = table("a.csv", b"\xef\xbb\xbf" + f"file_name,text{end}a.wav,x{end}b.wav,y".encode())
    assert columns(path, "file_name", "text") == [("a.wav", "x"), ("b.wav", "y")]


def test_a_column_without_a_name_moves_no_other(table):
    assert columns(table("a.csv", ",file_name,text\n0,a.wav,x\n"), "file_name", "text", "column 1") == [
        ("a.wav", "x", "0")
    ]


def test_an_empty_cell_is_missing_and_an_empty_text_of_json_is_empty(table):
    assert columns(table("a.csv", "file_name,text\na.wav,\nb.wav,x\n"), "text") == [(None,), ("x",)]
    assert columns(table("a.jsonl", '{"file_name": "a.wav", "text": ""}\n{"file_name": "b.wav"}\n'), "text") == [
        ("",),
        (None,),
    ]


def test_a_long_text_is_read_whole(table):
    assert columns(table("a.csv", f"file_name,text\na.wav,{'x' * 200_000}\n"), "text") == [("x" * 200_000,)]


CSV_FAULTS = {
    "empty": ("", 1, "is empty"),
    "header only": ("file_name,text\n", 1, "no recording"),
    "latin-1": ("file_name,text\na.wav,x\nb.wav,ä\n".encode("latin-1"), 3, "not UTF-8 .byte 0xE4"),
    "utf-16": ("file_name,text\na.wav,x\n".encode("utf-16"), 1, "UTF-16"),
    "utf-16 without a mark": ("file_name,text\na.wav,x\n".encode("utf-16-le"), 1, "UTF-16"),
    "unquoted comma": ("file_name,text\na.wav,x\nb.wav,one, two\n", 3, "between double quotes"),
    "cut": ("file_name,text,speaker\na.wav,x,s\nb.w", 3, "cut off"),
    "index that the first line does not name": ("file_name,text\n0,a.wav,x\n", 2, "3, but line 1 names 2"),
    "equal columns": ("file_name,text,text\na.wav,x,y\n", 1, "two columns are named 'text'"),
    "tabs": ("file_name\ttext\na.wav\tx\n", 1, "by commas"),
    "semicolons": ("file_name;text\na.wav;x\n", 1, "by commas"),
    "no first line": ("a.wav,x\nb.wav,y\n", 1, "must have a column `file_name`"),
    "open quote": ('file_name,text\na.wav,"x\nb.wav,y\n', 2, "never closed"),
    "joined rows": ('file_name,text\na.wav,"x\nb.wav,y"\n', 2, "line 3, which looks like a row"),
    "quote within": ('file_name,text\na.wav,"x" y\n', 2, "after its closing quote"),
    "empty name": ("file_name,text\n,x\n", 2, "`file_name` is None"),
}
JSON_FAULTS = {
    "empty": ("\n", 1, "no recording"),
    "cut": ('{"file_name": "a.wav"}\n{"file_name": "b.wa', 2, "cut off"),
    "array": ('[{"file_name": "a.wav"}]\n', 1, "an object with `file_name` was expected"),
    "spread": ('{\n"file_name": "a.wav"\n}\n', 1, "several lines"),
    "two in a line": ('{"file_name": "a.wav"} {"file_name": "b.wav"}\n', 1, "one object a line"),
    "mixed kinds": ('{"file_name": "a", "x": [1]}\n{"file_name": "b", "x": "y"}\n', 2, "`x` is a text, but a list in"),
    "mixed lists": ('{"file_name": "a", "x": [1]}\n{"file_name": "b", "x": ["y"]}\n', 2, "of another type"),
    "equal keys": ('{"file_name": "a", "text": "x", "text": "y"}\n', 1, "'text' is given twice"),
    "no name": ('{"file_name": "a"}\n\n{"text": "x"}\n', 3, "must have a column `file_name`"),
    "empty name": ('{"file_name": " "}\n', 1, "`file_name` is ' '"),
    "number as a name": ('{"file_name": 3}\n', 1, "must be a string"),
    "list as a name": ('{"file_name": ["a"]}\n', 1, "give the path"),
    "backslash": ('{"file_name": "b\\\\a.wav"}\n', 1, "part folders by `/`"),
    "nul": ('{"file_name": "a\\u0000"}\n', 1, "holds a NUL"),
    "surrogate": ('{"file_name": "a", "text": "\\ud800"}\n', 1, "surrogate"),
    "deep": ('{"file_name": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n", 1, "nested too deeply"),
    "latin-1": ('{"file_name": "ä"}\n'.encode("latin-1"), 1, "not UTF-8"),
}


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [("metadata.csv", *fault) for fault in CSV_FAULTS.values()]
    + [("metadata.jsonl", *fault) for fault in JSON_FAULTS.values()],
    ids=[f"csv {name}" for name in CSV_FAULTS] + [f"json {name}" for name in JSON_FAULTS],
)
def test_what_cannot_be_read_is_named_with_its_line(table, name, content, line, message):
    path = table(name, content)
    with pytest.raises(ValueError, match=rf"metadata\.\w+, line {line}: .*{message}"):
        load_recordings(str(path.parent))


def test_faulty_metadata_end_the_command_line_with_one_line_and_code_two(table, tmp_path, capsys):
    from speech_tokenizers.cli import main

    path = table("metadata.csv", "file_name,text\na.wav,one, two\n")
    assert main(["align", str(tmp_path), "-o", str(tmp_path / "out.jsonl"), "--aligner", "pocketsphinx"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"speech-tokenizers align: error: {path}, line 2: ")


def test_a_filter_compares_texts(table):
    path = table(
        "metadata.jsonl",
        '{"file_name": "a", "split": 0}\n{"file_name": "b", "split": "0"}\n{"file_name": "c", "split": true}\n',
    )
    assert load_recordings(str(path), parse_filter(["split=0"]))["file_name"][:] == ["a", "b"]
    assert load_recordings(str(path), {"split": 0})["file_name"][:] == ["a", "b"]
    assert load_recordings(str(path), {"split": [True]})["file_name"][:] == ["c"]


def test_a_filter_for_a_value_that_no_row_has_is_refused(table):
    path = table("metadata.csv", "file_name,split\na,train\nb,eval\n")
    with pytest.raises(ValueError, match=r"has no row with split=tset; there is 'eval', 'train'"):
        load_recordings(str(path), {"split": ["train", "tset"]})
    with pytest.raises(ValueError, match="'split' is filtered twice"):
        parse_filter(["split=train", "split=eval"])


def test_names_of_a_list_that_do_not_exist_are_counted_and_the_first_is_named(table):
    path = table("metadata.csv", "file_name,text\na.wav,x\nb.wav,y\n")
    listed = table("list.txt", "a.wav\nc.wav\n\nd.wav\n")
    with pytest.raises(ValueError, match=r"list.txt: 2 of 3 names are not in .*, first 'c.wav'"):
        load_recordings(str(path), file_list=str(listed))
    listed.write_bytes(b"\xef\xbb\xbf b.wav \r\n")
    assert load_recordings(str(path), file_list=str(listed))["file_name"][:] == ["b.wav"]
    listed.write_bytes(b"\n")
    with pytest.raises(ValueError, match="holds no name"):
        load_recordings(str(path), file_list=str(listed))


def test_a_listed_name_is_taken_as_it_is_written(table):
    assert read_names(table("list.txt", " a\u2028b \nc\r\n")) == [" a\u2028b ", "c"]


def test_an_unfinished_last_line_is_skipped_only_where_that_is_asked_for(table):
    path = table("a.jsonl", '{"file_name": "a"}\n{"file_na')
    assert [row["file_name"] for _, row in read_json_lines(path, lambda line: line == '{"file_na')] == ["a"]
    with pytest.raises(ValueError, match="line 2: .*cut off"):
        list(read_json_lines(path))


def test_cells_of_any_type_become_text():
    values = [0, 7.0, 1.5, True, None, float("nan"), "x", [1]]
    assert [as_text(value) for value in values] == ["0", "7", "1.5", "true", None, None, "x", [1]]


def test_rows_of_one_name_are_refused_where_names_tell_recordings_apart(table):
    path = table("metadata.csv", "file_name,text\na.wav,x\nb.wav,x\n./a.wav,y\n")
    assert len(load_recordings(str(path))) == 3
    with pytest.raises(ValueError, match=r"metadata.csv, line 4: `file_name` './a.wav' stands in line 2 too"):
        by_file_name(read_metadata(path))
    path = table("metadata.csv", "file_name,text\na.wav,x\nb.wav,x\na.wav,y\n")
    with pytest.raises(ValueError, match=r"'a.wav' stands in the rows 0 and 2 \(from 0\) of .*metadata.csv"):
        load_recordings(str(path), unique_names=True)
    assert len(load_recordings(str(path), {"text": "x"}, unique_names=True)) == 2


def test_a_suffix_counts_in_any_case(table):
    assert [row.fields["file_name"] for row in read_metadata(table("A.CSV", "file_name\na.wav\n"))] == ["a.wav"]
    assert columns(table("METADATA.JSONL", '{"file_name": "b.wav"}').parent, "file_name") == [("b.wav",)]


@pytest.mark.parametrize("text", ["", "  ", "\u2028"])
def test_where_nothing_is_said_no_word_has_a_time(text, ctc_folder):
    from speech_tokenizers.processing.word_alignment import load_word_aligner

    audio = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    assert load_word_aligner(str(ctc_folder)).align_labels(audio, text) == ([], [])
