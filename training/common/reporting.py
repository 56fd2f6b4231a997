# SPDX-License-Identifier: Apache-2.0
"""Records of a training run: a log of JSON lines, loss curves, decoded recordings and spectrograms."""

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from accelerate import Accelerator
from tqdm import tqdm

from speech_tokenizers.modeling.spectral_losses import log_mel_spectrogram
from speech_tokenizers.processing.whole_files import write_whole
from speech_tokenizers.training.common.recipe_files import check_names


# Measures of the latents that are drawn beside the losses.
LATENT_MEASURES = ("latent_participation_ratio", "latent_live_directions")
NUMBERED_MEASURES = {"variance_left": "variance left, by codebook", "mel_at": "mel by codebooks used"}


class LossWindow:
    """Sums of named losses over the steps since the last log, kept on the device so that no step waits for it."""

    def __init__(self):
        self.steps = 0
        self.seconds = 0.0
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, losses: dict[str, torch.Tensor], seconds: float) -> None:
        """Add the losses of one step and its duration."""
        self.steps += 1
        self.seconds += seconds
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean of each loss over the steps that had it, and over processes."""
        sums = accelerator.reduce(dict(self.sums), reduction="mean")
        return {name: float(value) / self.counts[name] for name, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        vars(self).update(state)
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}


class TrainingLog:
    """
    A file of JSON lines, one an entry, flushed as written.

    Args:
        path (`Path`): File of the log.
        last_step (`int`): Last step that is kept. Entries of later steps, left by an interrupted run, are removed.
    """

    def __init__(self, path: Path, last_step: int = 0):
        self.path = path
        kept = [entry for entry in read_log(path) if entry["step"] <= last_step] if path.exists() else []
        write_whole(path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def write(self, entry: dict[str, float | int | str]) -> None:
        """Append an entry, which must have a `step`."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class RunReports:
    """
    Reports of a run while it trains: the training log, and what trackers show.

    Args:
        accelerator (`Accelerator`): Accelerator of the run; its main process writes.
        output_dir (`Path`): Folder of the run.
        report_to (sequence of `str`): Names of trackers that Accelerate knows.
        num_samples (`int`, *optional*, defaults to 0): Number of evaluation recordings that are kept as audio.
        sampling_rate (`int`, *optional*, defaults to 16000): Rate of that audio, in Hz.

    Attributes:
        log ([`TrainingLog`], *optional*): Log of the run, on the main process and after `start`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: Path,
        report_to: Sequence[str],
        num_samples: int = 0,
        sampling_rate: int = 16000,
    ):
        self.accelerator, self.output_dir, self.report_to = accelerator, output_dir, report_to
        self.num_samples, self.sampling_rate = num_samples, sampling_rate
        self.log: TrainingLog | None = None

    def start(self, step: int) -> None:
        """
        Open the log.

        Args:
            step (`int`): Number of steps taken. Entries of later steps are removed.
        """
        if self.accelerator.is_main_process:
            self.log = TrainingLog(self.output_dir / "training_log.jsonl", step)
        if self.report_to:
            self.accelerator.init_trackers(self.output_dir.name or "codec", config=None)

    def write(self, step: int, measures: Mapping[str, float], elapsed_seconds: float) -> None:
        """Write measures of a step, after so much training time, to the log and to the trackers."""
        entry = {"training_minutes": elapsed_seconds / 60, **measures}
        if self.log is not None:
            self.log.write({"step": step, **entry})
        if self.report_to and self.accelerator.trackers:
            self.accelerator.log(entry, step=step)

    def tell(self, kind: str, sentence: str, step: int) -> None:
        """Say on the terminal and in the log what happened at a step."""
        if self.accelerator.is_main_process:
            tqdm.write(f"{kind}, step {step}: {sentence}")
            if self.log is not None:
                self.log.write({"step": step, kind: sentence})

    def warn(self, sentence: str) -> None:
        """Say on the terminal what may be unintended."""
        if self.accelerator.is_main_process:
            tqdm.write(f"warning: {sentence}")

    def keep_sample(self, index: int, step: int, recorded: torch.Tensor, decoded: torch.Tensor) -> None:
        """Keep an evaluation recording, decoded at a step, if it is one of the first."""
        if index < self.num_samples:
            folder = self.output_dir / "samples" / f"{index:03d}"
            save_sample(folder, f"step-{step:08d}", recorded, decoded, self.sampling_rate)

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def read_log(path: Path) -> list[dict[str, float]]:
    """Entries of a training log. A last line that a crash cut short is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def has_matplotlib() -> bool:
    """Whether pictures can be drawn. They are left out where matplotlib is not installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_training(log: TrainingLog | None, names: Sequence[str]) -> None:
    """
    Draw the curves of a codec's log into `loss_curves.png` beside it, where matplotlib is installed.

    Args:
        log ([`TrainingLog`], *optional*): Log of the run, absent where nothing was trained.
        names (sequence of `str`): Names that are drawn beside the latents; see [`draw_loss_curves`].
    """
    if log is not None and has_matplotlib():
        picture = log.path.with_name("loss_curves.png")
        draw_loss_curves(log.path, picture, [*names, *LATENT_MEASURES], NUMBERED_MEASURES)


def draw_loss_curves(
    log_path: Path, picture_path: Path, names: Sequence[str], numbered: Mapping[str, str] | None = None
) -> None:
    """
    Draw the named losses, and their values on the evaluation recordings, over the steps of a log into a PNG.

    Args:
        log_path (`Path`): File of a [`TrainingLog`].
        picture_path (`Path`): File of the PNG.
        names (sequence of `str`): Names with a panel each, if the log has them, alone or after `eval_`.
        numbered (mapping, *optional*): Titles by the beginnings of names that end in a number, such as
            `perplexity_1`; those of one beginning share a panel.
    """
    from matplotlib.figure import Figure

    entries = read_log(log_path)
    keys = list(dict.fromkeys(key for entry in entries for key in entry))
    panels = {name: {name: "training", f"eval_{name}": "evaluation"} for name in names}
    for beginning, title in (numbered or {}).items():
        found = [key for key in keys if re.fullmatch(rf"(eval_)?{beginning}_\d+", key)]
        panels[title] = {key: key.rpartition("_")[2] for key in found}
    panels = {title: lines for title, lines in panels.items() if not lines.keys().isdisjoint(keys)}
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.5 * columns, 3 * rows), layout="constrained")
    for i, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for key, label in lines.items():
            points = [(entry["step"], entry[key]) for entry in entries if key in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=label)
        axes.set(title=title, xlabel="step")
        axes.legend()
    figure.savefig(picture_path, dpi=100)


def draw_metric_curves(logs: Mapping[str, Path], picture: Path, metric: str, x: str = "training_minutes") -> None:
    """
    Draw one value of several runs into one PNG, to compare them.

    Args:
        logs (mapping of `str` to `Path`): Training log of each run, by the name that the legend gives it.
        picture (`Path`): File of the PNG to write.
        metric (`str`): Name of the value to draw, as the log has it, such as `eval_stoi` or `mel`.
        x (`str`, *optional*, defaults to `"training_minutes"`): Name of the value to draw it over, such as `step`.

    Raises:
        ValueError: If a log has no entry with both.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, path in logs.items():
        entries = read_log(Path(path))
        points = [(entry[x], entry[metric]) for entry in entries if x in entry and metric in entry]
        if not points:
            names = dict.fromkeys(key for entry in entries for key in entry)
            check_names([x, metric], names, f"The value in the log {path},")
            raise ValueError(f"{path} has `{metric}` and `{x}`, but in no entry both; choose another `x`.")
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set(title=metric, xlabel=x.replace("_", " "))
    axes.legend()
    figure.savefig(picture, dpi=100)


def save_sample(folder: Path, name: str, recorded: torch.Tensor, decoded: torch.Tensor, sampling_rate: int) -> None:
    """
    Write a recording and its reconstruction, each `(num_samples,)`, as WAV files, and their spectrograms as one PNG.

    The recording is written once; reconstructions are named after the evaluation by `name`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recording_path = folder / "recorded.wav"
    if not recording_path.exists():
        soundfile.write(recording_path, recorded.cpu().numpy(), sampling_rate)
    soundfile.write(folder / f"{name}.wav", decoded.clamp(-1, 1).cpu().numpy(), sampling_rate)
    if has_matplotlib():
        draw_spectrograms(folder / f"{name}.png", {"recorded": recorded, "decoded": decoded}, sampling_rate)


def draw_spectrograms(path: Path, waveforms: dict[str, torch.Tensor], sampling_rate: int) -> None:
    """Draw the log-mel spectrograms of named waveforms `(num_samples,)`, one above the other, into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(waveforms)), layout="constrained")
    for i, (title, waveform) in enumerate(waveforms.items()):
        mel = log_mel_spectrogram(waveform[None].float().cpu(), sampling_rate, 1024, 256, 80)[0].numpy()
        axes = figure.add_subplot(len(waveforms), 1, i + 1)
        seconds = len(waveform) / sampling_rate
        axes.imshow(np.asarray(mel), origin="lower", aspect="auto", extent=(0, seconds, 0, 80), vmin=-9, vmax=1)
        axes.set(title=title, ylabel="mel filter", xlabel="seconds")
    figure.savefig(path, dpi=80)
