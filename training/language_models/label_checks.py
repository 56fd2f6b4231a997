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
            masked; in the delay layout the end of any codebook counts.
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
    Perturb ids and frames of rows, one at a time, and look which scores and losses move.

    Args:
        model (`nn.Module`): A causal language model as `Trainer` trains it: called with `input_ids` and `labels`, it
            returns `loss` and `logits`. Its mode is put to evaluation.
        rows (sequence of mappings): `input_ids` and `labels`, each `(num_positions,)`, as the model learns from them;
            or what [`SpeechLMProcessor.row_inputs`] gives for another layout.
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
    num_targets, offsets, last_read, future_moves, masked_end = 0, None, None, False, None
    there, learnt = set[int](), set[int]()
    for number, row in enumerate(rows):
        looked = _Row(model, row, number)
        num_targets += len(looked.targets)
        offsets = looked.offsets() if offsets is None else offsets & looked.offsets()
        if masked_end is None and not looked.ends_are_learnt(ends):
            masked_end = number
        if codes is not None and len(looked.targets):
            there |= looked.codebooks(codes, learnt=False)
            learnt |= looked.codebooks(codes, learnt=True)
        spread = torch.linspace(0, len(looked.targets) - 1, min(len(looked.targets), num_positions)).long()
        # As training does it: a model may itself refuse labels that do not fit.
        model(**looked.batch)
        for target in looked.targets[spread]:
            read, moves = looked.reads(*target.tolist())
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


class _Row:
    """
    A row that is looked at.

    Attributes:
        batch (`dict` of `torch.Tensor`): The row as a batch of one, on the model's device.
        labels (`torch.LongTensor` of shape `(num_kinds, num_positions)`): Its labels: of the ids, and of frames.
        standing (`torch.LongTensor` of the same shape): What stands there, as its label should say it.
        targets (`torch.LongTensor` of shape `(num_targets, 2)`): Kind and position of each label that is a target, by
            position.
    """

    def __init__(self, model: Any, row: Mapping[str, Any], number: int):
        self.model = model
        device = next(model.parameters()).device
        parts = {name: torch.as_tensor(value) for name, value in row.items()}
        self.ids, labels = parts["input_ids"].long().reshape(-1), parts["labels"].long()
        if labels.shape[-1] != len(self.ids):
            raise ValueError(f"Row {number} has {len(self.ids)} ids but {labels.shape[-1]} labels.")
        self.labels = labels.reshape(-1, len(self.ids))
        self.batch = {name: value[None].to(device) for name, value in parts.items()}
        self.batch |= {"input_ids": self.ids[None].to(device), "labels": labels[None].to(device)}
        self.columns = parts.get("audio_codes")
        self.is_continuous = "audio_latents" in parts
        self.standing = self.ids[None]
        if self.columns is not None:
            self.standing = torch.cat([self.standing, self.columns.long()])
        elif self.is_continuous:
            marks = torch.full_like(self.ids, -1)
            marks[self.ids == model.config.audio_token_id] = 0
            marks[self.ids == model.config.audio_end_token_id] = 1
            self.standing = torch.stack([self.ids, marks])
        by_position = (self.labels != _IGNORED).T.nonzero()
        self.targets = by_position.flip(1)

    def offsets(self) -> set[int]:
        """All k from -2 to 2 for which every label at t that can be compared is what stands at t + k."""
        found: set[int] = set()
        length = len(self.ids)
        for offset in range(-2, 3):
            first, last = max(0, -offset), min(length, length - offset)
            there, here = self.standing[:, first + offset : last + offset], self.labels[:, first:last]
            compared = here != _IGNORED
            if bool(compared.any()) and bool((there == here)[compared].all()):
                found.add(offset)
        return found

    def ends_are_learnt(self, ends: Sequence[int]) -> bool:
        """Whether each of the ends that stand behind the first target is one, and at least one does."""
        # By their values, since where labels stand is another question. Of several equal ends the last one counts.
        if not len(self.targets):
            return False
        first = int(self.targets[0, 1])
        tail = set(self.labels[0, first:].tolist())
        if self.is_continuous and bool((self.labels[1] == 1).any()):
            tail.add(self.model.config.audio_end_token_id)
        is_learnt = [end in tail for end in ends]
        there = [bool((self.ids[first:] == end).any()) for end in ends]
        found = (not ends or any(is_learnt)) and all(
            good for good, is_there in zip(is_learnt, there, strict=True) if is_there
        )
        if self.columns is not None and ends:
            eos = self.model.config.codebook_size + 1
            ended, told = (self.standing[1:, first:] == eos).any(1), (self.labels[1:] == eos).any(1)
            found = found and bool((told | ~ended).all())
        return found

    def codebooks(self, codes: SpeechIds, learnt: bool) -> set[int]:
        """Codebooks of which codes are targets, or stand behind the first target."""
        first = int(self.targets[0, 1])
        if self.columns is not None:
            values = self.labels[1:] if learnt else self.standing[1:, first:]
            is_code = (values >= 0) & (values < self.model.config.codebook_size)
            return set(is_code.any(1).nonzero()[:, 0].tolist())
        values = self.labels[0][self.labels[0] != _IGNORED] if learnt else self.ids[first:]
        units = values[codes.is_unit(values)]
        return set(((units - codes.audio_offset) // codes.codebook_size).tolist())

    def reads(self, kind: int, position: int) -> tuple[int | None, bool]:
        """How far the loss of a target reads, relative to it; whether earlier scores move with what stands later."""
        alone = torch.full_like(self.labels, _IGNORED)
        alone[kind, position] = self.labels[kind, position]
        before = self._told(self._embedded(None), alone)
        farthest, moves = None, False
        for place in range(max(0, position - 3), min(len(self.ids), position + 3)):
            after = self._told(self._embedded(place), alone)
            if abs(float(after[0] - before[0])) > _TOLERANCE * max(1.0, abs(float(before[0]))):
                farthest = place - position
            # What lies before the change must not know of it.
            moves = moves or not torch.allclose(after[1][:place], before[1][:place], atol=_TOLERANCE, rtol=_TOLERANCE)
        return farthest, moves

    def _embedded(self, changed: int | None) -> torch.Tensor:
        # What is read, with another id or frame in one place.
        batch = {name: value.clone() for name, value in self.batch.items() if name not in ("labels", "attention_mask")}
        table = self.model.get_input_embeddings()
        if changed is not None:
            if self.columns is not None and int(batch["audio_codes"][0, 0, changed]) >= 0:
                column = batch["audio_codes"][0, :, changed]
                batch["audio_codes"][0, :, changed] = (column + 1) % self.model.config.codebook_size
            elif self.is_continuous and bool(batch["audio_mask"][0, changed]):
                batch["audio_latents"][0, changed] += 1.0
            else:
                # Any other word, but not one that stands for a frame.
                marker = getattr(getattr(self.model, "config", None), "audio_token_id", -1)
                rows = table.weight.shape[0]
                word = (int(batch["input_ids"][0, changed]) + 1 + rows // 2) % rows
                batch["input_ids"][0, changed] = word if word != marker or len(batch) == 1 else (word + 1) % rows
        if len(batch) == 1:
            return table(batch["input_ids"])
        return self.model.embed_inputs(**batch)

    def _told(self, embedded: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # By embeddings, so that what is read can change and its label stay, which a model may refuse of ids.
        labels = labels.view(self.batch["labels"].shape).to(embedded.device)
        given = {"audio_latents": self.batch["audio_latents"]} if self.is_continuous else {}
        outputs = self.model(inputs_embeds=embedded, labels=labels, **given)
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
