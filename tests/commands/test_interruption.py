# SPDX-License-Identifier: Apache-2.0
"""A signal, a full disk, a folder that goes or a reader that leaves: no half file, and a summary all the same."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import soundfile
import torch

from speech_tokenizers.coding import file_coding
from speech_tokenizers.commands import file_jobs
from speech_tokenizers.processing import audio_files, whole_files
from speech_tokenizers.processing.audio_files import AudioWriter
from speech_tokenizers.processing.termination import Terminated


VERBS = ["encode", "reconstruct", "decode", "units"]


@pytest.fixture(autouse=True)
def heeded_signals():
    """Tests may run under `nohup` or in the background, where some signals are ignored, which stays so."""
    ignored = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)}
    ignored = {number: handler for number, handler in ignored.items() if handler is signal.SIG_IGN}
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in ignored.items():
        signal.signal(number, handler)


@pytest.fixture
def batch(run, speech, tmp_path, tiny_checkpoint, unit_checkpoints):
    """Function: run a verb over three files; returns its exit code and standard error."""
    speech()

    def call(verb, *options, output=None):
        model = unit_checkpoints[0] if verb == "units" else tiny_checkpoint
        source = tmp_path / ("codes" if verb == "decode" else "speech")
        words = [verb, source, "-o", output or tmp_path / "out", "--model", model, "--device", "cpu"]
        return run(*words, *(["--format", "textless"] if verb == "units" and not output else []), *options)

    assert call("encode", output=tmp_path / "codes")[0] == 0
    return call


@pytest.fixture
def at_second_write(monkeypatch):
    """Function: let something happen while the second output is written, after its temporary file is there."""

    def arrange(happen):
        count = 0
        enter = whole_files.WholeFile.__init__

        def begin(self, path):
            nonlocal count
            enter(self, path)
            count += 1
            if count == 2:
                self.temporary.write_bytes(b"half")
                happen()

        monkeypatch.setattr(whole_files.WholeFile, "__init__", begin)

    return arrange


def left_over(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        *((number, 128 + number) for number in (signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_a_signal_ends_every_verb_with_its_number_no_half_file_and_a_summary(
    batch, at_second_write, tmp_path, verb, number, code
):
    before = signal.getsignal(number)
    at_second_write(lambda: signal.raise_signal(number))
    found, errors = batch(verb)
    assert found == code
    assert f"{verb}: 1 of 3 files written, 0 skipped, 0 failed, 2 not reached: {tmp_path / 'out'}" in errors
    assert not left_over(tmp_path)
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 1
    assert signal.getsignal(number) is before
    code, errors = batch(verb, "--skip-existing")
    assert (code, errors[-1]) == (0, f"{verb}: 2 of 3 files written, 1 skipped, 0 failed: {tmp_path / 'out'}")


def test_units_in_one_file_are_whole_lines_after_a_signal(batch, monkeypatch, tmp_path):
    append = whole_files.LinesFile.append
    lines = []

    def interrupted(self, line):
        append(self, line)
        lines.append(line)
        if len(lines) == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(whole_files.LinesFile, "append", interrupted)
    output = tmp_path / "units.jsonl"
    assert batch("units", output=output)[0] == 143
    assert output.read_text().splitlines() == lines
    monkeypatch.undo()
    code, errors = batch("units", output=output)
    assert (code, errors[-1]) == (0, f"units: 1 of 3 files written, 2 skipped, 0 failed: {output}")


def test_further_signals_do_not_disturb_the_cleanup(batch, at_second_write, monkeypatch, tmp_path):
    remove, sent = whole_files._remove, []

    def disturbed(path):
        if sent:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            sent.append("both")
        remove(path)

    def interrupt():
        sent.append("first")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(whole_files, "_remove", disturbed)
    at_second_write(interrupt)
    assert batch("encode")[0] == 130
    assert sent == ["first", "both"]
    assert not left_over(tmp_path)


def test_a_signal_that_a_library_swallows_ends_the_batch_after_the_file(batch, monkeypatch, tmp_path):
    encode_file = file_coding.encode_file

    def swallowing(*arguments):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return encode_file(*arguments)

    monkeypatch.setattr(file_coding, "encode_file", swallowing)
    code, errors = batch("encode")
    assert code == 143
    assert "encode: 1 of 3 files written, 0 skipped, 0 failed, 2 not reached" in errors[-2]


def test_a_signal_within_libsndfile_is_not_swallowed(tmp_path):
    class Interrupted:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise Terminated

        def __getattr__(self, name):
            return getattr(self.file, name)

    with pytest.raises(Terminated), AudioWriter(tmp_path / "a.wav", 16000) as writer:  # noqa: PT012
        writer._watched._file = Interrupted(writer._watched._file)
        writer.write(torch.zeros(100000).numpy())
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        MemoryError(),
        RuntimeError("CUDA out of memory"),
        AssertionError(),
        TypeError("odd"),
        KeyError("odd"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("verb", VERBS)
def test_whatever_fails_at_one_file_the_others_are_written(batch, at_second_write, tmp_path, verb, error):
    def fail():
        raise type(error)(*error.args)  # anew: pytest keeps the other one, and with it what it holds

    at_second_write(fail)
    code, errors = batch(verb)
    assert code == 1
    assert errors[-1] == f"{verb}: 2 of 3 files written, 0 skipped, 1 failed: {tmp_path / 'out'}" or verb == "units"
    assert any("2 of 3 files written, 0 skipped, 1 failed" in line for line in errors)
    assert not any("Traceback" in line for line in errors)
    assert not left_over(tmp_path)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, OSError, UnicodeError])
def test_whatever_fails_while_one_recording_is_read_the_others_are_written(batch, monkeypatch, tmp_path, error):
    enter = audio_files.AudioReader.__init__

    def failing(self, source, *arguments, **options):
        if "b.wav" in str(source):
            raise error("odd")
        enter(self, source, *arguments, **options)

    monkeypatch.setattr(audio_files.AudioReader, "__init__", failing)
    for verb in ("encode", "units"):
        code, errors = batch(verb, "--overwrite")
        assert code == 1
        assert any("2 of 3 files written, 0 skipped, 1 failed" in line for line in errors)


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fills_at_the_rename_leaves_nothing(batch, monkeypatch, tmp_path, verb):
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    code, errors = batch(verb)
    assert code == 1
    assert any("No space left on device" in line for line in errors)
    assert any("2 of 3 files written, 0 skipped, 1 failed" in line for line in errors)
    assert not left_over(tmp_path)


@pytest.mark.parametrize("verb", VERBS)
def test_an_output_folder_that_is_deleted_in_the_middle_stops_nothing(batch, at_second_write, tmp_path, verb):
    at_second_write(lambda: shutil.rmtree(tmp_path / "out"))
    code, errors = batch(verb)
    assert code == 1
    assert any("2 of 3 files written, 0 skipped, 1 failed" in line for line in errors)
    assert not left_over(tmp_path)


def test_an_output_folder_that_becomes_a_file_stops_nothing(batch, at_second_write, tmp_path):
    def replace():
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").write_text("a file")

    at_second_write(replace)
    code, errors = batch("encode")
    assert code == 1
    assert "encode: 1 of 3 files written, 0 skipped, 2 failed" in errors[-1]
    assert not left_over(tmp_path)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_of_units_that_goes_while_it_is_written_is_said(batch, monkeypatch, tmp_path, how):
    output = tmp_path / "units.jsonl"
    append = whole_files.LinesFile.append
    count = 0

    def interfered(self, line):
        nonlocal count
        count += 1
        if count == 2:
            output.unlink()
            if how == "replaced":
                output.write_text("another's")
        append(self, line)

    monkeypatch.setattr(whole_files.LinesFile, "append", interfered)
    code, errors = batch("units", output=output)
    assert code == 1
    assert any("was removed or replaced while it was written" in line for line in errors)
    assert "units: 1 of 3 files written, 0 skipped, 1 failed, 1 not reached" in errors[-1]


@contextlib.contextmanager
def files_of_at_most(num_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_the_disk_has_no_room_for_is_named_and_the_rest_is_written(batch, tmp_path):
    soundfile.write(tmp_path / "speech" / "long.wav", torch.zeros(90000).numpy(), 16000)
    with files_of_at_most(100_000):
        code, errors = batch("reconstruct")
    assert code == 1
    assert f"{tmp_path / 'out' / 'long.wav'}: cannot be written (File too large)." in errors[0]
    assert "reconstruct: 3 of 4 files written, 0 skipped, 1 failed" in errors[-1]
    assert not left_over(tmp_path)


def test_a_line_that_the_disk_has_no_room_for_leaves_the_lines_before(tmp_path):
    path = tmp_path / "lines"
    with (  # noqa: PT012
        files_of_at_most(450),
        whole_files.LinesFile(path) as file,
        pytest.raises(OSError, match="File too large"),
    ):
        for number in range(9):
            file.append(str(number) * 99)
    assert path.read_text() == "".join(str(number) * 99 + "\n" for number in range(4))


def test_a_file_of_units_that_the_disk_has_no_room_for_is_named_and_not_the_recording(batch, tmp_path):
    output = tmp_path / "units.jsonl"
    with files_of_at_most(100):
        code, errors = batch("units", output=output)
    assert code == 1
    assert errors[0].startswith(f"failed: {output}: ")
    assert not any(name in line for line in errors for name in ("a.wav", "b.wav", "c.wav"))


@pytest.mark.parametrize("state", ["full", "left"])
def test_standard_error_that_cannot_be_written_stops_no_batch(batch, monkeypatch, tmp_path, state):
    (tmp_path / "speech" / "broken.wav").write_bytes(b"noise" * 100)
    if state == "full":
        stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    else:
        reading, writing = os.pipe()
        os.close(reading)
        stream = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    code, _ = batch("encode")
    assert code == 1
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) == 3


def test_what_is_printed_to_a_closed_standard_error_goes_into_no_file(tmp_path):
    # The next file that is opened takes the number of the closed stream.
    program = (
        "import os, sys\nfrom speech_tokenizers import cli\n"
        "cli._open_closed_streams()\n"
        "file = open(sys.argv[1], 'wb', buffering=0)\n"
        "os.write(2, b'a warning of a library')\nprint('a message', file=sys.stderr)\n"
        "file.write(b'content')"
    )
    command = f'{sys.executable} -c "$0" {tmp_path / "file"} 2>&-'
    subprocess.run(["bash", "-c", command, program], check=True)
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize(("end", "code"), [("| head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", 0), ("> /dev/full", 2)])
def test_standard_output_that_cannot_be_written_is_no_traceback(end, code):
    command = f"{sys.executable} -m speech_tokenizers info {end}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode in (code, 1) if code == 0 else result.returncode == code
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert code == 0 or "No space left on device" in result.stderr


def test_quiet_says_only_what_went_wrong_and_verbose_names_each_file(batch, tmp_path):
    assert batch("encode", "--quiet") == (0, [])
    code, errors = batch("encode", "--verbose", "--overwrite")
    assert code == 0
    assert sum(line.startswith("written: ") for line in errors) == 3
    (tmp_path / "speech" / "broken.wav").write_bytes(b"noise" * 100)
    code, errors = batch("encode", "-q", "--overwrite")
    assert code == 1
    assert "broken.wav" in errors[0]
    code, errors = batch("encode", "-v", "--overwrite")
    assert code == 1
    assert any(line.startswith("Traceback") for line in errors)


def test_a_name_that_is_no_unicode_is_a_name_like_others(batch, tmp_path):
    for folder, suffix in (("speech", b".wav"), ("codes", b".safetensors")):
        path = os.fsencode(tmp_path / folder) + b"/\xff" + suffix
        shutil.copy(tmp_path / folder / f"a{suffix.decode()}", path)
    for verb in ("encode", "reconstruct", "decode"):
        code, errors = batch(verb, output=tmp_path / f"{verb}-out")
        assert code == 0, errors
        assert any(name.startswith(b"\xff") for name in os.listdir(os.fsencode(tmp_path / f"{verb}-out")))


def test_the_tally_tells_what_was_not_reached(capsys, tmp_path):
    with pytest.raises(Terminated), file_jobs.Tally("encode", 5, 1, tmp_path, True, False) as tally:  # noqa: PT012
        tally.wrote("a")
        raise Terminated
    assert "encode: 1 of 5 files written, 1 skipped, 0 failed, 3 not reached" in capsys.readouterr().err
