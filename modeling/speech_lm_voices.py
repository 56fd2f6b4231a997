# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Voices as files: speech with its text, which stands before each request, and what a model remembers of it."""

import json
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers.cache_utils import DynamicCache, DynamicLayer

from .atomic_files import write_atomically
from .codec_interface import tensor_fingerprint


_FORMAT, _VERSION = "speech-tokenizers voice", 1


@dataclass(frozen=True)
class Voice:
    """
    An example of speech with its text, as an earlier turn of the conversation: the user asked, the model answered.

    [`~SpeechGeneration.make_voice`] makes one. Its codes serve every model of the same codec. Its cache, if there is
    one, serves the model alone that made it.

    Args:
        text (`str`): Text of the example.
        input_ids (`torch.LongTensor` of shape `(num_positions,)`): Ids of the turn, as the model that made it reads
            them.
        audio_codes (`torch.LongTensor` of shape `(num_codebooks, num_frames)`, *optional*): Codes of the example.
        audio_latents (`torch.FloatTensor` of shape `(num_frames, latent_dim)`, *optional*): Its latents, for the
            continuous layout.
        pieces (`list` of `dict`, *optional*): Its words or phones, `{"word" or "label", "end" in seconds}`.
        codec_name (`str`), codec_fingerprint (`str`): The codec.
        layout (`str`), template_version (`int`): Layout and prompts of the model that made it.
        model_fingerprint (`str`, *optional*): Hash of that model's weights, if there is a cache.
        past (`tuple` of pairs of `torch.Tensor` of shape `(1, num_heads, num_positions, head_dim)`, *optional*): Keys
            and values of each layer.
    """

    text: str
    input_ids: torch.Tensor
    audio_codes: torch.Tensor | None
    audio_latents: torch.Tensor | None
    pieces: list[dict[str, Any]] | None
    codec_name: str
    codec_fingerprint: str
    layout: str
    template_version: int
    model_fingerprint: str | None = None
    past: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None = None

    @property
    def num_frames(self) -> int:
        """Frames of the example."""
        return len(self.audio_latents) if self.audio_codes is None else self.audio_codes.shape[1]  # type: ignore[arg-type]

    def without_cache(self) -> Self:
        """The same voice without what its model made of it."""
        return replace(self, model_fingerprint=None, past=None)

    def clip(self) -> dict[str, Any]:
        """The example as [`SpeechLMProcessor`] takes clips: `audio_codes` or `audio_latents`, and `audio_pieces`."""
        name = "audio_latents" if self.audio_codes is None else "audio_codes"
        return {name: getattr(self, name), "audio_pieces": self.pieces}

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the voice into one safetensors file, which appears whole.

        Args:
            path (`str` or `Path`): File to write.

        Raises:
            OSError: If it cannot be written.
        """
        tensors = {"input_ids": self.input_ids}
        tensors |= {name: value for name, value in self.clip().items() if name != "audio_pieces"}
        for layer, pair in enumerate(self.past or ()):
            for name, value in zip(("keys", "values"), pair, strict=True):
                tensors[f"past.{layer}.{name}"] = value
        fields = ("text", "pieces", "codec_name", "codec_fingerprint", "layout", "template_version")
        about = {name: getattr(self, name) for name in (*fields, "model_fingerprint")}
        metadata = {"format": _FORMAT, "version": str(_VERSION), "voice": json.dumps(about)}
        content = save({name: value.contiguous().cpu() for name, value in tensors.items()}, metadata)
        write_atomically(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Voice":
        """
        Read a voice.

        Args:
            path (`str` or `Path`): File that `save` wrote.

        Raises:
            OSError: If the file is not there.
            ValueError: If it is cut short, or no voice, or has no frames.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is not there, or no file; `make-voice` makes a voice.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{path} is no whole safetensors file ({error}): it was cut short, or is something else. Copy it"
                " again, or make the voice anew with `make-voice`."
            ) from error
        if metadata.get("format") != _FORMAT or metadata.get("version") != str(_VERSION):
            raise ValueError(
                f"{path} is no voice of version {_VERSION}, but {metadata.get('format', 'another safetensors file')!r}"
                f" of version {metadata.get('version')}; `make-voice` makes voices."
            )
        try:
            about = json.loads(metadata["voice"])
            num_layers = sum(name.endswith(".keys") for name in tensors)
            past = tuple((tensors[f"past.{n}.keys"], tensors[f"past.{n}.values"]) for n in range(num_layers))
            voice = cls(
                input_ids=tensors["input_ids"],
                audio_codes=tensors.get("audio_codes"),
                audio_latents=tensors.get("audio_latents"),
                past=past or None,
                **about,
            )
            if not voice.num_frames:
                raise ValueError("it has no frames")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{path} is a damaged voice ({error}); make it anew with `make-voice`.") from error
        return voice

    def check(self, model: Any) -> None:
        """
        Check that a model can speak after this example.

        Raises:
            ValueError: If it is of another codec, or its cache is of other weights or another type.
        """
        config = model.config
        if self.codec_fingerprint != config.codec_fingerprint:
            raise ValueError(
                f"The voice is of the codec {self.codec_name!r}, fingerprint {self.codec_fingerprint}, but the model"
                f" has {config.codec_name!r}, fingerprint {config.codec_fingerprint}; make it anew with this model."
            )
        if self.audio_codes is None and config.layout != "continuous":
            raise ValueError(
                f"The voice has latents, but the model's layout, {config.layout!r}, needs codes; make it anew with"
                " this model."
            )
        if self.past is None:
            return
        anew = "make the voice anew with this model, or use `voice.without_cache()`"
        if self.model_fingerprint != model_fingerprint(model):
            raise ValueError(f"The voice has a cache of other weights than this model's; {anew}.")
        kept, needed = (self.past[0][0].dtype, model.dtype)
        if kept != needed:
            raise ValueError(f"The voice has a cache in {kept}, but the model is in {needed}; {anew}.")

    def cache(self, device: torch.device) -> DynamicCache:
        """A new cache of the positions of the voice, which may be added to; only if there is one to copy."""
        assert self.past is not None
        pairs = [tuple(value.to(device, copy=True) for value in pair) for pair in self.past]
        return DynamicCache(ddp_cache_data=pairs)


@torch.no_grad()
def make_voice(
    model: Any, text: str, processor: Any, clip: Mapping[str, Any], sampling_rate: int | None, cache: bool
) -> Voice:
    """See [`~SpeechGeneration.make_voice`]; `clip` is given as [`SpeechLMProcessor`] takes it."""
    processor.check_model(model)
    if model.training:
        raise ValueError("The model is in training mode, in which what it remembers is random; call `.eval()`.")
    given = {name: value for name, value in clip.items() if value is not None}
    sources = [name for name in given if name != "audio_pieces"]
    if len(sources) != 1:
        raise ValueError(
            "A voice needs its speech once: one of `audio`, `audio_codes` and `audio_latents`, but"
            f" {' and '.join(f'`{name}`' for name in sources) or 'none'} is given."
        )
    values = processor.clip_values(**{name: given[name] for name in sources}, sampling_rate=sampling_rate)
    is_latents = model.config.layout == "continuous"
    pieces = None if "audio_pieces" not in given else [_plain(piece) for piece in given["audio_pieces"]]
    seconds = (len(values) if is_latents else values.shape[1]) / model.config.frame_rate
    if pieces and pieces[-1]["end"] > seconds + 0.1:
        raise ValueError(
            f"`audio_pieces` reach {pieces[-1]['end']:g} s, but the speech ends at {seconds:.2f} s; give its own."
        )
    voice = Voice(
        text=text,
        input_ids=torch.zeros(0, dtype=torch.long),
        audio_codes=None if is_latents else values,
        audio_latents=values if is_latents else None,
        pieces=pieces,
        codec_name=processor.codec_name,
        codec_fingerprint=processor.codec_fingerprint,
        layout=model.config.layout,
        template_version=model.config.template_version,
    )
    inputs = processor(text=processor.voice_prompt(voice), **{n: [v] for n, v in voice.clip().items()})
    voice = replace(voice, input_ids=inputs["input_ids"][0])
    context = getattr(model.config.text_config, "max_position_embeddings", None)
    if context is not None and len(voice.input_ids) >= context:
        raise ValueError(
            f"The voice takes {len(voice.input_ids)} positions, but the model has {context}; take a shorter recording."
        )
    if not cache:
        return voice
    names = [name for name in inputs if name != "attention_mask"]
    outputs = model(**{name: inputs[name].to(model.device) for name in names}, use_cache=True, logits_to_keep=1)
    layers = getattr(outputs.past_key_values, "layers", [])
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        raise ValueError(
            "The cache of this language model is more than keys and values of all positions, as with sliding windows;"
            " make the voice without `cache`."
        )
    past = tuple((layer.keys.cpu(), layer.values.cpu()) for layer in layers)
    return replace(voice, past=past, model_fingerprint=model_fingerprint(model))


def _plain(piece: Mapping[str, Any]) -> dict[str, Any]:
    # What is needed of a word or phone, as JSON has it.
    return {name: float(value) if name == "end" else value for name, value in piece.items() if name != "start"}


# What was hashed of each model, since large ones take a second.
_FINGERPRINTS: "weakref.WeakKeyDictionary[Any, tuple[Any, str]]" = weakref.WeakKeyDictionary()


def model_fingerprint(model: Any) -> str:
    """
    Short hash of a model's weights, the same in half and in single precision.

    It is kept until the weights change, which their versions, places and a sample of their numbers tell.

    Args:
        model (`torch.nn.Module`): The model.

    Raises:
        ValueError: If it has an adapter that is not merged.
    """
    adapters = [module for module in model.modules() if type(module).__module__.split(".")[0] == "peft"]
    if adapters:
        raise ValueError(
            "The model has an adapter that is not merged. It can be switched off and on, so that no cache belongs to"
            " it; merge it (`merge_adapter`), or use voices without a cache."
        )
    weights = [(name, value.detach()) for name, value in sorted(model.state_dict(keep_vars=True).items())]
    state = tuple(
        (name, value._version, value.data_ptr(), tuple(value.flatten()[:: max(1, value.numel() // 8)].tolist()))
        for name, value in weights
    )
    kept = _FINGERPRINTS.get(model)
    if kept is None or kept[0] != state:
        kept = _FINGERPRINTS[model] = (state, tensor_fingerprint(value for _, value in weights))
    return kept[1]


def one_voice_a_text(voice: "Voice | Sequence[Voice | None] | None", num_texts: int) -> list[Voice | None]:
    """
    The voice of each text.

    Raises:
        TypeError: If something else is given.
        ValueError: If there is not one, or `None`, for each.
    """
    # By name, since a model that was loaded with its own code has a copy of this class.
    is_one = voice is None or type(voice).__name__ == Voice.__name__
    if not is_one and not isinstance(voice, list | tuple):
        raise TypeError(f"`voice` must be a `Voice`, or a list of them, but is {type(voice).__name__}.")
    voices: list[Any] = [voice] * num_texts if is_one else list(voice)  # type: ignore[arg-type]
    if len(voices) != num_texts:
        raise ValueError(f"`voice` must be one, or have one a text ({num_texts}), but has {len(voices)}.")
    for given in voices:
        if given is not None and type(given).__name__ != Voice.__name__:
            raise TypeError(f"`voice` must be a `Voice`, but is {type(given).__name__}; read files by `Voice.load`.")
    return voices


__all__ = ["Voice", "make_voice", "model_fingerprint", "one_voice_a_text"]
