# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Signs that generated speech went wrong: it never ended, it is far too short, or it goes round in a loop."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


# Frames that repeat those before them, for so long in all, are a loop. Speech hardly does that: in 9,000 sentences of
# one synthetic voice, the longest such stretch took 0.24 s with one codebook of rvq-codec-16khz-4kbps, 0.12 s with two
# and 0.04 s with four. (Digital silence of that length does.)
LOOP_SECONDS = 1.0
# Longest pattern that is looked for, in seconds.
LONGEST_PATTERN = 2.0
# Latents whose root mean square difference is below this, in standard deviations, count as the same. In 3,000 of the
# sentences above, no latent of cst-16khz-25hz (weights of 2026-11-27) came that near to one up to a second before.
SAME_LATENTS = 0.1
# Fewest frames of a character, in means of the training texts. The shortest of the 9,000 sentences had 0.61.
SHORTEST_SHARE = 0.5


def longest_loop(frames: torch.Tensor, frame_rate: float, spread: torch.Tensor | None = None) -> tuple[int, int, int]:
    """
    The longest stretch in which a pattern of frames is repeated, at least once.

    Args:
        frames (`torch.Tensor`): Codes `(num_codebooks, num_frames)`, or latents `(num_frames, latent_dim)`.
        frame_rate (`float`): Frames a second, in Hz.
        spread (`torch.Tensor` of shape `(latent_dim,)`, *optional*): Standard deviations of latents.

    Returns:
        `tuple` of three `int`: Frames of the pattern, first frame, and number of frames; zeros without any.
    """
    values = frames.float() / spread if spread is not None else frames.T
    values = values.cpu().numpy()
    best = (0, 0, 0)
    for period in range(1, min(len(values) // 2, round(LONGEST_PATTERN * frame_rate)) + 1):
        later, earlier = values[period:], values[:-period]
        if spread is None:
            is_same = (later == earlier).all(1)
        else:
            is_same = np.sqrt(np.square(later - earlier).mean(1)) < SAME_LATENTS
        edges = np.flatnonzero(np.diff(np.concatenate([[0], is_same.astype(np.int8), [0]])))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        if len(lengths) and lengths.max() >= period and lengths.max() + period > best[2]:
            best = (period, int(starts[lengths.argmax()]), int(lengths.max()) + period)
    return best


def alarm_of(
    frames: torch.Tensor, ended: bool, text: str, model: Any, length: int | None = None, judges_length: bool = True
) -> str | None:
    """
    What is wrong with a row of speech, in a few words; `None` if nothing seems to be.

    Args:
        frames (`torch.Tensor`): Codes `(num_codebooks, num_frames)`, or latents `(num_frames, latent_dim)`.
        ended (`bool`): Whether the model wrote the end.
        text (`str`): The text.
        model ([`SpeechLMForConditionalGeneration`]): The model, for what its training measured.
        length (`int`, *optional*): Runs of the row, where the model writes these and its training counted them.
            Defaults to its frames.
        judges_length (`bool`, *optional*, defaults to `True`): Whether the model chose how long the text takes.
    """
    config = model.config
    spread = model.frames.statistics.std if config.layout == "continuous" else None
    name = "frames" if config.unit_coding == "frames" else "runs"
    if length is None:
        length = len(frames) if spread is not None else frames.shape[1]
    reasons = []
    if not ended:
        reasons.append(f"it did not end by itself, and was cut at {length} {name}")
    known = config.frames_per_character
    if ended and known and judges_length and length < SHORTEST_SHARE * known[0] * (len(text) + 1):
        usual = round(known[0] * (len(text) + 1))
        reasons.append(f"it has {length} {name}, where a text of its length usually has {usual}")
    period, start, repeated = longest_loop(frames, config.frame_rate, None if spread is None else spread.cpu())
    # Where training speech itself repeats, such as units in a pause, only what goes beyond it is a sign.
    allowed = max(LOOP_SECONDS, 1.5 * (config.longest_loop_seconds or 0.0))
    if repeated >= allowed * config.frame_rate:
        at, seconds = start / config.frame_rate, repeated / config.frame_rate
        reasons.append(f"it repeats {period} frames for {seconds:.2f} s, from {at:.2f} s on")
    return "; ".join(reasons) or None


def generators_again(
    generators: Sequence[torch.Generator], states: Sequence[torch.Tensor], rows: Sequence[int], attempt: int
) -> list[torch.Generator]:
    """
    New generators for rows that are drawn again.

    The seed of each follows from the state that the row's generator had before the first try, and from the number of
    the try. So it does not depend on the other rows.

    Args:
        generators (sequence of `torch.Generator`), states (sequence of `torch.Tensor`): Generators of all rows, and
            their states before the first try.
        rows (sequence of `int`): The rows.
        attempt (`int`): Number of the try, from 1 for the first that is drawn again.
    """
    again = []
    for row in rows:
        digest = hashlib.sha256(states[row].cpu().numpy().tobytes() + attempt.to_bytes(4, "big")).digest()
        again.append(torch.Generator(generators[row].device).manual_seed(int.from_bytes(digest[:7], "big")))
    return again


__all__ = ["LOOP_SECONDS", "alarm_of", "generators_again", "longest_loop"]
