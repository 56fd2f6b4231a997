# SPDX-License-Identifier: Apache-2.0
"""The README's Python examples run, in order, in a folder with recordings."""

import re
import shlex
from importlib import resources
from pathlib import Path

import pytest
import soundfile

from speech_tokenizers import (
    DEFAULT_CHECKPOINT,
    list_checkpoints,
    load_audio,
)
from speech_tokenizers.cli import _build_parser, _join_command


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with `recordings/` of different lengths."""
    speech = load_audio(resources.files("speech_tokenizers") / "recordings" / "sense_and_sensibility.flac", 16000)
    (tmp_path / "recordings").mkdir()
    for name, start, end in (("a", 0, 40000), ("b", 40000, 75000), ("c", 80000, 145001)):
        soundfile.write(tmp_path / "recordings" / f"{name}.wav", speech[start:end], 16000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run(folder):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)

    assert names["decoded"].audio_values.shape[-1] == 65280  # the longest recording, in whole frames
    assert names["audio"].shape == names["waveform"].shape
    assert names["spoken"].audio_values.shape[:2] == (3, 1)
    assert names["live_units"].shape == (1, names["units"].get_encoded_length(sum(map(len, names["arriving"]))))
    assert names["trainer"].state.global_step == 4
    assert (folder / "my-codec" / "preprocessor_config.json").is_file()
    assert (folder / "my-codec-with-code" / "modeling_rvq_codec.py").is_file()


def test_command_lines_parse():
    commands = [
        shlex.split(line, comments=True)
        for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
        for line in block.splitlines()
        if line.startswith("speech-tokenizers ")
    ]
    assert len(commands) >= 6
    for _, *words in commands:
        arguments = _join_command(words)
        _build_parser(arguments[0]).parse_args(arguments)


def test_the_checkpoint_it_names_is_here():
    assert f"speech-tokenizers evaluate {DEFAULT_CHECKPOINT}" in README
    assert DEFAULT_CHECKPOINT in list_checkpoints()


def test_nothing_is_left_to_fill_in():
    cards = list((Path(__file__).parents[1] / "model_cards").glob("*/README.md"))
    assert len(cards) == len(list_checkpoints())
    for text in [README, *(path.read_text(encoding="utf-8") for path in cards)]:
        assert "@@" not in text
        assert "More information needed" not in text


@pytest.mark.parametrize("name", list_checkpoints())
def test_a_checkpoint_is_a_complete_repository(name):
    folder = Path(__file__).parents[1] / "model_cards" / name
    for file in ("README.md", "config.json", "preprocessor_config.json", "model.safetensors"):
        assert (folder / file).is_file()
    assert (folder / "model.safetensors").stat().st_size <= 15e6
