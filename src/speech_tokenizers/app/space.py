# SPDX-License-Identifier: Apache-2.0
"""The files of a Space of the Hub that shows the page."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from speech_tokenizers import __version__
from speech_tokenizers.processing.whole_files import check_folder_is_writable, write_whole


_APP = '''# SPDX-License-Identifier: Apache-2.0
"""The page of speech-tokenizers; `speech-tokenizers app --write-space` wrote this file."""

import contextlib
import os

from speech_tokenizers.app.models import load_models
from speech_tokenizers.app.page import serve
from speech_tokenizers.commands.interruption import interruptions


# Checkpoints to offer; None offers all that are installed.
MODELS = {models}

# A Space is reached from outside, any other machine only by itself.
host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1")
# A signal ends the page as it ends a command: its files go.
with contextlib.suppress(KeyboardInterrupt), interruptions():
    serve(load_models(MODELS), host, int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
'''

_REQUIREMENTS = """\
# The package in the version that wrote this file. If your index lacks it, put the address of a wheel instead:
# speech-tokenizers[app] @ https://huggingface.co/spaces/NAMESPACE/NAME/resolve/main/FILE.whl
speech-tokenizers[app]=={version}
# More checkpoints, and two voices for the tab "Say".
speech-tokenizers-checkpoints
"""

_README = """---
title: Speech tokenizers
emoji: 🗣️
colorFrom: yellow
colorTo: red
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
pinned: false
license: apache-2.0
short_description: Hear what is left of speech when it becomes tokens
{models}---

# Speech tokenizers

Record or upload speech. Hear it at each number of codebooks, see its units, compare checkpoints, and let a voice say a
sentence while its words light up.

`speech-tokenizers app` shows the same page on your machine, without a network.
"""


def write_space(folder: Path, models: Sequence[str] | None = None) -> list[Path]:
    """
    Write `app.py`, `requirements.txt` and `README.md` of a Space.

    Args:
        folder (`Path`): Folder that none of the files is in yet.
        models (sequence of `str`, *optional*): Names or Hub ids of the models to offer. Defaults to all that will be
            installed.

    Returns:
        `list`: The files.

    Raises:
        ValueError: If a file is there already, or a model is a folder of this machine.
        MissingPackageError: If Gradio is not installed, whose version the files name.
        OSError: If the files cannot be written.
    """
    from speech_tokenizers.app.page import check_gradio
    from speech_tokenizers.coding.loading import released_checkpoints

    check_gradio()
    on_hub = []
    for name in models or []:
        if name in released_checkpoints():
            continue
        if Path(name).expanduser().exists() or name.count("/") != 1:
            raise ValueError(
                f"--model {name} is neither a released checkpoint nor a Hub id, and a Space has no folder of this"
                " machine; push the model to the Hub, and name it NAMESPACE/NAME."
            )
        on_hub.append(name)
    listed = "models:\n" + "".join(f"  - {name}\n" for name in on_hub) if on_hub else ""
    contents = {
        "app.py": _APP.format(models="None" if not models else repr(list(models)).replace("'", '"')),
        "requirements.txt": _REQUIREMENTS.format(version=__version__),
        "README.md": _README.format(gradio=metadata.version("gradio"), models=listed),
    }
    check_folder_is_writable(folder)
    for name in contents:
        if (folder / name).exists():
            raise ValueError(f"{folder / name} exists already; name another folder, or remove it first.")
    return [write_whole(folder / name, content) for name, content in contents.items()]
