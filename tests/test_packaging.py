# SPDX-License-Identifier: Apache-2.0
"""Wheel and sdist are complete, and an installed wheel works without the source tree."""

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import speech_tokenizers
from speech_tokenizers.coding.loading import released_checkpoints


ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EMBEDDED = sorted(name for name, facts in released_checkpoints().items() if facts["embedded"])
OTHERS = sorted(released_checkpoints().keys() - {*EMBEDDED})


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> dict[str, Path]:
    """The sdist of the source tree, and the wheel that is built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    # Building leaves files behind, so it happens in a copy.
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*cache", ".git", ".venv", "build", "dist", "outputs", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)
    shutil.rmtree(source / "demo", ignore_errors=True)  # what `make demo` wrote; the package's own folder stays
    build(source, "sdist", folder)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    build(unpacked, "wheel", folder)
    (wheel,) = folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel, "unpacked": unpacked}


def build(source: Path, kind: str, output: Path) -> None:
    program = f"import sys, setuptools.build_meta as backend; backend.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(output)], cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def clean_python(distributions, tmp_path_factory) -> Path:
    """Interpreter of a new environment that has the wheel, and borrows everything else from the running one."""
    return make_python(tmp_path_factory.mktemp("clean"), distributions["wheel"])


def make_python(folder: Path, wheel: Path) -> Path:
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    install(python, wheel)
    # A folder named in a .pth file is searched for modules, but its own .pth files, such as this editable install's,
    # do not act.
    (site_packages,) = (environment / "lib").glob("python*/site-packages")
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python: Path, wheel: Path) -> None:
    command = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *command], check=True)


def run(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run([str(python), *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_installed_wheel_imports_from_itself_alone(clean_python, tmp_path):
    names = ["modeling", "processing", "training", "evaluation", "model_cards", "training.recipes"]
    program = "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    packages = ["speech_tokenizers", *(f"speech_tokenizers.{name}" for name in names)]
    files = run(clean_python, "-c", program, *packages, cwd=tmp_path).split()
    assert all(Path(file).is_relative_to(clean_python.parent.parent) for file in files)


def test_an_installed_wheel_loads_a_codec_and_runs_the_command(clean_python, tmp_path, tiny_checkpoint, write_audio):
    program = (
        "import sys, speech_tokenizers\n"
        "model, extractor = speech_tokenizers.load(sys.argv[1])\n"
        "print(type(model).__name__, type(extractor).__name__)\n"
        "print(*speech_tokenizers.list_checkpoints())\n"
        "for name in speech_tokenizers.list_checkpoints(): speech_tokenizers.load(name)\n"
    )
    lines = run(clean_python, "-c", program, str(tiny_checkpoint), cwd=tmp_path).splitlines()
    assert lines[0] == "RVQCodecModel RVQCodecFeatureExtractor"
    assert lines[1].split() == EMBEDDED
    path = write_audio(tmp_path / "a.wav")
    command = ["-m", "speech_tokenizers", "reconstruct", str(path), "-o", "b.wav", "--model", str(tiny_checkpoint)]
    run(clean_python, *command, cwd=tmp_path)
    assert (tmp_path / "b.wav").is_file()
    script = clean_python.parent / "speech-tokenizers"
    assert "encode" in subprocess.run([str(script), "--help"], capture_output=True, text=True, check=True).stdout


def test_the_wheel_holds_the_code_and_its_data_and_nothing_else(distributions):
    names = zipfile.ZipFile(distributions["wheel"]).namelist()
    assert distributions["wheel"].stat().st_size <= 60e6
    for needed in (
        "speech_tokenizers/py.typed",
        "speech_tokenizers/recordings/sense_and_sensibility.flac",
        "speech_tokenizers/recordings/README.md",
        "speech_tokenizers/modeling/modeling_rvq_codec.py",
    ):
        assert needed in names
    recipes = [path.name for path in (ROOT / "training/recipes").glob("*.yaml")]
    assert {f"speech_tokenizers/training/recipes/{name}" for name in recipes} <= set(names)
    assert not [name for name in names if any(f"/{other}/" in name for other in OTHERS)]
    for checkpoint in EMBEDDED:
        files = [path for path in (ROOT / "model_cards" / checkpoint).rglob("*") if path.is_file()]
        expected = {f"speech_tokenizers/{path.relative_to(ROOT)}" for path in files}
        assert expected <= set(names)
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"speech_tokenizers"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_checkpoints_are_small_and_each_is_in_one_distribution():
    released = json.loads((ROOT / "model_cards" / "released.json").read_text())
    folders = {path.parent.name: path.parent for path in (ROOT / "model_cards").glob("*/config.json")}
    assert released.keys() == folders.keys()
    sizes = {
        name: sum(path.stat().st_size for path in folder.rglob("*.safetensors")) for name, folder in folders.items()
    }
    assert max(sizes.values()) <= 15e6
    assert sum(sizes.values()) <= 120e6
    others = tomllib.loads((ROOT / "model_cards" / "pyproject.toml").read_text())
    assert others["project"]["version"] == speech_tokenizers.__version__
    listed = {
        True: PROJECT["tool"]["setuptools"]["package-data"]["speech_tokenizers.model_cards"],
        False: others["tool"]["setuptools"]["package-data"]["speech_tokenizers_checkpoints"],
    }
    for is_embedded, patterns in listed.items():
        names = {name for name, facts in released.items() if facts["embedded"] == is_embedded}
        assert {pattern.removesuffix("/**") for pattern in patterns if pattern.endswith("/**")} == names


def test_what_the_wheel_does_not_embed_comes_with_the_second_distribution(distributions, tmp_path):
    cards = tmp_path / "model_cards"
    shutil.copytree(distributions["unpacked"] / "model_cards", cards)
    build(cards, "wheel", tmp_path)
    (others,) = tmp_path.glob("speech_tokenizers_checkpoints-*.whl")
    held = [name for name in zipfile.ZipFile(others).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[1] for name in held} == {"__init__.py", *OTHERS}

    name = "rvq-codec-causal-16khz"
    assert name in OTHERS
    program = f"import speech_tokenizers\ntry: print(type(speech_tokenizers.load({name!r})[0]).__name__)\n"
    program += "except ValueError as error: print(error)"
    python = make_python(tmp_path, distributions["wheel"])
    told = run(python, "-c", program, cwd=tmp_path)
    assert "`pip install speech-tokenizers-checkpoints` brings it" in told
    listed = f"speech-tokenizers-checkpoints: {', '.join(OTHERS)}"
    assert listed in run(python, "-m", "speech_tokenizers", "info", cwd=tmp_path)
    install(python, others)
    assert run(python, "-c", program, cwd=tmp_path).split() == ["RVQCodecModel"]
    assert f"  {name}\n" in run(python, "-m", "speech_tokenizers", "info", cwd=tmp_path)


def test_the_sdist_can_be_tested(distributions):
    unpacked = distributions["unpacked"]
    for needed in (
        "Makefile",
        "constraints.txt",
        "LICENSE",
        "README.md",
        "docs/results.json",
        "docs/fill_results.py",
        "docs/results.md",
        "tests/test_packaging.py",
        "tests/conftest.py",
    ):
        assert (unpacked / needed).is_file()


def test_the_version_is_the_installed_one():
    assert importlib.metadata.version("speech-tokenizers") == speech_tokenizers.__version__


def test_torchaudio_is_no_dependency():
    requirements = PROJECT["project"]["dependencies"] + sum(PROJECT["project"]["optional-dependencies"].values(), [])
    assert not [requirement for requirement in requirements if "torchaudio" in requirement]


def test_no_file_imports_torchaudio_or_a_folder_by_its_bare_name():
    # ruff's ban cannot see this in the folders themselves, where it takes `from .sibling import` for the bare name.
    banned = {"torchaudio", "modeling", "processing", "training", "evaluation", "model_cards"}
    folders = ("src", "modeling", "processing", "training", "evaluation", "model_cards", "docs", "tests")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            assert not banned & {name.split(".")[0] for name in names}, f"{path}, line {node.lineno}"


def test_the_ci_script_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
