# SPDX-License-Identifier: Apache-2.0
"""The README's Python examples run, in order, in a folder with recordings."""

import re
import shlex
from importlib import resources
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import HubertConfig

from speech_tokenizers import (
    DEFAULT_CHECKPOINT,
    DCSpinConfig,
    DCSpinFeatureExtractor,
    DCSpinModel,
    KMeansUnitsConfig,
    KMeansUnitsFeatureExtractor,
    KMeansUnitsModel,
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
    save_tiny_units(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_tiny_units(folder):
    """Untrained units where the commands of the README leave trained ones."""
    torch.manual_seed(0)
    encoder = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    units = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder, layers=[2], codebook_size=10))
    units.set_centroids(torch.randn(1, 10, 16))
    sizes = {"projection_dim": 8, "primary_codebook_size": 10, "auxiliary_codebook_size": None}
    dc_spin = DCSpinModel(DCSpinConfig(encoder_config=encoder, encoder_layer=2, **sizes))
    for model, extractor, name in (
        (units, KMeansUnitsFeatureExtractor, "my-units"),
        (dc_spin, DCSpinFeatureExtractor, "runs/dc-spin-16khz/final"),
    ):
        model.save_pretrained(folder / name)
        extractor(sampling_rate=16000).save_pretrained(folder / name)


def test_python_blocks_run(folder):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)

    assert names["decoded"].audio_values.shape[-1] == 65280  # the longest recording, in whole frames
    assert names["audio"].shape == names["waveform"].shape
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
    assert (folder / "model.safetensors").stat().st_size <= 30e6
