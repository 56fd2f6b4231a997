# SPDX-License-Identifier: Apache-2.0
"""What the commands share: errors of usage, and models that can be run."""

from typing import Any


class UsageError(ValueError):
    """What the user asked for cannot be started."""


def load_model(name: str | None, device: str | None) -> Any:
    import torch
    from transformers.utils import logging

    from speech_tokenizers.coding.loading import load
    from speech_tokenizers.modeling.transformers_codecs import as_speech_codec

    logging.disable_progress_bar()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, feature_extractor = load(name)
        model = model.to(device)
    except (ValueError, OSError) as error:
        raise UsageError(f"the model cannot be loaded: {one_line(error)}") from error
    except (RuntimeError, AssertionError) as error:
        # torch's words for a device that is misspelt or absent.
        raise UsageError(f"--device {device}: {one_line(error)}") from error
    try:
        return as_speech_codec(model, feature_extractor)
    except ValueError as error:
        raise UsageError(f"{name} is a {type(model).__name__}; only codecs and units can be run here.") from error


def one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
