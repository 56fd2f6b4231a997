# SPDX-License-Identifier: Apache-2.0
from importlib import metadata

import pytest
import yaml

from speech_tokenizers import __version__
from speech_tokenizers.app import models, page
from speech_tokenizers.cli import main


def header(folder):
    _, block, rest = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert rest.strip().startswith("# ")
    return yaml.safe_load(block)


def test_a_space_has_all_that_the_hub_asks_for(tmp_path, capsys):
    assert main(["app", "--write-space", str(tmp_path / "space")]) == 0
    folder = tmp_path / "space"
    written = [str(folder / name) for name in ("app.py", "requirements.txt", "README.md")]
    assert capsys.readouterr().out.splitlines() == written
    fields = header(folder)
    assert fields["sdk"] == "gradio"
    assert fields["sdk_version"] == metadata.version("gradio")
    assert fields["app_file"] == "app.py"
    assert fields["python_version"] == "3.11"
    assert {fields["colorFrom"], fields["colorTo"]} <= {
        *("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    }
    assert len(fields["short_description"]) <= 60
    assert "models" not in fields
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        *(f"speech-tokenizers[app]=={__version__}", "speech-tokenizers-checkpoints")
    ]


@pytest.mark.parametrize(
    ("variables", "host", "port"),
    [
        ({}, "127.0.0.1", 7860),
        ({"SPACE_ID": "me/space"}, "0.0.0.0", 7860),
        ({"GRADIO_SERVER_NAME": "::1", "GRADIO_SERVER_PORT": "8001"}, "::1", 8001),
    ],
)
def test_its_program_serves_the_models_that_were_named(tmp_path, monkeypatch, variables, host, port):
    for name in ("SPACE_ID", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    named = ["rvq-codec-16khz-4kbps", "me/my-codec"]
    options = [word for name in named for word in ("--model", name)]
    assert main(["app", "--write-space", str(tmp_path), *options]) == 0
    assert header(tmp_path)["models"] == ["me/my-codec"]
    calls = []
    monkeypatch.setattr(models, "load_models", lambda names: calls.append(names) or "shelf")
    monkeypatch.setattr(page, "serve", lambda *arguments: calls.append(arguments))
    exec(compile((tmp_path / "app.py").read_text(), "app.py", "exec"), {})
    assert calls == [named, ("shelf", host, port)]


def test_a_folder_of_this_machine_and_files_that_are_there_are_refused(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    assert main(["app", "--write-space", str(tmp_path / "space"), "--model", str(tmp_path / "model")]) == 2
    assert "push the model to the Hub" in capsys.readouterr().err
    assert not (tmp_path / "space").exists()
    (tmp_path / "README.md").write_text("mine")
    assert main(["app", "--write-space", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (tmp_path / "app.py").exists()
