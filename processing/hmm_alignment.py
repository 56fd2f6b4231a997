# SPDX-License-Identifier: Apache-2.0
"""When words and phones of English are spoken, by the hidden Markov models of Pocketsphinx."""

import re
from importlib.metadata import version
from typing import Any

import numpy as np

from .optional_packages import require_package
from .text_normalization import normalized_word
from .timed_labels import TimedLabel, TimedWord


_FRAMES_PER_SECOND = 100
# ARPAbet, with stress or without.
_PHONE = re.compile(
    "(AA|AE|AH|AO|AW|AY|B|CH|D|DH|EH|ER|EY|F|G|HH|IH|IY|JH|K|L|M|N|NG|OW|OY|P|R|S|SH|T|TH|UH|UW|V|W|Y|Z|ZH)[012]?"
)
_SILENCES = ("<sil>", "<s>", "</s>", "[NOISE]", "[SPEECH]")


class PocketsphinxWordAligner:
    """
    Forced alignment by the acoustic model of US English and the dictionary that come with Pocketsphinx
    (https://github.com/cmusphinx/pocketsphinx), to 10 ms.

    The text is words of the dictionary, or phones of ARPAbet with words parted by `|` (`AO1 R | DH AH0`), whose stress
    is ignored. Silences, at the edges and between words, get no label.

    Raises:
        MissingPackageError: If `pocketsphinx` is not installed.
    """

    def __init__(self) -> None:
        require_package("pocketsphinx", "alignment by hidden Markov models", command="pip install pocketsphinx")
        from pocketsphinx import Decoder

        self.name = "pocketsphinx"
        self.key = f"pocketsphinx-{version('pocketsphinx')}"
        # A path of the best states is wanted, not the best path through a lattice of words; without a language model,
        # adding a word takes no time.
        self._decoder: Any = Decoder(samprate=16000, loglevel="FATAL", bestpath=False, lm=None)

    def align(self, audio: np.ndarray, text: str | None = None) -> list[TimedWord]:
        """See [`WordAligner`]."""
        return self.align_labels(audio, text)[0]

    def align_labels(self, audio: np.ndarray, text: str | None = None) -> tuple[list[TimedWord], list[TimedLabel]]:
        """
        As `align`, and the phones, without stress, of the pronunciations that fit best.

        Args:
            audio (`np.ndarray` of shape `(num_samples,)`): Waveform in [-1, 1] at 16 kHz.
            text (`str`): Text that is said.

        Raises:
            ValueError: If there is no text, the dictionary lacks a word, a phone is unknown, or the text does not fit
            the recording.
        """
        if not (text or "").strip():
            raise ValueError("pocketsphinx aligns a given text only; give one for each recording.")
        assert text is not None
        words, written = self._entries(text)
        decoder, samples = self._decoder, (np.clip(audio, -1, 1) * 32767).astype(np.int16).tobytes()
        try:
            decoder.set_align_text(" ".join(words))
            self._decode(samples)
            if decoder.hyp() is None:
                raise RuntimeError
            decoder.set_alignment()
            self._decode(samples)
            alignment = decoder.get_alignment()
        except RuntimeError as error:
            raise ValueError("its text does not fit the recording, which may be too short or too noisy.") from error
        timed_words, labels = [], []
        for entry in alignment:
            if entry.name in _SILENCES:
                continue
            start, end = entry.start, entry.start + entry.duration
            timed_words.append(
                TimedWord(written[len(timed_words)], start / _FRAMES_PER_SECOND, end / _FRAMES_PER_SECOND)
            )
            labels += [
                TimedLabel(
                    phone.name, phone.start / _FRAMES_PER_SECOND, (phone.start + phone.duration) / _FRAMES_PER_SECOND
                )
                for phone in entry
            ]
        return timed_words, labels

    def _entries(self, text: str) -> tuple[list[str], list[str]]:
        # Words of the dictionary, to which words of given phones are added, and how the text writes each.
        parts = [part.strip() for part in text.split("|")] if "|" in text else text.split()
        if "|" not in text and not all(_PHONE.fullmatch(part) for part in parts):
            words = [normalized_word(part) for part in parts]
            unknown = [
                part for part, word in zip(parts, words, strict=True) if self._decoder.lookup_word(word) is None
            ]
            if unknown:
                raise ValueError(f"the dictionary of pocketsphinx has no word {', '.join(map(repr, unknown))}.")
            return words, parts
        if "|" not in text:
            parts = [text]
        words, written = [], [part for part in parts if part]
        for part in written:
            phones = [phone.rstrip("012") for phone in part.split()]
            unknown = [phone for phone in phones if not _PHONE.fullmatch(phone)]
            if unknown:
                raise ValueError(f"pocketsphinx has no phone {', '.join(map(repr, unknown))}.")
            word = "-".join(phones).lower() + "_"  # no word of the dictionary ends so
            if self._decoder.lookup_word(word) is None:
                self._decoder.add_word(word, " ".join(phones), True)
            words.append(word)
        return words, written

    def _decode(self, samples: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(samples, full_utt=True)
        self._decoder.end_utt()
