# SPDX-License-Identifier: Apache-2.0
"""Speech to text with an offline recogniser that the caller names."""

import ctypes
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from .optional_packages import require_package


# Longer recordings go through a CTC model in windows of this length, whose ends are dropped.
_WINDOW_SECONDS, _MARGIN_SECONDS = 28, 1
# Other models than CTC and Whisper hear parts of no more than a window, which end where it is quiet near its end.
_SEARCH_SECONDS, _QUIET_SECONDS = 6, 0.1
# Enough samples for any front end whose configuration does not say what it needs.
_SHORTEST_INPUT = 1600


class Recognizer(Protocol):
    """
    A deterministic recogniser of 16 kHz speech.

    `name` is what tables show; `key` also tells its weights apart.
    """

    name: str
    key: str

    def transcribe(self, audio: np.ndarray) -> str:
        """Text of one clip of shape `(num_samples,)`, in [-1, 1] at 16 kHz."""
        ...


def folder_fingerprint(folder: Path) -> str:
    """Short hash of the names, sizes and first and last 64 kB of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(65536))
            file.seek(max(0, size - 65536))
            digest.update(file.read(65536))
    return digest.hexdigest()[:12]


class TransformersRecognizer:
    """
    Any speech-to-text model of transformers, greedy: sequence to sequence (Whisper, Moonshine) or CTC (wav2vec 2.0,
    HuBERT, [`SpeechEncoderForCTC`]). Recordings of any length are heard whole, long ones in windows; silence follows
    those that are shorter than a frame.

    Args:
        name_or_path (`str`): Local folder or Hub id of the model.
        language (`str`, *optional*, defaults to `"en"`): Language of the speech. Models that know several are told it.
        device (`str`, *optional*, defaults to `"cpu"`): Device that the model runs on.

    Raises:
        ValueError: If the model knows several languages, and not this one.
    """

    def __init__(self, name_or_path: str, language: str = "en", device: str = "cpu"):
        folder = Path(name_or_path)
        self.name = folder.name
        self.key = f"{self.name}-{folder_fingerprint(folder)}" if folder.is_dir() else name_or_path
        if (folder / "processor_config.json").is_file() or not folder.is_dir():
            self.processor = AutoProcessor.from_pretrained(name_or_path, trust_remote_code=False)
            self.features, self.tokenizer = self.processor.feature_extractor, self.processor.tokenizer
        else:
            self.features = AutoFeatureExtractor.from_pretrained(name_or_path, trust_remote_code=False)
            self.tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        self.is_ctc = any(name.endswith("ForCTC") for name in config.architectures or ())
        loader: Any = AutoModelForCTC if self.is_ctc else AutoModelForSpeechSeq2Seq
        self.model = (
            loader.from_pretrained(name_or_path, dtype=torch.float32, trust_remote_code=False).eval().to(device)
        )
        multilingual = getattr(getattr(self.model, "generation_config", None), "is_multilingual", False)
        self.generate_kwargs = {"language": language, "task": "transcribe"} if multilingual else {}
        if multilingual:
            self._check_language(language)
            self.key += f"-{language}"  # told of another language, it writes another text

    def _check_language(self, language: str) -> None:
        known = sorted(token.strip("<|>") for token in getattr(self.model.generation_config, "lang_to_id", None) or ())
        code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
        if known and code not in known:
            raise ValueError(f"{self.name} knows no language {language!r}; it knows {', '.join(known)}.")

    @torch.no_grad()
    def transcribe(self, audio: np.ndarray) -> str:
        if self.is_ctc:
            return self._text(self.logits(audio).argmax(-1))
        if hasattr(self.features, "n_samples"):
            return self._text(self._generate(audio))
        # What these models write in one go is limited.
        return " ".join(filter(None, (self._text(self._generate(part)) for part in _parts(audio))))

    def _text(self, ids: torch.Tensor) -> str:
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()

    @torch.no_grad()
    def logits(self, audio: np.ndarray) -> torch.Tensor:
        """
        Args:
            audio (`np.ndarray` of shape `(num_samples,)`): Waveform in [-1, 1] at 16 kHz.

        Returns:
            `torch.Tensor` of shape `(1, num_frames, vocabulary)`: Logits of a CTC model.
        """
        hop = getattr(self.model.config, "inputs_to_logits_ratio", None)
        if hop is None or len(audio) <= _WINDOW_SECONDS * 16000:
            return self._window_logits(audio)
        # Whisper's encoder hears no more, and the work of the others grows with the square of the length. Frames near
        # a cut are taken from the window that also hears what follows.
        window, margin = (seconds * 16000 // hop for seconds in (_WINDOW_SECONDS, _MARGIN_SECONDS))
        parts = []
        for first in range(0, -(-len(audio) // hop), window - 2 * margin):
            is_last = (first + window) * hop >= len(audio)
            part = self._window_logits(audio[first * hop : (first + window) * hop])
            parts.append(part[:, margin if first else 0 : None if is_last else window - margin])
            if is_last:
                break
        return torch.cat(parts, dim=1)

    def _window_logits(self, audio: np.ndarray) -> torch.Tensor:
        inputs = self.features(self._with_a_frame(audio), sampling_rate=16000, return_tensors="pt")
        return self.model(**inputs.to(self.model.device)).logits

    @property
    def shortest_input(self) -> int:
        """Samples of the shortest recording in which the model hears a frame."""
        if hasattr(self.features, "n_samples"):  # Whisper's fills up its window itself
            return 0
        return _shortest_input(self.model.config)

    def _with_a_frame(self, audio: np.ndarray) -> np.ndarray:
        return np.pad(audio, (0, max(0, self.shortest_input - len(audio))))

    def _generate(self, audio: np.ndarray) -> torch.Tensor:
        feature_kwargs, generate_kwargs = {}, self.generate_kwargs
        if len(audio) > getattr(self.features, "n_samples", float("inf")):
            # Whisper's extractor would cut the rest off; with time stamps its `generate` walks through the recording.
            feature_kwargs = {"truncation": False, "padding": "longest", "return_attention_mask": True}
            generate_kwargs = {**generate_kwargs, "return_timestamps": True}
        audio = self._with_a_frame(audio)
        inputs = self.features(audio, sampling_rate=16000, return_tensors="pt", **feature_kwargs)
        return self.model.generate(**inputs.to(self.model.device), do_sample=False, num_beams=1, **generate_kwargs)


def _shortest_input(config: Any) -> int:
    # Samples that a model needs for a frame.
    encoder = getattr(config, "encoder_config", None) or config
    if not hasattr(encoder, "conv_kernel") or not hasattr(encoder, "conv_stride"):
        return _SHORTEST_INPUT
    span, hop = 1, 1
    for kernel, stride in zip(encoder.conv_kernel, encoder.conv_stride, strict=True):
        span, hop = span + (kernel - 1) * hop, hop * stride
    return span


def _parts(audio: np.ndarray) -> Iterator[np.ndarray]:
    # Parts of no more than a window; each ends in the middle of the quietest moment near the end of its window.
    longest, block = _WINDOW_SECONDS * 16000, round(_QUIET_SECONDS * 16000)
    while len(audio) > longest:
        first = longest - _SEARCH_SECONDS * 16000
        powers = np.square(audio[first:longest].reshape(-1, block), dtype=np.float64).sum(axis=1)
        end = first + int(powers.argmin()) * block + block // 2
        yield audio[:end]
        audio = audio[end:]
    yield audio


class VoskRecognizer:
    """
    A folder with a Vosk (Kaldi) model, run by the package `vosk`.

    Args:
        folder (`str`): Folder that holds `am`, `conf` and `graph`.
    """

    def __init__(self, folder: str):
        require_package("vosk", "The Vosk recogniser")
        import vosk

        vosk.SetLogLevel(-2)  # else words that its grammar does not know are warned of
        self.name = Path(folder).name
        self.key = f"{self.name}-{folder_fingerprint(Path(folder))}"
        self.vosk, self.model = vosk, vosk.Model(folder)

    def transcribe(self, audio: np.ndarray) -> str:
        return " ".join(result["text"] for result in self.results(audio) if result["text"])

    def results(self, audio: np.ndarray, phrase: str | None = None) -> list[dict[str, Any]]:
        """
        Args:
            audio (`np.ndarray` of shape `(num_samples,)`): Waveform in [-1, 1] at 16 kHz.
            phrase (`str`, *optional*): Words that may be heard, best in this order, in lower case without punctuation.
                Other sounds become `[unk]`. By default any words may be heard.

        Returns:
            `list[dict]`: Vosk's results, parted by pauses: `text`, and in `result` the words with times in seconds.
        """
        if os.name == "posix":
            # Kaldi dithers with the C library's random numbers; from one seed a clip has one text, whatever came
            # before it.
            ctypes.CDLL(None).srand(0)
        grammar = [] if phrase is None else [json.dumps([phrase, "[unk]"])]
        recognizer = self.vosk.KaldiRecognizer(self.model, 16000, *grammar)
        recognizer.SetWords(True)
        # A final silence lets the decoder close the last word.
        samples = np.concatenate([np.clip(audio, -1, 1) * 32767, np.zeros(4800)]).astype(np.int16)
        results = []
        for start in range(0, len(samples), 8000):
            if recognizer.AcceptWaveform(samples[start : start + 8000].tobytes()):
                results.append(json.loads(recognizer.Result()))
        return [*results, json.loads(recognizer.FinalResult())]


def is_vosk_folder(name_or_path: str) -> bool:
    """Whether a folder holds a Vosk model, that is, `am` and `graph`."""
    folder = Path(name_or_path)
    return (folder / "am").is_dir() and (folder / "graph").is_dir()


def load_recognizer(name_or_path: str, language: str = "en", device: str = "cpu") -> Recognizer:
    """
    Args:
        name_or_path (`str`): Vosk folder (it holds `am` and `graph`), or a folder or Hub id of a transformers model.
        language (`str`, *optional*, defaults to `"en"`): Language of the speech.
        device (`str`, *optional*, defaults to `"cpu"`): Device that a transformers model runs on.
    """
    if is_vosk_folder(name_or_path):
        return VoskRecognizer(name_or_path)
    return TransformersRecognizer(name_or_path, language, device)
