# SPDX-License-Identifier: Apache-2.0
"""Whether an encoded corpus is what its recordings give: files by their hashes, and a sample that is encoded again."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from speech_tokenizers.coding.corpus.places import read_groups
from speech_tokenizers.coding.corpus.plan import CorpusPlan
from speech_tokenizers.coding.corpus.step import CorpusStep


@dataclass(frozen=True)
class VerifiedRow:
    """
    What became of a recording that was encoded again.

    Args:
        name (`str`): Its `id`.
        agreement (`float`): Share of frames that are the same: equal codes, or latents that are equal to 1e-3 of the
            largest of the recording. 0 if it cannot be compared.
        reason (`str`, *optional*): Why it cannot be compared.
        is_set_aside (`bool`): Whether it was set aside, and would be so again; there is nothing to compare then.
    """

    name: str
    agreement: float
    reason: str | None = None
    is_set_aside: bool = False


def verify_corpus(plan: CorpusPlan, step: CorpusStep, sample: int = 100, seed: int = 0) -> Iterator[VerifiedRow]:
    """
    Encode a sample of recordings again, and compare with the rows.

    Recordings that were set aside are tried, too: they must still fail.

    Args:
        plan ([`CorpusPlan`]): The plan of a complete folder.
        step ([`CorpusStep`]): How to encode.
        sample (`int`, *optional*, defaults to 100): Number of recordings, drawn among all.
        seed (`int`, *optional*, defaults to 0): Seed of the draw.

    Returns:
        `Iterator[VerifiedRow]`: Each of them, in the order of the corpus.

    Raises:
        CorpusPlanError: If the plan is damaged.
        ValueError: If the model is not the one that made the rows.
    """
    size, total = plan.shards.rows_per_shard, plan.num_recordings
    chosen = sorted(random.Random(seed).sample(range(total), min(sample, total)))
    coding = step.coding(plan)
    for number in dict.fromkeys(index // size for index in chosen):
        recordings = plan.recordings(number)
        positions = [index - number * size for index in chosen if index // size == number]
        wanted = [recordings[position] for position in positions]
        stored = _stored(plan, number, positions)
        yield from (VerifiedRow(at.fields["id"], 1.0, is_set_aside=True) for at in wanted if at.fault is not None)
        for group in read_groups(plan, wanted):
            readable = [(at, row) for at, row in group if "reason" not in row]
            yield from (
                _compared(wanted[at].fields["id"], row, stored[at], plan) for at, row in group if "reason" in row
            )
            coded = coding.code([wanted[at].fields for at, _ in readable], [row for _, row in readable])
            for (at, _), row in zip(readable, coded, strict=True):
                yield _compared(wanted[at].fields["id"], row, stored[at], plan)


def _stored(plan: CorpusPlan, number: int, positions: list[int]) -> list[dict[str, Any] | None]:
    # The rows of positions in a task; `None` where the recording was set aside, or there is no such shard.
    import pyarrow.parquet

    from speech_tokenizers.processing.speech_row_format import shard_name

    said = plan.done(number)
    if said is None or not said["num_rows"]:
        return [None] * len(positions)
    missing = {entry["position"] for entry in said["set_aside"]}
    present = [position for position in range(len(plan.recordings(number))) if position not in missing]
    row_of = {position: row for row, position in enumerate(present)}
    table = pyarrow.parquet.read_table(plan.shards.folder / shard_name(number))
    return [table.slice(row_of[at], 1).to_pylist()[0] if at in row_of else None for at in positions]


def _compared(name: str, now: dict[str, Any], stored: dict[str, Any] | None, plan: CorpusPlan) -> VerifiedRow:
    import numpy as np

    from speech_tokenizers.processing.speech_rows import row_audio_codes, row_audio_latents
    from speech_tokenizers.processing.unit_sequences import expand

    if "reason" in now or stored is None:
        if "reason" in now and stored is None:
            return VerifiedRow(name, 1.0, is_set_aside=True)
        reason = f"cannot be read any more: {now['reason']}" if "reason" in now else "was set aside, but can be read"
        return VerifiedRow(name, 0.0, reason)
    if stored["id"] != name:
        return VerifiedRow(name, 0.0, f"stands where {stored['id']!r} stood")
    if plan.shards.facts.kind == "latents":
        before = row_audio_latents(stored)
        after = np.asarray(now["audio_latents"]).astype(np.float16).astype(np.float32)
        equal = before.shape == after.shape and (np.abs(before - after) <= 1e-3 * np.abs(before).max()).all(axis=1)
    else:
        before, after = row_audio_codes(stored), np.asarray(now["audio_codes"])
        if plan.shards.facts.deduplicated:
            after = expand(after, now["durations"])
        equal = before.shape == after.shape and (before == after).all(axis=0)
    if equal is False:
        return VerifiedRow(name, 0.0, "has another length")
    return VerifiedRow(name, float(np.mean(equal)))


__all__ = ["VerifiedRow", "verify_corpus"]
