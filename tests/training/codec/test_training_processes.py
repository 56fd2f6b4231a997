# SPDX-License-Identifier: Apache-2.0
"""Training in processes of its own: killed and resumed, and shared by two."""

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.processes import run_ranks, start
from speech_tokenizers.training.codec.codec_recipe import train_from_recipe
from speech_tokenizers.training.common.reporting import read_log


TIMINGS = {"steps_per_second", "audio_seconds_per_second", "training_seconds", "training_minutes"}


def losses_by_step(folder: Path) -> dict[int, dict[str, float]]:
    entries = read_log(folder / "training_log.jsonl")
    return {entry["step"]: {k: v for k, v in entry.items() if k not in TIMINGS} for entry in entries}


@pytest.fixture(autouse=True)
def one_thread():
    """Sums depend on the number of threads, which is the same here and in the processes started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_killed_run_continues_bit_for_bit(recipe_file, tmp_path):
    # Everything that has a state takes part: discriminators, both schedules, quantizer dropout, dead codes, averages.
    recipe = str(recipe_file(max_steps=75, save_steps=5, adversarial={"start_step": 8}))
    train_from_recipe(recipe, [f"output_dir={tmp_path / 'whole'}", "save_steps=0"])
    expected = losses_by_step(tmp_path / "whole")

    log = tmp_path / "killed" / "training_log.jsonl"
    process = start("-m", "speech_tokenizers", "train", recipe, f"output_dir={tmp_path / 'killed'}")
    kill_after = random.Random(time.time_ns()).randint(8, 22)
    deadline = time.monotonic() + 200
    while not (log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= kill_after):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    overrides = [f"output_dir={tmp_path / 'killed'}", "resume_from_checkpoint=latest"]
    trainer = train_from_recipe(recipe, overrides)
    resumed = losses_by_step(tmp_path / "killed")
    assert trainer.step == 75
    assert resumed == expected
    assert "adversarial" in resumed[75]
    weights = [torch.load(tmp_path / run / "checkpoint-00000075" / "optimization.pt") for run in ("whole", "killed")]
    averages = [run["weight_average"]["averages"] for run in weights]
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())


def test_sigterm_leaves_a_checkpoint(recipe_file, tmp_path):
    recipe = str(recipe_file(max_steps=100000))
    process = start("-m", "speech_tokenizers", "train", recipe, f"output_dir={tmp_path / 'run'}")
    log = tmp_path / "run" / "training_log.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and log.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 143, output
    assert "`resume_from_checkpoint=latest` continues" in output
    assert list((tmp_path / "run").glob("checkpoint-*"))
    assert (tmp_path / "run" / "loss_curves.png").stat().st_size > 0  # without any evaluation
    assert not (tmp_path / "run" / "final").exists()  # what is there is finished


def train_in_two_processes(recipe: Path, output: Path, *seconds_per_step: str) -> list[dict]:
    """What both hold in the end; each may be given the time that its steps take by its clock."""
    run_ranks(Path(__file__).with_name("train_and_dump.py"), recipe, output, *seconds_per_step)
    states = [torch.load(f"{output}.{rank}") for rank in range(2)]
    assert [state["world_size"] for state in states] == [2, 2]
    return states


# Not the hinge loss: its first gradients cancel, and Adam makes whole steps of the rounding errors left.
ADVERSARIAL = {
    "adversarial": {"start_step": 2, "warmup_steps": 0, "objective": "least_squares"},
    "loss_weights": {
        **{
            "mel": 15.0,
            "waveform": 100.0,
            "low_frequency_complex": 30.0,
            "compressed_magnitude": 30.0,
            "loudness": 2.0,
        },
        **{"commitment": 0.25, "adversarial": 1.0, "feature_matching": 2.0},
    },
}
# The latents of all processes together: evaluated, decorrelated, revived, and coded from step 4 on.
LATENT_HEALTH = {
    "adversarial": {"discriminators": {}},
    "model": {"overrides": {"encoder_hidden_size": 32}},
    "loss_weights": {"mel": 15.0, "waveform": 1.0, "commitment": 0.25, "decorrelation": 1.0},
    "latent_health": {
        "quantizer_start_step": 4,
        "revival_steps": [2],
        "revival_seconds": 2.0,
        "live_threshold": 0.5,
        "kmeans_frames": 100,
    },
    "eval_steps": 3,
}


@pytest.mark.parametrize("changes", [ADVERSARIAL, LATENT_HEALTH], ids=["adversarial", "latent health"])
def test_two_processes_equal_one(recipe_file, tmp_path, audio_folder, changes):
    recipe = str(
        recipe_file(
            max_steps=6,
            optimizer={"learning_rate": 1e-4},
            discriminator_optimizer={"learning_rate": 1e-4},
            data={"eval": str(audio_folder)},
            **changes,
        )
    )
    alone = train_from_recipe(recipe, [f"output_dir={tmp_path / 'alone'}"])

    two = tmp_path / "two.yaml"
    text = Path(recipe).read_text(encoding="utf-8").replace(str(tmp_path / "run"), str(tmp_path / "two"))
    two.write_text(text, encoding="utf-8")
    states = train_in_two_processes(two, tmp_path / "state")
    for name, value in states[0]["codec"].items():
        if "quantizer" in name:
            assert value.numpy().tobytes() == states[1]["codec"][name].numpy().tobytes()
        own = alone.unwrapped_model.state_dict()[name]
        torch.testing.assert_close(value, own, atol=1e-5, rtol=1e-5)
    expected, shared = losses_by_step(tmp_path / "alone"), losses_by_step(tmp_path / "two")
    for step, entry in expected.items():
        for name, value in entry.items():
            np.testing.assert_allclose(shared[step][name], value, rtol=1e-5, atol=1e-5, err_msg=f"{name}, step {step}")


def test_two_processes_with_different_clocks_stop_at_the_same_step(recipe_file, audio_folder, tmp_path):
    recipe = recipe_file(
        max_steps=1000,
        max_minutes=1.0,
        logging_steps=3,
        # After step 3, when half of the time has passed.
        adversarial={"start_step": 500},
        latent_health={"quantizer_start_step": 500},
        eval_steps=1000,
        data={"eval": str(audio_folder), "max_eval_recordings": 3},
        metrics=["si_sdr", "stoi"],
    )
    # A minute has 6 of the main process's steps, and 4 of the other's.
    states = train_in_two_processes(recipe, tmp_path / "state", "10", "15")
    assert [state["step"] for state in states] == [6, 6]
    assert [state["elapsed_seconds"] for state in states] == [60.0, 60.0]
    assert states[0]["learning_rate"] == states[1]["learning_rate"]
    for name, value in states[0]["codec"].items():
        assert torch.equal(value, states[1]["codec"][name]), name
    log = read_log(tmp_path / "run" / "training_log.jsonl")
    assert [entry["step"] for entry in log if "latents" in entry] == [4]
    *training, evaluation = (entry for entry in log if "latents" not in entry)
    assert [(entry["commitment"] > 0, "adversarial" in entry) for entry in training] == [(False, False), (True, True)]
    assert [entry["training_minutes"] for entry in training] == [0.5, 1.0]
    assert np.isfinite(evaluation["eval_si_sdr"])
    # One of the three recordings is long enough for it, so that one process has no value at all.
    assert np.isfinite(evaluation["eval_stoi"])
    assert evaluation["eval_stoi_left_out"] == 2
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
