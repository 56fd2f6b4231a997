# SPDX-License-Identifier: Apache-2.0
"""Commands and programs in processes that see a Hub on this machine."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

from helpers.fake_hub import FakeHub


# The command line several times in one process, since importing takes most of the time.
_COMMANDS = """
    import contextlib
    import io
    import json
    import sys
    from speech_tokenizers.cli import main

    for words in json.loads(sys.argv[1]):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(words)
            except SystemExit as exit:
                code = exit.code
        print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


class Ran(NamedTuple):
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


def online(hub: FakeHub, folder: Path, **environment: str) -> dict[str, str]:
    """Environment of a process that sees this Hub alone, with caches in `folder`."""
    caches = {"HF_HOME": str(folder / "cache"), "HF_MODULES_CACHE": str(folder / "modules")}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    settings |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    found = {**os.environ, **caches, **settings, **environment}
    return {name: value for name, value in found.items() if value != ""}


def run_program_online(hub: FakeHub, folder: Path, program: str, *arguments, **environment: str) -> Ran:
    """Run a program in a process of its own, in `folder`."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        cwd=folder,
        env=online(hub, folder, **environment),
        capture_output=True,
        text=True,
        timeout=500,
    )
    return Ran(process.returncode, process.stdout, process.stderr)


def run_online(hub: FakeHub, folder: Path, commands: list[list], **environment: str) -> list[Ran]:
    """Run commands of the command line one after the other, in one process, in `folder`."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_COMMANDS), words],
        cwd=folder,
        env=online(hub, folder, **environment),
        capture_output=True,
        text=True,
        timeout=500,
    )
    ran = [Ran(*json.loads(line)) for line in process.stdout.splitlines() if line.startswith("[")]
    assert len(ran) == len(commands), process.stderr
    return ran
