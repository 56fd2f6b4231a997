# SPDX-License-Identifier: Apache-2.0
"""Names, titles and sections of the scores of units."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class ScoreKind(NamedTuple):
    """
    How a score is shown.

    Args:
        title (`str`): Title of its column.
        digits (`int`): Digits after the point.
        higher_is_better (`bool`, *optional*): Whether higher values are better; `None` where neither is.
    """

    title: str
    digits: int
    higher_is_better: bool | None


SCORE_KINDS = {
    "pnmi": ScoreKind("PNMI", 3, True),
    "phone_purity": ScoreKind("phone purity", 3, True),
    "cluster_purity": ScoreKind("cluster purity", 3, True),
    "cnmi": ScoreKind("CNMI", 3, True),
    "character_purity": ScoreKind("character purity", 3, True),
    "abx_within": ScoreKind("ABX error % within speakers", 1, False),
    "abx_across": ScoreKind("ABX error % across speakers", 1, False),
    "ued": ScoreKind("UED %", 1, False),
    "ued_streaming": ScoreKind("UED % at a latency of", 1, False),
    "bits_nominal": ScoreKind("bit/s nominal", 0, None),
    "bits_entropy": ScoreKind("bit/s by entropy", 0, None),
    "bits_deduplicated": ScoreKind("bit/s de-duplicated", 0, None),
    "bits_deduplicated_entropy": ScoreKind("bit/s de-duplicated, by entropy", 0, None),
    "bits_deduplicated_entropy_with_durations": ScoreKind("the same with durations", 0, None),
    "units_per_second": ScoreKind("units/s de-duplicated", 1, None),
    "share_used": ScoreKind("share of codes used", 3, True),
    "perplexity": ScoreKind("perplexity", 1, True),
    "entropy": ScoreKind("entropy (bits)", 2, True),
    "rarest_share": ScoreKind("share of the rarest 20 %", 3, True),
    "ngram_perplexity": ScoreKind("n-gram perplexity, order", 1, False),
    "probe_speaker": ScoreKind("speaker", 1, False),
    "probe_gender": ScoreKind("gender", 1, False),
    "probe_phone": ScoreKind("phone", 1, True),
    "resynthesis_wer": ScoreKind("word error rate %", 1, False),
}


class ScoreSection(NamedTuple):
    """
    Scores that stand under one heading of the report.

    Args:
        title (`str`): Words of the heading.
        kinds (`tuple` of `str`): Kinds of the scores in its table, as in `SCORE_KINDS`.
        caption (`str`): Explanation of the numbers, and of which are good.
    """

    title: str
    kinds: tuple[str, ...]
    caption: str


SECTIONS = (
    ScoreSection(
        "Phones in the units",
        ("pnmi", "phone_purity", "cluster_purity"),
        "PNMI is the share of what there is to know about a frame's phone that its unit tells (0 to 1, higher is "
        "better). Phone purity: frames whose phone is the commonest of their unit; it grows with the number of units. "
        "Cluster purity: frames whose unit is the commonest of their phone; it falls with it. Chance: the score after "
        "shifting all labels by a random offset, i.e. what unrelated units and labels of the same sizes would reach.",
    ),
    ScoreSection(
        "Characters in the units",
        ("cnmi", "character_purity"),
        "As with phones, for the characters of the transcript (higher is better).",
    ),
    ScoreSection(
        "ABX",
        ("abx_within", "abx_across"),
        "How often a phone is nearer to another phone than to its like, by dynamic time warping over angles between "
        "frames; 50 is chance, lower is better. Centroids: frames as the entries of their units. Features: as they "
        "were before they were quantized. Intervals over speakers.",
    ),
    ScoreSection(
        "Robustness",
        ("ued",),
        "Unit edit distance: edits that lead from the de-duplicated units of the recording to those of the changed "
        "recording, a hundred units; lower is better. Units that say little change little, so read it beside PNMI or "
        "ABX. Chance: the distance to the units of another recording of about the same length.",
    ),
    ScoreSection(
        "Streaming",
        ("ued_streaming",),
        "Unit edit distance from the units of the whole recording when it is encoded chunk by chunk while it arrives, "
        "with 4 s of it before each chunk and some after. Latency: from the beginning of a chunk to the last sample "
        "that its units need. Lower is better.",
    ),
    ScoreSection(
        "Bit rates",
        (
            "bits_nominal",
            "bits_entropy",
            "bits_deduplicated",
            "bits_deduplicated_entropy",
            "bits_deduplicated_entropy_with_durations",
            "units_per_second",
        ),
        "All codebooks together. Nominal: log2 of the codebook's size a code, and a code a frame or, for F0 with a "
        "stride, for that many; by entropy: of single units without regard to their neighbours; de-duplicated: one "
        "unit for each run of equal frames, without the durations that decoding needs.",
    ),
    ScoreSection(
        "Use of the codes",
        ("share_used", "perplexity", "entropy", "rarest_share", "ngram_perplexity"),
        "Of the first codebook. Perplexity: as many evenly used codes have the same entropy. The rarest 20 % of the "
        "codes carry 0.2 of the frames where use is even, and less where it is not. N-gram perplexity of "
        "de-duplicated units under models of other speakers: lower where units follow each other more predictably.",
    ),
    ScoreSection(
        "Probes",
        ("probe_speaker", "probe_gender", "probe_phone"),
        "Macro F1 (%) of classifiers that see nothing but the units (of a clip how often each comes), their entries "
        "(centroids), or the features before they were quantized (of a clip the mean and spread of either). Speakers "
        "and genders are told from a clip and should be hard to tell (lower is better), phones from a "
        "frame and should be easy (higher is better). Linear: logistic regression; MLP: one hidden layer. Every clip "
        "is tested once, in folds: of speakers for gender and phones, so that no speaker is both learnt from and "
        "tested; of clips for speakers, since a speaker who was never heard cannot be named, so that microphone and "
        "room may help. All classes weigh the same. Shuffled: macro F1 after learning from shuffled labels, what "
        "chance reaches. Balanced accuracy: mean over the classes of the share that is told. Intervals over speakers, "
        "for the speaker over clips.",
    ),
    ScoreSection(
        "Resynthesis",
        ("resynthesis_wer",),
        "Words that a recogniser gets wrong when a vocoder speaks the units in one voice, and in the recordings; "
        "lower is better. Intervals over speakers.",
    ),
)


def split_name(name: str) -> tuple[str, str]:
    """Kind and view of a score: `abx_within[features]` has the kind `abx_within` and the view `features`."""
    kind, view = re.fullmatch(r"([^\[]*)(.*)", name).groups()
    return kind, view[1:-1].replace("][", ", ")


def score_title(name: str) -> str:
    """Heading of a score's column."""
    kind, view = split_name(name)
    return SCORE_KINDS[kind].title + (f" ({view.replace('_', ' ')})" if view else "")


def section_scores(results: Mapping[str, Any], section: ScoreSection) -> list[str]:
    """Names of the scores of a section that any system has, those of a kind side by side."""
    names = dict.fromkeys(name for system in results["systems"] for name in system["scores"])
    return [name for kind in section.kinds for name in names if split_name(name)[0] == kind]
