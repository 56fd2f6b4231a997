# SPDX-License-Identifier: Apache-2.0
"""The workflows of the repository call what exists, and a release is checked before it is published."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path: Path) -> dict:
    # YAML 1.1 takes the key `on` for a truth value.
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in content.items()}


def steps_of(path: Path) -> list[dict]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def module(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_there_are_workflows_for_tests_and_releases():
    assert [path.name for path in WORKFLOWS] == ["release.yml", "tests.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_calls_exists(path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = 0
    for step in steps_of(path):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@(v\d+|release/v\d+)", step["uses"])
        for target in re.findall(r"\bmake ([\w-]+)", step.get("run", "")):
            assert target in targets
            called += 1
        for file in re.findall(r"(?<![\w/])\.ci/[\w.-]+", step.get("run", "")):
            assert (ROOT / file).is_file()
            called += 1
    assert called


def test_the_tests_run_on_each_python_that_the_package_names():
    named = {entry.rpartition(" ")[2] for entry in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", entry)}
    workflow = read(ROOT / ".github/workflows/tests.yml")
    assert set(workflow["jobs"]["tests"]["strategy"]["matrix"]["python-version"]) == named
    assert workflow["permissions"] == {"contents": "read"}


def test_a_release_is_tested_and_checked_and_published_without_a_token():
    path = ROOT / ".github/workflows/release.yml"
    workflow = read(path)
    runs = [step["run"] for step in workflow["jobs"]["build"]["steps"] if "run" in step]
    order = [
        next(at for at, run in enumerate(runs) if words in run) for words in ("make test", "make dist", "check_dist")
    ]
    assert order == sorted(order)
    publish = workflow["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in path.read_text(encoding="utf-8")
    made = {step["with"]["name"] for step in workflow["jobs"]["build"]["steps"] if "upload" in step.get("uses", "")}
    assert made == set(publish["strategy"]["matrix"]["distribution"])


def test_the_check_of_a_release_tells_what_is_wrong(tmp_path):
    check = module("check_dist")
    version, others = check.versions()
    assert any("is missing; run `make dist`" in fault for fault in check.faults(tmp_path / "nowhere"))
    names = [
        f"speech_tokenizers-{version}-py3-none-any.whl",
        f"speech_tokenizers-{version}.tar.gz",
        f"speech_tokenizers_checkpoints-{others}-py3-none-any.whl",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert check.faults(tmp_path, f"v{version}") == []
    assert check.main([str(tmp_path)]) == 0
    assert "the tag is v9.9" in check.faults(tmp_path, "v9.9")[0]
    with (tmp_path / names[0]).open("wb") as file:
        file.truncate(60_000_001)  # a file of holes
    (tmp_path / "speech_tokenizers-0.0.1.tar.gz").write_bytes(b"x")
    assert check.faults(tmp_path) == [
        "speech_tokenizers-0.0.1.tar.gz is of another version; remove it",
        f"{names[0]} has 60.0 MB, where 60 are the limit",
    ]
    assert check.main([str(tmp_path)]) == 1


def test_the_oldest_versions_are_those_of_the_project():
    oldest = module("minimum_versions").oldest(PROJECT["dependencies"])
    assert len(oldest) == len(PROJECT["dependencies"])
    assert "transformers==5.17" in oldest


def test_the_version_is_the_same_everywhere():
    version, _ = module("check_dist").versions()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
