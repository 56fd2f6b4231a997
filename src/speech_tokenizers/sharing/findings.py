# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a repository, and what to do about it."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from speech_tokenizers.sharing.repository_files import RepositoryFiles


# Bytes of a JSON file: the largest of the released checkpoints have a hundredth of it.
LARGEST_JSON = 1_000_000


class Finding(NamedTuple):
    """
    Something that a stranger would miss or stumble over.

    Attributes:
        level (`str`): `"error"`, without which nobody should use the repository, or `"warning"`.
        file (`str`): File of the repository; `"."` for the whole of it.
        what (`str`): What is wrong, a sentence without its subject.
        advice (`str`): What to do.
    """

    level: str
    file: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.level}: {printable(self.file)}: {printable(self.what)}; {printable(self.advice)}."


def error(file: str, what: str, advice: str) -> Finding:
    """A finding for which an upload is refused."""
    return Finding("error", file, what, advice)


def warning(file: str, what: str, advice: str) -> Finding:
    """A finding that is told, and hinders nothing."""
    return Finding("warning", file, what, advice)


def printable(text: str) -> str:
    """A text from a foreign repository that cannot move the cursor, colour the terminal or fill the screen."""
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text if len(text) <= 500 else f"{text[:500]}..."


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """Those that are errors."""
    return [finding for finding in findings if finding.level == "error"]


def read_json(files: RepositoryFiles, path: str, findings: list[Finding]) -> dict[str, Any] | None:
    """
    The fields of a JSON file; `None` where there is none, or where a finding tells that it is none.

    Args:
        files ([`RepositoryFiles`]): The repository.
        path (`str`): The file.
        findings (`list` of [`Finding`]): Gets what is wrong with the file.
    """
    if path not in files.entries:
        return None
    if files.entries[path].size > LARGEST_JSON:
        size = f"has {files.entries[path].size / 1e6:.1f} MB, where a configuration has at most 1 MB"
        findings.append(error(path, size, "do not load it; its author should leave out what is no setting"))
        return None
    try:
        fields = json.loads(files.read(path, LARGEST_JSON).decode("utf-8"))
    except RecursionError:
        findings.append(error(path, "is nested too deeply", "do not load it; write it anew by `save_pretrained`"))
        return None
    except (ValueError, OSError) as reason:
        text = " ".join(str(reason).split())
        findings.append(error(path, f"cannot be read as JSON ({text})", "write it anew by `save_pretrained`"))
        return None
    if not isinstance(fields, dict):
        what = "must hold named fields, in braces, but holds something else"
        findings.append(error(path, what, "write it anew by `save_pretrained`"))
        return None
    return fields


__all__ = ["LARGEST_JSON", "Finding", "error", "errors_of", "printable", "read_json", "warning"]
