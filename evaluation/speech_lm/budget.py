# SPDX-License-Identifier: Apache-2.0
"""
What a speech language model costs, by arithmetic: positions, memory of the cache, operations of a training.

Nothing is run and nothing is loaded here. [`count_language_model`] gives the sizes of a model.
"""

import math
from dataclasses import dataclass
from typing import Literal


Layout = Literal["flat", "delay", "continuous"]
Alignment = Literal["none", "word", "phone"]
LAYOUTS: tuple[Layout, ...] = ("flat", "delay", "continuous")
ALIGNMENTS: tuple[Alignment, ...] = ("none", "word", "phone")
# Ids of the text a second of read English: about 3 words, which a BPE writes in 4 ids; about 12 phones with pauses.
IDS_A_SECOND: dict[Alignment, float] = {"none": 4.0, "word": 4.0, "phone": 12.0}
# `<|audio_start|>` and `<|audio_end|>`, which the layouts count, and the end of the answer.
NUM_AUDIO_MARKS, NUM_MARKS = 2, 3
# Special tokens that the processor adds to the vocabulary: the two marks and `<|audio|>`.
NUM_SPECIAL_TOKENS = 3
# Rows of the embedding are padded to a multiple of this.
VOCABULARY_MULTIPLE = 64


@dataclass(frozen=True)
class SpeechSizes:
    """
    What a codec makes of speech.

    Args:
        frame_rate (`float`): Frames a second.
        num_codebooks (`int`): Number of codebooks, the first ones, that the language model reads and writes. 0 for
            continuous frames.
        codebook_size (`int`): Entries a codebook. 0 for continuous frames.
    """

    frame_rate: float
    num_codebooks: int = 0
    codebook_size: int = 0

    def __post_init__(self):
        if not (math.isfinite(self.frame_rate) and self.frame_rate > 0):
            raise ValueError(f"`frame_rate` must be positive and finite, but got {self.frame_rate}.")
        for name in ("num_codebooks", "codebook_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, but got {getattr(self, name)}.")

    def num_frames(self, seconds: float) -> int:
        """Frames of so many seconds, the last one filled up."""
        return math.ceil(round(seconds * self.frame_rate, 6))


@dataclass(frozen=True)
class LanguageModelSizes:
    """
    What a language model consists of.

    Args:
        num_parameters (`int`): Number of parameters, each counted once.
        num_multiplied (`int`): Number of parameters that each position is multiplied by: all matrices but embeddings.
            Where the output layer shares the embedding, it counts.
        num_heads, num_key_value_heads, head_dim (`int`): Heads of a layer that ask, heads that are asked, and numbers
            of a head.
        windows (`tuple` of `int` or `None`): Positions that each layer looks back, itself included; `None` for all.
        max_positions (`int`, *optional*): Positions that the model was made for; `None` where it does not say.
        has_learned_positions (`bool`, *optional*, defaults to `False`): Whether each position has a vector of its own,
            so that the model cannot go beyond them.
    """

    num_parameters: int
    num_multiplied: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    max_positions: int | None = None
    has_learned_positions: bool = False


@dataclass(frozen=True)
class ClipPositions:
    """
    Positions of a spoken clip in a sequence of a language model.

    Args:
        prompt (`int`): Ids of the text before the speech, or of its pieces.
        audio (`int`): Positions of the speech, with the ids of pieces among it.
        marks (`int`): Marks of the start and the ends.
    """

    prompt: int
    audio: int
    marks: int = NUM_MARKS

    @property
    def total(self) -> int:
        """All positions."""
        return self.prompt + self.audio + self.marks


def clip_positions(
    seconds: float,
    speech: SpeechSizes,
    layout: Layout = "flat",
    text_alignment: Alignment = "none",
    ids_a_second: float | None = None,
) -> ClipPositions:
    """
    Positions that a clip and its text take.

    Args:
        seconds (`float`): Length of the clip in seconds.
        speech ([`SpeechSizes`]): Sizes of the codec.
        layout (`str`, *optional*, defaults to `"flat"`): Layout of the speech; see [`sequence_length`].
        text_alignment (`str`, *optional*, defaults to `"none"`): Pieces of the text that stand before their frames:
            `"none"`, `"word"` or `"phone"`. The prompt has all of them, too.
        ids_a_second (`float`, *optional*): Ids of the text a second of speech. Defaults to what read English has.

    Raises:
        ValueError: If a number is negative or not finite, or there is no such layout or alignment.
    """
    _check(layout, "layout", LAYOUTS)
    _check(text_alignment, "text_alignment", ALIGNMENTS)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"`seconds` must be positive and finite, but got {seconds}.")
    rate = IDS_A_SECOND[text_alignment] if ids_a_second is None else ids_a_second
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"`ids_a_second` must not be negative, and finite, but got {rate}.")
    if layout != "continuous" and speech.num_codebooks < 1:
        raise ValueError(f"`num_codebooks` must be at least 1 in the layout {layout}, but got {speech.num_codebooks}.")
    # What it needs takes seconds to import, which `--help` should not.
    from speech_tokenizers.modeling.speech_lm_layouts import sequence_length

    num_ids = math.ceil(round(seconds * rate, 6))
    pieces = num_ids if text_alignment != "none" else 0
    length = sequence_length(speech.num_frames(seconds), max(1, speech.num_codebooks), layout, pieces)
    return ClipPositions(num_ids, length - NUM_AUDIO_MARKS)


def positions_a_second(
    speech: SpeechSizes, layout: Layout, text_alignment: Alignment = "none", ids_a_second: float | None = None
) -> float:
    """Positions that each further second of speech adds while it is spoken: without the prompt and the marks."""
    rate = IDS_A_SECOND[text_alignment] if ids_a_second is None else ids_a_second
    frames = speech.frame_rate * (speech.num_codebooks if layout == "flat" else 1)
    return frames + (rate if text_alignment != "none" else 0.0)


def vocabulary_size(base: int, speech: SpeechSizes, layout: Layout, num_pieces: int = 0) -> int:
    """
    Rows of the embedding of a language model that has learnt to read and write speech.

    Args:
        base (`int`): Rows of the text's model.
        speech ([`SpeechSizes`]): Sizes of the codec.
        layout (`str`): Layout of the speech. Only the flat one has a row for each code.
        num_pieces (`int`, *optional*, defaults to 0): Number of phones that have a row of their own.
    """
    rows = base + NUM_SPECIAL_TOKENS + num_pieces
    if layout == "flat":
        rows += speech.num_codebooks * speech.codebook_size
    return -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def cache_bytes(model: LanguageModelSizes, num_positions: int, bytes_a_number: int = 2) -> int:
    """
    Memory of the keys and values of one sequence, in bytes.

    A layer with a window keeps one position fewer than the window, as transformers' `DynamicCache` does.

    Args:
        model ([`LanguageModelSizes`]): Sizes of the language model.
        num_positions (`int`): Positions of the sequence.
        bytes_a_number (`int`, *optional*, defaults to 2): Bytes of a number: 2 in half precision, 4 in single.
    """
    kept = sum(num_positions if window is None else min(num_positions, window - 1) for window in model.windows)
    return 2 * kept * model.num_key_value_heads * model.head_dim * bytes_a_number


def training_operations(model: LanguageModelSizes, num_positions: int, sequence_length: int) -> float:
    """
    Floating-point operations of a training.

    A position costs 6 operations a parameter that it is multiplied by: 2 on the way forward, and 4 back. (Kaplan et
    al. 2020, "Scaling Laws for Neural Language Models", https://huggingface.co/papers/2001.08361, section 2.1)
    Attention adds 12 for each number of the heads, each layer and each position that is looked at. As kernels without
    a causal shortcut do, every position looks at the whole sequence. A window shortens that.

    Args:
        model ([`LanguageModelSizes`]): Sizes of the language model.
        num_positions (`int`): Positions of all sequences together, D.
        sequence_length (`int`): Positions of a sequence.
    """
    width = model.num_heads * model.head_dim
    seen = sum(sequence_length if window is None else min(sequence_length, window) for window in model.windows)
    return num_positions * (6.0 * model.num_multiplied + 12.0 * width * seen)


def training_hours(operations: float, tera_operations_a_second: float) -> float:
    """
    Hours that a device takes.

    Args:
        operations (`float`): Floating-point operations.
        tera_operations_a_second (`float`): Number of 10^12 operations a second that the device reaches in training,
            which is some 20 to 50 % of what its maker names.

    Raises:
        ValueError: If that is not positive.
    """
    if not (math.isfinite(tera_operations_a_second) and tera_operations_a_second > 0):
        raise ValueError(f"`device_tflops` must be positive and finite, but got {tera_operations_a_second}.")
    return operations / (tera_operations_a_second * 1e12) / 3600


def longest_seconds(
    max_positions: int,
    speech: SpeechSizes,
    layout: Layout = "flat",
    text_alignment: Alignment = "none",
    ids_a_second: float | None = None,
) -> float:
    """
    Length of the longest clip that fits with its text into a context, in seconds, to a whole frame; 0 where none fits.

    Args:
        max_positions (`int`): Positions of the context.
        speech, layout, text_alignment, ids_a_second: See [`clip_positions`].
    """

    def fits(num_frames: int) -> bool:
        clip = clip_positions(num_frames / speech.frame_rate, speech, layout, text_alignment, ids_a_second)
        return clip.total <= max_positions

    low, high = 0, max_positions + 1  # a frame takes at least a position
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low / speech.frame_rate


def _check(value: str, name: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, but got {value!r}.")
