# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers app` as a process of its own."""

import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from speech_tokenizers.cli import main


# The command in a process that tells each address outside the machine that it asks, or whose name it looks up.
PROGRAM = """
import sys
from speech_tokenizers.cli import main

def tell(event, arguments):
    host = None
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):  # others are of this machine
        host = arguments[1][0]
    if host not in (None, "127.0.0.1", "localhost", "::1"):
        print("ASKED", host, file=sys.stderr)

sys.addaudithook(tell)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are sent")
def test_it_prints_its_address_serves_asks_nobody_and_leaves_nothing(tmp_path, tiny_checkpoint):
    (tmp_path / "temporary").mkdir()
    words = [sys.executable, "-c", PROGRAM, "app", "--no-browser", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [*words, "--model", str(tiny_checkpoint)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("The page is at http://127.0.0.1:"), process.communicate(timeout=60)[1]
        text = urllib.request.urlopen(line.split()[4], timeout=60).read().decode()
        assert "Code and decode" in text
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert "ASKED" not in errors
    assert not [path for path in (tmp_path / "temporary").iterdir() if "app" in path.name or "gradio" in path.name]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port", "70000"], "--port must lie between 0 and 65535"),
        (["--model", "rvq-codec-17khz"], "`--model` is 'rvq-codec-17khz'"),
        (["--device", "tpu9"], "--device tpu9"),
    ],
)
def test_wrong_usage_is_told_before_a_page_is_shown(options, told, capsys):
    assert main(["app", "--no-browser", *options]) == 2
    assert told in capsys.readouterr().err
