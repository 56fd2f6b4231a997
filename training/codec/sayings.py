# SPDX-License-Identifier: Apache-2.0
"""What is said in recordings: texts, words and when they are spoken."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from speech_tokenizers.modeling.model_names import find_model
from speech_tokenizers.processing.metadata_files import as_text
from speech_tokenizers.processing.speech_recognition import load_recognizer
from speech_tokenizers.processing.timed_labels import TimedWord, find_word_times, timed_words
from speech_tokenizers.processing.word_alignment import load_word_aligner
from speech_tokenizers.training.codec.arguments import LanguageTeacherArguments
from speech_tokenizers.training.codec.teachers import (
    Utterance,
)


RECOGNIZER_RATE = 16000  # Hz; what recognisers and aligners hear


class Sayings:
    """
    What is said in recordings, and when: from their metadata, a file of word times, or recognisers.

    Args:
        args ([`LanguageTeacherArguments`]): Settings of the metadata's columns, the word times and the recognisers.
        recordings ([`DecodedRecordings`]): Recordings with `metadata`, a row each, and `names`.
        device (`torch.device`): Device that recognisers run on.

    Attributes:
        unaligned (`dict` of `str` to `str`): Recordings whose text the aligner could not find in them, with the
            reason. They count as recordings without words.

    Raises:
        ValueError: If there is neither text nor a recogniser, or word times are wanted and cannot be had.
    """

    def __init__(self, args: LanguageTeacherArguments, recordings: Any, device: torch.device):
        self.args, self.device = args, device
        metadata: Any = getattr(recordings, "metadata", None)
        columns = [] if metadata is None else metadata.column_names
        self.names = list(getattr(recordings, "names", map(str, range(len(recordings)))))
        self.texts: Sequence[str | None] = [None] * len(recordings)
        if args.text_column in columns:
            texts = [as_text(text) for text in metadata[args.text_column][:]]
            self.texts = [text if text is not None and text.strip() else None for text in texts]
        self.unaligned: dict[str, str] = {}
        self.words: dict[int, list[TimedWord]] = {}
        if args.alignment == "ctc":
            if args.words_column in columns:
                for index, row in enumerate(metadata[args.words_column][:]):
                    if row is not None:
                        self.words[index] = timed_words(row, f"{self.names[index]}, column {args.words_column!r}")
            if args.word_times is not None:
                found, others = find_word_times(Path(args.word_times), self.names)
                if others and not found:
                    raise ValueError(
                        f"`word_times`: {args.word_times} names none of the recordings, but such as {others[-1]!r},"
                        f" where they are called {self.names[0]!r}."
                    )
                self.words |= found

        indices = range(len(recordings))
        self._untranscribed = [index for index in indices if self.texts[index] is None and index not in self.words]
        self._untimed = [index for index in indices if index not in self.words] if args.alignment == "ctc" else []
        if self._untranscribed and args.recognizer is None and (args.aligner is None or args.alignment != "ctc"):
            raise ValueError(
                f"{self._some(self._untranscribed)} have no transcript in column {args.text_column!r}; give"
                " `distillation.language_teacher.recognizer`, or leave them out by `data.train_files`."
            )
        if self._untranscribed:
            print(
                f"{self._some(self._untranscribed)} have no transcript in column {args.text_column!r}; what"
                f" {args.recognizer or args.aligner} hears is used",
                file=sys.stderr,
            )
        if self._untimed and args.aligner is None:
            raise ValueError(
                f"{self._some(self._untimed)} have no word times; give `distillation.language_teacher.aligner` or"
                " another `alignment`, or leave them out by `data.train_files`."
            )

    def _some(self, indices: Sequence[int]) -> str:
        names = ", ".join(self.names[index] for index in indices[:3])
        return f"{len(indices)} of {len(self.names)} recordings ({names}{', ...' if len(indices) > 3 else ''})"

    @property
    def description(self) -> dict[str, str]:
        """Facts about the recognisers that a cache depends on."""
        found = {}
        if self._untranscribed and self.args.recognizer is not None:
            found["recognizer"] = self.recognizer.key
        if self._untimed:
            found["aligner"] = self.aligner.key
        return found

    @functools.cached_property
    def recognizer(self) -> Any:
        """Recogniser that transcribes recordings without a transcript."""
        found = find_model(self.args.recognizer, argument="recognizer")
        return load_recognizer(found, self.args.language, str(self.device))

    @functools.cached_property
    def aligner(self) -> Any:
        """Aligner that finds word times."""
        name = self.args.aligner
        found = name if name == "pocketsphinx" else find_model(name, argument="aligner")
        return load_word_aligner(found, str(self.device))

    def utterance(self, index: int, recording: Any, sampling_rate: int) -> Utterance:
        """The recording with its text and words."""
        text, words = self.texts[index], self.words.get(index)
        utterance = Utterance(recording, sampling_rate, said=f"{text} {words or ''}")

        def find_text() -> str:
            return text if text is not None else self.recognizer.transcribe(utterance.at(RECOGNIZER_RATE))

        def find_words() -> Sequence[TimedWord]:
            if words is not None:
                return words
            known = find_text() if text is not None or self.args.recognizer is not None else None
            try:
                return self.aligner.align(utterance.at(RECOGNIZER_RATE), known)
            except ValueError as error:
                self.unaligned[self.names[index]] = str(error)
                return []

        utterance.find_text, utterance.find_words = find_text, find_words
        return utterance
