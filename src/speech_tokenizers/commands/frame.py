# SPDX-License-Identifier: Apache-2.0
"""What the commands share: errors of usage, models that can be run, and words for the user."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech_tokenizers.processing.optional_packages import MissingPackageError


class UsageError(ValueError):
    """What the user asked for cannot be started."""


def load_model(name: str | None, device: str | None) -> tuple[Any, Any]:
    """
    Load a model of tokens for a command.

    Args:
        name (`str`, *optional*): Name, folder or Hub id; see [`load`].
        device (`str`, *optional*): What the user gave as `--device`.

    Returns:
        `tuple`: The model as a [`SpeechCodec`], in evaluation mode, and its feature extractor.

    Raises:
        UsageError: If there is no such model or device, or the model has no tokens.
    """
    from transformers.utils import logging

    from speech_tokenizers.coding.command_options import choose_device
    from speech_tokenizers.coding.loading import load
    from speech_tokenizers.modeling.transformers_codecs import as_speech_codec

    logging.disable_progress_bar()
    try:
        device = choose_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        model, feature_extractor = load(name)
    except (ValueError, OSError) as error:
        raise UsageError(f"the model cannot be loaded: {one_line(error)}") from error
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        # torch's words for a device that is misspelt or absent.
        raise UsageError(f"--device {device}: {one_line(error)}") from error
    try:
        return as_speech_codec(model, feature_extractor), feature_extractor
    except ValueError as error:
        raise UsageError(
            f"{name} is a {type(model).__name__}, which has no units; `speech-tokenizers fit-units` finds those of a"
            " speech encoder."
        ) from error


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Variables of the environment, as long as the block lasts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_output_folder(path: Path) -> None:
    """
    Check the folder that a command will write, so that it fails before the work and not after it.

    Raises:
        UsageError: If there is a file of that name, or nothing can be written into it.
    """
    from speech_tokenizers.processing.whole_files import check_folder_is_writable

    try:
        check_folder_is_writable(path)
    except NotADirectoryError as error:
        raise UsageError(f"--output {path} leads to a file, where a folder is needed; choose another.") from error
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written ({error.strerror}); choose another folder.") from error


def one_line(error: BaseException) -> str:
    """What an exception says, in one line; for one that nobody foresaw, with its kind."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "the memory is not enough for it."
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | MissingPackageError | FloatingPointError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def say(text: str) -> None:
    """Write a line to standard error. Where nobody reads that, or it cannot be written, nothing else is stopped."""
    text = text.encode(errors="backslashreplace").decode()  # names of files may be no Unicode
    with contextlib.suppress(OSError, ValueError):
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)  # above the progress bar, if there is one
        else:
            print(text, file=sys.stderr)
