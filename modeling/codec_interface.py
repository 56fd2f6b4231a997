# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What a model that turns speech into tokens says of itself, so that nobody has to ask what kind it is."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import torch

from .input_checks import check_waveforms, check_whole_number


TokenKind = Literal["codes", "latents"]


class SpeechStream(Protocol):
    """
    One recording on its way through a model, in either direction; memory does not grow with its length unless the
    model's own documentation says so.

    Tokens are codes `(batch, num_quantizers, num_frames)` or latents `(batch, num_frames, latent_dim)`, waveforms
    `(batch, 1, num_samples)`. Each call gives what is settled by now, perhaps nothing. What all streams do with bad
    input, and between two recordings, says [`RecordingStream`].
    """

    def encode(self, input_values: torch.Tensor) -> torch.Tensor:
        """Push samples; returns tokens."""
        ...

    def finish_encode(self) -> torch.Tensor:
        """The recording has ended; returns the tokens that were held back. Raises `ValueError` if it has no frame."""
        ...

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Push tokens; returns samples."""
        ...

    def finish_decode(self) -> torch.Tensor:
        """The tokens have ended; returns the samples that were held back. Raises `ValueError` if there were none."""
        ...

    def reset(self) -> None:
        """Drop what is held of a recording that was left in the middle; the next one begins anew."""
        ...


class FramedModel:
    """What a model with frames of samples says to whoever trains or plays it; a vocoder alone says no more."""

    config: Any

    @property
    def sampling_rate(self) -> int:
        """Samples per second, in Hz."""
        return self.config.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.config.frame_rate

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Losses that `forward` computes besides those of the waveform, each as the output `NAME_loss`."""
        return ()

    @property
    def trained_parts(self) -> dict[str, str]:
        """Submodules that serve a loss alone, by the name of that loss; without it they get no gradient."""
        return {}


class SpeechCodec(FramedModel):
    """
    The interface of all models that turn speech into tokens: codecs, units, continuous tokens, and, by
    [`as_speech_codec`], the codecs of transformers.

    Evaluation, training and the commands use nothing else of a model. A language model needs from it
    [`~SpeechCodec.codebook_vectors`] to start its embeddings, streams to play what it writes, and
    [`~SpeechCodec.fingerprint`] to refuse tokens that another codec wrote.

    `encode(input_values, padding_mask)` gives `audio_codes` (batch, num_quantizers, num_frames) or `latents` (batch,
    num_frames, latent_dim) or both, with `audio_codes_mask` (batch, num_frames). `decode` takes what
    `decodable_kinds` names and gives `audio_values` (batch, 1, num_samples).

    A family has `get_encoded_length(num_samples)`, and says below what differs from a codec with codebooks.
    """

    @property
    def bits_per_second(self) -> float:
        """Nominal bit rate with all codebooks, or of latents in half precision, in bit/s."""
        return self.config.bits_per_second

    @property
    def family(self) -> str:
        """Name of the model's class, for messages and tables."""
        return type(self).__name__

    @property
    def kind(self) -> TokenKind:
        """What a language model is given: `"codes"`, or `"latents"` where there are no codebooks."""
        return "codes"

    @property
    def decodable_kinds(self) -> tuple[TokenKind, ...]:
        """What `decode` takes at present: codes, latents, both or, for units without a vocoder, none."""
        return ("codes", "latents")

    @property
    def num_quantizers(self) -> int | None:
        """Codes per frame; `None` for latents."""
        return self.config.num_quantizers if self.kind == "codes" else None

    @property
    def codebook_size(self) -> int | None:
        """Codes of a codebook lie below it; `None` for latents."""
        return self.config.codebook_size if self.kind == "codes" else None

    @property
    def latent_dim(self) -> int:
        """Dimension of `latents`, and of what `dequantize` gives."""
        return self.config.hidden_size

    @property
    def shortest_input(self) -> int:
        """Fewest samples that give a frame."""
        return 1

    @property
    def longest_input(self) -> int | None:
        """Most samples that `encode` takes at once, if that is limited; `encode_stream` takes any number."""
        return None

    @property
    def is_streamable(self) -> bool:
        """Whether streams answer each frame at once; others answer in windows with look-ahead."""
        return False

    @property
    def decode_look_ahead(self) -> int | None:
        """Frames behind a frame that a stream needs to decode it; `None` where it waits for the end."""
        return None

    @property
    def longest_exact_stream(self) -> int | None:
        """Most samples for which `encode_stream` gives the tokens of `encode`; `None` where it gives them always."""
        return None

    def frame_centres(self, num_frames: int) -> torch.Tensor:
        """Times of the middles of the first frames, `(num_frames,)`, in seconds."""
        return (torch.arange(num_frames, dtype=torch.float64) + 0.5) / self.frame_rate

    def encode_stream(self, kind: TokenKind | None = None, num_quantizers: int | None = None) -> SpeechStream:
        """
        A stream that encodes.

        Args:
            kind (`str`, *optional*): `"latents"` for a codec's frames before quantization. Defaults to the model's.
            num_quantizers (`int`, *optional*): Number of first codebooks to give. Defaults to all.

        Raises:
            ValueError: If the model gives no tokens of that kind, or has not so many codebooks.
        """
        raise NotImplementedError

    def decode_stream(
        self, kind: TokenKind | None = None, num_samples: int | None = None, eager: bool = False
    ) -> SpeechStream:
        """
        A stream that decodes.

        Args:
            kind (`str`, *optional*): `"latents"` to decode a codec's frames before quantization. Defaults to the
                model's.
            num_samples (`int`, *optional*): Length of the recording, where it is known. Units need it to fill the end
                that their frames leave out; other streams give whole frames in any case.
            eager (`bool`, *optional*, defaults to `False`): Whether to answer each call with all that is settled,
                `decode_look_ahead` frames late, and not in windows. A decoder with look-ahead then decodes that and
                the past anew in each call.

        Raises:
            ValueError: If the model decodes no tokens of that kind.
        """
        raise NotImplementedError

    def dequantize(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """The frames `(batch, num_frames, latent_dim)` that codes `(batch, num_quantizers, num_frames)` stand for."""
        raise ValueError(f"A {self.family} has no codebooks in which codes could be looked up.")

    @torch.no_grad()
    def codebook_vectors(self) -> torch.Tensor:
        """
        What each code of each codebook adds to a frame, `(num_quantizers, codebook_size, latent_dim)`, float32.

        The vectors of a frame's codes sum to `dequantize` of them.
        """
        assert self.num_quantizers is not None
        assert self.codebook_size is not None
        vectors = []
        for stage in range(self.num_quantizers):
            codes = torch.zeros(1, stage + 1, self.codebook_size, dtype=torch.long, device=self.device)  # type: ignore[attr-defined]
            codes[0, stage] = torch.arange(self.codebook_size, device=codes.device)
            found = self.dequantize(codes)[0].float()
            # The codebooks before add their first vector; what is left is this one's.
            vectors.append(found - self.dequantize(codes[:, :stage, :1])[0].float() if stage else found)
        return torch.stack(vectors)

    def fingerprint(self) -> str:
        """
        Short hash of what decides how tokens are read, the same for weights in half and in single precision; empty
        where nothing is decided yet.

        Two codecs of one shape decode each other's codes without an error, to noise; this tells them apart.
        """
        return tensor_fingerprint(self._fingerprinted())

    def _fingerprinted(self) -> Iterable[torch.Tensor]:
        raise NotImplementedError

    def encoder_fingerprint(self) -> str:
        """
        Short hash of the weights that decide what `encode` gives, the same in half and in single precision.

        An encoder may be trained under codebooks that stay as they are: [`~SpeechCodec.fingerprint`] is the same then,
        since old codes decode as before, but new codes differ from the old ones.
        """
        return self._fingerprint_without("decoder", "vocoder")

    def decoder_fingerprint(self) -> str:
        """Short hash of the weights that decide what `decode` gives; see [`~SpeechCodec.encoder_fingerprint`]."""
        return self._fingerprint_without("encoder")

    def _fingerprint_without(self, *parts: str) -> str:
        # Parts that serve a loss alone decide nothing either.
        left_out = {*parts, *self.trained_parts.values()}
        tensors = self.state_dict().items()  # type: ignore[attr-defined]
        return tensor_fingerprint(value for name, value in sorted(tensors) if name.split(".")[0] not in left_out)

    def check_kind(self, kind: TokenKind | None, decode: bool = False) -> TokenKind:
        """
        Check a kind of tokens, and fill in the model's own.

        Args:
            kind (`str`, *optional*): Kind that is asked for. Defaults to the model's.
            decode (`bool`, *optional*, defaults to `False`): Whether `decode` is to take the tokens.

        Raises:
            ValueError: If the model does not have it.
        """
        kind = self.kind if kind is None else kind
        name = self.family
        if kind not in ("codes", "latents"):
            raise ValueError(f"`kind` must be 'codes' or 'latents', but got {kind!r}.")
        if kind == "codes" and self.kind == "latents":
            raise ValueError(f"A {name} has no codebooks: its frames are continuous, and there are no codes.")
        if (decode or kind == "latents") and kind not in self.decodable_kinds:
            raise ValueError(f"A {name} decodes no {kind}.")
        return kind

    @property
    def gives_latents(self) -> bool:
        """Whether `encode` gives `latents`, be it that `decode` takes them or not."""
        return True

    def check_gives_latents(self) -> None:
        """Raises `ValueError` if `encode` gives no latents."""
        if not self.gives_latents:
            raise ValueError(f"A {self.family} tells no latents, only codes.")

    def check_num_quantizers(self, num_quantizers: int | None) -> int | None:
        """The number of codebooks that is asked for. Raises `ValueError` if the model has not so many."""
        if num_quantizers is None:
            return None
        if self.num_quantizers is None:
            raise ValueError("`num_quantizers` chooses among codebooks, of which latents have none; leave it out.")
        return check_whole_number(num_quantizers, "num_quantizers", 1, self.num_quantizers)

    def voice_arguments(self, voice: str | None = None) -> dict[str, torch.Tensor]:
        """
        Arguments of `decode` for a voice, for a batch of one.

        Args:
            voice (`str`, *optional*): Name of the voice. Defaults to the one that streams use.

        Raises:
            ValueError: If there is no such voice.
        """
        if voice is not None:
            raise ValueError(f"there is no choice of voices, so `voice` cannot be {voice!r}")
        return {}

    def batch_features(self, waveforms: Sequence[Any], feature_extractor: Any) -> dict[str, torch.Tensor]:
        """
        Arguments of `encode` for recordings of different lengths.

        Args:
            waveforms (sequence of `np.ndarray` of shape `(num_samples,)`): Recordings in [-1, 1] at `sampling_rate`.
            feature_extractor (`SequenceFeatureExtractor`): The model's feature extractor.

        Raises:
            ValueError: If a recording is empty, or not finite.
        """
        return feature_extractor(list(waveforms), sampling_rate=self.sampling_rate, padding=True, return_tensors="pt")

    def encode_features(self, features: dict[str, torch.Tensor], num_quantizers: int | None = None) -> Any:
        """
        Encode the output of the model's feature extractor.

        Args:
            features (`dict` of `str` to `torch.Tensor`): Output of the model's feature extractor.
            num_quantizers (`int`, *optional*): Number of first codebooks to give. Defaults to all.

        Raises:
            ValueError: If the number of codebooks cannot be chosen, or is too large.
        """
        chosen = {} if self.check_num_quantizers(num_quantizers) is None else {"num_quantizers": num_quantizers}
        return self.encode(**features, **chosen, return_dict=True)  # type: ignore[attr-defined]

    def decode_encoded(self, encoded: Any, kind: TokenKind | None = None) -> torch.Tensor:
        """The waveforms `(batch, 1, num_samples)` of what `encode_features` gave, in whole frames."""
        name = "latents" if self.check_kind(kind, decode=True) == "latents" else "audio_codes"
        tokens = {name: encoded[name], "audio_codes_mask": encoded["audio_codes_mask"]}
        decoded = self.decode(**tokens, **self.voice_arguments(), return_dict=True)  # type: ignore[attr-defined]
        return decoded.audio_values


def is_speech_codec(model: Any) -> bool:
    """
    Whether a model is a [`SpeechCodec`], of this file or of a copy of it.

    A codec that was loaded with its own code has that copy's class as its base, not the one here.
    """
    return any(
        base.__name__ == SpeechCodec.__name__ and base.__module__.split(".")[-1] == __name__.split(".")[-1]
        for base in type(model).__mro__
    )


def codebook_sizes(model: Any) -> tuple[int, ...]:
    """
    Codes of each codebook of a model with codes. Where a configuration says nothing of its own, all have as many.

    Args:
        model ([`SpeechCodec`]): Model; its `codebook_size` is the largest of these.
    """
    own = getattr(model.config, "codebook_sizes", None)
    return (model.codebook_size,) * model.num_quantizers if own is None else tuple(own)


def codebook_strides(model: Any) -> tuple[int, ...]:
    """
    Frames that a code of each codebook of a model with codes lasts: 1, where its configuration says nothing else.

    Args:
        model ([`SpeechCodec`]): The model.
    """
    own = getattr(model.config, "codebook_strides", None)
    return (1,) * model.num_quantizers if own is None else tuple(own)


def pad_waveforms(waveforms: Sequence[Any]) -> dict[str, torch.Tensor]:
    """
    Recordings as a batch with zeros on the right: `input_values` (batch, 1, num_samples) in float32, `padding_mask`
    (batch, num_samples).

    Args:
        waveforms (sequence of `np.ndarray` of shape `(num_samples,)` or `(1, num_samples)`): The recordings.

    Raises:
        TypeError: If the samples are no floats.
        ValueError: If there is no recording, or one is empty, has several channels, or holds what is no audio.
    """
    if not len(waveforms):
        raise ValueError("`waveforms` is empty; pass at least one recording.")
    rows = []
    for number, waveform in enumerate(waveforms):
        row = torch.as_tensor(waveform)
        row = row[None] if row.dim() == 1 else row
        rows.append(check_waveforms(row, name=f"waveforms[{number}]")[0].reshape(-1))
        if len(row) > 1:
            raise ValueError(f"`waveforms[{number}]` must be mono, but has shape {tuple(row.shape)}.")
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.zeros(len(rows), int(lengths.max()))
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return {
        "input_values": padded[:, None],
        "padding_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long(),
    }


def tensor_fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """Short hash of tensors in half precision; empty if there are none."""
    digest, is_empty = hashlib.sha256(), True
    for tensor in tensors:
        is_empty = False
        digest.update(tensor.detach().cpu().to(torch.float16).numpy().tobytes())
    return "" if is_empty else digest.hexdigest()[:16]


__all__ = ["FramedModel", "SpeechCodec", "SpeechStream", "is_speech_codec"]
