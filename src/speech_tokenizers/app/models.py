# SPDX-License-Identifier: Apache-2.0
"""The models that a page offers: each is loaded once, and serves one request at a time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class OfferedModel:
    """
    A model and the lock of whoever uses it.

    Args:
        name (`str`): Name under which it is offered.
        model ([`SpeechCodec`] or [`SpeechLMForConditionalGeneration`]): The model, in evaluation mode.
        processor ([`SpeechLMProcessor`], *optional*): Processor of a speech language model.
    """

    name: str
    model: Any
    processor: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def in_use(self) -> Iterator[Any]:
        """The model; who else asks for it waits."""
        with self._lock:
            yield self.model

    @property
    def are_units(self) -> bool:
        """Whether it gives units of one codebook, which have durations."""
        from speech_tokenizers.modeling.unit_model import UnitPreTrainedModel

        return isinstance(self.model, UnitPreTrainedModel) and len(self.model.config.unit_codebook_sizes) == 1

    @property
    def is_voice(self) -> bool:
        """Whether it says texts."""
        return self.processor is not None

    @property
    def speaks(self) -> bool:
        """Whether its tokens become speech without being told in whose voice."""
        if self.is_voice or not self.model.decodable_kinds:
            return False
        vocoder = getattr(self.model, "vocoder", None)
        return vocoder is None or vocoder.config.has_default_voice


class ModelShelf:
    """
    All models of a page.

    Args:
        models (sequence of [`OfferedModel`]): The models, in the order in which they are offered.
    """

    def __init__(self, models: Sequence[OfferedModel]):
        self._models = {offered.name: offered for offered in models}

    def __getitem__(self, name: str) -> OfferedModel:
        return self._models[name]

    @property
    def codecs(self) -> list[str]:
        """Names of what turns speech into tokens and back, units apart."""
        return self._names(lambda offered: offered.speaks and not offered.are_units)

    @property
    def units(self) -> list[str]:
        """Names of units."""
        return self._names(lambda offered: not offered.is_voice and offered.are_units)

    @property
    def speaking(self) -> list[str]:
        """Names of all whose tokens become speech."""
        return self._names(lambda offered: offered.speaks)

    @property
    def voices(self) -> list[str]:
        """Names of speech language models that say texts."""
        return self._names(lambda offered: offered.is_voice)

    def _names(self, belongs: Callable[[OfferedModel], bool]) -> list[str]:
        return [name for name, offered in self._models.items() if belongs(offered)]


def load_models(
    names: Sequence[str] | None = None, device: str | None = None, on_progress: Callable[[str], object] | None = None
) -> ModelShelf:
    """
    Load the models of a page.

    Args:
        names (sequence of `str`, *optional*): Names, folders or Hub ids of codecs, units and speech language models.
            Defaults to all checkpoints and voices of this installation.
        device (`str`, *optional*): Device of all models. Defaults to a GPU if there is one, else the CPU.
        on_progress (`Callable`, *optional*): Function that is called with each name before that model is loaded.

    Raises:
        ValueError: If a name or `device` is wrong, or a model neither codes speech nor says texts.
        OSError: If a model cannot be downloaded.
    """
    from speech_tokenizers.coding.command_options import choose_device
    from speech_tokenizers.coding.loading import (
        DEFAULT_CHECKPOINT,
        DEFAULT_UNITS,
        list_checkpoints,
        list_voices,
    )
    from speech_tokenizers.coding.speech_lm_loading import DEFAULT_VOICE

    device = choose_device(device)
    if names is None:
        # What is offered first is what is chosen when the page opens.
        first = (DEFAULT_CHECKPOINT, DEFAULT_UNITS, DEFAULT_VOICE)
        there = [*list_checkpoints(), *list_voices()]
        names = sorted(there, key=lambda name: (first.index(name) if name in first else len(first), name))
    models = []
    for name in dict.fromkeys(names):
        if on_progress is not None:
            on_progress(name)
        models.append(_load(name, device))
    return ModelShelf(models)


def _load(name: str, device: str) -> OfferedModel:
    from speech_tokenizers.coding.loading import find_checkpoint, load, load_config
    from speech_tokenizers.coding.speech_lm_loading import SPEECH_LM, load_speech_lm
    from speech_tokenizers.modeling.transformers_codecs import as_speech_codec

    if load_config(find_checkpoint(name, argument="--model")).model_type == SPEECH_LM:
        model, processor = load_speech_lm(name)
        return OfferedModel(name, model.to(device), processor)
    codec, feature_extractor = load(name)
    return OfferedModel(name, as_speech_codec(codec.to(device), feature_extractor))
