# SPDX-License-Identifier: Apache-2.0
"""Speech language models by name, with their processor and their codec."""

from pathlib import Path
from typing import Any

from speech_tokenizers.coding.foreign_settings import read_settings, refuse_adapter
from speech_tokenizers.coding.loading import PLACE, find_checkpoint, load, load_config


SPEECH_LM = "speech_tokenizers_speech_lm"
# Beside config.json, the files that are read when a speech language model and its processor are loaded.
_SETTINGS = ("processor_config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json")
DEFAULT_VOICE = "tts-slt-delay-16khz"
DEFAULT_LISTENER = "understanding-small-16khz"


def load_speech_lm(name_or_path: str | Path, codec: Any = None, **kwargs: Any) -> tuple[Any, Any]:
    """
    Load a speech language model, in evaluation mode, with its processor. Both get the codec.

    Args:
        name_or_path (`str` or `Path`): Name, folder or Hub id of a checkpoint; see [`find_checkpoint`].
        codec ([`SpeechCodec`] or `str`, *optional*): The codec, or its name, folder or Hub id. Defaults to the folder
            `codec` in the checkpoint's, if there is one, and else to the name that the configuration gives.
        kwargs: Arguments of `from_pretrained`, such as `revision`.

    Returns:
        `tuple`: The [`SpeechLMForConditionalGeneration`] and its [`SpeechLMProcessor`].

    Raises:
        ValueError: If there is no such model, it is another kind of model, its codec is not to be found, or the codec
            that was found is another one.
    """
    model, processor, checkpoint = _without_codec(name_or_path, **kwargs)
    codec = _codec(model.config, Path(checkpoint)) if codec is None else codec
    if isinstance(codec, str | Path):
        codec = load(codec)[0]
    model.attach_codec(codec)
    processor.attach_codec(model.codec)
    return model, processor


def load_speech_lm_without_codec(name_or_path: str | Path, **kwargs: Any) -> tuple[Any, Any]:
    """
    Load a speech language model and its processor without their codec, for what needs no audio.

    Args:
        name_or_path, kwargs: See [`load_speech_lm`].

    Raises:
        ValueError: If there is no such model, or it is another kind of model.
    """
    return _without_codec(name_or_path, **kwargs)[:2]


def _without_codec(name_or_path: str | Path, **kwargs: Any) -> tuple[Any, Any, str]:
    from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
    from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor

    place = {name: kwargs[name] for name in PLACE if name in kwargs}
    checkpoint = find_checkpoint(name_or_path, **place)
    config = load_config(checkpoint, **place)
    if config.model_type != SPEECH_LM:
        raise ValueError(
            f"{name_or_path} is a model of type {config.model_type!r}, not a speech language model, which `train`"
            " makes with a recipe of the trainer `speech_lm`."
        )
    place.pop("trust_remote_code", None)
    refuse_adapter(checkpoint, place)
    for file in _SETTINGS:
        read_settings(checkpoint, file, place)
    kwargs.pop("trust_remote_code", None)  # these classes are installed: nothing of the repository is run
    try:
        model = SpeechLMForConditionalGeneration.from_pretrained(checkpoint, **kwargs).eval()
        processor = SpeechLMProcessor.from_pretrained(checkpoint, trust_remote_code=False, **place)
    except (TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(
            f"{checkpoint} cannot be loaded, since a file of it is damaged: {' '.join(str(error).split())}"
        ) from error
    return model, processor, checkpoint


def _codec(config: Any, folder: Path) -> Any:
    inside = folder / "codec"
    name = str(inside) if inside.is_dir() else config.codec_name
    if not name:
        raise ValueError(f"{folder} does not say which codec it was trained with; pass it as `codec`.")
    try:
        return load(name)[0]
    except (ValueError, OSError) as error:
        raise ValueError(
            f"The codec of {folder}, {name}, cannot be loaded: {' '.join(str(error).split())} Pass it as `codec`."
        ) from error


def load_any_causal_lm(name_or_path: str | Path) -> tuple[Any, Any]:
    """
    Load a speech language model with its processor, or any other causal language model without one.

    Raises:
        ValueError: If there is no such model.
    """
    from transformers import AutoModelForCausalLM

    checkpoint = find_checkpoint(name_or_path)
    if load_config(checkpoint).model_type == SPEECH_LM:
        return load_speech_lm(checkpoint)
    return AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=False).eval(), None


__all__ = ["load_any_causal_lm", "load_speech_lm", "load_speech_lm_without_codec"]
