# SPDX-License-Identifier: Apache-2.0
"""What an output was made by and from, as a line of text that the output itself keeps."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


_PREFIX = "speech-tokenizers"
# What made an output. It is unknown where it is missing; every other fact is an option.
_MAKERS = ("model", "encoder", "decoder", "recording")


@dataclass(frozen=True)
class Provenance:
    """
    What an output was made by and from.

    As a string it is `speech-tokenizers model=0123 recording=4567 num_quantizers=4`, which [`Provenance.parse`] reads.
    JSON lines, safetensors' metadata and the comments of audio files hold it.

    Args:
        facts (`Mapping[str, str]`): Facts by name. Names are identifiers, values have no white space. `model`,
            `encoder` and `decoder` are what [`SpeechCodec.fingerprint`] and its like give, `recording` is
            [`recording_fingerprint`]; they are unknown where they are missing or empty. The others are options that
            decide what is written, `"no"` where they are missing.
    """

    facts: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join([_PREFIX, *(f"{name}={value}" for name, value in self.facts.items())])

    @classmethod
    def parse(cls, text: object) -> "Provenance | None":
        """What a string says; `None` if it is no provenance."""
        if not isinstance(text, str) or not re.fullmatch(rf"{_PREFIX}(?: [a-z_]+=\S*)+", text):
            return None
        return cls(dict(fact.split("=", 1) for fact in text.split(" ")[1:]))

    def of(self, name: str) -> str:
        """A fact; empty if it is unknown, and `"no"` for an option that was not used."""
        return self.facts.get(name, "" if name in _MAKERS else "no")

    def difference(self, other: "Provenance") -> str | None:
        """
        Say how another output was made otherwise.

        Args:
            other ([`Provenance`]): Provenance of what is there.

        Returns:
            `str`, *optional*: The first fact that differs, as the end of a sentence: `from another recording`,
            `by another model`, `by a model with another encoder`, or `with deduplicate=no instead of deduplicate=yes`.
        """
        for name in {**self.facts, **other.facts}:
            here, there = self.of(name), other.of(name)
            if here and there and here != there:
                is_not = "not " if there == "no" else ""
                return {
                    "recording": "from another recording",
                    "model": "by another model",
                    "encoder": "by a model with another encoder",
                    "decoder": "by a model with another decoder",
                    "deduplicate": f"with units that are {is_not}de-duplicated",
                }.get(name, f"with {name}={there} instead of {name}={here}")
        return None


def check_kept(kept: Iterable[tuple[str, "Provenance | None", Provenance]]) -> int:
    """
    Check that outputs which are kept are those that would be made now.

    Args:
        kept (iterable of `tuple`): Name of each output, what it says of itself (`None` if nothing), and what it should
            say.

    Returns:
        `int`: Number of outputs that do not say all of it.

    Raises:
        ValueError: If some were made otherwise; the message tells how many, and how the first one was.
    """
    num_silent, faults = 0, []
    for name, found, expected in kept:
        num_silent += found is None or not all(found.of(name) for name in expected.facts)
        if found is not None and (difference := expected.difference(found)) is not None:
            faults.append(f"{name} was made {difference}")
    if faults:
        others = f", and {len(faults) - 1} more outputs differ" if len(faults) > 1 else ""
        raise ValueError(f"{faults[0]}{others}; choose another output, or pass --overwrite to make them anew.")
    return num_silent


__all__ = ["Provenance", "check_kept"]
