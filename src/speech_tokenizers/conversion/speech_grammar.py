# SPDX-License-Identifier: Apache-2.0
"""Grammars by which servers let a language model write nothing but whole frames: GBNF and a regular expression."""

import re

from speech_tokenizers.coding.served_speech import ServedSpeech
from speech_tokenizers.modeling.speech_lm_text import AUDIO_END


GRAMMAR_FILE = "grammar.gbnf"
REGEX_FILE = "regex.txt"

# Digits from the first to the last, one pair a place.
_Digits = list[tuple[int, int]]


def numbers_below(stop: int) -> list[_Digits]:
    """
    The numbers from 0 to `stop - 1`, without leading zeros, as alternatives of ranges of digits.

    Args:
        stop (`int`): Number behind the last one, at least 1.
    """
    last = [int(digit) for digit in str(stop - 1)]
    ranges: list[_Digits] = [
        [(0 if length == 1 else 1, 9)] + [(0, 9)] * (length - 1) for length in range(1, len(last))
    ]
    for place, digit in enumerate(last):
        first = 1 if place == 0 and len(last) > 1 else 0
        high = digit if place == len(last) - 1 else digit - 1
        if high >= first:
            same: _Digits = [(earlier, earlier) for earlier in last[:place]]
            ranges.append([*same, (first, high), *[(0, 9)] * (len(last) - place - 1)])
    return ranges


def _digits(low: int, high: int) -> str:
    return f"[{low}]" if low == high else f"[{low}-{high}]"


def speech_regex(speech: ServedSpeech) -> str:
    """
    A regular expression for the text of a clip behind `<|audio_start|>`: whole frames, and then `<|audio_end|>`.

    In a model that aligns its text, a phone or a word may stand before each frame. The end need not be there: a server
    that knows it as an id to stop at, as vLLM does, allows it where the text is complete, and never as text.

    Args:
        speech ([`ServedSpeech`]): What the model's `speech.json` says.
    """
    frame = ""
    for q, size in enumerate(speech.speech_ids.sizes):
        alternatives = "|".join("".join(_digits(*pair) for pair in pairs) for pairs in numbers_below(size))
        frame += f"<a{q}_({alternatives})>"
    piece = ""
    if speech.text_alignment == "phone":
        piece = f"({'|'.join(map(re.escape, speech.phone_names()))})?"
    elif speech.text_alignment == "word":
        piece = "([^<]+)?"
    return f"({piece}{frame})+({re.escape(AUDIO_END)})?"


def speech_grammar(speech: ServedSpeech) -> str:
    """
    The same as [`speech_regex`], in the notation of llama.cpp (GBNF).

    Args:
        speech ([`ServedSpeech`]): What the model's `speech.json` says.
    """
    sizes = speech.speech_ids.sizes
    codes = {size: "code" if size == speech.codebook_size else f"code{size}" for size in sizes}
    piece = {"none": "", "phone": "phone? ", "word": "word? "}[speech.text_alignment]
    rules = [f"root ::= ({piece}frame)+ {_quoted(AUDIO_END)}?"]
    rules.append("frame ::= " + " ".join(f"a{q}" for q in range(len(sizes))))
    rules += [f'a{q} ::= "<a{q}_" {codes[size]} ">"' for q, size in enumerate(sizes)]
    for size, name in codes.items():
        alternatives = (" ".join(_digits(*pair) for pair in pairs) for pairs in numbers_below(size))
        rules.append(f"{name} ::= " + " | ".join(alternatives))
    if speech.text_alignment == "phone":
        rules.append("phone ::= " + " | ".join(map(_quoted, speech.phone_names())))
    elif speech.text_alignment == "word":
        rules.append("word ::= [^<]+")
    return "\n".join(rules) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


__all__ = ["GRAMMAR_FILE", "REGEX_FILE", "numbers_below", "speech_grammar", "speech_regex"]
