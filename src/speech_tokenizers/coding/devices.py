# SPDX-License-Identifier: Apache-2.0
"""The option `--device`, which means the same in every command."""

import argparse


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
        ValueError: If it is misspelt or absent.
    """
    import torch

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).partition(" CUDA kernel errors")[0]
        raise ValueError(f"--device {device}: {reason}") from error
    return device


__all__ = ["add_device_argument", "choose_device"]
