# SPDX-License-Identifier: Apache-2.0
"""The outputs of `units` remember what made them, and what can be known is known before the work."""

import json
import os
import shutil

import pytest

from speech_tokenizers.commands import units as units_command
from speech_tokenizers.commands.unit_outputs import OUTPUTS
from speech_tokenizers.processing.unit_bpe import train_unit_bpe
from speech_tokenizers.processing.whole_files import LinesFile


@pytest.fixture
def units(run, unit_checkpoints, tmp_path):
    """Function: run `units` on the CPU in a format; returns its exit code and standard error."""

    def call(source, output_format="jsonl", *options, model=unit_checkpoints[0], output=None):
        output = output or tmp_path / f"units.{output_format}"
        words = ["units", source, "-o", output, "--format", output_format, "--model", model, "--device", "cpu"]
        return run(*words, *options)

    return call


def contents(folder):
    return {path: path.read_bytes() for path in folder.iterdir() if path.name.startswith("units.") and path.is_file()}


@pytest.mark.parametrize("output_format", OUTPUTS)
def test_a_second_run_keeps_what_is_complete_and_counts_it(units, speech, tmp_path, output_format):
    source = speech()
    code, errors = units(source, output_format)
    output = tmp_path / f"units.{output_format}"
    assert (code, errors[-1]) == (0, f"units: 3 of 3 files written, 0 skipped, 0 failed: {output}")
    before = contents(tmp_path)
    moved = source.rename(tmp_path / "moved")
    code, errors = units(moved, output_format, "--skip-existing")
    assert (code, errors[-1]) == (0, f"units: 0 of 3 files written, 3 skipped, 0 failed: {output}")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("output_format", OUTPUTS)
def test_another_folders_recording_of_the_same_name_is_refused(units, speech, tmp_path, output_format):
    units(speech(), output_format)
    before = contents(tmp_path)
    code, errors = units(speech("other", seed=1), output_format, "--skip-existing")
    assert code == 2
    assert "was made from another recording, and 2 more outputs differ" in errors[-1]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("output_format", OUTPUTS)
def test_units_of_another_model_are_not_mixed_in(units, speech, tmp_path, unit_checkpoints, output_format):
    source = speech()
    units(source, output_format)
    before = contents(tmp_path)
    code, errors = units(source, output_format, "--skip-existing", model=unit_checkpoints[1])
    assert code == 2
    assert "was made by another model" in errors[-1]
    assert contents(tmp_path) == before
    assert units(source, output_format, "--overwrite", model=unit_checkpoints[1])[0] == 0
    assert contents(tmp_path) != before or output_format == "textless"


@pytest.mark.parametrize("output_format", OUTPUTS)
def test_units_of_an_encoder_that_was_trained_under_the_same_centroids_are_not_mixed_in(
    units, speech, tmp_path, unit_checkpoints, with_other_part, output_format
):
    source = speech()
    units(source, output_format)
    before = contents(tmp_path)
    model = with_other_part(unit_checkpoints[0], "encoder")
    code, errors = units(source, output_format, "--skip-existing", model=model)
    assert code == 2
    assert "was made by a model with another encoder" in errors[-1]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("option", ["--skip-existing", "--overwrite"])
def test_two_processes_do_not_write_one_file(units, speech, tmp_path, option):
    source, output = speech(), tmp_path / "units.jsonl"
    units(source)
    before = output.read_bytes()
    with LinesFile(output):  # as another process has it
        code, errors = units(source, "jsonl", option)
        assert code == 2
        assert f"{output}" in errors[-1]
        assert "is being written by another process; wait until that has ended" in errors[-1]
        assert output.read_bytes() == before
    assert units(source, "jsonl", option)[0] == 0


def test_what_another_process_wrote_meanwhile_is_not_written_again(units, speech, tmp_path, monkeypatch):
    output = tmp_path / "units.jsonl"
    units(speech())
    line = output.read_text().splitlines()[0]
    output.write_text("")
    known = units_command._known

    def and_then(*args):
        found = known(*args)
        output.write_text(line + "\n")
        return found

    monkeypatch.setattr(units_command, "_known", and_then)
    code, errors = units(speech())
    assert code != 0
    assert any("was written by another process meanwhile" in error for error in errors)
    assert output.read_text() == line + "\n"


@pytest.mark.parametrize("output_format", OUTPUTS)
def test_a_link_that_leads_to_itself_fails_alone(units, speech, output_format):
    source = speech()
    (source / "circle.wav").symlink_to("circle.wav")
    code, errors = units(source, output_format)
    assert code == 1
    assert any("circle.wav: " in error for error in errors)
    assert "units: 3 of 4 files written, 0 skipped, 1 failed" in "\n".join(errors)


def test_other_names_of_another_model_are_not_mixed_in_either(units, speech, unit_checkpoints):
    units(speech())
    source = speech("other", seed=1)
    for path in [*source.rglob("*.wav")]:
        path.rename(path.with_name(f"other-{path.name}"))
    code, errors = units(source, model=unit_checkpoints[1])
    assert code == 2
    assert "was made by another model" in errors[-1]
    assert units(source)[0] == 0  # of the same model they are added


@pytest.mark.parametrize(
    ("output_format", "option", "reason"),
    [
        ("jsonl", "--deduplicate", "with units that are not de-duplicated"),
        ("km", "--deduplicate", "with units that are not de-duplicated"),
        ("textless", "--deduplicate", "with units that are not de-duplicated"),
        ("textless", "--dense", "with dense=no instead of dense=yes"),
    ],
)
def test_other_options_are_refused(units, speech, output_format, option, reason):
    source = speech()
    units(source, output_format)
    code, errors = units(source, output_format, "--skip-existing", option)
    assert code == 2
    assert reason in errors[-1]


def test_another_vocabulary_is_refused(units, speech, tmp_path):
    source = speech()
    for number, vocab_size in enumerate((11, 12)):
        frames = [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 4, 4]] * 9
        train_unit_bpe(frames, 8, vocab_size).save_pretrained(tmp_path / f"bpe-{number}")
    assert units(source, "jsonl", "--bpe", tmp_path / "bpe-0")[0] == 0
    assert units(source, "jsonl", "--bpe", tmp_path / "bpe-0")[0] == 0
    for options in (["--bpe", tmp_path / "bpe-1"], ["--deduplicate"]):
        code, errors = units(source, "jsonl", *options)
        assert code == 2
        assert "with bpe=" in errors[-1]


def test_a_replaced_recording_is_refused(units, speech):
    source = speech()
    units(source)
    shutil.copy(source / "deep" / "b.wav", source / "a.wav")
    code, errors = units(source)
    assert code == 2
    assert "a.wav in " in errors[-1]
    assert "was made from another recording; choose" in errors[-1]


def test_what_an_older_release_wrote_is_kept_with_a_word(units, speech, tmp_path):
    source, output = speech(), tmp_path / "units.jsonl"
    units(source)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    without = "".join(json.dumps({k: v for k, v in line.items() if k != "made_by"}) + "\n" for line in lines[:2])
    output.write_text(without)
    code, errors = units(source)
    assert code == 0
    assert "2 of the 2 units" in errors[0]
    assert "do not say what made them" in errors[0]
    assert output.read_text().startswith(without)
    output.write_text(without)
    assert units(source, "jsonl", "--deduplicate")[0] == 2


@pytest.mark.parametrize(
    "content",
    [
        '{"file_name": "a.wav", "text": "half a transcri',
        '{"file_name": "a.wav", "audio_repr": "half a note',
        '{"file_name": "a.wav", "audio_repr": "<Un1>", "speaker": "x',
        '{"file_name": "notes.wav", "audio_rep',
        '{"file_name": "a',
        '{"file_name"',
        "notes without an end",
        '{"file_name": "elsewhere.wav", "audio_repr": "<Un1>"}\n',
        '["other"]\n',
        "\n",
        "\xff\xfe",
    ],
)
def test_a_file_that_units_did_not_write_is_left_as_it_is(units, speech, tmp_path, content):
    output = tmp_path / "units.jsonl"
    output.write_text(content, encoding="latin-1")
    code, errors = units(speech())
    assert code == 2
    assert "units.jsonl" in errors[-1]
    assert output.read_text(encoding="latin-1") == content


@pytest.mark.parametrize("lost", [1, 12])
def test_a_refused_command_leaves_the_last_line_as_it_was(units, speech, tmp_path, lost):
    source, output = speech(), tmp_path / "units.jsonl"
    units(source)
    before = output.read_bytes()[:-lost]
    output.write_bytes(before)
    code, errors = units(source, "jsonl", "--deduplicate")
    assert code == 2
    assert "with units that are not de-duplicated" in errors[-1]
    assert output.read_bytes() == before


def test_a_last_line_without_its_end_is_kept_and_ended_before_the_next(units, speech, tmp_path):
    source, output = speech(), tmp_path / "units.jsonl"
    units(source)
    whole = output.read_bytes()
    first = b"".join(whole.splitlines(keepends=True)[:2])
    output.write_bytes(first.removesuffix(b"\n"))
    code, errors = units(source)
    assert (code, errors[-1]) == (0, f"units: 1 of 3 files written, 2 skipped, 0 failed: {output}")
    assert output.read_bytes() == whole


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, -1])
def test_a_line_that_units_left_unfinished_is_written_anew(units, speech, tmp_path, part):
    source, output = speech(), tmp_path / "units.jsonl"
    units(source, "jsonl", "--deduplicate")
    lines = output.read_text().splitlines(keepends=True)
    end = part if part < 0 else max(24, int(part * len(lines[1])))
    output.write_text(lines[0] + lines[1][:end])
    assert units(source, "jsonl", "--deduplicate")[0] == 0
    assert sorted(output.read_text().splitlines(keepends=True)) == sorted(lines)


@pytest.fixture
def no_work(monkeypatch):
    """Lets the test fail if a model is loaded or anything is encoded."""

    def fail(*_, **__):
        raise AssertionError("this could have been known before")

    monkeypatch.setattr(units_command, "load_model", fail)
    monkeypatch.setattr(units_command, "encode_recordings", fail)


@pytest.mark.parametrize("name", ["a\tb.wav", "a\nb.wav", "a\rb.wav", "fold\ter/a.wav"])
def test_km_refuses_a_name_that_its_manifest_cannot_hold_before_the_work(units, speech, no_work, tmp_path, name):
    source = speech()
    (source / name).parent.mkdir(exist_ok=True)
    (source / "a.wav").rename(source / name)
    code, errors = units(source, "km")
    assert code == 2
    assert "has a tab or a line break" in errors[-1]
    assert not contents(tmp_path)


def test_a_folder_above_with_a_tab_is_refused_too(units, speech, no_work):
    code, errors = units(speech("with\ttab"), "km")
    assert code == 2
    assert "has a tab or a line break" in errors[-1]


def test_a_name_that_is_too_long_beside_km_is_known_before_the_work(units, speech, no_work, tmp_path):
    code, errors = units(speech(), "km", "--deduplicate", output=tmp_path / ("u" * 248 + ".km"))
    assert code == 2
    assert ".durations: File name too long; choose another output." in errors[-1]


def without_a_line(content):
    return b"".join(content.splitlines(keepends=True)[:-1])


def without_a_number(content):
    return content.replace(b" ", b"", 1)


@pytest.mark.parametrize(
    ("suffix", "damage", "reason"),
    [
        (".km", without_a_line, "units.km: has lines for 2 recordings, but"),
        (".tsv", without_a_line, "units.tsv: has lines for 2 recordings, but"),
        (".durations", without_a_line, "units.durations: has lines for 2 recordings, but"),
        (".made_by", without_a_line, "units.km: has lines for 3 recordings, but"),
        (".durations", without_a_number, "units.durations: line 1 has"),
        (".km", lambda content: content[:-1], "units.km: ends within a line"),
        (".km", lambda content: b"x" + content, "units.km: line 1 must hold units"),
        (".made_by", lambda content: content.replace(b"\t", b" ", 1), "units.made_by: line 1 must be a name"),
    ],
)
def test_damaged_km_is_not_taken_for_complete(units, speech, tmp_path, suffix, damage, reason):
    source = speech()
    units(source, "km", "--deduplicate")
    path = (tmp_path / "units.km").with_suffix(suffix)
    path.write_bytes(damage(path.read_bytes()))
    code, errors = units(source, "km", "--deduplicate", "--skip-existing")
    assert code == 2
    assert reason in errors[-1]
    assert units(source, "km", "--deduplicate", "--overwrite")[0] == 0
    assert units(source, "km", "--deduplicate", "--skip-existing")[0] == 0


@pytest.mark.parametrize("character", ["\u2028", "\x0c", "\x85", "\x1c"])
def test_a_name_may_hold_what_unicode_calls_a_line_end(units, speech, character):
    source = speech()
    (source / "a.wav").rename(source / f"a{character}b.wav")
    assert units(source, "km")[0] == 0
    code, errors = units(source, "km", "--skip-existing")
    assert code == 0
    assert "0 of 3 files written, 3 skipped" in errors[-1]


@pytest.mark.parametrize("suffix", [".tsv", ".durations"])
def test_km_that_lacks_a_file_beside_it_is_known_to_be_incomplete(units, speech, tmp_path, suffix):
    source = speech()
    units(source, "km", "--deduplicate")
    missing = (tmp_path / "units.km").with_suffix(suffix)
    missing.unlink()
    code, errors = units(source, "km", "--deduplicate", "--skip-existing")
    assert code == 2
    assert f"{missing} is missing; pass --overwrite to make them all anew" in errors[-1]
    assert units(source, "km", "--deduplicate", "--overwrite")[0] == 0
    assert missing.exists()


@pytest.mark.parametrize("suffix", [".tsv", ".durations", ".made_by"])
def test_km_replaces_nothing_beside_it_unless_told(units, speech, no_work, tmp_path, suffix):
    beside = (tmp_path / "units.km").with_suffix(suffix)
    beside.write_text("another tool's")
    for option in ([], ["--skip-existing"]):
        code, errors = units(speech(), "km", *option)
        assert code == 2
        assert f"{beside} exists" in errors[-1]
    assert beside.read_text() == "another tool's"


@pytest.mark.parametrize("output_format", OUTPUTS)
def test_a_place_that_cannot_be_written_is_known_before_the_work(units, speech, no_work, tmp_path, output_format):
    source = speech()
    (tmp_path / "file").touch()
    places = [tmp_path / "file" / "units"]
    if output_format == "textless":
        places.append(tmp_path / "file")
        (tmp_path / "items").mkdir()
        (tmp_path / "items" / "deep").touch()  # where a folder is needed
        (tmp_path / "more" / "a.wav.safetensors").mkdir(parents=True)  # where a file is needed
        places += [tmp_path / "items", tmp_path / "more"]
    else:
        places += [tmp_path, source / "a.wav"]
        os.mkfifo(tmp_path / "pipe")
        places.append(tmp_path / "pipe")
    for place in places:
        code, errors = units(source, output_format, "--overwrite", output=place)
        assert code == 2, place
        assert len(errors) == 1
        assert errors[0].startswith("speech-tokenizers units: error: ")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_seconds_of_a_batch_are_positive_and_finite(units, speech, no_work, seconds):
    code, errors = units(speech(), "jsonl", "--batch-seconds", seconds)
    assert code == 2
    assert "--batch-seconds must be positive" in errors[-1]


@pytest.mark.parametrize("output_format", OUTPUTS)
def test_a_name_that_is_no_unicode_stops_no_other(units, speech, tmp_path, output_format):
    source = speech()
    os.rename(os.fsencode(source / "a.wav"), os.fsencode(source) + b"/\xff.wav")
    code, errors = units(source, output_format)
    if output_format == "textless":  # whose files bear any name
        assert code == 0
        return
    assert code == 1
    assert "its name is no valid UTF-8" in errors[0]
    assert "2 of 3 files written, 0 skipped, 1 failed" in errors[-1]
    (rejected,) = map(json.loads, (tmp_path / f"units.{output_format}.rejected.jsonl").read_text().splitlines())
    assert "UTF-8" in rejected["reason"]


def test_a_broken_recording_whose_name_is_no_unicode_is_set_aside_by_name(units, speech, tmp_path):
    source = speech()
    (source / "broken.wav").write_bytes(b"noise" * 100)
    os.rename(os.fsencode(source / "broken.wav"), os.fsencode(source) + b"/\xff.wav")
    code, errors = units(source, "textless")
    assert code == 1
    assert "3 of 4 files written, 0 skipped, 1 failed" in errors[-1]
    (rejected,) = map(json.loads, (tmp_path / "units.textless.rejected.jsonl").read_text().splitlines())
    assert os.fsencode(rejected["name"]) == b"\xff.wav"
