# SPDX-License-Identifier: Apache-2.0
"""
A lexicon of what flite says, so that a voice that was trained on flite's phones is asked for the same phones.

Flite's own lexicon is that of Carnegie Mellon University (CMUdict, BSD-like), and rules for words that it lacks. Words
that sound otherwise in a sentence than alone, such as `a` and `the`, are learnt from the sentences of a corpus.
"""

import collections
import concurrent.futures
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from speech_tokenizers.modeling.pronunciations import (
    BEFORE_PAUSE,
    BEFORE_VOWEL,
    PAUSE,
    PronouncedWord,
    PronunciationLexicon,
    phones_of_words,
)
from speech_tokenizers.training.language_models.flite_corpus import FliteVoice


LICENCE = (
    "Pronunciations by flite (http://cmuflite.org), Carnegie Mellon University, BSD-like licence.",
    "Words of WordNet 3.0, Copyright 2006 by Princeton University. All rights reserved. THIS SOFTWARE AND DATABASE IS",
    'PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES, EXPRESS OR IMPLIED.',
)
# Words of one call of flite.
_CHUNK = 1000
# Fewer observations of a word in a context teach nothing of the context.
_LEAST = 3


def add_words(
    lexicon: PronunciationLexicon,
    words: Iterable[str],
    voice: FliteVoice,
    jobs: int = 1,
    quiet: bool | None = None,
) -> int:
    """
    Add the words that a lexicon lacks, as flite says each of them alone.

    Args:
        lexicon ([`PronunciationLexicon`]): Lexicon to add to.
        words (iterable of `str`): Words in lower case.
        voice ([`FliteVoice`]): Voice that pronounces.
        jobs (`int`, *optional*, defaults to 1): Number of flite processes at a time.
        quiet (`bool`, *optional*): Whether to show no progress bar. Defaults to showing one on a terminal.

    Returns:
        `int`: Number of words that were added.

    Raises:
        ValueError: If flite says nothing, or several utterances, for a word.
    """
    from tqdm import tqdm

    missing = [word for word in dict.fromkeys(words) if word not in lexicon]
    chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
    with (
        concurrent.futures.ThreadPoolExecutor(jobs) as pool,
        tqdm(desc="pronounce", total=len(missing), unit="word", disable=quiet) as bar,
    ):
        tasks = [pool.submit(voice.pronounce, chunk) for chunk in chunks]
        try:
            for chunk, task in zip(chunks, tasks, strict=True):
                for word, phones in zip(chunk, task.result(), strict=True):
                    lexicon.add(word, [phone for phone in phones if phone != PAUSE])
                bar.update(len(chunk))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return len(missing)


def learn_in_sentences(lexicon: PronunciationLexicon, spoken: Iterable[tuple[str, Sequence[str]]]) -> int:
    """
    Change the words that sentences mostly say otherwise than the lexicon.

    The most frequent pronunciation becomes a word's entry. Where another one is most frequent before vowels or before
    pauses, it becomes an entry of this context, if it was seen three times or is what the lexicon had. This one counts
    as one more observation, before a pause, since flite said the word alone.

    Args:
        lexicon ([`PronunciationLexicon`]): Lexicon with every word of the sentences, as flite says it alone.
        spoken (iterable of `tuple[str, sequence of str]`): Text of each sentence, and its phones.

    Returns:
        `int`: Number of entries that were changed or added.

    Raises:
        PronunciationError: If a word is not in the lexicon.
    """
    # Word -> context -> phones -> how often.
    seen: dict[str, dict[str, collections.Counter[str]]] = {}
    for text, phones in spoken:
        for word, context, said in _observed(lexicon, text, phones):
            contexts = seen.setdefault(word, collections.defaultdict(collections.Counter))
            contexts[context][said] += 1
    num_changed = 0
    for word, contexts in seen.items():
        alone = " ".join(lexicon[word])
        contexts[BEFORE_PAUSE][alone] += 1
        usual = _most_frequent(sum(contexts.values(), collections.Counter()), alone)
        if usual != alone:
            lexicon.add(word, usual)
            num_changed += 1
        for context in (BEFORE_VOWEL, BEFORE_PAUSE):
            here = _most_frequent(contexts[context], usual)
            if here != usual and (here == alone or contexts[context][here] >= _LEAST):
                lexicon.add(f"{word}({context})", here)
                num_changed += 1
    return num_changed


def _most_frequent(counts: collections.Counter[str], otherwise: str) -> str:
    return max(counts, key=lambda phones: (counts[phones], phones == otherwise, phones), default=otherwise)


def _observed(lexicon: PronunciationLexicon, text: str, phones: Sequence[str]) -> Iterable[tuple[str, str, str]]:
    # Word, context and phones of each word of a sentence that has an entry of its own.
    pronounced: list[PronouncedWord] = lexicon.pronounce_words(text)
    timed = [{"label": label, "position": position} for position, label in enumerate(phones)]
    try:
        shared = phones_of_words(pronounced, timed)
    except ValueError:
        return  # flite reads it as something else; nothing is to be learnt here
    for index, own in shared.items():
        if len(words := lexicon.words(pronounced[index].word)) == 1 and words[0] in lexicon:
            following = phones[own[-1]["position"] + 1]
            context = BEFORE_PAUSE if following == PAUSE else BEFORE_VOWEL if following[0] in "aeiou" else ""
            yield words[0], context, " ".join(phone["label"] for phone in own)


class Agreement(NamedTuple):
    """
    How often a lexicon gives flite's phones for a sentence.

    Args:
        sentences (`int`): Number of sentences.
        same (`int`): Number of those with all phones and pauses alike.
        same_phones (`int`): Number of those with all phones alike, pauses left out.
        different (`list[tuple[str, str, str]]`): Text, phones by the lexicon and phones by flite where they differ.
    """

    sentences: int
    same: int
    same_phones: int
    different: list[tuple[str, str, str]]


def agreement(lexicon: PronunciationLexicon, spoken: Iterable[tuple[str, Sequence[str]]]) -> Agreement:
    """
    Compare a lexicon with flite on sentences that nothing was learnt from.

    Args:
        lexicon ([`PronunciationLexicon`]): Lexicon with every word of the sentences.
        spoken (iterable of `tuple[str, sequence of str]`): Text of each sentence, and its phones by flite.

    Raises:
        PronunciationError: If a word is not in the lexicon.
    """
    count = same = same_phones = 0
    different = []
    for text, phones in spoken:
        given, said = " ".join(lexicon.pronounce(text)), " ".join(phones)
        count += 1
        same += given == said
        same_phones += _without_pauses(given) == _without_pauses(said)
        if given != said:
            different.append((text, given, said))
    return Agreement(count, same, same_phones, different)


def _without_pauses(phones: str) -> str:
    return re.sub(rf"\b{PAUSE}\b ?", "", phones).strip()
