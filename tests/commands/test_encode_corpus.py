# SPDX-License-Identifier: Apache-2.0
"""`encode-corpus` and `verify-corpus`: many processes, a cluster that is played, and what users are told."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.processes import start
from speech_tokenizers.coding.corpus.plan import CorpusPlan
from speech_tokenizers.processing.speech_rows import read_speech_rows, set_aside_path


@pytest.fixture
def corpus(tmp_path):
    """Folder of ten recordings, one of which is no audio."""
    folder = tmp_path / "speech"
    folder.mkdir()
    for number in range(10):
        samples = np.random.default_rng(number).normal(0, 0.1, 3000 + 700 * (number * 5 % 8))
        soundfile.write(folder / f"{number}.wav", samples, 16000)
    (folder / "4.wav").write_bytes(b"no audio")
    return folder


@pytest.fixture
def words_of(corpus, tiny_checkpoint):
    """Function: arguments of the command that encodes `corpus` into a folder, in shards of two recordings."""

    def words(output, *more):
        fixed = ["encode-corpus", corpus, "-o", output, "--model", tiny_checkpoint, "--device", "cpu"]
        return [*map(str, [*fixed, "--rows-per-shard", 2, *more])]

    return words


def contents(folder):
    """All files of the folder, hidden ones too, and the one beside it."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {"aside": set_aside_path(folder).read_bytes()}


def test_a_corpus_is_encoded_and_verified(run, words_of, tmp_path):
    code, errors = run(*words_of(tmp_path / "rows"))
    assert code == 1  # for the recording that was set aside
    text = "\n".join(errors)
    assert "9 rows of 0.001 hours in 5 shards" in text
    assert "hours of speech a second" in text
    assert "bits on the disk" in text
    assert f"1 recording was set aside; see {set_aside_path(tmp_path / 'rows')}" in text
    code, errors = run(*words_of(tmp_path / "rows"))
    assert "shards were made now" not in "\n".join(errors)
    code, errors = run("verify-corpus", str(tmp_path / "rows"), "--device", "cpu")
    assert code == 0
    assert "of 9 recordings that were encoded again, 9 agree, 100.0000 % of frames" in errors[-1]
    assert errors[-1].endswith("1 more were set aside, and would be so again")


def test_verification_fails_where_the_rows_are_not_those_of_the_recordings(run, words_of, corpus, tmp_path):
    run(*words_of(tmp_path / "rows"))
    soundfile.write(corpus / "7.wav", np.random.default_rng(99).normal(0, 0.1, 4000), 16000)
    code, errors = run("verify-corpus", str(tmp_path / "rows"), "--device", "cpu")
    assert code == 1
    assert any(line.startswith("failed: 7.wav:") for line in errors)


@pytest.mark.parametrize("num_workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_give_what_one_process_gives(run, words_of, tmp_path, num_workers):
    run(*words_of(tmp_path / "rows"))
    process = start("-m", "speech_tokenizers", *words_of(tmp_path / "more", "--workers", num_workers))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert contents(tmp_path / "more") == contents(tmp_path / "rows")
    # datatrove's own words stay in its files.
    assert "Launching pipeline" not in output


def is_worker(pid):
    """Whether a process is one of a pool, and not the one that looks after these."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    return False


def test_a_worker_that_is_killed_is_told_and_the_rest_goes_on_later(run, words_of, tmp_path):
    run(*words_of(tmp_path / "rows"))
    process = start("-m", "speech_tokenizers", *words_of(tmp_path / "more", "--workers", 2))
    # One of its processes, as soon as there is one: Linux names them there.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not tell which processes belong to which")
    deadline, workers = time.monotonic() + 300, []
    while not workers and process.poll() is None and time.monotonic() < deadline:
        workers = [int(child) for child in children.read_text().split() if is_worker(child)]
        time.sleep(0.05)
    os.kill(workers[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "was killed, perhaps for lack of memory" in output
    run(*words_of(tmp_path / "more"))
    assert contents(tmp_path / "more") == contents(tmp_path / "rows")


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bytes(run, words_of, tmp_path):
    """20 times kill -9 of all its processes, at random moments."""
    run(*words_of(tmp_path / "rows"))
    started = time.monotonic()
    start("-m", "speech_tokenizers", *words_of(tmp_path / "timed", "--workers", 2)).communicate(timeout=300)
    whole = time.monotonic() - started
    moments, num_kills = random.Random(0), 0
    while num_kills < 20:
        output = tmp_path / f"killed-{num_kills}"
        words = words_of(output, "--workers", 2)
        for _ in range(3):  # kills of one run, each of which is continued
            process = subprocess.Popen(
                [sys.executable, "-m", "speech_tokenizers", *words], start_new_session=True, stderr=subprocess.DEVNULL
            )
            try:
                process.wait(moments.uniform(0.5, 1.1) * whole)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                num_kills += 1
        run(*words)
        assert contents(output) == contents(tmp_path / "rows")


PROGRAMS = {
    # As Slurm does, but at once: each task of the array, one after the other, with the script that was given.
    "sbatch": """
        import os, re, subprocess, sys
        script = open(sys.argv[-1]).read()
        first = last = 0
        if found := re.search(r"#SBATCH --array=(\\d+)-(\\d+)", script):
            first, last = map(int, found.groups())
        exported = [word.split("=", 2)[2] for word in sys.argv if word.startswith("--export=ALL,RUN_OFFSET=")]
        if "merge_stats" not in script:
            for number in range(first, last + 1):
                told = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_NODELIST": "here", "SLURM_JOB_ID": "7"}
                told["RUN_OFFSET"] = exported[0] if exported else "0"
                subprocess.run(["bash", sys.argv[-1]], env={**os.environ, **told}, check=True, stdout=sys.stderr)
        print("Submitted batch job 7")
    """,
    "srun": """
        import subprocess, sys
        words = sys.argv[1:]
        while words[0].startswith("-"):
            words = words[2:] if words[0] in ("-n",) else words[1:]
        raise SystemExit(subprocess.run(words).returncode)
    """,
    "scontrol": "print('here')",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs that play a cluster, first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, program in PROGRAMS.items():
        lines = program.strip("\n").splitlines()
        margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        (folder / name).write_text(f"#!{sys.executable}\n" + "\n".join(line[margin:] for line in lines) + "\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.slow
def test_slurm_gets_a_script_whose_tasks_give_the_same(run, words_of, tmp_path, slurm):
    run(*words_of(tmp_path / "rows"))
    options = ("--engine", "slurm", "--engine-options", "time=1:00:00", "partition=cpu", "tasks_per_job=2")
    process = start("-m", "speech_tokenizers", *words_of(tmp_path / "more", *options))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "Slurm has 5 of 5 shards to do, as job 7" in output
    assert contents(tmp_path / "more") == contents(tmp_path / "rows")
    script = (CorpusPlan.read(tmp_path / "more.plan").folder / "datatrove" / "launch_script.slurm").read_text()
    for line in ("--partition=cpu", "--time=1:00:00", "--array=0-2", "--job-name=encode-corpus"):
        assert f"#SBATCH {line}\n" in script
    # Only what is lost is given to Slurm again.
    (tmp_path / "more" / "rows-00003.parquet").unlink()
    process = start("-m", "speech_tokenizers", *words_of(tmp_path / "more", *options))
    output, _ = process.communicate(timeout=600)
    assert "Slurm has 1 of 5 shards to do" in output
    assert contents(tmp_path / "more") == contents(tmp_path / "rows")


def test_a_script_for_slurm_is_written_and_handed_over(run, words_of, tmp_path, slurm):
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(f"#!{sys.executable}\nprint('Submitted batch job 7')\n")
    options = ("--engine", "slurm", "--engine-options", "time=1:00:00", "partition=cpu", "gpus_per_task=1")
    code, errors = run(*words_of(tmp_path / "rows", *options, "--workers", 3))
    assert code == 0
    assert "as job 7" in errors[-1]
    script = (tmp_path / "rows.plan" / "datatrove" / "launch_script.slurm").read_text()
    for line in ("--gpus=1", "--array=0-4%3"):
        assert f"#SBATCH {line}\n" in script
    assert not (tmp_path / "rows" / "dataset_info.json").exists()


@pytest.mark.slow
def test_ray_gives_the_same(run, words_of, tmp_path):
    pytest.importorskip("ray")
    run(*words_of(tmp_path / "rows"))
    process = start("-m", "speech_tokenizers", *words_of(tmp_path / "more", "--engine", "ray", "--workers", 2))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert contents(tmp_path / "more") == contents(tmp_path / "rows")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--engine", "slurm"], "--engine slurm needs --engine-options time=... partition=..."),
        (["--engine", "slurm", "--engine-options", "time=1", "partition=a"], "this machine has no `sbatch`"),
        (["--engine-options", "partition=a"], "--engine-options are for --engine slurm and ray"),
        (["--engine", "slurm", "--engine-options", "partition"], "must be NAME=VALUE"),
        (["--deduplicate", "--kind", "latents"], "`deduplicated` merges equal codes"),
        (["--num-quantizers", "9"], "9"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(run, words_of, tmp_path, more, told, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, errors = run(*words_of(tmp_path / "rows", *more))
    assert code == 2
    assert told in errors[-1]


def test_tars_within_the_rows_are_refused(run, words_of, tmp_path):
    code, errors = run(*words_of(tmp_path / "rows", "--webdataset", tmp_path / "rows" / "tars"))
    assert code == 2
    assert "would take the tars for Parquet" in errors[-1]


def test_a_thousand_tiny_files_and_a_long_one_are_rows(run, tiny_checkpoint, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    tiny = np.zeros(400, dtype=np.int16)
    for number in range(1000):
        soundfile.write(folder / f"{number:05d}.wav", tiny, 16000)
    soundfile.write(folder / "long.wav", np.random.default_rng(0).normal(0, 0.1, 16000 * 90), 16000)
    code, errors = run("encode-corpus", folder, "-o", tmp_path / "rows", "--model", tiny_checkpoint, "--device", "cpu")
    assert code == 0, errors
    rows = read_speech_rows(tmp_path / "rows")
    assert len(rows) == 1001
    assert max(rows["seconds"][:]) == 90.0
    info = json.loads((tmp_path / "rows" / "dataset_info.json").read_text())
    assert info["shards"] == {"rows-00000.parquet": 1000, "rows-00001.parquet": 1}
