# SPDX-License-Identifier: Apache-2.0
"""Programs in a process where this package is not installed."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path


# Runs before each program, which is that of a user who has transformers only: `find_spec` refuses this
# package, however it is installed.
REFUSE = """
    import sys
    from pathlib import Path

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "speech_tokenizers":
                raise ModuleNotFoundError(f"No module named {name!r}")

    sys.meta_path.insert(0, Refuse())
"""


def run_without_this_package(program: str, folder: Path, *arguments: str, **environment: str) -> None:
    """Run `REFUSE` and a program in a process of its own, whose working folder and caches lie in `folder`."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(REFUSE) + textwrap.dedent(program))
    caches = {"HF_HOME": str(folder / "cache"), "HF_MODULES_CACHE": str(folder / "modules")}
    process = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env={**os.environ, **caches, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
