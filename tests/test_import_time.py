# SPDX-License-Identifier: Apache-2.0
"""Importing the package and asking the command for help are quick, and nothing is lost by it."""

import json
import subprocess
import sys

import pytest

import speech_tokenizers


HEAVY = ["torch", "transformers", "datasets", "soundfile", "scipy", "matplotlib", "numpy"]


def run_python(program: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True
    ).stdout


def test_import_takes_less_than_half_a_second_on_top_of_torch():
    program = (
        "import torch, time; start = time.perf_counter(); import speech_tokenizers; print(time.perf_counter() - start)"
    )
    assert min(float(run_python(program)) for _ in range(2)) < 0.5


def test_import_loads_nothing_heavy():
    loaded = json.loads(run_python("import json, sys, speech_tokenizers; print(json.dumps(list(sys.modules)))"))
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["encode", "--help"], ["info", "--help"], ["convert", "--help"]]
)
def test_help_loads_nothing_heavy(arguments):
    program = (
        "import sys, json\n"
        "from speech_tokenizers.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print('\\n' + json.dumps(list(sys.modules)))"
    )
    loaded = json.loads(run_python(program, *arguments).splitlines()[-1])
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize(
    "command",
    ["train", "ablate", "evaluate", "evaluate units", "evaluate speech-lm", "estimate", "benchmark", "demo"],
)
def test_help_of_the_other_commands_loads_neither_torch_nor_transformers(command):
    program = (
        "import sys, json\n"
        "from speech_tokenizers.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print('\\n' + json.dumps(list(sys.modules)))"
    )
    loaded = json.loads(run_python(program, *command.split(), "--help").splitlines()[-1])
    assert not {"torch", "transformers"} & set(loaded)


@pytest.mark.parametrize("first", ["speech_tokenizers", "transformers"])
def test_the_auto_classes_know_the_codec_in_either_order_of_import(first, tiny_checkpoint):
    program = (
        "import importlib, sys\n"
        "if sys.argv[2] == 'transformers':\n"
        "    from transformers import AutoConfig, AutoModel, AutoModelForAudioTokenization, AutoFeatureExtractor\n"
        "import speech_tokenizers\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForAudioTokenization, AutoFeatureExtractor\n"
        "for auto in (AutoFeatureExtractor, AutoModelForAudioTokenization, AutoModel, AutoConfig):\n"
        "    print(type(auto.from_pretrained(sys.argv[1])).__name__)\n"
        "config = speech_tokenizers.RVQCodecConfig.from_pretrained(sys.argv[1])\n"
        "assert type(AutoModel.from_config(config)) is speech_tokenizers.RVQCodecModel\n"
        "assert type(AutoModel.from_pretrained(sys.argv[1])) is speech_tokenizers.RVQCodecModel\n"
    )
    names = run_python(program, str(tiny_checkpoint), first).split()
    assert names == ["RVQCodecFeatureExtractor", "RVQCodecModel", "RVQCodecModel", "RVQCodecConfig"]


@pytest.mark.parametrize(
    "name", ["EncodecConfig", "HubertConfig", "HubertModel", "WhisperFeatureExtractor", "Trainer"]
)
def test_every_part_of_transformers_can_be_imported_first(name):
    # These import the auto modules while they are being imported themselves, by documentation's decorators.
    program = (
        "import speech_tokenizers, transformers\n"
        f"print(transformers.{name}.__name__)\n"
        "print(type(transformers.AutoConfig.for_model('speech_tokenizers_hubert_masked_prediction')).__name__)"
    )
    assert run_python(program).split() == [name, "HubertMaskedPredictionConfig"]


@pytest.mark.parametrize("name", speech_tokenizers.__all__)
def test_every_public_name_resolves(name):
    assert getattr(speech_tokenizers, name) is not None
    assert name in dir(speech_tokenizers)


def test_type_checkers_see_the_names_that_are_imported_on_use():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(speech_tokenizers.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: f"{node.module}" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    used = {name: f"speech_tokenizers.{module}" for name, module in speech_tokenizers._MODULES.items()}
    assert seen == used


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Codec'"):
        speech_tokenizers.Codec  # noqa: B018
