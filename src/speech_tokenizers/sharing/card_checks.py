# SPDX-License-Identifier: Apache-2.0
"""Checks of a repository's card: its metadata, what was left to fill in, and the pictures and sounds that it shows."""

import os
import posixpath
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from speech_tokenizers.sharing.findings import Finding, error, warning
from speech_tokenizers.sharing.repository_files import RepositoryFiles


CARD = "README.md"
_LONGEST_CARD = 5_000_000
_SHORTEST_TEXT = 80
_HEADER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n(.*)\Z", re.DOTALL)
_UNFILLED = {
    "a place of the Hub's template that nobody filled": re.compile(r"\[More Information Needed\]|\[optional\]"),
    "a variable of a template": re.compile(r"\{\{.*?\}\}|\{%.*?%\}"),
    "a note to do something": re.compile(r"\b(?:TODO|FIXME|TBD|XXX)\b"),
    "a number that was never put in": re.compile(
        r"(?:^|[|\s])(?:XX?\.X+|\?\?+|0\.xx+|<number>|nan|inf)(?=$|[|\s%])", re.I | re.M
    ),
    "a name that stands for another": re.compile(r"\b(?:USER|NAMESPACE|YOUR[-_ ]?NAME|your-username)/[\w.-]+"),
}
_LINKS = re.compile(
    r"""!?\[[^\]]*\]\(\s*<?([^)\s>]+)|<(?:img|audio|video|source|a)\b[^>]*?\b(?:src|href)=["']([^"']+)"""
)
_FENCES = re.compile(r"(?ms)^(```|~~~).*?^\1[^\n]*$|`[^`\n]*`")
_MEDIA = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".wav", ".flac", ".mp3", ".ogg", ".opus", ".mp4", ".webm")


def check_card(files: RepositoryFiles, speaks: bool | None = None) -> Iterator[Finding]:
    """
    Args:
        files ([`RepositoryFiles`]): The repository.
        speaks (`bool`, *optional*): Whether the model gives out speech, so that the Hub has a pipeline tag for it.
    """
    if CARD not in files.entries:
        yield error(CARD, "is missing: nobody can know what this is", "write a card by `push` or `card`")
        return
    try:
        text = files.read(CARD, _LONGEST_CARD).decode("utf-8")
    except (OSError, ValueError) as reason:
        yield error(CARD, f"cannot be read ({' '.join(str(reason).split())})", "write the card anew, in UTF-8")
        return
    header = _HEADER.match(text)
    fields: Any = None
    if header is None:
        body = text
        yield warning(CARD, "has no metadata between two lines `---` at its top", "state `license` and others there")
    else:
        body = header[2]
        fields = _read_header(header[1])
        if not isinstance(fields, dict):
            yield error(CARD, "has metadata that is no YAML of named fields", "correct what stands between `---`")
    if len(body.strip()) < _SHORTEST_TEXT:
        yield error(CARD, "says nothing: it is all but empty", "say what the model does, and how it is loaded")
        return
    if isinstance(fields, dict):
        yield from _check_fields(fields, speaks)
    yield from _check_text(body)
    yield from _check_links(files, body)


def _read_header(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except (yaml.YAMLError, RecursionError):
        return None


def _check_fields(fields: dict[str, Any], speaks: bool | None) -> Iterator[Finding]:
    licence = fields.get("license")
    if not licence:
        advice = "state it as `license`, or give `push` a --licence"
        yield warning(CARD, "states no licence, so that nobody may use the model", advice)
    elif licence == "other" and not fields.get("license_name"):
        yield warning(CARD, "has the licence `other` without a name", "add `license_name` and `license_link`")
    if not fields.get("library_name"):
        yield warning(CARD, "does not say by which library it is loaded", "add `library_name: transformers`")
    if not fields.get("pipeline_tag") and speaks is not False:
        advice = "add `pipeline_tag: audio-to-audio`, or text-to-speech for a voice"
        yield warning(CARD, "has no pipeline tag, by which the Hub finds models of a kind", advice)


def _check_text(body: str) -> Iterator[Finding]:
    prose = _FENCES.sub("", body)
    for what, pattern in _UNFILLED.items():
        # Code is full of braces, but a name that stands for another is wrong in it, too.
        if found := pattern.search(body if "name" in what else prose):
            yield warning(CARD, f"has {what}: {found[0].strip(' |')[:60]}", "fill it in, or leave it out")


def _check_links(files: RepositoryFiles, body: str) -> Iterator[Finding]:
    folders = {parent for path in files.entries for parent in _parents(path)}
    for target in dict.fromkeys(first or second for first, second in _LINKS.findall(_FENCES.sub("", body))):
        path = _path_of(target, files.repo_id)
        if path is None:
            continue
        if path.startswith("/") or posixpath.normpath(path).startswith(".."):
            yield warning(CARD, f"links to {target}, outside of the repository", "link to a file of the repository")
        elif posixpath.normpath(path) not in files.entries and posixpath.normpath(path) not in folders:
            is_shown = path.lower().endswith(_MEDIA)
            what, found = ("shows or plays", error) if is_shown else ("links to", warning)
            yield found(CARD, f"{what} {path}, which is not there", "add the file, or take the link out")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))] + ["."]


def _path_of(target: str, repo_id: str | None) -> str | None:
    # The file of the repository that a link means; `None` for other places.
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        own = re.match(rf"{re.escape(endpoint)}/{re.escape(repo_id or '')}/(?:resolve|blob|raw)/[^/]+/(.+)", target)
        return unquote(urlsplit(own[1]).path) if own and repo_id else None
    return unquote(parts.path) or None


__all__ = ["CARD", "check_card"]
