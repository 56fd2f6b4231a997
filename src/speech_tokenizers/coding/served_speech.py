# SPDX-License-Identifier: Apache-2.0
"""
What an exported language model says of speech in its `speech.json`, and codes from what a server answers.

`export_causal_lm` writes the file beside the model. Servers ignore it; who asks them needs it: it tells which ids and
names are codes, of which codec, and which ids end an answer.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from speech_tokenizers.modeling.speech_lm_ids import SpeechIds
from speech_tokenizers.modeling.speech_lm_layouts import flat_to_codes
from speech_tokenizers.modeling.speech_lm_text import AUDIO_END, AUDIO_START, phone_token
from speech_tokenizers.processing.code_files import AudioCodes
from speech_tokenizers.processing.file_errors import FileError
from speech_tokenizers.processing.whole_files import write_whole


SPEECH_FILE = "speech.json"
_FORMAT, _VERSION = "speech-tokenizers speech", 1
# Not `<a0_17>`: what looks like that is a control token to llama.cpp's converter, and left out of texts.
UNIT_NAME = re.compile(r"<a(\d{1,9})_(\d{1,9})>")
_NAMES = re.compile(rf"{UNIT_NAME.pattern}|{re.escape(AUDIO_START)}|{re.escape(AUDIO_END)}")


class SpeechFileError(FileError):
    """A `speech.json`, or an answer of a server, that cannot be read; see [`FileError`]."""


def unit_name(codebook: int, code: int) -> str:
    """The name that a code has in the vocabulary of an exported model, such as `<a0_17>`."""
    return f"<a{codebook}_{code}>"


@dataclass(frozen=True)
class ServedSpeech:
    """
    What `speech.json` says.

    Args:
        codec_name (`str`): Name, folder or Hub id of the codec.
        codec_fingerprint (`str`): What [`SpeechCodec.fingerprint`] of the codec gives.
        num_codebooks (`int`): Number of the codec's first codebooks that are written, Q.
        codebook_size (`int`): Codes of a codebook, K.
        frame_rate (`float`): Frames a second, in Hz.
        sampling_rate (`int`): Sampling rate of the codec's audio, in Hz.
        audio_offset (`int`): Id of code 0 of codebook 0; code `c` of codebook `q` is `audio_offset + q * K + c`.
        audio_start_token_id, audio_end_token_id (`int`): Ids of the marks around a clip.
        stop_token_ids (`list[int]`): Ids at which a server is to stop: the end of audio, and the base's own ends.
        text_alignment (`str`): `"none"`, or the kind of pieces that stand within the audio: `"word"` or `"phone"`.
        piece_offset (`int`): Id of the first phone.
        piece_labels (`list[str]`): Labels of the phones, in the order of their ids.
        prompt (`str`): The prompt that asks for speech, with `{text}` or `{phones}` in place of what is to be said.
        template_version (`int`): Version of the prompts.
        layout (`str`): How codes lie in the sequence; always `"flat"`.
        codebook_sizes (`list[int]`, *optional*): Codes that each codebook has, at most K. Defaults to K each.

    Raises:
        ValueError: If a field makes no sense, or two kinds of ids overlap.
    """

    codec_name: str
    codec_fingerprint: str
    num_codebooks: int
    codebook_size: int
    frame_rate: float
    sampling_rate: int
    audio_offset: int
    audio_start_token_id: int
    audio_end_token_id: int
    stop_token_ids: list[int]
    prompt: str
    text_alignment: str = "none"
    piece_offset: int = 0
    piece_labels: list[str] | None = None
    template_version: int = 1
    layout: str = "flat"
    codebook_sizes: list[int] | None = None

    def __post_init__(self):
        object.__setattr__(self, "piece_labels", list(self.piece_labels or []))
        for name, kind in self.__annotations__.items():
            value = getattr(self, name)
            if name == "codebook_sizes" and value is None:
                continue
            wanted: tuple[type, ...] = {int: (int,), float: (int, float), str: (str,)}.get(kind, (list,))
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ValueError(f"`{name}` must be a {wanted[-1].__name__}, but is {value!r}.")
        if self.layout != "flat":
            raise ValueError(f"`layout` must be 'flat', but is {self.layout!r}.")
        if self.text_alignment not in ("none", "word", "phone"):
            raise ValueError(f"`text_alignment` must be none, word or phone, but is {self.text_alignment!r}.")
        if not self.codec_fingerprint:
            raise ValueError("`codec_fingerprint` is empty, so that nobody could tell the codec from others.")
        if self.frame_rate <= 0 or self.sampling_rate < 1:
            raise ValueError("`frame_rate` and `sampling_rate` must be positive.")
        if not all(isinstance(number, int) for number in self.stop_token_ids):
            raise ValueError(f"`stop_token_ids` must be whole numbers, but are {self.stop_token_ids}.")
        if self.audio_end_token_id not in self.stop_token_ids:
            raise ValueError(f"`stop_token_ids` must hold the end of audio, {self.audio_end_token_id}.")
        _ = self.speech_ids  # refuses ids that overlap

    @property
    def speech_ids(self) -> SpeechIds:
        """Where audio lies in the vocabulary."""
        return SpeechIds(
            audio_start=self.audio_start_token_id,
            audio_end=self.audio_end_token_id,
            audio_offset=self.audio_offset,
            num_codebooks=self.num_codebooks,
            codebook_size=self.codebook_size,
            piece_offset=self.piece_offset,
            num_pieces=len(self.piece_labels or []),
            codebook_sizes=None if self.codebook_sizes is None else tuple(self.codebook_sizes),
        )

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return round(self.sampling_rate / self.frame_rate)

    def unit_names(self) -> list[str]:
        """Names of all codes, in the order of their ids."""
        return [unit_name(q, code) for q in range(self.num_codebooks) for code in range(self.codebook_size)]

    def phone_names(self) -> list[str]:
        """Names of the phones, in the order of their ids."""
        return [phone_token(label) for label in self.piece_labels or []]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole or not at all."""
        fields = {"format": _FORMAT, "format_version": _VERSION, **asdict(self)}
        if self.codebook_sizes is None:
            del fields["codebook_sizes"]  # which earlier releases do not know
        write_whole(path, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def read_served_speech(path: str | os.PathLike[str]) -> ServedSpeech:
    """
    Read a `speech.json`.

    Args:
        path (`str` or `Path`): The file, or the folder of an exported model.

    Raises:
        SpeechFileError: If it is missing, no JSON, of another format, or contradicts itself.
    """
    path = Path(path)
    path = path / SPEECH_FILE if path.is_dir() else path
    fields = _read_json(path)
    if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
        raise SpeechFileError(path, f"is no {SPEECH_FILE} that `export-lm` wrote; name such a file.")
    version = fields.pop("format_version", None)
    if version != _VERSION:
        raise SpeechFileError(path, f"has format version {version}, but this release reads {_VERSION}; export again.")
    try:
        return ServedSpeech(**fields)
    except (TypeError, ValueError) as error:
        reason = str(error).partition("() ")[2] or str(error)  # `__init__() got an unexpected keyword argument`
        raise SpeechFileError(path, f"contradicts itself: {reason} Export the model again.") from error


def codes_from_ids(answer: str | Sequence[int], speech: ServedSpeech) -> tuple[torch.Tensor, int]:
    """
    The codes in what a server answered.

    The last clip counts that has codes. It begins behind the last `<|audio_start|>`, or with the answer where the
    prompt had that; it ends at `<|audio_end|>`, or with the answer. What stands between codes, such as phones, is
    skipped.

    Args:
        answer (`str` or sequence of `int`): The ids that were generated, or their text with the names of codes.
        speech ([`ServedSpeech`]): What the model's `speech.json` says.

    Returns:
        `tuple`: Codes `(num_codebooks, num_frames)`, int64, and the number of codes that are in no whole frame.

    Raises:
        TypeError: If ids are no whole numbers.
        ValueError: If an id is negative, or a name is that of no code of this model.
    """
    ids = speech.speech_ids
    spoken: list[list[int]] = [[]]
    for number in _ids_of_text(answer, speech) if isinstance(answer, str) else _checked(answer):
        if number == ids.audio_start:
            spoken.append([])
        else:
            spoken[-1].append(number)
    clips = [torch.tensor(clip, dtype=torch.long) for clip in spoken]
    begun = [clip for clip in clips if bool(ids.is_unit(clip).any())]
    if not begun:
        return torch.zeros(speech.num_codebooks, 0, dtype=torch.long), 0
    ends = (begun[-1] == ids.audio_end).nonzero()[:, 0].tolist()
    found = flat_to_codes(begun[-1][: ends[0] if ends else None], ids)
    return found.audio_codes, int(ids.is_unit(begun[-1]).sum()) - found.audio_codes.numel()


def read_answer(path: str | os.PathLike[str], speech: ServedSpeech) -> tuple[AudioCodes, int]:
    """
    Read a file with the answer of a server, as codes that [`decode_file`] decodes.

    Args:
        path (`str` or `Path`): File of JSON (`.json`): a list of ids, or a string. Any other file holds the text.
        speech ([`ServedSpeech`]): What the model's `speech.json` says.

    Returns:
        `tuple`: [`AudioCodes`], and the number of codes that are in no whole frame.

    Raises:
        SpeechFileError: If the file cannot be read, or has no whole frame.
    """
    path = Path(path)
    answer = _read_json(path) if path.suffix.lower() == ".json" else _read_text(path)
    if not isinstance(answer, str | list):
        raise SpeechFileError(path, f"must hold a list of ids or a text, but holds a {type(answer).__name__}.")
    try:
        codes, num_dropped = codes_from_ids(answer, speech)
    except (TypeError, ValueError) as error:
        raise SpeechFileError(path, str(error)) from error
    if not codes.numel():
        raise SpeechFileError(
            path,
            f"has no whole frame of {speech.num_codebooks} codes ({num_dropped} in none); let the server generate"
            " more ids, and keep the names of codes in its text.",
        )
    return (
        AudioCodes(
            codes.numpy(),
            num_samples=codes.shape[1] * speech.hop_length,
            sampling_rate=speech.sampling_rate,
            codebook_size=speech.codebook_size,
            hop_length=speech.hop_length,
            model_name=speech.codec_name,
            model_fingerprint=speech.codec_fingerprint,
        ),
        num_dropped,
    )


def _ids_of_text(text: str, speech: ServedSpeech) -> list[int]:
    ids = []
    for found in _NAMES.finditer(text):
        if found[0] == AUDIO_START:
            ids.append(speech.audio_start_token_id)
        elif found[0] == AUDIO_END:
            ids.append(speech.audio_end_token_id)
        else:
            codebook, code = int(found[1]), int(found[2])
            if codebook >= speech.num_codebooks or code >= speech.codebook_size:
                raise ValueError(
                    f"The text has {found[0]}, but the model has {speech.num_codebooks} codebooks of"
                    f" {speech.codebook_size} codes; name the {SPEECH_FILE} of the model that answered."
                )
            ids.append(speech.audio_offset + codebook * speech.codebook_size + code)
    return ids


def _checked(ids: Iterable[Any]) -> list[int]:
    numbers = []
    for number in ids:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise TypeError(f"Ids must be whole numbers, but one is {number!r}; give one answer at a time.")
        numbers.append(int(number))
        if numbers[-1] < 0:
            raise ValueError(f"Ids must not be negative, but one is {number}.")
    return numbers


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SpeechFileError(path, "no such file; check the spelling.") from error
    except UnicodeDecodeError as error:
        raise SpeechFileError(path, "is no text in UTF-8.") from error
    except OSError as error:
        raise SpeechFileError(path, f"cannot be read ({error.strerror}).") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise SpeechFileError(path, f"is no JSON ({error}).") from error


__all__ = [
    "SPEECH_FILE",
    "UNIT_NAME",
    "ServedSpeech",
    "SpeechFileError",
    "codes_from_ids",
    "read_answer",
    "read_served_speech",
    "unit_name",
]
