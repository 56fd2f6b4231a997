# SPDX-License-Identifier: Apache-2.0
"""`check-repo` finds each fault that is put into a sound repository, and none in it before."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speech_tokenizers.cli import main
from speech_tokenizers.coding.loading import load
from speech_tokenizers.modeling.hub_export import save_pretrained_with_code
from speech_tokenizers.sharing.findings import Finding
from speech_tokenizers.sharing.repository_check import check_repository
from speech_tokenizers.sharing.repository_files import FolderFiles, is_safe_name


@pytest.fixture(scope="module")
def sound_repository(tiny_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "tiny"
    save_pretrained_with_code(*load(tiny_checkpoint), folder, licence="mit", repo_id="me/tiny")
    return folder


@pytest.fixture
def repository(sound_repository, tmp_path) -> Path:
    return Path(shutil.copytree(sound_repository, tmp_path / "tiny"))


def findings_of(folder: Path) -> list[Finding]:
    return check_repository(FolderFiles(folder, "me/tiny"))


def change(folder: Path, name: str, **fields) -> None:
    """Change fields of a JSON file; `None` removes one."""
    content = {**json.loads((folder / name).read_text()), **fields}
    kept = {field: value for field, value in content.items() if value is not None}
    (folder / name).write_text(json.dumps(kept))


def card(folder: Path, add: str = "", remove: str = "") -> None:
    text = (folder / "README.md").read_text()
    assert remove in text
    (folder / "README.md").write_text(text.replace(remove, "") + add)


def weights(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def put(folder: Path, name: str, content: bytes = b"x") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def drop_first(tensors):
    del tensors[min(tensors)]


def widen_first(tensors):
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 2)
    tensors[name] = torch.zeros(tensors[name].shape[0] + 1, tensors[name].shape[1])


TOKEN = b"hf_" + b"aB3" * 12
FAULTS = {
    "no config": (lambda f: (f / "config.json").unlink(), "error", "config.json", "is missing"),
    "no JSON": (lambda f: put(f, "config.json", b"{"), "error", "config.json", "cannot be read as JSON"),
    "a list": (lambda f: put(f, "config.json", b"[]"), "error", "config.json", "must hold named fields"),
    "large config": (
        lambda f: change(f, "config.json", more="x" * 1_100_000),
        "error",
        "config.json",
        "has 1.1 MB",
    ),
    "unknown type": (
        lambda f: change(f, "config.json", model_type="mystery", auto_map=None),
        "error",
        "config.json",
        "'mystery', which neither this package nor transformers has",
    ),
    "no type": (lambda f: change(f, "config.json", model_type=None), "error", "config.json", "names no model"),
    "other sizes": (lambda f: change(f, "config.json", hidden_size=24), "error", "model.safetensors", "has shape"),
    "impossible sizes": (
        lambda f: change(f, "config.json", hidden_size="many"),
        "error",
        "config.json",
        "describes no model",
    ),
    "absent code": (
        lambda f: (f / "modeling_rvq_codec.py").unlink(),
        "error",
        "config.json",
        "names modeling_rvq_codec.py as code of AutoModel, which is not there",
    ),
    "absent sibling": (
        lambda f: (f / "codec_layers.py").unlink(),
        "error",
        "modeling_rvq_codec.py",
        "imports codec_layers.py",
    ),
    "absent class": (
        lambda f: change(f, "config.json", auto_map={"AutoModel": "modeling_rvq_codec.Other"}),
        "error",
        "config.json",
        "has no Other",
    ),
    "code of others": (
        lambda f: change(f, "config.json", auto_map={"AutoModel": "who/ever--modeling_rvq_codec.RVQCodecModel"}),
        "error",
        "config.json",
        "code of another repository, who/ever",
    ),
    "this package": (
        lambda f: put(f, "codec_layers.py", b"from speech_tokenizers import load\n"),
        "error",
        "codec_layers.py",
        "imports speech_tokenizers",
    ),
    "parent folder": (
        lambda f: put(f, "codec_layers.py", b"from ..other import Name\n"),
        "error",
        "codec_layers.py",
        "parent folder",
    ),
    "broken code": (
        lambda f: put(f, "modeling_rvq_codec.py", b"class :"),
        "error",
        "modeling_rvq_codec.py",
        "no code",
    ),
    "other package": (
        lambda f: put(f, "codec_layers.py", b"import fairseq\n"),
        "warning",
        "codec_layers.py",
        "imports fairseq",
    ),
    "unused code": (lambda f: put(f, "more.py", b"A = 1\n"), "warning", "more.py", "no `auto_map` leads to"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "error", "model.safetensors", "is missing"),
    "cut weights": (
        lambda f: put(f, "model.safetensors", (f / "model.safetensors").read_bytes()[:-9]),
        "error",
        "model.safetensors",
        "is no complete safetensors file",
    ),
    "a pointer": (
        lambda f: put(f, "model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "error",
        "model.safetensors",
        "is a pointer of Git LFS",
    ),
    "lost tensor": (lambda f: weights(f, drop_first), "error", "model.safetensors", "lacks 1 of"),
    "foreign tensor": (
        lambda f: weights(f, lambda tensors: tensors.update(more=torch.zeros(1))),
        "error",
        "model.safetensors",
        "such as more",
    ),
    "other shape": (lambda f: weights(f, widen_first), "error", "model.safetensors", "has shape"),
    "pickle": (lambda f: put(f, "pytorch_model.bin"), "error", "pytorch_model.bin", "is a pickle by its name"),
    "hidden pickle": (
        lambda f: put(f, "data.dat", b"\x80\x04\x95"),
        "error",
        "data.dat",
        "is a pickle by its content",
    ),
    "no preprocessor": (
        lambda f: (f / "preprocessor_config.json").unlink(),
        "error",
        "preprocessor_config.json",
        "is missing",
    ),
    "other rate": (
        lambda f: change(f, "preprocessor_config.json", sampling_rate=24000),
        "error",
        "preprocessor_config.json",
        "disagrees about the sampling rate: 16000 Hz in config.json, 24000 Hz in preprocessor_config.json",
    ),
    "no card": (lambda f: (f / "README.md").unlink(), "error", "README.md", "is missing"),
    "empty card": (
        lambda f: put(f, "README.md", b"---\nlicense: mit\n---\nHi.\n"),
        "error",
        "README.md",
        "says nothing",
    ),
    "no licence": (lambda f: card(f, remove="license: mit\n"), "warning", "README.md", "states no licence"),
    "no library": (
        lambda f: card(f, remove="library_name: transformers\n"),
        "warning",
        "README.md",
        "by which library",
    ),
    "no pipeline": (
        lambda f: card(f, remove="pipeline_tag: audio-to-audio\n"),
        "warning",
        "README.md",
        "has no pipeline tag",
    ),
    "no header": (lambda f: put(f, "README.md", b"A codec. " * 20), "warning", "README.md", "has no metadata"),
    "unfilled": (lambda f: card(f, "\n[More Information Needed]\n"), "warning", "README.md", "nobody filled"),
    "number": (lambda f: card(f, "\n| PESQ | X.XX |\n"), "warning", "README.md", "never put in: X.XX"),
    "no number": (lambda f: card(f, "\n| PESQ | nan |\n"), "warning", "README.md", "never put in: nan"),
    "to do": (lambda f: card(f, "\nTODO: say more\n"), "warning", "README.md", "a note to do something"),
    "placeholder": (lambda f: card(f, "\nLoad USER/name.\n"), "warning", "README.md", "USER/name"),
    "picture": (
        lambda f: card(f, "\n![A](loss.png)\n"),
        "error",
        "README.md",
        "shows or plays loss.png, which is not",
    ),
    "sound": (
        lambda f: card(f, '\n<audio controls src="samples/a.wav"></audio>\n'),
        "error",
        "README.md",
        "shows or plays samples/a.wav",
    ),
    "own address": (
        lambda f: card(f, '\n<img src="https://huggingface.co/me/tiny/resolve/main/b.png">\n'),
        "error",
        "README.md",
        "shows or plays b.png",
    ),
    "link out": (lambda f: card(f, "\n[docs](../docs/codecs.md)\n"), "warning", "README.md", "outside of the"),
    "token": (
        lambda f: put(f, "notes.txt", b"key " + TOKEN),
        "error",
        "notes.txt",
        "holds an access token of the Hub",
    ),
    "secret file": (lambda f: put(f, ".env", b"A=1"), "error", ".env", "is a file of secrets"),
    "home": (
        lambda f: put(f, "recipe.yaml", b"train: /home/me/speech\n"),
        "warning",
        "recipe.yaml",
        "/home/me/speech",
    ),
    "optimizer": (lambda f: put(f, "optimizer.pt"), "warning", "optimizer.pt", "the state of a training"),
    "training state": (lambda f: put(f, "trainer_state.json", b"{}"), "warning", "trainer_state.json", "state of"),
    "arguments": (lambda f: put(f, "training_args.bin"), "warning", "training_args.bin", "as a pickle"),
    "checkpoint": (
        lambda f: put(f, "checkpoint-3/a.json", b"{}"),
        "warning",
        "checkpoint-3/a.json",
        "a checkpoint of",
    ),
    "temporary": (lambda f: put(f, "a.tmp"), "warning", "a.tmp", "a temporary file"),
    "compiled": (lambda f: put(f, "__pycache__/a.pyc"), "warning", "__pycache__/a.pyc", "compiled code"),
    "nothing in it": (lambda f: put(f, "more.txt", b""), "warning", "more.txt", "is empty"),
    "capitals": (lambda f: put(f, "readme.md"), "warning", None, "in capitals alone"),
    "kernel": (
        lambda f: change(f, "config.json", attn_implementation="who/ever"),
        "error",
        "config.json",
        "who/ever",
    ),
}


def test_a_repository_that_push_would_make_has_no_fault(sound_repository):
    assert findings_of(sound_repository) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(repository, fault):
    make, level, file, what = FAULTS[fault]
    make(repository)
    found = findings_of(repository)
    assert [
        finding
        for finding in found
        if finding.level == level and finding.file == (file or finding.file) and what in finding.what
    ], "\n".join(map(str, found))
    assert all(finding.advice for finding in found)


@pytest.mark.parametrize(
    "name", ["..", "../a", "a/../b", "/a", "a//b", "./a", "C:/a", "a\\b", "a\nb", "a\0", "", "a" * 256, "a/"]
)
def test_names_that_lead_elsewhere_are_not_safe(name):
    assert not is_safe_name(name)


@pytest.mark.parametrize("name", ["a", "a/b.c", ".gitattributes", "a..b", "größe.wav", "a" * 255])
def test_names_of_files_are_safe(name):
    assert is_safe_name(name)


def test_the_command_prints_its_findings_and_its_code_tells_of_errors(repository, capsys):
    assert main(["check-repo", str(repository)]) == 0
    lines = capsys.readouterr().out.splitlines()
    count = len(list(repository.iterdir()))
    assert lines[0].startswith(f"{repository}: {count} files, ")
    assert lines[-1] == "0 errors, 0 warnings"
    put(repository, "x.pkl")
    put(repository, "\x1b[31mred.tmp")
    assert main(["check-repo", str(repository)]) == 1
    out = capsys.readouterr().out
    assert "error: x.pkl: is a pickle" in out
    assert "\x1b" not in out  # a name that would colour the terminal
    assert out.splitlines()[-1] == "2 errors, 0 warnings"
    assert main(["check-repo", str(repository), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [finding["level"] for finding in report["findings"]] == ["error", "error"]
    assert report["num_files"] == count + 2


def test_a_stranger_loads_it_if_the_user_says_so(repository, capsys):
    assert main(["check-repo", str(repository), "--load"]) == 0
    out = capsys.readouterr().out
    assert "their code was run" in out
    told = "loaded as RVQCodecModel; a second gives audio_codes of shape (1, 4, 400), and decodes to as many samples"
    assert told in out
    code = (repository / "modeling_rvq_codec.py").read_text()
    (repository / "modeling_rvq_codec.py").write_text(f"{code}\nraise RuntimeError('not for you')\n")
    assert main(["check-repo", str(repository)]) == 0  # by reading alone nobody can know
    assert main(["check-repo", str(repository), "--load"]) == 1
    assert "cannot be loaded or used by a stranger (RuntimeError: not for you)" in capsys.readouterr().out
    put(repository, "x.pkl")
    assert main(["check-repo", str(repository), "--load"]) == 1
    assert "it is not loaded, since there are errors" in capsys.readouterr().err


def test_what_is_no_repository_is_refused(tmp_path, capsys):
    assert main(["check-repo", str(tmp_path / "nowhere")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["check-repo", str(tmp_path / "empty")]) == 1
    out = capsys.readouterr().out
    for name in ("config.json", "model.safetensors", "README.md"):
        assert f"error: {name}: is missing" in out
    assert main(["check-repo", str(tmp_path / "empty"), "--revision", "main"]) == 2
