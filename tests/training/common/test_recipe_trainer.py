# SPDX-License-Identifier: Apache-2.0
"""The frame of the recipe trainers: what they log, exact counts over accumulated batches, their settings."""

import shutil
import time

import pytest
import torch
from torch import nn

from speech_tokenizers.processing.whole_files import whole_folder
from speech_tokenizers.training.common.data import RecordingsArguments
from speech_tokenizers.training.common.recipe_trainer import (
    RecipeTrainer,
    ScheduledRecipeArguments,
    newest_checkpoint,
    train_until_done,
)
from speech_tokenizers.training.common.reporting import read_log


class Rows(torch.utils.data.Dataset):
    """Rows of 1 to 6 numbers."""

    lengths = [1, 2, 3, 4, 5, 6]

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        index %= len(self)
        return torch.arange(1.0, self.lengths[index] + 1) + index


def pad(rows):
    return {
        "values": nn.utils.rnn.pad_sequence(rows, batch_first=True),
        "mask": nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True),
    }


class Mean(nn.Module):
    """Learns a number; its loss is the mean squared distance to it of all that is not padding."""

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, values, mask, num_items_in_batch=None, **kwargs):
        self.seen.append((values, mask, num_items_in_batch))
        squares = ((values - self.number) ** 2 * mask).sum()
        return {"loss": squares / (mask.sum() if num_items_in_batch is None else num_items_in_batch)}


class MeanTrainer(RecipeTrainer):
    def num_items(self, inputs):
        return inputs["mask"].sum()

    def measures(self, outputs, inputs):
        total = (inputs["values"] * inputs["mask"]).sum()
        zero = torch.zeros(())
        found = {"mean": (total, inputs["mask"].sum()), "batches_each": (zero + 7, 1), "nothing": (zero, zero)}
        return {**found, "rate": (total, None)}


@pytest.fixture
def settings(tmp_path):
    def make(**changes) -> ScheduledRecipeArguments:
        data = RecordingsArguments(train="x", min_seconds=1, max_seconds=6)
        given = {"max_steps": 4, "learning_rate": 0.1, "batch_seconds": 7, "logging_steps": 1, "save_steps": 2}
        return ScheduledRecipeArguments(output_dir=str(tmp_path), data=data, **(given | changes))

    return make


def trainer_of(args, folder, **changes) -> MeanTrainer:
    training_arguments = args.training_arguments(folder, args, **changes)
    return MeanTrainer(Mean(), training_arguments, batch_length=7, data_collator=pad, train_dataset=Rows())


def test_measures_are_sums_over_counts_since_the_entry_before(settings, tmp_path):
    args = settings(logging_steps=2, gradient_accumulation_steps=2)
    trainer = trainer_of(args, tmp_path, logging_first_step=False)
    started = time.perf_counter()
    train_until_done(trainer, tmp_path, ["loss"])
    elapsed = time.perf_counter() - started
    entries = read_log(tmp_path / "training_log.jsonl")
    assert [entry["step"] for entry in entries] == [2, 4]
    for number, entry in enumerate(entries):
        batches = trainer.model.seen[4 * number : 4 * number + 4]
        total = sum(float((values * mask).sum()) for values, mask, _ in batches)
        assert entry["mean"] == pytest.approx(total / sum(float(mask.sum()) for _, mask, _ in batches), rel=1e-4)
        assert entry["batches_each"] == 7
        assert entry["nothing"] == 0
        assert entry["rate"] > total / elapsed
    assert (tmp_path / "loss_curves.png").is_file()


def test_an_evaluation_between_adds_no_measures(settings, tmp_path):
    trainer = trainer_of(settings(), tmp_path)
    batch = pad([Rows()[0]])
    trainer.model.eval()
    trainer.compute_loss(trainer.model, batch)
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert "mean" not in logs
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch)
    trainer.log(logs)
    assert logs["mean"] == 1


def test_the_loss_is_a_mean_over_all_items_of_a_step(settings, tmp_path):
    args = settings(gradient_accumulation_steps=3, max_steps=1, max_grad_norm=1e9)
    trainer = trainer_of(args, tmp_path, optim="sgd", lr_scheduler_type="constant")
    train_until_done(trainer, tmp_path, [])
    batches = trainer.model.seen
    counts = [float(mask.sum()) for _, mask, _ in batches]
    assert len(set(counts)) > 1  # otherwise means of means would do
    assert [float(count) for *_, count in batches] == [sum(counts)] * 3
    mean = sum(float((values * mask).sum()) for values, mask, _ in batches) / sum(counts)
    # The gradient of a mean of squared distances to 0 is -2 times the mean.
    assert trainer.model.number.item() == pytest.approx(0.1 * 2 * mean, rel=1e-5)
    (entry,) = read_log(tmp_path / "training_log.jsonl")
    squares = sum(float((values**2 * mask).sum()) for values, mask, _ in batches) / sum(counts)
    assert entry["loss"] == pytest.approx(squares, rel=1e-5)


def test_what_is_trained_goes_on_at_the_newest_checkpoint(settings, tmp_path):
    whole = trainer_of(settings(), tmp_path / "whole")
    train_until_done(whole, tmp_path / "whole", [])
    folder = tmp_path / "halves"
    train_until_done(trainer_of(settings(), folder), folder, [])
    # As if it had been killed while it saved.
    (folder / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()
    (folder / "checkpoints" / ".checkpoint-4.incomplete").touch()
    assert newest_checkpoint(folder / "checkpoints").name == "checkpoint-2"
    assert (folder / "checkpoints" / "checkpoint-2" / "checksums.json").is_file()
    again = trainer_of(settings(), folder)
    train_until_done(again, folder, [])
    assert len(again.model.seen) == 2
    assert torch.equal(again.model.number, whole.model.number)
    assert [entry["step"] for entry in read_log(folder / "training_log.jsonl")] == [1, 2, 3, 4]
    assert not [*(folder / "checkpoints").glob(".*")]


def test_a_save_that_fails_leaves_no_checkpoint(settings, tmp_path, monkeypatch, capsys):
    trainer = trainer_of(settings(), tmp_path)

    def full_disk(*_):
        raise OSError("no room")

    monkeypatch.setattr(trainer, "_save_rng_state", full_disk)
    with pytest.raises(OSError, match="no room"):
        train_until_done(trainer, tmp_path, [])
    assert (tmp_path / "checkpoints" / "checkpoint-2").is_dir()
    assert newest_checkpoint(tmp_path / "checkpoints") is None
    train_until_done(trainer_of(settings(), tmp_path), tmp_path, [])
    assert "checkpoint-2: its save was interrupted; it is removed" in capsys.readouterr().err
    assert newest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-4"


def test_settings_become_those_of_the_trainer_and_a_family_may_differ(settings, tmp_path):
    args = settings(mixed_precision="bf16", betas=[0.5, 0.6], warmup_steps=2, gradient_accumulation_steps=3)
    given = args.training_arguments(tmp_path, args, lr_scheduler_type="cosine")
    assert given.bf16
    assert not given.fp16
    assert (given.adam_beta1, given.adam_beta2, given.warmup_steps) == (0.5, 0.6, 2)
    assert given.gradient_accumulation_steps == 3
    assert given.lr_scheduler_type == "cosine"
    assert given.output_dir == str(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"warmup_steps": -1}, "`warmup_steps` not negative"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"save_steps": 0}, "`save_steps` must be at least 1, but got 0"),
        ({"betas": [0.9]}, "`betas` must be two numbers"),
        ({"mixed_precision": "bf61"}, "`mixed_precision` must be 'bf16', 'fp16' or null, but got 'bf61'"),
        ({"batch_seconds": 5.0}, r"`batch_seconds` \(5.0\) must hold a recording of `data.max_seconds` \(6\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "final"
    with pytest.raises(FileNotFoundError), whole_folder(folder) as unfinished:
        shutil.copy(tmp_path / "nowhere", unfinished)
    assert not folder.exists()
    for text in ("first", "second"):
        with whole_folder(folder) as unfinished:
            assert not list(unfinished.iterdir())
            (unfinished / text).write_text(text)
        assert [file.name for file in folder.iterdir()] == [text]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
