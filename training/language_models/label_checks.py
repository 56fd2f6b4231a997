# SPDX-License-Identifier: Apache-2.0
"""
Whether a causal language model learns what its data mean: no target is read before it is predicted, none is skipped,
and the end is learnt.

Labels that are shifted by hand and once more by the loss, a condition that has read its own target, and an end that is
masked train without an error. They show here: each token is perturbed, and what moves is looked at.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from speech_tokenizers.modeling.speech_lm_ids import SpeechIds


_IGNORED = -100
# Changes of a loss or score below it are rounding.
_TOLERANCE = 1e-5


@dataclasses.dataclass
class LabelReport:
    """
    What [`check_labels`] found.

    Args:
        num_rows (`int`): Rows that were looked at.
        num_targets (`int`): Labels that are targets.
        label_offset (`int`, *optional*): k, where the label at position t is the id at t + k for all targets; 0 is
            right for a model that shifts. `None` if there is no such k.
        last_read (`int`, *optional*): k, where the loss of the label at t moves with the ids up to t + k and with none
            behind; -1 is right for a model that shifts. `None` if not one id moves it.
        future_moves_scores (`bool`): Whether scores move with an id behind their position: the model is not causal.
        first_masked_end (`int`, *optional*): Number of the first row that has no end among its targets, or one that is
            masked.
        ends (`list[int]`): Ids that count as ends.
        masked_codebooks (`list[int]`): Codebooks of which codes stand behind the first target, but none is one.
        faults (`list[str]`): What is wrong, a sentence each; empty if nothing is.
    """

    num_rows: int
    num_targets: int
    label_offset: int | None
    last_read: int | None
    future_moves_scores: bool
    first_masked_end: int | None
    ends: list[int]
    masked_codebooks: list[int] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        offset = "no single offset" if self.label_offset is None else f"{self.label_offset:+d}"
        read = "nothing" if self.last_read is None else f"{self.last_read:+d}"
        lines = [
            f"rows looked at: {self.num_rows}, targets: {self.num_targets}",
            f"labels are the ids at their position {offset} (right: +0)",
            f"the loss of a label reads ids up to its position {read} (right: -1)",
            f"scores move with later ids: {'yes' if self.future_moves_scores else 'no'} (right: no)",
            f"rows whose end is learnt: {'all' if self.first_masked_end is None else 'not all'} (right: all)",
        ]
        return "\n".join([*lines, *(f"FAULT: {fault}" for fault in self.faults)])


@torch.no_grad()
def check_labels(
    model: Any,
    rows: Sequence[Mapping[str, torch.Tensor]],
    ends: Sequence[int] = (),
    num_positions: int = 4,
    codes: SpeechIds | None = None,
) -> LabelReport:
    """
    Perturb ids of rows, one at a time, and look which scores and losses move.

    Args:
        model (`nn.Module`): A causal language model as `Trainer` trains it: called with `input_ids` and `labels`, it
            returns `loss` and `logits`. Its mode is put to evaluation.
        rows (sequence of mappings): `input_ids` and `labels`, each `(num_positions,)`, as the model learns from them.
        ends (sequence of `int`, *optional*): Ids that end a row. Each row must learn those that it has, and at least
            one. Defaults to none, and then ends are not looked at.
        num_positions (`int`, *optional*, defaults to 4): Targets of each row that are looked at, spread over it.
        codes (`SpeechIds`, *optional*): Ids of speech, so that codebooks of which nothing is learnt are found.

    Raises:
        ValueError: If there is no row, no row has a target, or the model itself refuses labels.
    """
    if not rows:
        raise ValueError("There are no rows to look at.")
    model.eval()
    device = next(model.parameters()).device
    num_targets, offsets, last_read, future_moves, masked_end = 0, None, None, False, None
    there, learnt = set[int](), set[int]()
    for number, row in enumerate(rows):
        ids, labels = (torch.as_tensor(row[name]).long().reshape(-1) for name in ("input_ids", "labels"))
        if len(ids) != len(labels):
            raise ValueError(f"Row {number} has {len(ids)} ids but {len(labels)} labels.")
        targets = (labels != _IGNORED).nonzero().flatten()
        num_targets += len(targets)
        offsets = _offsets(ids, labels) if offsets is None else offsets & _offsets(ids, labels)
        if masked_end is None and not _ends_are_learnt(ids, labels, ends):
            masked_end = number
        if codes is not None and len(targets):
            there |= _codebooks(ids[int(targets[0]) :], codes)
            learnt |= _codebooks(labels[targets], codes)
        chosen = targets[torch.linspace(0, len(targets) - 1, min(len(targets), num_positions)).long()]
        # As training does it: a model may itself refuse labels that do not fit.
        model(input_ids=ids[None].to(device), labels=labels[None].to(device))
        for position in chosen.tolist():
            read, moves = _reads(model, ids.to(device), labels.to(device), position)
            future_moves = future_moves or moves
            if read is not None:
                last_read = read if last_read is None else max(last_read, read)
    if not num_targets:
        raise ValueError("Not one row has a target: all labels are -100.")
    offset = min(offsets, key=abs) if offsets else None
    report = LabelReport(len(rows), num_targets, offset, last_read, future_moves, masked_end, list(ends))
    # Of speech that is only heard, no code is a target.
    report.masked_codebooks = sorted(there - learnt) if learnt else []
    report.faults = _faults(report)
    return report


def _offsets(ids: torch.Tensor, labels: torch.Tensor) -> set[int]:
    # All k from -2 to 2 for which every label at t that can be compared is the id at t + k.
    found: set[int] = set()
    for offset in range(-2, 3):
        first, last = max(0, -offset), min(len(ids), len(ids) - offset)
        there, here = ids[first + offset : last + offset], labels[first:last]
        compared = here != _IGNORED
        if bool(compared.any()) and bool((there == here)[compared].all()):
            found.add(offset)
    return found


def _ends_are_learnt(ids: torch.Tensor, labels: torch.Tensor, ends: Sequence[int]) -> bool:
    # By their values, since where labels stand is another question. Of several equal ends the last one counts.
    last_target = (labels != _IGNORED).nonzero().flatten()
    if not len(last_target):
        return False
    tail = set(labels[int(last_target[0]) :].tolist())
    is_learnt = [end in tail for end in ends]
    there = [bool((ids[int(last_target[0]) :] == end).any()) for end in ends]
    return (not ends or any(is_learnt)) and all(
        good for good, is_there in zip(is_learnt, there, strict=True) if is_there
    )


def _codebooks(ids: torch.Tensor, codes: SpeechIds) -> set[int]:
    units = ids[codes.is_unit(ids)]
    return set(((units - codes.audio_offset) // codes.codebook_size).tolist())


def _reads(model: Any, ids: torch.Tensor, labels: torch.Tensor, position: int) -> tuple[int | None, bool]:
    # How far the loss of the label at a position reads, relative to it; whether earlier scores move with later ids.
    alone = torch.full_like(labels, _IGNORED)
    alone[position] = labels[position]
    table = model.get_input_embeddings()
    before = _told(model, table(ids), alone)
    farthest, moves = None, False
    for place in range(max(0, position - 3), min(len(ids), position + 3)):
        changed = ids.clone()
        changed[place] = (changed[place] + 1 + table.weight.shape[0] // 2) % table.weight.shape[0]
        after = _told(model, table(changed), alone)
        if abs(float(after[0] - before[0])) > _TOLERANCE * max(1.0, abs(float(before[0]))):
            farthest = place - position
        # What lies before the change must not know of it.
        moves = moves or not torch.allclose(after[1][:place], before[1][:place], atol=_TOLERANCE, rtol=_TOLERANCE)
    return farthest, moves


def _told(model: Any, embedded: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # By embeddings, so that an id can change and its label stay, which a model may refuse of ids.
    outputs = model(inputs_embeds=embedded[None], labels=labels[None])
    return outputs.loss.detach().double().cpu(), outputs.logits[0].detach().float()


def _faults(report: LabelReport) -> list[str]:
    faults = []
    if report.future_moves_scores:
        faults.append("Scores at a position move with ids behind it: the model reads what it is to predict.")
    if report.label_offset is None:
        faults.append("The labels are not the ids at one offset: targets and inputs are of different sequences.")
    if report.last_read is None:
        faults.append("No id near a target moves its loss: the model does not learn from what comes before.")
    if report.label_offset is not None and report.last_read is not None:
        # The token that is predicted, against the last one that is read.
        distance = report.label_offset - report.last_read
        if distance > 1:
            faults.append(
                f"A target is predicted from the ids up to {distance} before it, so {distance - 1} is skipped: labels"
                " are shifted by the data and by the model. Give the labels at their own positions."
            )
        elif distance < 1:
            faults.append("A target's own id is read before it is predicted: its condition leaks.")
    if report.first_masked_end is not None:
        faults.append(
            f"Row {report.first_masked_end} has an end of {report.ends} that is no target, or none at all: the model"
            " never learns to stop. Let each row end with it, and keep its label."
        )
    if report.masked_codebooks:
        faults.append(
            f"No code of the codebooks {report.masked_codebooks} is a target, though others are: they are not learnt."
        )
    return faults


__all__ = ["LabelReport", "check_labels"]
