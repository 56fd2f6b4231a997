# SPDX-License-Identifier: Apache-2.0
"""Repositories that mean harm, on the Hub and in folders: they run nothing, write nothing outside, and are told of."""

import gzip
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from helpers.fake_hub import FakeHub
from helpers.online import online
from helpers.tiny_speaking_lm import tiny_speech_lm


# Loads each repository by each way that there is. Whatever asks "run the custom code? [y/N]" would hear "y".
VICTIM = """
    import contextlib
    import io
    import json
    import sys
    from speech_tokenizers import load, load_speech_lm
    from speech_tokenizers.cli import main

    def command(*words):
        def call(name):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                code = main([*words, name])
            if code:
                raise ValueError(out.getvalue())
        return call

    ways = {"load": load, "load_speech_lm": load_speech_lm, "info": command("info"), "check": command("check-repo")}
    told_to = open(sys.argv[1], "w")
    for name in sys.argv[2:]:
        for way, call in ways.items():
            try:
                call(name)
                told = "loaded"
            except (ValueError, OSError) as error:
                told = str(error)
            except BaseException as error:
                told = f"UNFORESEEN {type(error).__name__}: {error}"
            print(json.dumps([name, way, told]), file=told_to, flush=True)
"""
EVIL = b"""
import os
from pathlib import Path
from transformers import PreTrainedConfig, PreTrainedModel
Path(os.environ["MARKER"]).write_text("ran")
class Evil(PreTrainedConfig):
    model_type = "evil"
"""


class Bomb:
    """A pickle that leaves a mark when it is read."""

    def __reduce__(self):
        return exec, ("import os; open(os.environ['MARKER'], 'w').write('ran')",)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def changed(files: dict[str, bytes], name: str, **fields) -> dict[str, bytes]:
    """The files with other fields in one of them; `None` removes a field."""
    merged = {**json.loads(files[name]), **fields}
    merged = {field: value for field, value in merged.items() if value is not None}
    return {**files, name: json.dumps(merged).encode()}


def hostile(codec: dict[str, bytes], voice: dict[str, bytes]) -> dict[str, tuple[dict[str, bytes], dict[str, str]]]:
    """Files of each repository, and what must be said by some of the ways to load it; "loaded" if it does no harm."""
    bomb = pickle.dumps(Bomb())
    without = {name: content for name, content in codec.items() if name != "model.safetensors"}
    deep = b'{"model_type": ' + b'{"a": ' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    large = b'{"model_type": "speech_tokenizers_rvq_codec", "a": "' + b"x" * 50_000_000 + b'"}'
    elsewhere = {"AutoConfig": "user/other--evil.Evil", "AutoModel": "user/other--evil.Evil"}
    own = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    bomb_archive = gzip.compress(b"\0" * 300_000_000, 1)
    index = {"metadata": {}, "weight_map": {"a": "../../../escaped.safetensors"}}
    text_config = json.loads(voice["config.json"])["text_config"]
    return {
        "dots": (
            {
                **codec,
                "../escaped.py": EVIL,
                "a/../../escaped.txt": b"x",
                "/tmp/absolute": b"x",
                "..\\\\escaped": b"x",
            },
            {"load": "loaded", "check": "leads out of its folder"},
        ),
        "shards": (
            {**without, "model.safetensors.index.json": json.dumps(index).encode()},
            {"load": "", "info": "", "check": "leads out of the folder"},
        ),
        "pickle": (
            {**without, "pytorch_model.bin": bomb},
            {"load": "safetensors", "info": "safetensors", "check": "is a pickle"},
        ),
        "disguised": (
            {**codec, "model.safetensors": bomb},
            {"load": "safetensors", "info": "safetensors", "check": "is no"},
        ),
        "extra-pickle": ({**codec, "training_args.bin": bomb, "x.pkl": bomb}, {"load": "loaded", "check": "a pickle"}),
        "adapter": (
            {**codec, "adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.bin": bomb},
            {"load": "adapter", "check": "a pickle"},
        ),
        "voice-adapter": (
            {**voice, "adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.bin": bomb},
            {"check": "a pickle"},
        ),
        "borrowed": (
            {**voice, "adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "user/other"}'},
            {"load_speech_lm": "adapter"},
        ),
        "large": (
            {**codec, "config.json": large},
            {"load": "MB", "load_speech_lm": "MB", "info": "MB", "check": "50.0 MB"},
        ),
        "large-processor": ({**codec, "preprocessor_config.json": large}, {"load": "MB", "check": "50.0 MB"}),
        "deep": (
            {**codec, "config.json": deep},
            dict.fromkeys(("load", "load_speech_lm", "info", "check"), "nested too deeply"),
        ),
        "deep-processor": (
            {**codec, "preprocessor_config.json": deep},
            {"load": "nested too deeply", "check": "nested too deeply"},
        ),
        "deep-voice": (
            {**voice, "processor_config.json": deep},
            {"load_speech_lm": "nested too deeply", "check": "nested too deeply"},
        ),
        "elsewhere": (
            changed(codec, "config.json", model_type="evil", architectures=["Evil"], auto_map=elsewhere),
            {"load": "user/other", "load_speech_lm": "user/other", "info": "user/other", "check": "user/other"},
        ),
        "elsewhere-known": (
            changed(codec, "config.json", auto_map=elsewhere),
            {"load": "loaded", "check": "code of another repository"},
        ),
        "own-code": (
            {**changed(codec, "config.json", model_type="evil", auto_map=own), "evil.py": EVIL},
            {"load": "trust_remote_code=True", "info": "trust_remote_code=True"},
        ),
        "extractor": (
            {
                **changed(
                    codec,
                    "preprocessor_config.json",
                    feature_extractor_type="Evil",
                    auto_map={"AutoFeatureExtractor": "user/other--evil.Evil"},
                ),
                "evil.py": EVIL,
            },
            {"check": "code of another repository"},
        ),
        "inner-code": (
            changed(
                voice,
                "config.json",
                text_config={**text_config, "auto_map": {"AutoModelForCausalLM": "user/other--evil.Evil"}},
            ),
            {"load_speech_lm": "text_config", "check": "code of another repository"},
        ),
        "text": (
            changed(
                voice,
                "tokenizer_config.json",
                tokenizer_class="Evil",
                auto_map={"AutoTokenizer": ["user/other--evil.Evil", "user/other--evil.Evil"]},
            ),
            {"check": "code of another repository"},
        ),
        "kernel": (
            changed(codec, "config.json", attn_implementation="user/other"),
            {"load": "user/other", "info": "user/other", "check": "user/other"},
        ),
        "weights-elsewhere": (
            changed(codec, "config.json", transformers_weights="../../../escaped.safetensors"),
            {"load": "transformers_weights", "check": "transformers_weights"},
        ),
        "lexicon": ({**voice, "pronunciations.txt.gz": bomb_archive}, {"load_speech_lm": "MB"}),
    }


@pytest.fixture(scope="module")
def cases(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("voice")
    voice, processor = tiny_speech_lm(text_alignment="none")
    voice.save_pretrained(folder)
    processor.save_pretrained(folder)
    return hostile(contents(tiny_checkpoint), contents(folder))


def visit(hub: FakeHub, root: Path, names: list[str]) -> dict[tuple[str, str], str]:
    """What each way to load each repository said; nothing is left beside the caches, and nothing was run."""
    home = root / "deep" / "deeper" / "home"
    home.mkdir(parents=True)
    before = {path for path in root.rglob("*") if home not in path.parents}
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(VICTIM), str(home / "told.jsonl"), *names],
        cwd=home,
        env=online(hub, home, MARKER=str(root / "marker"), HF_HUB_DISABLE_TELEMETRY="1"),
        input="y\n" * 1000,
        capture_output=True,
        text=True,
        timeout=500,
    )
    lines = map(json.loads, (home / "told.jsonl").read_text().splitlines())
    told = {(name, way): text for name, way, text in lines}
    assert len(told) == 4 * len(names), process.stderr
    assert not (root / "marker").exists(), "code was run"
    assert "custom code? [y/N]" not in process.stdout
    assert {path for path in root.rglob("*") if home not in path.parents} == before
    assert {path.name for path in home.iterdir()} <= {"cache", "modules", "told.jsonl"}
    assert not list(home.rglob("escaped*"))
    assert not list((home / "modules").rglob("evil.py"))  # from where transformers runs code
    return told


def test_repositories_of_the_hub_run_nothing_and_are_told_of(cases, tmp_path):
    with FakeHub() as hub:
        for name, (files, _) in cases.items():
            hub.repositories[f"user/{name}"] = {"main": [files]}
        hub.repositories["user/other"] = {"main": [{"evil.py": EVIL}]}
        told = visit(hub, tmp_path, [f"user/{name}" for name in cases])
        assert not [path for _, path in hub.requests if "user/other" in path]
        assert not [path for _, path in hub.requests if ".bin" in path and path.startswith("/user/pickle/resolve")]
    compare(cases, told, "user/")


def test_folders_run_nothing_and_are_told_of(cases, tmp_path):
    with FakeHub() as hub:
        for name, (files, _) in cases.items():
            folder = tmp_path / "folders" / name
            folder.mkdir(parents=True)
            for file, content in files.items():
                if "/" not in file and "\\" not in file:
                    (folder / file).write_bytes(content)
        names = [str(tmp_path / "folders" / name) for name in cases if name != "dots"]
        told = visit(hub, tmp_path, names)
        assert not [path for _, path in hub.requests if "user/other" in path]
    compare({name: case for name, case in cases.items() if name != "dots"}, told, f"{tmp_path}/folders/")


def compare(cases, told, prefix):
    wrong = {}
    for name, (_, expected) in cases.items():
        for way in ("load", "load_speech_lm", "info", "check"):
            text = told[prefix + name, way]
            if "UNFORESEEN" in text or expected.get(way, "") not in text:
                wrong[name, way] = text[-600:]
    assert not wrong, "\n".join(f"{case}: {text}" for case, text in wrong.items())


def test_links_out_of_a_folder_are_told_of_and_not_read(tiny_checkpoint, tmp_path):
    from speech_tokenizers.sharing.repository_check import check_repository
    from speech_tokenizers.sharing.repository_files import FolderFiles

    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "README.md").write_text("hf_" + "a" * 34)
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in contents(tiny_checkpoint).items():
        (folder / name).write_bytes(content)
    os.symlink(tmp_path / "secret" / "README.md", folder / "README.md")
    os.symlink(tmp_path / "secret", folder / "more")
    os.symlink(folder, folder / "circle")
    os.symlink(tmp_path / "nothing", folder / "nothing")
    os.mkfifo(folder / "pipe")
    found = [f"{finding.file}: {finding.what}" for finding in check_repository(FolderFiles(folder))]
    for name, where in (("README.md", "out of the folder"), ("more", "out of the folder"), ("nothing", "nowhere")):
        assert f"{name}: is a symbolic link that leads {where}" in found
    assert "pipe: is no regular file" in found
    assert not any("token" in line for line in found)
