# SPDX-License-Identifier: Apache-2.0
"""When each word of a text is spoken."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from .ctc_alignment import forced_alignment, greedy_labels, speech_frames, spread_labels
from .ctc_labels import CTCLabels, text_language
from .speech_recognition import TransformersRecognizer, VoskRecognizer, is_vosk_folder
from .text_normalization import counted_words, has_dotless_i, is_symbol, normalized_word, words_of
from .timed_labels import TimedLabel, TimedWord


# Costs of aligning two word sequences. A substitution costs less than a deletion and an insertion together, so that
# unequal words keep their places, but more than one of them, so that equal words further on are still found.
_GAP, _SUBSTITUTION = 1.0, 1.5
# A digit or a symbol is spoken as a word of about this many letters.
_LETTERS_PER_SIGN = 4


class WordAligner(Protocol):
    """
    A recogniser that tells when words are spoken.

    `name` is what tables show; `key` also tells its weights apart.
    """

    name: str
    key: str

    def align(self, audio: np.ndarray, text: str | None = None) -> list[TimedWord]:
        """
        Args:
            audio (`np.ndarray` of shape `(num_samples,)`): Waveform in [-1, 1] at 16 kHz.
            text (`str`, *optional*): Text that is said. By default it is recognised.

        Returns:
            `list[TimedWord]`: One entry for each whitespace-separated word of the text, in order.
        """
        ...


class VoskWordAligner:
    """
    Word times by Vosk: a given text as the only phrase of its grammar, which [`match_words`] completes; or what it
    hears.

    Args:
        folder (`str`): Folder of a Vosk model; see [`VoskRecognizer`].
        language (`str`, *optional*): Language of the texts, as a code; see [`words_of`].
    """

    def __init__(self, folder: str, language: str | None = None):
        self.recognizer, self.language = VoskRecognizer(folder), language
        self.name, self.key = self.recognizer.name, _key_in(self.recognizer.key, language)

    def align(self, audio: np.ndarray, text: str | None = None) -> list[TimedWord]:
        """See [`WordAligner`]."""
        seconds = len(audio) / 16000
        phrase = None if text is None else " ".join(words_of(text, self.language))
        results = self.recognizer.results(audio, phrase) if phrase != "" else []
        heard = [
            TimedWord(word["word"], word["start"], word["end"])
            for result in results
            for word in result.get("result", [])
        ]
        return match_words(text, heard, seconds, self.language) if text is not None else _within(heard, seconds)


class CTCWordAligner:
    """
    Word times by any `AutoModelForCTC` with a `Wav2Vec2CTCTokenizer` (characters) or a `Wav2Vec2PhonemeCTCTokenizer`
    (phones): a given text by forced alignment, else the words of the best path.

    A CTC marks a label in few frames and leaves the others blank; [`spread_labels`] says who gets those.

    Args:
        name_or_path (`str`): Local folder or Hub id of the model.
        device (`str`, *optional*, defaults to `"cpu"`): Device that the model runs on.
        language (`str`, *optional*): Language of the texts, as a code; see [`words_of`]. Defaults to what the model
            was trained on, where its tokenizer says that, or else `"en"`.

    Raises:
        ValueError: If the model is no CTC, or was trained on texts of a language whose letters are spelt otherwise.
    """

    def __init__(self, name_or_path: str, device: str = "cpu", language: str | None = None):
        self.recognizer = TransformersRecognizer(name_or_path, device=device)
        if not self.recognizer.is_ctc:
            raise ValueError(
                f"`name_or_path` must be a CTC model or a Vosk folder, but {name_or_path} is a "
                f"{type(self.recognizer.model).__name__}, whose words have no times."
            )
        own = text_language(self.recognizer.tokenizer)
        if own is not None and language is not None and has_dotless_i(own) != has_dotless_i(language):
            raise ValueError(
                f"`language` (--language) is {language!r}, but {name_or_path} was trained on texts in {own!r}, whose"
                " capitals have other small letters; leave it out."
            )
        self.name = self.recognizer.name
        self.key = self.recognizer.key if own is not None else _key_in(self.recognizer.key, language)
        self.labels = CTCLabels(self.recognizer.tokenizer, own or language)

    def align(self, audio: np.ndarray, text: str | None = None) -> list[TimedWord]:
        """See [`WordAligner`]; for a model of phones, `text` holds phones (`AO1 R | DH AH0`)."""
        return self.align_labels(audio, text)[0]

    def align_labels(self, audio: np.ndarray, text: str | None = None) -> tuple[list[TimedWord], list[TimedLabel]]:
        """
        Like `align`, with the characters or phones too.

        Raises:
            ValueError: If the recording is too short for the text, or for one frame of the model.
        """
        if len(audio) < self.recognizer.shortest_input:
            raise ValueError(
                f"the recording is too short: it has {len(audio)} samples at 16 kHz, but {self.name} needs"
                f" {self.recognizer.shortest_input} for a frame; leave it out."
            )
        log_probs = self.recognizer.logits(audio)[0].float().log_softmax(-1).cpu().numpy()
        if text is None:
            words, starts, ends = self._heard(log_probs)
        else:
            words = self._labelled(text)
            log_probs = self._for_alignment(log_probs)
            starts, ends = forced_alignment(log_probs, [x for _, word in words for x in word], self.labels.blank)
        labels = [label for _, word in words for label in word]
        word_ends = np.zeros(len(labels), dtype=bool)
        word_ends[np.cumsum([len(word) for _, word in words if word], dtype=int) - 1] = True
        edges = self._frame_edges(len(log_probs), len(audio))
        starts, ends = spread_labels(starts, ends, word_ends, speech_frames(audio, edges))
        times = (edges / 16000).tolist()

        timed_words: list[TimedWord] = []
        timed_labels: list[TimedLabel] = []
        for name, word in words:
            first, last = len(timed_labels), len(timed_labels) + len(word) - 1
            if word:
                timed_words.append(TimedWord(name, times[starts[first]], times[ends[last]]))
            else:
                before = timed_words[-1].end if timed_words else 0.0
                timed_words.append(TimedWord(name, before, before))
            for index, label in enumerate(word, start=first):
                timed_labels.append(TimedLabel(self._label_name(label), times[starts[index]], times[ends[index]]))
        return timed_words, timed_labels

    @property
    def _wildcard(self) -> int:
        # The label of words that cannot be spelt, such as numbers: any label.
        return len(self.recognizer.tokenizer)

    def _label_name(self, label: int) -> str:
        return self.recognizer.tokenizer.unk_token if label == self._wildcard else self.labels.name(label)

    def _labelled(self, text: str) -> list[tuple[str, list[int]]]:
        return [
            (word, labels or ([self._wildcard] if normalized_word(word) else []))
            for word, labels in self.labels.words(text)
        ]

    def _for_alignment(self, log_probs: np.ndarray) -> np.ndarray:
        # A word boundary has no sound: its label counts as blank, so that words may follow each other at once.
        log_probs = log_probs[:, : self._wildcard].copy()
        if self.labels.delimiter is not None:
            blank = log_probs[:, self.labels.blank]
            log_probs[:, self.labels.blank] = np.logaddexp(blank, log_probs[:, self.labels.delimiter])
        spoken = [label for label in range(log_probs.shape[1]) if label not in self.labels.special_ids]
        return np.concatenate([log_probs, log_probs[:, spoken].max(axis=1, keepdims=True)], axis=1)

    def _heard(self, log_probs: np.ndarray) -> tuple[list[tuple[str, list[int]]], np.ndarray, np.ndarray]:
        labels, starts, ends = greedy_labels(log_probs, self.labels.blank)
        words: list[list[int]] = [[]]
        for label in labels.tolist():
            if label == self.labels.delimiter:
                words.append([])
            elif label not in self.labels.special_ids:
                words[-1].append(label)
        is_spoken = ~np.isin(labels, list(self.labels.special_ids))
        return [(self.labels.join(word), word) for word in words if word], starts[is_spoken], ends[is_spoken]

    def _frame_edges(self, num_frames: int, num_samples: int) -> np.ndarray:
        # Samples between which frames lie, of shape (num_frames + 1,).
        config = self.recognizer.model.config
        hop = getattr(config, "inputs_to_logits_ratio", num_samples / num_frames)
        centre = getattr(config, "first_frame_centre", hop / 2)
        return np.clip(centre + (np.arange(num_frames + 1) - 0.5) * hop, 0, num_samples).round().astype(int)


def _key_in(key: str, language: str | None) -> str:
    # Languages whose words are normalised alike are one.
    return f"{key}-{language}" if has_dotless_i(language) else key


def load_word_aligner(name_or_path: str, device: str = "cpu", language: str | None = None) -> WordAligner:
    """
    Args:
        name_or_path (`str`): Vosk folder (it holds `am` and `graph`), a folder or Hub id of an `AutoModelForCTC`, or
            `"pocketsphinx"`.
        device (`str`, *optional*, defaults to `"cpu"`): Device that a transformers model runs on.
        language (`str`, *optional*): Language of the texts, as a code. Defaults to what the model was trained on,
            where it says that, or else `"en"`.

    Raises:
        ValueError: If the model is of another language, where that is known.
    """
    if name_or_path == "pocketsphinx":
        from .hmm_alignment import PocketsphinxWordAligner

        if (language or "en").lower().replace("_", "-").split("-")[0] not in ("en", "eng", "english"):
            raise ValueError(f"pocketsphinx knows English, but `language` (--language) is {language!r}; leave it out.")
        return PocketsphinxWordAligner()
    if is_vosk_folder(name_or_path):
        return VoskWordAligner(name_or_path, language)
    return CTCWordAligner(name_or_path, device, language)


class _Piece(NamedTuple):
    # What is compared at once: "Al-Madi," holds "al" and "madi", and a word of Chinese its characters.
    text: str
    word_index: int


def _pieces_of(word: str, language: str | None) -> list[str]:
    return counted_words(" ".join(words_of(word, language)))


def match_words(
    text: str, recognised: Sequence[TimedWord], seconds: float, language: str | None = None
) -> list[TimedWord]:
    """
    Give every word of a known text the times of the same words in what a recogniser heard.

    Both are compared without case and punctuation, and aligned by edit distance. Words of the text that were not
    recognised share the time between their recognised neighbours, in proportion to their letters. Where the recogniser
    heard something else there (`[unk]` or another word), they share the time of that. A word without letters,
    digits or symbols, such as a dash, takes no time.

    Args:
        text (`str`): Text that was said. Words are parted by whitespace.
        recognised (sequence of [`TimedWord`]): Words that were recognised, in the order of their times.
        seconds (`float`): Length of the recording.
        language (`str`, *optional*): Language of both, as a code; see [`words_of`].

    Returns:
        `list[TimedWord]`: One entry for each word of `text`, in order and as written; each starts no earlier than the
        one before it ends, within 0 and `seconds`.

    Raises:
        ValueError: If `seconds` is negative.
    """
    if seconds < 0:
        raise ValueError(f"`seconds` must not be negative, but got {seconds}.")
    words = text.split()
    pieces = [_Piece(piece, index) for index, word in enumerate(words) for piece in _pieces_of(word, language)]
    heard = _split_into_pieces(_within(recognised, seconds), language)
    matches = _matching_positions([piece.text for piece in pieces], [word.word for word in heard])

    spans: list[tuple[float, float]] = []
    matches = [*matches, (len(pieces), len(heard))]
    piece_index, heard_index, time = 0, 0, 0.0
    for next_piece, next_heard in matches:
        end = heard[next_heard].start if next_heard < len(heard) else seconds
        spans += _share(pieces[piece_index:next_piece], heard[heard_index:next_heard], time, end)
        if next_heard < len(heard):
            spans.append((heard[next_heard].start, heard[next_heard].end))
            time = heard[next_heard].end
        piece_index, heard_index = next_piece + 1, next_heard + 1

    bounds: dict[int, tuple[float, float]] = {}
    for piece, (start, end) in zip(pieces, spans, strict=True):
        bounds[piece.word_index] = (bounds.get(piece.word_index, (start,))[0], end)
    timed, time = [], 0.0
    for index, word in enumerate(words):
        start, end = bounds.get(index, (time, time))
        timed.append(TimedWord(word, start, end))
        time = end
    return timed


def share_word_times(words: Sequence[TimedWord], phones: str) -> list[TimedLabel]:
    """
    Give the phones of each word equal parts of its time: rough, but independent of any acoustic model of phones.

    Args:
        words (sequence of [`TimedWord`]): Words in their order, with their times.
        phones (`str`): Phones, parted by spaces, words by `|`. Stress digits are dropped.

    Raises:
        ValueError: If there are not as many words.
    """
    groups = [group.split() for group in phones.split("|")] if phones.strip() else []
    if len(groups) != len(words):
        raise ValueError(f"the text has {len(words)} words, but the phones are those of {len(groups)}.")
    labels = []
    for word, group in zip(words, groups, strict=True):
        edges = np.linspace(word.start, word.end, len(group) + 1)
        labels += [
            TimedLabel(phone.rstrip("0123456789"), float(start), float(end))
            for phone, start, end in zip(group, edges, edges[1:], strict=False)
        ]
    return labels


def edit_distance(said: Sequence[Hashable], true: Sequence[Hashable]) -> int:
    """Substitutions, deletions and insertions that turn one sequence into the other, at least."""
    rows, columns = _numbered(said, true)
    steps = np.arange(len(columns) + 1)
    cost = steps
    for row in rows:
        substituted = cost[:-1] + (columns != row)
        cost = np.minimum(cost + 1, np.concatenate([[cost[0] + 1], substituted]))
        cost = np.minimum.accumulate(cost - steps) + steps
    return int(cost[-1])


def _within(recognised: Sequence[TimedWord], seconds: float) -> list[TimedWord]:
    # The same words with times that do not go back and do not leave the recording.
    kept, before = [], 0.0
    for word, start, end in recognised:
        start = min(max(start, before), seconds)
        end = min(max(end, start), seconds)
        kept.append(TimedWord(word, start, end))
        before = end
    return kept


def _split_into_pieces(recognised: Sequence[TimedWord], language: str | None) -> list[TimedWord]:
    heard = []
    for word, start, end in recognised:
        is_unknown = word.startswith(("[", "<")) and word.endswith(("]", ">"))
        # An empty piece equals nothing in a text, yet holds its time.
        pieces = [""] if is_unknown else _pieces_of(word, language) or [""]
        bounds = np.linspace(start, end, len(pieces) + 1).tolist()
        heard += [TimedWord(piece, bounds[i], bounds[i + 1]) for i, piece in enumerate(pieces)]
    return heard


def _matching_positions(pieces: Sequence[str], heard: Sequence[str]) -> list[tuple[int, int]]:
    # Pairs of positions of equal words on the cheapest path of edits, in order.
    rows, columns = _numbered(pieces, heard)
    steps = _GAP * np.arange(len(columns) + 1)
    cost = steps.copy()
    is_diagonal = np.zeros((len(rows), len(columns)), dtype=bool)
    is_upward = np.zeros((len(rows), len(columns) + 1), dtype=bool)
    for i, row in enumerate(rows):
        diagonal = np.concatenate([[np.inf], cost[:-1] + np.where(columns == row, 0.0, _SUBSTITUTION)])
        upward = cost + _GAP
        best = np.minimum(diagonal, upward)
        # A run of insertions adds the same step for each column, so the row's minimum accumulates.
        cost = np.minimum.accumulate(best - steps) + steps
        is_diagonal[i] = (diagonal == cost)[1:]
        is_upward[i] = upward == cost

    pairs, i, j = [], len(rows), len(columns)
    while i and j:
        if is_diagonal[i - 1, j - 1]:
            i, j = i - 1, j - 1
            if rows[i] == columns[j]:
                pairs.append((i, j))
        elif is_upward[i - 1, j]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _numbered(*sequences: Sequence[Hashable]) -> list[np.ndarray]:
    # Equal items get equal numbers.
    numbers: dict[Hashable, int] = {}
    return [np.array([numbers.setdefault(item, len(numbers)) for item in items], np.int64) for items in sequences]


def _share(
    pieces: Sequence[_Piece], heard: Sequence[TimedWord], start: float, end: float
) -> list[tuple[float, float]]:
    # Spans of words that were not recognised, between `start` and `end`, where `heard` was heard instead.
    if heard and len(heard) == len(pieces):
        return [(word.start, word.end) for word in heard]
    if heard:
        start, end = heard[0].start, heard[-1].end
    lengths = [sum(_LETTERS_PER_SIGN if c.isdigit() or is_symbol(c) else 1 for c in piece.text) for piece in pieces]
    bounds = np.minimum(start + (end - start) * np.cumsum([0, *lengths]) / max(1, sum(lengths)), end)
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
