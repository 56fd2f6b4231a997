# SPDX-License-Identifier: Apache-2.0
"""Checks of the files of a repository that need not know what model they make: names, links, pickles, leftovers."""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath

from speech_tokenizers.sharing.findings import Finding, error, warning
from speech_tokenizers.sharing.repository_files import RepositoryFiles, is_safe_name


PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
# What trainings and systems leave in a folder, and nobody needs to load the model.
_LEFTOVERS = {
    "the state of a training": ("optimizer.*", "scheduler.*", "rng_state*", "scaler.*", "trainer_state.json"),
    "the settings of a training as a pickle": ("training_args.bin",),
    "a checkpoint of a training": ("checkpoint-*/*", "global_step*/*"),
    "a log for TensorBoard": ("events.out.tfevents.*",),
    "a temporary file": ("*.tmp", "*.swp", "*~", "*.incomplete", "*.lock", ".DS_Store", "Thumbs.db", "._*"),
    "compiled code": ("__pycache__/*", "*.pyc", "*.so", "*.dll", "*.pyd", "*.exe"),
    "a notebook's checkpoint": (".ipynb_checkpoints/*",),
}
_SECRET_NAMES = (
    *(".env", ".env.*", ".netrc", "_netrc", ".git-credentials", ".pypirc", ".npmrc", "id_rsa*", "id_ed25519*"),
    *("*.pem", "*.key", "*.p12", "*.kdbx", "token", "stored_tokens", "credentials", "credentials.json"),
    *("*.keystore", "secrets.*", "*_token.txt", "hf_token*"),
)
_SECRETS = {
    "an access token of the Hub": re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a key of Amazon's": re.compile(rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a token of GitHub's": re.compile(rb"\b(?:ghp|gho|ghs|github_pat)_[A-Za-z0-9_]{30,}\b"),
    "a key of W&B's": re.compile(rb"WANDB_API_KEY\W{1,4}[0-9a-f]{40}"),
}
_TEXT_SUFFIXES = (".py", ".md", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".toml", ".cfg", ".ini", ".sh", ".jinja")
# A file that is searched for secrets, and one that git itself may hold; both in bytes.
_SEARCHED, _LARGEST_IN_GIT, _LARGEST_FILE = 4_000_000, 10_000_000, 50_000_000_000


def check_files(files: RepositoryFiles) -> Iterator[Finding]:
    """Findings on names, links, pickles, leftovers, secrets and sizes."""
    yield from _check_names(files)
    for path, entry in files.entries.items():
        if not is_safe_name(path):
            continue
        if entry.link in ("outside", "nowhere"):
            where = "leads out of the folder" if entry.link == "outside" else "leads nowhere"
            yield error(path, f"is a symbolic link that {where}", "put the file itself there, or remove the link")
            continue
        if not entry.is_regular:
            yield error(path, "is no regular file", "remove it")
            continue
        yield from _check_pickle(files, path)
        yield from _check_leftover(path)
        yield from _check_secrets(files, path)
        if entry.size > _LARGEST_FILE:
            yield error(path, f"has {entry.size / 1e9:.0f} GB, and the Hub takes 50", "save the weights in shards")
        elif entry.is_large is False and entry.size > _LARGEST_IN_GIT:
            what = f"has {entry.size / 1e6:.0f} MB and lies in git itself, not in LFS"
            yield warning(path, what, "upload it again with the Hub's client, which chooses")
        elif entry.size == 0 and not path.endswith("__init__.py"):
            yield warning(path, "is empty", "fill it, or remove it")


def _check_names(files: RepositoryFiles) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for path in files.entries:
        if not is_safe_name(path):
            yield error(path, "is a name that leads out of its folder, or none of a file", "remove it")
            continue
        other = seen.setdefault(path.casefold(), path)
        if other != path:
            what = f"differs from {other} in capitals alone, so that one overwrites the other on some systems"
            yield warning(path, what, "rename one of them")


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    name = PurePosixPath(path).name
    for pattern in patterns:
        tail = path if pattern.startswith("checkpoint") or pattern.startswith("global") else f"/{path}"
        if fnmatch(tail, f"*/{pattern}" if tail != path else pattern) if "/" in pattern else fnmatch(name, pattern):
            return True
    return False


def _check_pickle(files: RepositoryFiles, path: str) -> Iterator[Finding]:
    name = PurePosixPath(path).name
    if name == "training_args.bin":
        return  # told as a leftover
    if path.lower().endswith(PICKLE_SUFFIXES):
        if path.lower().endswith((".npy", ".npz")):
            yield warning(path, "is a file of NumPy's, which may hold a pickle", "use safetensors")
            return
        what = "is a pickle by its name, which can run code when it is loaded; this package never reads it"
        yield error(path, what, "save the weights as safetensors, and remove this file")
        return
    head = files.head(path)
    if re.match(rb"\x80[\x02-\x05]", head) or (head.startswith(b"PK\x03\x04") and b"data.pkl" in head):
        yield error(path, "is a pickle by its content, which can run code when it is loaded", "remove it")


def _check_leftover(path: str) -> Iterator[Finding]:
    for what, patterns in _LEFTOVERS.items():
        if _matches(path, patterns):
            yield warning(path, f"is {what}, which nobody needs to load the model", "remove it")
            return


def _check_secrets(files: RepositoryFiles, path: str) -> Iterator[Finding]:
    if _matches(path, _SECRET_NAMES):
        yield error(path, "is a file of secrets by its name", "remove it, and make the secret void if it was uploaded")
        return
    if not path.endswith(_TEXT_SUFFIXES) or files.entries[path].size > _SEARCHED:
        return
    if files.repo_id is not None and files.revision is not None and not path.endswith((".py", ".md", ".json", ".sh")):
        return  # logs and lexica on the Hub are not fetched for this alone
    try:
        content = files.read(path, _SEARCHED)
    except (OSError, ValueError):
        return  # what it is needed for tells that it cannot be read
    for kind, pattern in _SECRETS.items():
        if pattern.search(content):
            yield error(path, f"holds {kind}", "remove it, and make it void if it was uploaded")
    if found := re.search(rb"""(?<![\w./:-])(?:/home|/Users|C:\\Users)[/\\][\w.-]+[/\\][\w./\\-]*""", content):
        what = f"names a folder of one machine, {found[0].decode(errors='replace')[:80]}"
        yield warning(path, what, "write a name that others have, too")


__all__ = ["PICKLE_SUFFIXES", "check_files"]
