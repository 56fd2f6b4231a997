# SPDX-License-Identifier: Apache-2.0
"""Word and character error rates of decoded speech, with an offline recogniser that the caller names."""

import ctypes
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import evaluate
import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from .reconstruction_metrics import MissingPackageError, require_package


class Recognizer(Protocol):
    r"""
    A deterministic recogniser of 16 kHz speech.

    `name` is what tables show; `key` also tells its weights apart.
    """

    name: str
    key: str

    def transcribe(self, audio: np.ndarray) -> str:
        r"""Text of one clip of shape `(num_samples,)`, in [-1, 1] at 16 kHz."""
        ...


def folder_fingerprint(folder: Path) -> str:
    r"""Short hash of the names, sizes and first and last 64 kB of a folder's files."""
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
    r"""
    Any speech-to-text model of transformers, greedy: sequence to sequence (Whisper, Moonshine) or CTC (wav2vec 2.0,
    HuBERT).

    Args:
        name_or_path (`str`): A local folder or a Hub id.
        language (`str`, *optional*, defaults to `"en"`): Told to models that know several.
    """

    def __init__(self, name_or_path: str, language: str = "en"):
        folder = Path(name_or_path)
        self.name = folder.name
        self.key = f"{self.name}-{folder_fingerprint(folder)}" if folder.is_dir() else name_or_path
        if (folder / "processor_config.json").is_file() or not folder.is_dir():
            self.processor = AutoProcessor.from_pretrained(name_or_path)
            self.features, self.tokenizer = self.processor.feature_extractor, self.processor.tokenizer
        else:
            from transformers import AutoTokenizer

            self.features = AutoFeatureExtractor.from_pretrained(name_or_path)
            self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(name_or_path)
        self.is_ctc = any(name.endswith("ForCTC") for name in config.architectures or ())
        loader = AutoModelForCTC if self.is_ctc else AutoModelForSpeechSeq2Seq
        self.model = loader.from_pretrained(name_or_path, dtype=torch.float32).eval()
        multilingual = getattr(getattr(self.model, "generation_config", None), "is_multilingual", False)
        self.generate_kwargs = {"language": language, "task": "transcribe"} if multilingual else {}

    @torch.no_grad()
    def transcribe(self, audio: np.ndarray) -> str:
        inputs = self.features(audio, sampling_rate=16000, return_tensors="pt")
        if self.is_ctc:
            ids = self.model(**inputs).logits.argmax(-1)
        else:
            ids = self.model.generate(**inputs, do_sample=False, num_beams=1, **self.generate_kwargs)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()


class VoskRecognizer:
    r"""
    A folder with a Vosk (Kaldi) model, run by the package `vosk`.

    Args:
        folder (`str`): Folder that holds `am`, `conf` and `graph`.
    """

    def __init__(self, folder: str):
        require_package("vosk", "The Vosk recogniser")
        import vosk

        vosk.SetLogLevel(-1)
        self.name = Path(folder).name
        self.key = f"{self.name}-{folder_fingerprint(Path(folder))}"
        self.vosk, self.model = vosk, vosk.Model(folder)

    def transcribe(self, audio: np.ndarray) -> str:
        if os.name == "posix":
            # Kaldi dithers with the C library's random numbers; from one seed a clip has one text, whatever came
            # before it.
            ctypes.CDLL(None).srand(0)
        recognizer = self.vosk.KaldiRecognizer(self.model, 16000)
        # A final silence lets the decoder close the last word.
        samples = np.concatenate([np.clip(audio, -1, 1) * 32767, np.zeros(4800)]).astype(np.int16)
        texts = []
        for start in range(0, len(samples), 8000):
            if recognizer.AcceptWaveform(samples[start : start + 8000].tobytes()):
                texts.append(json.loads(recognizer.Result())["text"])
        texts.append(json.loads(recognizer.FinalResult())["text"])
        return " ".join(text for text in texts if text)


def load_recognizer(name_or_path: str, language: str = "en") -> Recognizer:
    r"""
    Args:
        name_or_path (`str`): A Vosk folder (it holds `am` and `graph`), or a folder or Hub id of a transformers model.
        language (`str`, *optional*, defaults to `"en"`): Language of the speech.
    """
    folder = Path(name_or_path)
    if (folder / "am").is_dir() and (folder / "graph").is_dir():
        return VoskRecognizer(name_or_path)
    return TransformersRecognizer(name_or_path, language)


def text_normalizer(language: str = "en") -> Any:
    r"""
    The function that texts pass through before they are compared: Whisper's normaliser, which drops case, punctuation
    and fillers, and for English also writes out contractions and turns number words into digits.
    """
    return EnglishTextNormalizer({}) if language == "en" else BasicTextNormalizer()


def count_errors(hypothesis: str, reference: str, unit: str = "word") -> tuple[int, int]:
    r"""
    Args:
        hypothesis (`str`): Recognised text, normalised.
        reference (`str`): True text, normalised.
        unit (`str`, *optional*, defaults to `"word"`): `"word"` or `"character"`.

    Returns:
        `tuple[int, int]`: Substitutions, deletions and insertions together; and the number of words or characters in
        the reference.
    """
    try:
        import jiwer
    except ImportError as error:
        raise MissingPackageError("jiwer", "The error rate") from error
    if not reference.strip():
        return (len(hypothesis.split()) if unit == "word" else len(hypothesis)), 0
    result = (jiwer.process_words if unit == "word" else jiwer.process_characters)(reference, hypothesis)
    errors = result.substitutions + result.deletions + result.insertions
    return errors, result.hits + result.substitutions + result.deletions


class ErrorRate(evaluate.Metric):
    r"""
    Errors per reference word or character over all clips, in percent, so that long clips count more.

    `compute(predictions=texts, references=texts)` gives `wer` or `cer`, and `num_clips`.

    Args:
        unit (`str`, *optional*, defaults to `"word"`): `"word"` or `"character"`.
        language (`str`, *optional*, defaults to `"en"`): Chooses the normaliser of both texts.
    """

    def __init__(self, unit: str = "word", language: str = "en", **kwargs: Any):
        if unit not in ("word", "character"):
            raise ValueError(f"`unit` must be 'word' or 'character', but got {unit!r}.")
        self.unit, self.normalize = unit, text_normalizer(language)
        super().__init__(**{"keep_in_memory": True, **kwargs})
        require_package("jiwer", "The error rate")

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=f"Errors per reference {self.unit}, in percent",
            citation="",
            inputs_description="predictions, references: texts",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        pairs = zip(predictions, references, strict=True)
        counts = [count_errors(self.normalize(said), self.normalize(true), self.unit) for said, true in pairs]
        length = sum(length for _, length in counts)
        name = "wer" if self.unit == "word" else "cer"
        rate = 100 * sum(errors for errors, _ in counts) / length if length else None
        return {name: rate, "num_clips": len(counts)}
