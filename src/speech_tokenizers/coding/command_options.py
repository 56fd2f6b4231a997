# SPDX-License-Identifier: Apache-2.0
"""Options that mean the same in every command."""

import argparse
import math


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--device`; [`choose_device`] makes a device of it."""
    parser.add_argument("--device", help="device, such as cpu or cuda:0; default: a GPU if there is one, else the CPU")


def choose_device(name: str | None) -> str:
    """
    Args:
        name (`str`, *optional*): A device as torch calls it. Defaults to a GPU if there is one, else the CPU.

    Returns:
        `str`: The device, on which a tensor can be made.

    Raises:
        ValueError: If it is misspelt or absent, or computes nothing.
    """
    import torch

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        is_meta = torch.empty(1, device=device).is_meta
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).partition(" CUDA kernel errors")[0]
        raise ValueError(f"--device {device}: {reason}") from error
    if is_meta:
        raise ValueError(f"--device {device}: it holds shapes without numbers; choose a device that computes, as cpu.")
    return device


def count(text: str) -> int:
    """The type of an argument that counts things, such as `--limit`: a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but is {text!r}")
    return number


def add_batch_seconds_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--batch-seconds`, which [`check_batch_seconds`] checks. Its default is [`default_batch_seconds`]."""
    parser.add_argument(
        "--batch-seconds",
        metavar="S",
        type=float,
        default=None,
        help="audio in a batch, with its padding, in seconds (default: 30 on a CPU, 60 elsewhere)",
    )


def check_batch_seconds(seconds: float | None) -> None:
    """Raises `ValueError` if `--batch-seconds` is not positive and finite."""
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"--batch-seconds must be positive and finite, but is {seconds:g}.")


__all__ = ["add_batch_seconds_argument", "add_device_argument", "check_batch_seconds", "choose_device", "count"]
