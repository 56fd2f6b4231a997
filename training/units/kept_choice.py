# SPDX-License-Identifier: Apache-2.0
"""
Units that keep labels that a user names, and what that costs: the plan of `fit-units --keep`.

Where weights are to be chosen, units are fitted quickly with some weights each, on a part of the recordings. A probe
then reads each set of labels from the units of the other recordings, also labels that the units are not told. The
weights that are taken read the told labels best in the mean, among those with which no label is read worse than from
plain units by more than the stated amount.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from speech_tokenizers.evaluation.reconstruction.frame_probe import macro_f1
from speech_tokenizers.evaluation.understanding.metrics import class_counts
from speech_tokenizers.evaluation.understanding.probes import Block, pooled_block, ridge_probe
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.processing.metadata_files import as_text
from speech_tokenizers.processing.recordings import DecodedRecordings
from speech_tokenizers.training.units.excerpts import Excerpt, frame_places
from speech_tokenizers.training.units.kept_frames import KeptClasses, KeptFrames
from speech_tokenizers.training.units.kept_labels import LabelSet, parse_labels, read_label_set
from speech_tokenizers.training.units.units_fit import UnitsFit


# Function from what is kept (`None` for plain units), frames and what tells these apart to a fitted model.
Fit = Callable[..., tuple[KMeansUnitsModel, UnitsFit]]

# Weights that are tried; the frames themselves have weight 1.
GRID = (0.25, 0.5, 1.0, 2.0)
DEFAULT_MAX_LOSS = 2.0
# Share of the speakers, or recordings, that are held out; at least one.
_HELD_OUT = 0.25
# Frames that units are fitted on while weights are chosen, and labels that a probe learns from, and is asked.
_MOST_FRAMES = 100_000
_MOST_LEARNT, _MOST_ASKED = 2000, 4000
# Options of these fits, but where those of the final fit are less.
_QUICK: dict[str, int] = {"max_epochs": 5, "num_init": 2, "batch_size": 5000}
_FRAMES_AT_ONCE = 16384


@dataclass(frozen=True)
class KeptPlan:
    """
    What units are to keep.

    Args:
        told (list of [`LabelSet`]): Labels that the units are told.
        untold (list of [`LabelSet`]): Labels that they are not told, but that are measured.
        codebook_size (`int`): Centroids of a codebook of the kept directions alone; 0 for none.
        max_loss (`float`, *optional*): Points of macro F1 that a label may lose. Without it, nothing is measured, and
            a set without a weight has weight 1.
    """

    told: list[LabelSet]
    untold: list[LabelSet]
    codebook_size: int = 0
    max_loss: float | None = None

    def fit(
        self,
        fit: Fit,
        model: KMeansUnitsModel,
        recordings: DecodedRecordings,
        excerpts: Sequence[Excerpt],
        features: np.ndarray,
        seed: int,
        accelerator: Accelerator | None,
    ) -> tuple[KMeansUnitsModel, UnitsFit]:
        """
        Fit units that keep the labels.

        Args:
            fit (callable): Function that fits units, from what is kept, frames, and what tells these apart.
            model ([`KMeansUnitsModel`]): What heard the excerpts.
            recordings ([`DecodedRecordings`]), excerpts (sequence of [`Excerpt`]), features (`np.ndarray` of shape
                `(num_streams, num_frames, hidden_size)`): What was heard, and its frames.
            seed (`int`): Of the drawing of what is held out.
            accelerator (`Accelerator`, *optional*): Of the processes that share the work.

        Returns:
            The fitted model, and what was found. In this, `kept` has `labels` (of each set its `name`, `weight`,
            `parts`, number of `classes` and `eigenvalues` of each stream's directions), `codebook_size`, and where
            weights were measured the `choice`.

        Raises:
            ValueError: If the frames have fewer than two classes of a set, there is too little to measure, or with all
                weights that were tried a label loses too much.
        """
        numbers = [part.frame_classes(model, recordings, excerpts) for part in self.told]
        weights = [part.weight or 1.0 for part in self.told]
        choice = None
        if self.max_loss is not None:
            trial = _Trial(self, fit, model, recordings, excerpts, features, numbers, seed, accelerator)
            weights, choice = trial.choose(self.max_loss)
        kept = self._kept(numbers, weights)
        fitted, found = fit(kept, features)
        described = [
            {
                "name": part.name,
                "weight": weight,
                "parts": part.parts,
                "classes": len(part.classes),
                "eigenvalues": kept.eigenvalues[part.name],
            }
            for part, weight in zip(self.told, weights, strict=True)
        ]
        facts = {"labels": described, "codebook_size": self.codebook_size} | ({"choice": choice} if choice else {})
        return fitted, type(found)(**{**vars(found), "kept": facts})

    def _kept(self, numbers: Sequence[np.ndarray], weights: Sequence[float]) -> KeptFrames:
        parts = zip(self.told, numbers, weights, strict=True)
        return KeptFrames([KeptClasses(part.name, own, weight) for part, own, weight in parts], self.codebook_size)


class _Trial:
    # Units that are fitted quickly on a part of the recordings, and what a probe reads from the others.

    def __init__(
        self,
        plan: KeptPlan,
        fit: Fit,
        model: KMeansUnitsModel,
        recordings: DecodedRecordings,
        excerpts: Sequence[Excerpt],
        features: np.ndarray,
        numbers: Sequence[np.ndarray],
        seed: int,
        accelerator: Accelerator | None,
    ):
        self.plan, self.run, self.accelerator = plan, fit, accelerator
        self.features, self.seed = features, seed
        self.sets = [*plan.told, *plan.untold]
        places = frame_places(model, excerpts)
        groups, self.held_out_by = recording_groups(recordings, self.sets)
        if len({*groups}) < 2:
            raise ValueError(
                "Weights are chosen on recordings that are held out, but there is only one recording; give more, or"
                " state the weights and leave out --tell and --max-loss."
            )
        order = np.random.default_rng([seed, 5]).permutation(sorted({*groups})).tolist()
        held_out = {*order[: max(1, round(_HELD_OUT * len(order)))]}
        self.is_held_out = [groups[excerpt.recording] in held_out for excerpt in excerpts]
        rows: list[np.ndarray] = []
        for number in np.random.default_rng([seed, 6]).permutation(len(excerpts)).tolist():
            if not self.is_held_out[number] and sum(map(len, rows)) < _MOST_FRAMES:
                rows.append(np.arange(places[number].start, places[number].stop))
        if not rows:
            raise ValueError("Nothing is left to fit units on when recordings are held out; give more recordings.")
        self.rows = np.sort(np.concatenate(rows))
        self.numbers = [own[self.rows] for own in numbers]
        self.material = [self._material(part, part.segments(model, recordings, excerpts)) for part in self.sets]
        self.num_held_out = len(held_out)
        everywhere = [np.arange(place.start, place.stop) for places, _, _ in self.material for place in places]
        self.looked_at = np.unique(np.concatenate(everywhere))
        self.digest = hashlib.sha256(self.rows.tobytes()).hexdigest()[:16]
        self.part = features[:, self.rows]

    def _material(
        self, part: LabelSet, segments: list[tuple[int, slice, str]]
    ) -> tuple[list[slice], list[str], list[str]]:
        # Frames, labels and splits of some segments; the probe's penalty is chosen on a part of the first recordings.
        generator = np.random.default_rng([self.seed, 7])
        known = [segment for segment in segments if not self.is_held_out[segment[0]]]
        asked = [segment for segment in segments if self.is_held_out[segment[0]]]
        labels = {label for _, _, label in known}
        asked = [segment for segment in asked if segment[2] in labels]
        if len(labels) < 2 or len({label for _, _, label in asked}) < 2:
            raise ValueError(
                f"{part.name} cannot be measured: two labels or more are needed both in the recordings that are held"
                f" out (by {self.held_out_by}) and in the others; give more recordings, or state the weights and leave"
                " out --tell and --max-loss."
            )
        chosen = []
        for found, most in ((known, _MOST_LEARNT), (asked, _MOST_ASKED)):
            drawn = sorted(generator.permutation(len(found))[:most].tolist())
            chosen.append([found[i] for i in drawn])
        is_dev = generator.permutation(len(chosen[0])) < max(1, len(chosen[0]) // 4)
        splits = ["dev" if dev else "train" for dev in is_dev] + ["test"] * len(chosen[1])
        rows = [*chosen[0], *chosen[1]]
        return [place for _, place, _ in rows], [label for _, _, label in rows], splits

    def choose(self, max_loss: float) -> tuple[list[float], dict[str, Any]]:
        """Weights of the told sets, and what was found."""
        num_told = len(self.plan.told)
        plain = self._scores(None)
        self._say("plain units", plain, plain)
        tried: dict[tuple[float, ...], dict[str, float]] = {}

        def value(weights: tuple[float, ...]) -> tuple[float, float]:
            if weights not in tried:
                tried[weights] = self._scores(weights)
                self._say(self._described(weights), tried[weights], plain)
            lost = max(plain[name] - score for name, score in tried[weights].items())
            mean = sum(tried[weights][part.name] for part in self.plan.told) / num_told
            return min(0.0, max_loss - lost), mean

        best = max(self._first(), key=value)
        for place, part in enumerate(self.plan.told):
            if part.weight is None and num_told > 1:
                best = max(
                    (_changed(best, place, weight) for weight in dict.fromkeys((best[place], *GRID))), key=value
                )
        excess, mean = value(best)
        names = [part.name for part in self.plan.told]
        choice = {
            "max_loss": max_loss,
            "held_out": f"{self.num_held_out} of the {self.held_out_by}",
            "measure": "macro F1 of a ridge probe on centroids, in percent",
            "told": names,
            "untold": [part.name for part in self.plan.untold],
            "plain": plain,
            "tried": [
                {"weights": dict(zip(names, weights, strict=True)), "scores": scores}
                for weights, scores in tried.items()
            ],
            "chosen": dict(zip(names, best, strict=True)),
        }
        if excess < 0:
            lost = {name: plain[name] - score for name, score in tried[best].items()}
            name = max(lost, key=lambda name: lost[name])
            raise ValueError(
                f"With none of the {len(tried)} weights that were tried do all labels stay within {max_loss:g} points"
                f" of plain units: even with {self._described(best)}, {name} loses {lost[name]:.1f}. Raise --max-loss,"
                " name fewer labels or more of what is lost with --keep, take more centroids, or keep the labels in a"
                " codebook of their own (--keep-codebook)."
            )
        self._print(f"chosen: {self._described(best)}, with a mean of {mean:.1f} of what is told")
        return list(best), choice

    def _first(self) -> list[tuple[float, ...]]:
        # All sets with the same weight, but where a weight is stated. Alone in a codebook, a weight changes nothing.
        if self.plan.codebook_size and len(self.plan.told) == 1:
            return [(self.plan.told[0].weight or 1.0,)]
        return list(dict.fromkeys(tuple(part.weight or weight for part in self.plan.told) for weight in GRID))

    def _scores(self, weights: tuple[float, ...] | None) -> dict[str, float]:
        kept = None if weights is None else self.plan._kept(self.numbers, weights)
        units, _ = self.run(kept, self.part, "trial", self.digest, **_QUICK)
        scores: list[dict[str, float]] = [{}]
        if self.accelerator is None or self.accelerator.is_main_process:
            codes = self._codes(units)
            for part, (places, labels, splits) in zip(self.sets, self.material, strict=True):
                rows = [pooled_block([_quantized(units, codes[:, place])], part.parts).values for place in places]
                answers = ridge_probe([Block(np.concatenate(rows))], labels, splits).answers
                targets = [label for label, split in zip(labels, splits, strict=True) if split == "test"]
                scores[0][part.name] = float(macro_f1(class_counts(answers, targets).sum(0)))
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            broadcast_object_list(scores)
        return scores[0]

    @torch.no_grad()
    def _codes(self, units: KMeansUnitsModel) -> torch.Tensor:
        # Codes (num_quantizers, num_frames) of the frames that a probe looks at; 0 elsewhere.
        quantizer = units.quantizer
        codes = torch.zeros(units.config.num_quantizers, self.features.shape[1], dtype=torch.long)
        for first in range(0, len(self.looked_at), _FRAMES_AT_ONCE):
            rows = self.looked_at[first : first + _FRAMES_AT_ONCE]
            streams = torch.from_numpy(self.features[:, rows].astype(np.float32))[None].to(quantizer.centroids.device)
            if units.config.normalization == "standardize":
                streams = (streams - quantizer.features_mean[:, None]) / quantizer.features_std[:, None]
            codes[:, torch.from_numpy(rows)] = quantizer.encode(quantizer.weigh(streams))[0].cpu()
        return codes

    def _described(self, weights: Sequence[float]) -> str:
        return ", ".join(f"{part.name} {weight:g}" for part, weight in zip(self.plan.told, weights, strict=True))

    def _say(self, what: str, scores: dict[str, float], plain: dict[str, float]) -> None:
        told = {part.name for part in self.plan.told}
        cells = [
            f"{name}{'' if name in told else ' (not told)'} {score:.1f}"
            + ("" if scores is plain else f" ({score - plain[name]:+.1f})")
            for name, score in scores.items()
        ]
        self._print(f"{what}: {', '.join(cells)}")

    def _print(self, line: str) -> None:
        if self.accelerator is None or self.accelerator.is_main_process:
            print(line, file=sys.stderr)


def _changed(weights: tuple[float, ...], place: int, weight: float) -> tuple[float, ...]:
    return (*weights[:place], weight, *weights[place + 1 :])


@torch.no_grad()
def _quantized(units: KMeansUnitsModel, codes: torch.Tensor) -> np.ndarray:
    # What codes (num_quantizers, num_frames) stand for, (num_frames, latent_dim).
    return units.quantizer.decode(codes[None].to(units.quantizer.centroids.device))[0].cpu().numpy()


def recording_groups(recordings: DecodedRecordings, sets: Sequence[LabelSet]) -> tuple[list[str], str]:
    """
    What is held out together: the speakers, where a column `speaker` names two or more for all recordings and is no
    label itself, else the recordings. Returns the group of each recording, and "speakers" or "recordings".
    """
    metadata = recordings.metadata
    if "speaker" in metadata.column_names and all(part.column != "speaker" for part in sets):
        speakers = [as_text(value) for value in metadata["speaker"][:]]
        if all(isinstance(value, str) and value for value in speakers) and len({*speakers}) > 1:
            return speakers, "speakers"
    return [str(index) for index in range(len(recordings))], "recordings"


def add_keep_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command that say what units are to keep."""
    parser.add_argument(
        "--keep",
        metavar="LABELS[:weight[:parts]]",
        nargs="+",
        default=[],
        help="labels that the units are to keep: a file of timed labels, as `align` writes them, or a column of"
        " RECORDINGS; their weight (default: 1, or chosen with --tell or --max-loss), and the parts of a label's time"
        " that are told apart (default: 1; 4 for tones)",
    )
    parser.add_argument(
        "--keep-codebook",
        metavar="N",
        type=int,
        default=0,
        help="centroids of a second codebook, of what is kept alone; the first is as without --keep (default: none)",
    )
    parser.add_argument(
        "--tell",
        metavar="LABELS[::parts]",
        nargs="+",
        default=[],
        help="labels that the units are not told, but that must not be lost",
    )
    parser.add_argument(
        "--max-loss",
        metavar="POINTS",
        type=float,
        default=None,
        help="points of macro F1 that a label of --keep or --tell may lose (default with --tell:"
        f" {DEFAULT_MAX_LOSS:g})",
    )


def keep_plan(args: argparse.Namespace, rows: datasets.Dataset) -> KeptPlan | None:
    """
    The plan that the arguments state; `None` without `--keep`.

    Args:
        args (`Namespace`): Arguments of the command.
        rows (`datasets.Dataset`): Recordings, as [`load_recordings`] returns them.

    Raises:
        ValueError: If arguments contradict each other, or labels cannot be used; see [`read_label_set`].
    """
    if not args.keep:
        for name, given in (("--keep-codebook", args.keep_codebook), ("--tell", args.tell)):
            if given:
                raise ValueError(f"{name} is for labels that are kept; name them with --keep.")
        if args.max_loss is not None:
            raise ValueError("--max-loss is for labels that are kept; name them with --keep.")
        return None
    if args.keep_codebook and not 2 <= args.keep_codebook <= min(args.codebook_size):
        raise ValueError(
            f"--keep-codebook must lie between 2 and --codebook-size, {min(args.codebook_size)}, but is"
            f" {args.keep_codebook}."
        )
    if args.max_loss is not None and not args.max_loss >= 0:
        raise ValueError(f"--max-loss must not be negative, but is {args.max_loss:g}.")
    told = [read_label_set(parse_labels(text), rows) for text in args.keep]
    untold = [read_label_set(parse_labels(text, "--tell"), rows, "--tell") for text in args.tell]
    names = [part.name for part in (*told, *untold)]
    if repeated := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"Two sets of labels are named {repeated[0]!r}; name each once, or rename a file.")
    max_loss = DEFAULT_MAX_LOSS if args.tell and args.max_loss is None else args.max_loss
    return KeptPlan(told, untold, args.keep_codebook, max_loss)


def keep_facts(plan: KeptPlan | None) -> dict[str, Any]:
    """What a finished model must have been begun with, for `check_finished`; nothing without a plan."""
    if plan is None:
        return {}
    return {
        "keep": [[part.name, part.weight, part.parts, part.fingerprint()] for part in plan.told],
        "tell": [[part.name, part.parts, part.fingerprint()] for part in plan.untold],
        "keep-codebook": plan.codebook_size,
        "max-loss": plan.max_loss,
    }
