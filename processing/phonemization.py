# SPDX-License-Identifier: Apache-2.0
"""Phones of written texts, by a program that knows how languages are pronounced."""

import re
import shutil
import subprocess
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from .optional_packages import MissingPackageError


# Where a speaker may pause: punctuation before a space; and brackets, quotation marks, dashes, and the punctuation of
# scripts without spaces anywhere.
_CLAUSE_END = re.compile(r"[.,;:!?…؟،؛।॥።]+(?=\s|$)|[\[\](){}<>|\"“”„«»—–。、，！？；：「」『』（）\n\r]+")
# espeak-ng reads a thousand bytes of a line, and cuts long clauses.
_LONGEST_CLAUSE = 200
# Written around words that are spoken in another language, such as `(en)`.
_LANGUAGE_SWITCH = re.compile(r"\([a-z0-9-]+\)")
_STRESS_MARKS = "ˈˌ"


class EspeakPhonemizer:
    """
    Phones of texts in the international phonetic alphabet, by the program espeak-ng.

    It is run as a program of its own, since it is under the GPL. Texts are given to it clause by clause, so that the
    phones of a text do not depend on the texts before it. It pronounces some short words together (`of the`), and
    spells or skips what its language does not write. So the words are those that are spoken, which may be more or
    fewer than those that are written.

    Args:
        language (`str`, *optional*, defaults to `"en-us"`): Name of a voice, such as `"de"`, among those that
            `espeak-ng --voices` lists.
        with_stress (`bool`, *optional*, defaults to `False`): Whether to keep the marks of stress before vowels (`ˈ`
            and `ˌ`).
        program (`str`, *optional*, defaults to `"espeak-ng"`): Name or path of espeak-ng.

    Raises:
        MissingPackageError: If the program is not installed.
        ValueError: If it does not know the language.
    """

    def __init__(self, language: str = "en-us", with_stress: bool = False, program: str = "espeak-ng"):
        path = shutil.which(program)
        if path is None:
            raise MissingPackageError(program, "The pronunciation of texts", f"apt-get install {program}")
        self.language, self.with_stress = language, with_stress
        self._command = [path, "-q", "-b", "1", "--ipa", "--sep=_", "-v", language]
        self._run([])

    def __call__(self, texts: Iterable[str]) -> list[str]:
        """
        Args:
            texts (iterable of `str`): Texts of any length; numbers are read out.

        Returns:
            `list[str]`: The phones of each text, parted by spaces, words by `|`, as in `h ə l oʊ | w ɜː l d`; empty
            where a text has neither letters nor digits.

        Raises:
            RuntimeError: If the program fails.
        """
        clauses = [_clauses(text) for text in texts]
        pronounced = iter(self._pronounce([clause for group in clauses for clause in group]))
        return [" | ".join(self._words(" ".join(next(pronounced) for _ in group))) for group in clauses]

    def _pronounce(self, clauses: Sequence[str]) -> list[str]:
        lines = self._run(clauses)
        if len(lines) == len(clauses):
            return lines
        # Every clause gives a line or more, so somewhere the program saw two in one: which, shows one by one.
        return [" ".join(self._run([clause])) for clause in clauses]

    def _run(self, clauses: Sequence[str]) -> list[str]:
        text = "".join(f"{clause}\n" for clause in clauses)
        result = subprocess.run(self._command, input=text, capture_output=True, encoding="utf-8", check=False)
        reason = result.stderr.strip()
        if "voice does not exist" in reason:
            raise ValueError(f"`language` is {self.language!r}, unknown to espeak-ng; see `espeak-ng --voices`.")
        if result.returncode:
            raise RuntimeError(f"{self._command[0]} failed with exit code {result.returncode}: {reason}")
        return result.stdout.splitlines()

    def _words(self, line: str) -> list[str]:
        words = (word.split("_") for word in _LANGUAGE_SWITCH.sub("_", line).split())
        phones = ([phone if self.with_stress else phone.strip(_STRESS_MARKS) for phone in word] for word in words)
        return [" ".join(filter(None, word)) for word in phones if any(word)]


def _clauses(text: str) -> list[str]:
    # A letter and its mark may be one character or two, but have one sound.
    parts = (" ".join(part.split()) for part in _CLAUSE_END.split(unicodedata.normalize("NFC", text)))
    spoken = (part for part in parts if any(character.isalnum() for character in part))
    lines = (
        line
        for part in spoken
        for line in textwrap.wrap(part, _LONGEST_CLAUSE, break_on_hyphens=False, break_long_words=False)
    )
    return [piece for line in lines for piece in _cut(line)]


def _cut(line: str) -> list[str]:
    # A line without a space, such as one of Thai, is cut before a letter and not before its marks.
    pieces = []
    while len(line) > _LONGEST_CLAUSE:
        end = _LONGEST_CLAUSE
        while end > 1 and unicodedata.category(line[end])[0] in "MC":
            end -= 1
        pieces.append(line[:end])
        line = line[end:]
    return [*pieces, line]
