# SPDX-License-Identifier: Apache-2.0
"""The arithmetic that a recipe trains in."""

import os

from speech_tokenizers.evaluation.speed.processor import has_bf16_units


def resolve_precision(mixed_precision: str | None, device: str) -> str | None:
    """
    A recipe's `mixed_precision` in the words of Accelerate.

    Args:
        mixed_precision (`str`, *optional*): Precision of the recipe. "auto" is what `accelerate launch
            --mixed_precision` asked for. Where that asked for none, it is bf16 if the device has units for it. The
            launcher passes "no" on to its processes also when it was not asked for anything, so that "no" counts as
            unasked.
        device (`str`): Kind of the device, `"cuda"` or `"cpu"`.
    """
    if mixed_precision != "auto":
        return mixed_precision
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched != "no":
        return launched
    return "bf16" if has_bf16_units(device) else "no"
