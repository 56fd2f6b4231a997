# SPDX-License-Identifier: Apache-2.0
"""
Byte-pair encoding of units: frequent sequences of units become one id, and their durations go beside.

(Ren et al., "Speech Pre-training with Acoustic Piece": https://huggingface.co/papers/2204.03240)
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from .unit_sequences import check_durations, check_units, deduplicate, expand
from .unit_vocabulary import wrap_tokenizer


# Units are spelt as characters of Unicode's private-use plane 15, of which there are so many.
_FIRST_CHARACTER = 0xF0000
LARGEST_CODEBOOK = 65534

_PADDING, _END = "<PAD>", "<S>"


class UnitBPE:
    """
    Merge units into ids and back, without a loss if the durations are kept.

    Ids begin as in [`build_unit_vocabulary`]: 0 is padding, 1 the beginning and end, `u + 2` the unit `u`, and behind
    them come the merged sequences. Every unit has an id of its own, whether training saw it or not.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Tokenizer, as [`train_unit_bpe`] makes it. It spells the unit `u` as the
            character `chr(0xF0000 + u)`.

    Raises:
        ValueError: If `tokenizer` is another.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        names = [name for name, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
        spellings = [[ord(character) - _FIRST_CHARACTER for character in name] for name in names[2:]]
        self.codebook_size = sum(len(spelling) == 1 for spelling in spellings)
        is_ours = names[:2] == [_PADDING, _END] and spellings[: self.codebook_size] == [
            [unit] for unit in range(self.codebook_size)
        ]
        if not is_ours or any(not 0 <= unit < self.codebook_size for spelling in spellings for unit in spelling):
            raise ValueError("`tokenizer` merges no units; name one that `train_unit_bpe` made.")
        self._units_of_id = [np.array(spelling, dtype=np.int64) for spelling in ([], [], *spellings)]
        self._num_units_of_id = np.array([len(units) for units in self._units_of_id])

    def __len__(self) -> int:
        return len(self._units_of_id)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> "UnitBPE":
        """
        Load from a folder or Hub repository.

        Raises:
            OSError: If it holds no tokenizer.
            ValueError: If it holds another.
        """
        return cls(PreTrainedTokenizerFast.from_pretrained(name_or_path))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` reads too."""
        self.tokenizer.save_pretrained(folder)

    @property
    def merges(self) -> list[str]:
        """
        The merges in their order, each as the two tokens that it joins, such as `"12 105"`. Tokens are the ids less
        the two special ones, so that those below `codebook_size` are the units.
        """
        number = {name: index - 2 for name, index in self.tokenizer.get_vocab().items()}
        merges = json.loads(self.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        return [f"{number[left]} {number[right]}" for left, right in merges]

    def encode(self, units: np.ndarray, durations: np.ndarray | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
        """
        Args:
            units (`np.ndarray` of shape `(num_frames,)`): Units, one a frame, or with `durations` one a run.
            durations (`np.ndarray` of shape `(num_units,)`, *optional*): Frames that each unit lasts, if the units are
                de-duplicated.

        Returns:
            `tuple`: The ids of shape `(num_ids,)`, int64, and for each id the durations of the units in it, in frames.

        Raises:
            TypeError, ValueError: If either is malformed, or a unit is not below `codebook_size`.
        """
        units = _check_stream(units, self.codebook_size)
        if durations is None:
            units, durations = deduplicate(units)
        else:
            durations = check_durations(durations)
            if durations.shape != units.shape:
                raise ValueError(f"`durations` must have one entry a unit, {len(units)}, but got {len(durations)}.")
        encoding = self.tokenizer.backend_tokenizer.encode(_spell(units), add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int64)
        ends = self._num_units_of_id[ids].cumsum()
        return ids, np.split(durations, ends[:-1]) if len(ids) else []

    def decode(self, ids: np.ndarray, durations: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """
        Args:
            ids (`np.ndarray` of shape `(num_ids,)`): Ids of merged units. The ids of padding, beginning and end stand
                for no unit.
            durations (sequence of `np.ndarray`, *optional*): Durations of the units of each id, in frames.

        Returns:
            `np.ndarray`: The units, int64: of shape `(num_frames,)`, or de-duplicated, `(num_units,)`, without
            durations.

        Raises:
            TypeError, ValueError: If an id does not exist, or the durations do not fit.
        """
        ids = _check_stream(ids, len(self), "ids")
        units = np.concatenate([np.zeros(0, dtype=np.int64), *(self._units_of_id[index] for index in ids)])
        if durations is None:
            return units
        counts = [len(part) for part in durations]
        if counts != self._num_units_of_id[ids].tolist():
            raise ValueError(
                f"`durations` must hold {self._num_units_of_id[ids].tolist()} entries for `ids`, but got {counts}."
            )
        parts = [np.asarray(part) for part in durations if len(part)]
        return expand(units, np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))

    def compression(self, sequences: Iterable[np.ndarray], frame_rate: float) -> dict[str, float]:
        """
        What merging saves.

        Args:
            sequences (iterable of `np.ndarray` of shape `(num_frames,)`): Units, one a frame.
            frame_rate (`float`): Frame rate of the sequences, in Hz.

        Returns:
            `dict`: `frames_per_unit` and `units_per_id`; the nominal bit rates, where each symbol costs the logarithm
            of how many there are: `bits_per_second` of the frames, `deduplicated_bits_per_second` of the units and
            `merged_bits_per_second` of the ids; and `duration_bits_per_second`, the entropy of the durations, which a
            decoder needs beside either of the latter to give the frames back.

        Raises:
            ValueError: If there is no frame.
        """
        num_ids = 0
        counts: Counter[int] = Counter()  # of the durations
        for units in sequences:
            ids, durations = self.encode(units)
            num_ids += len(ids)
            counts.update(duration for part in durations for duration in part.tolist())
        num_units, num_frames = counts.total(), sum(duration * count for duration, count in counts.items())
        if not num_frames:
            raise ValueError("`sequences` hold no frame.")
        shares = np.array(list(counts.values())) / num_units
        units_per_second = num_units / num_frames * frame_rate
        return {
            "frames_per_unit": num_frames / num_units,
            "units_per_id": num_units / num_ids,
            "bits_per_second": float(frame_rate * np.log2(self.codebook_size)),
            "deduplicated_bits_per_second": float(units_per_second * np.log2(self.codebook_size)),
            "merged_bits_per_second": float(units_per_second * num_ids / num_units * np.log2(len(self) - 2)),
            "duration_bits_per_second": float(-units_per_second * (shares * np.log2(shares)).sum()),
        }


def train_unit_bpe(
    sequences: Iterable[np.ndarray], codebook_size: int, vocab_size: int, min_frequency: int = 2
) -> UnitBPE:
    """
    Learn which neighbouring units to merge. The same sequences give the same merges.

    Args:
        sequences (iterable of `np.ndarray` of shape `(num_frames,)`): Units of a recording each, one a frame; they are
            de-duplicated here. Held in memory as text, 4 bytes a unit.
        codebook_size (`int`): Number of units, at most 65534; units are below it.
        vocab_size (`int`): Number of ids, with the two special ones and one for each unit. There are fewer if the
            sequences run out of pairs.
        min_frequency (`int`, *optional*, defaults to 2): Least number of occurrences of a pair that is merged.

    Raises:
        TypeError, ValueError: If a sequence is malformed, or a number is out of range.
    """
    if not 1 <= codebook_size <= LARGEST_CODEBOOK:
        raise ValueError(f"`codebook_size` must lie between 1 and {LARGEST_CODEBOOK}, but got {codebook_size}.")
    if vocab_size < codebook_size + 2:
        raise ValueError(
            f"`vocab_size` must be at least {codebook_size + 2}, two special ids and one a unit, but got {vocab_size}."
        )
    tokenizer = Tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[_PADDING, _END],
        initial_alphabet=[chr(_FIRST_CHARACTER + unit) for unit in range(codebook_size)],
        show_progress=False,
    )
    texts = (_spell(deduplicate(_check_stream(units, codebook_size))[0]) for units in sequences)
    tokenizer.train_from_iterator(texts, trainer)
    return UnitBPE(wrap_tokenizer(tokenizer, _END, _END))


def _spell(units: np.ndarray) -> str:
    return (units + _FIRST_CHARACTER).astype("<u4").tobytes().decode("utf-32-le")


def _check_stream(units: np.ndarray, size: int, name: str = "units") -> np.ndarray:
    units = check_units(units)
    if units.ndim != 1:
        raise ValueError(
            f"`{name}` must have shape (num_frames,), but got {units.shape}; merge one codebook at a time."
        )
    if units.size and units.max() >= size:
        raise ValueError(f"`{name}` must be below {size}, but got {units.max()}.")
    return units
