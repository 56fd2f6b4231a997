# SPDX-License-Identifier: Apache-2.0
"""Speech and language models that a codec learns from, and how their vectors meet the codec's frames."""

import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import soxr
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from speech_tokenizers.modeling.encoder_geometry import shortest_input
from speech_tokenizers.modeling.model_names import find_model
from speech_tokenizers.modeling.speech_encoders import WaveformEncoder, check_layer, select_layer
from speech_tokenizers.processing.timed_labels import TimedWord
from speech_tokenizers.training.codec.arguments import LanguageTeacherArguments, SpeechTeacherArguments


@dataclass
class Utterance:
    """
    A recording and what is said in it, the latter found when it is asked for.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): Recording as int16 or float32.
        sampling_rate (`int`): Sampling rate of the recording, in Hz.
        find_text (callable, *optional*): Function that returns the transcript.
        find_words (callable, *optional*): Function that returns a [`TimedWord`] for each whitespace-separated word of
            the transcript.
        said (`str`, *optional*): Identity of text and times that are given with the data.
    """

    waveform: np.ndarray
    sampling_rate: int
    find_text: Callable[[], str] | None = None
    find_words: Callable[[], Sequence[TimedWord]] | None = None
    said: str = ""

    def at(self, sampling_rate: int) -> np.ndarray:
        """The waveform as float32 in [-1, 1] at a rate in Hz."""
        scale = 32767.0 if self.waveform.dtype == np.int16 else 1.0
        samples = np.asarray(self.waveform, dtype=np.float32) / np.float32(scale)
        if sampling_rate == self.sampling_rate:
            return samples
        return soxr.resample(samples, self.sampling_rate, sampling_rate)

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.waveform) / self.sampling_rate

    @property
    def audio_hash(self) -> str:
        """Hash of samples and rate."""
        digest = hashlib.sha256(f"{self.sampling_rate} {self.waveform.dtype}".encode())
        digest.update(np.ascontiguousarray(self.waveform).tobytes())
        return digest.hexdigest()[:24]


class TimedFeatures(NamedTuple):
    """
    Attributes:
        features: Vectors (num_rows, dim), float, in the order of their times.
        times: Start and end of each vector in seconds, (num_rows, 2), float.
    """

    features: torch.Tensor
    times: torch.Tensor


class Teacher(Protocol):
    """
    Gives the features of an utterance.

    `description` says what they depend on besides the utterance; `interpolated` whether frames between two vectors get
    a mixture of both, instead of the vector whose time they lie in.
    """

    description: dict[str, Any]
    interpolated: bool
    dimension: int

    def features(self, utterance: Utterance) -> TimedFeatures:
        """The vectors of an utterance, and when they hold."""
        ...

    def key(self, utterance: Utterance) -> str:
        """Identifies what of the utterance the features depend on."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the model."""
        ...


def _read_config(args: SpeechTeacherArguments | LanguageTeacherArguments, which: str) -> Any:
    try:
        found = find_model(args.model, argument=f"distillation.{which}.model", revision=args.revision or "main")
        return AutoConfig.from_pretrained(found, revision=args.revision or "main")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`distillation.{which}.model` is {args.model!r}, which cannot be loaded ({' '.join(str(error).split())})."
        ) from error


def model_revision(name_or_path: str, config: Any) -> str:
    """Identity of a model's weights: its commit on the Hub, or a hash of the weight files in its folder."""
    if not os.path.isdir(name_or_path):
        return f"commit {config._commit_hash}"
    digest = hashlib.sha256()
    for pattern in ("*.safetensors", "*.bin"):
        for path in sorted(Path(name_or_path).glob(pattern)):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {digest.hexdigest()[:24]}"


class SpeechTeacher:
    """
    Features of a speech encoder, one vector a frame (DM-Codec's A, SpeechTokenizer's S).

    Args:
        args ([`SpeechTeacherArguments`]): Settings of the encoder, with the layer whose states are the features.
    """

    interpolated = True

    def __init__(self, args: SpeechTeacherArguments):
        self.args = args
        config = _read_config(args, "speech_teacher")
        layers = getattr(config, "encoder_layers", None) or config.num_hidden_layers
        check_layer(args.layer, layers)
        self.dimension = config.hidden_size
        self.description = {
            "kind": "speech",
            "model": model_revision(args.model, config),
            "layer": args.layer,
            "window": args.window,
        }

    @functools.cached_property
    def encoder(self) -> WaveformEncoder:
        """The model, loaded when it is first needed."""
        return WaveformEncoder.from_pretrained(
            self.args.model, self.args.window, revision=self.args.revision or "main"
        )

    def to(self, device: torch.device) -> None:
        self.encoder.encoder.to(device)

    def key(self, utterance: Utterance) -> str:
        return utterance.audio_hash

    def features(self, utterance: Utterance) -> TimedFeatures:
        features, times = self.of_waveforms(torch.from_numpy(utterance.at(self.encoder.sampling_rate))[None])
        return TimedFeatures(features[0], times)

    def of_waveforms(self, waveforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            waveforms (`torch.Tensor` of shape `(batch, num_samples)`): Waveforms at the encoder's rate.

        Returns:
            Features `(batch, num_rows, dim)`, and times `(num_rows, 2)` in seconds, both ends of which are a frame's
            centre.
        """
        least = shortest_input(self.encoder.encoder.config)
        waveforms = torch.nn.functional.pad(waveforms, (0, max(0, least - waveforms.shape[-1])))
        features, centres = self.encoder(waveforms, self.args.layer)
        return features, torch.stack([centres, centres], dim=-1).to(features.device)


class LanguageTeacher:
    """
    Contextual vectors of a text model (DM-Codec's S), one a token or one a word. The whole text is read at once.

    Args:
        args ([`LanguageTeacherArguments`]): Settings of the model, its layer and the alignment.
        frame_rate (`float`): Frame rate of the codec, in Hz; `"pad"` puts token k at frame k.
    """

    def __init__(self, args: LanguageTeacherArguments, frame_rate: float):
        self.args, self.frame_rate = args, frame_rate
        config = _read_config(args, "language_teacher")
        if hasattr(config, "num_mel_bins") or hasattr(config, "conv_kernel"):
            raise ValueError(
                f"`language_teacher.model` is {args.model!r}, a {config.model_type}, which reads no text."
            )
        self.tokenizer = AutoTokenizer.from_pretrained(args.model, revision=args.revision or "main")
        if not self.tokenizer.is_fast:
            raise ValueError(f"`{args.model}` has no fast tokenizer, which tells where in the text a token is.")
        if args.alignment == "pad" and self.tokenizer.pad_token_id is None:
            raise ValueError(f"`{args.model}` has no padding token, which `alignment` 'pad' needs; choose another.")
        check_layer(args.layer, config.num_hidden_layers)
        self.dimension = config.hidden_size
        # Some tokenizers do not know their model's limit, and RoBERTa's table of positions starts at the padding's.
        known = getattr(config, "max_position_embeddings", None) or 512
        offset = 0 if config.pad_token_id in (None, 0) else config.pad_token_id + 1
        self.longest = min(self.tokenizer.model_max_length, known - offset)
        self.interpolated = args.alignment == "interpolate"
        self.description = {
            "kind": "language",
            "model": model_revision(args.model, config),
            "layer": args.layer,
            "alignment": args.alignment,
        }
        if args.alignment == "pad":
            self.description["frame_rate"] = frame_rate

    @functools.cached_property
    def model(self) -> nn.Module:
        """The model, loaded when it is first needed; of an encoder-decoder the encoder."""
        model = AutoModel.from_pretrained(self.args.model, dtype=torch.float32, revision=self.args.revision or "main")
        return (model.get_encoder() if model.config.is_encoder_decoder else model).eval()

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def key(self, utterance: Utterance) -> str:
        return f"{utterance.audio_hash}-{hashlib.sha256(utterance.said.encode()).hexdigest()[:16]}"

    def features(self, utterance: Utterance) -> TimedFeatures:
        if utterance.find_text is None:
            raise ValueError("A recording has no transcript; give `text_column` or `recognizer`.")
        if self.args.alignment == "ctc":
            if utterance.find_words is None:
                raise ValueError("A recording has no word times; give `word_times`, `words_column` or `aligner`.")
            words = utterance.find_words()
            features = self.word_vectors(" ".join(word.word for word in words))
            times = torch.tensor([[word.start, word.end] for word in words]).view(-1, 2)
            return TimedFeatures(features, times)
        text = utterance.find_text()
        if self.args.alignment == "interpolate":
            features = self.token_vectors(text)[0]
            edges = torch.linspace(0, utterance.seconds, len(features) + 1)
        else:
            num_frames = math.ceil(utterance.seconds * self.frame_rate - 1e-6)
            features = self.padded_vectors(text, num_frames)
            edges = torch.arange(len(features) + 1) / self.frame_rate
        return TimedFeatures(features, torch.stack([edges[:-1], edges[1:]], dim=-1))

    def word_vectors(self, text: str) -> torch.Tensor:
        """The mean of its tokens' vectors for each whitespace-separated word, `(num_words, dim)`."""
        vectors, offsets = self.token_vectors(text)
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        means = vectors.new_zeros(len(spans), self.dimension)
        for word, (start, end) in enumerate(spans):
            inside = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            if inside.any():  # a character that the tokenizer drops leaves zeros
                means[word] = vectors[inside].mean(dim=0)
        return means

    @torch.no_grad()
    def token_vectors(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Vectors of the tokens of a text without the special ones, `(num_tokens, dim)`, and where each is in the text,
        `(num_tokens, 2)`. A text that is too long for the model is read in parts.
        """
        encoded = self.tokenizer(
            text,
            truncation=True,
            max_length=self.longest,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        vectors, offsets = [], []
        for ids, places, special in zip(
            encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
        ):
            ordinary = torch.tensor(special) == 0
            if len(ids):
                outputs = self.model(torch.tensor([ids], device=self.model.device), output_hidden_states=True)
                vectors.append(select_layer(outputs, self.args.layer)[0].float().cpu()[ordinary])
                offsets.append(torch.tensor(places).view(-1, 2)[ordinary])
        if not vectors:
            return torch.zeros(0, self.dimension), torch.zeros(0, 2, dtype=torch.long)
        return torch.cat(vectors), torch.cat(offsets)

    @torch.no_grad()
    def padded_vectors(self, text: str, num_frames: int) -> torch.Tensor:
        """Vectors of the tokens, special ones included, and of padding up to `num_frames`, `(num_frames, dim)`."""
        encoded = self.tokenizer(
            text,
            padding="max_length",
            truncation=True,
            max_length=min(max(num_frames, 2), self.longest),
            return_tensors="pt",
        )
        outputs = self.model(
            encoded["input_ids"].to(self.model.device),
            attention_mask=encoded["attention_mask"].to(self.model.device),
            output_hidden_states=True,
        )
        vectors = select_layer(outputs, self.args.layer)[0].float().cpu()[:num_frames]
        # Beyond what the model can read, its last vector.
        return torch.cat([vectors, vectors[-1:].expand(num_frames - len(vectors), -1)])


def place_on_frames(
    timed: TimedFeatures,
    frame_times: torch.Tensor,
    seconds: float,
    interpolated: bool,
    silence: str = "zero",
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Give each frame of a codec a teacher's vector.

    Args:
        timed ([`TimedFeatures`]): Vectors of the teacher for a whole utterance.
        frame_times (`torch.Tensor` of shape `(num_frames,)`): Centre of each frame in seconds of the utterance.
        seconds (`float`): End of the utterance in seconds.
        interpolated (`bool`): Whether to interpolate linearly between the vectors' centres. `False` takes the vector
            whose span holds the frame's centre.
        silence (`str`): Vector of a frame in no span: `"zero"`, `"mean"` of the utterance's vectors, or `"ignore"`.

    Returns:
        Targets `(num_frames, dim)`, and a mask `(num_frames,)`, 1 for frames that count: those within an utterance
        that has vectors.
    """
    features, times = timed.features.float(), timed.times.to(timed.features.device)
    frame_times = frame_times.to(features.device)
    if len(features) == 0:
        return features.new_zeros(len(frame_times), features.shape[-1]), torch.zeros_like(frame_times)
    mask = (frame_times < seconds).float()
    if interpolated:
        centres = times.mean(dim=-1)
        right = torch.searchsorted(centres, frame_times).clamp(0, len(centres) - 1)
        left = (right - 1).clamp(min=0)
        share = (frame_times - centres[left]) / (centres[right] - centres[left]).clamp(min=1e-6)
        targets = torch.lerp(features[left], features[right], share.clamp(0, 1).unsqueeze(-1))
        return targets * mask.unsqueeze(-1), mask
    row = torch.searchsorted(times[:, 0].contiguous(), frame_times, right=True) - 1
    inside = (row >= 0) & (frame_times < times[row.clamp(min=0), 1])
    fill = features.mean(dim=0) if silence == "mean" else torch.zeros_like(features[0])
    targets = torch.where(inside.unsqueeze(-1), features[row.clamp(min=0)], fill)
    if silence == "ignore":
        mask = mask * inside
    return targets * mask.unsqueeze(-1), mask
