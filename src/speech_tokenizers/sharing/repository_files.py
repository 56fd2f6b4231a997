# SPDX-License-Identifier: Apache-2.0
"""
The files of a repository, in a folder or on the Hub, as they are: their names and sizes, and the text of small ones.

Nothing is executed, nothing is unpickled, and of a file on the Hub nothing large is fetched.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from speech_tokenizers.modeling.checked_loading import StoredTensor, describe_damage


# Bytes of the header of a safetensors file; the format itself allows no more.
_LONGEST_HEADER = 100_000_000
# What transformers or the Hub's client themselves leave in a folder, which no upload takes along.
_NOT_UPLOADED = (".git", ".cache/huggingface")


class Entry(NamedTuple):
    """
    A file of a repository.

    Attributes:
        size (`int`): Bytes.
        link (`str`, *optional*): Of a symbolic link, where it leads: `"inside"`, `"outside"` or `"nowhere"`.
        is_large (`bool`, *optional*): Whether the Hub keeps the file outside of git (LFS); `None` if that is unknown.
        is_regular (`bool`): Whether it is a file at all, and no pipe or device.
    """

    size: int
    link: str | None = None
    is_large: bool | None = None
    is_regular: bool = True


class RepositoryFiles(Protocol):
    """
    What the checks ask of a repository.

    Attributes:
        name (`str`): Folder or Hub id, for messages.
        repo_id (`str`, *optional*): Hub id, where there is one.
        revision (`str`, *optional*): Commit on the Hub.
        entries (mapping): Files by their path in the repository, with `/` between folders.
    """

    name: str
    repo_id: str | None
    revision: str | None
    entries: Mapping[str, Entry]

    def read(self, path: str, limit: int) -> bytes:
        """Content of a file; raises `ValueError` if it is longer than `limit` bytes, `OSError` if it is unreadable."""

    def head(self, path: str) -> bytes:
        """The first bytes of a file, where they cost nothing; empty otherwise."""

    def weights(self, path: str) -> tuple[dict[str, StoredTensor], str | None]:
        """Types and shapes of the tensors in a safetensors file by their names, and why it is damaged, if it is."""


def is_safe_name(path: str) -> bool:
    """Whether a path stays in the folder that it is joined to, on every system, and can be a file's there."""
    if not path or path.startswith("/") or "\\" in path or re.match(r"[A-Za-z]:", path):
        return False
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        return False
    return not any(part in ("", ".", "..") or len(part.encode(errors="replace")) > 255 for part in path.split("/"))


class FolderFiles:
    """
    The files of a folder.

    Args:
        folder (`str` or `Path`): The folder.
        repo_id (`str`, *optional*): Hub id that it will have.

    Raises:
        ValueError: If it is no folder.
    """

    name: str
    repo_id: str | None
    revision: str | None
    entries: Mapping[str, Entry]

    def __init__(self, folder: str | os.PathLike[str], repo_id: str | None = None):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder; name the folder of a saved model, or a Hub id.")
        self.name, self.repo_id, self.revision = str(folder), repo_id, None
        entries: dict[str, Entry] = {}
        # Links are listed, and never followed: one could lead out of the folder, or around in a circle.
        for parent, folders, files in os.walk(self.folder):
            inside = Path(parent).relative_to(self.folder)
            folders[:] = sorted(name for name in folders if (inside / name).as_posix() not in _NOT_UPLOADED)
            linked = [name for name in folders if (Path(parent) / name).is_symlink()]
            folders[:] = [name for name in folders if name not in linked]
            for name in sorted([*files, *linked]):
                entries[(inside / name).as_posix()] = self._entry(Path(parent) / name)
        self.entries = entries

    def _entry(self, path: Path) -> Entry:
        link = None
        if path.is_symlink():
            link = "nowhere"
            if path.exists():
                target = path.resolve()
                roots = [self.folder.resolve()]
                # The Hub's cache keeps `snapshots/COMMIT/FILE` as a link to `blobs/HASH`.
                if self.folder.resolve().parent.name == "snapshots":
                    roots.append(self.folder.resolve().parents[1] / "blobs")
                link = "inside" if any(target.is_relative_to(root) for root in roots) else "outside"
        if link in ("nowhere", "outside"):
            return Entry(0, link)
        return Entry(path.stat().st_size, link, is_regular=path.is_file())

    def _path(self, path: str) -> Path:
        entry = self.entries[path]
        if entry.link in ("nowhere", "outside") or not entry.is_regular:
            raise OSError(f"{path} is a link that leads out of {self.folder}, or no regular file; it is not read.")
        return self.folder / path

    def read(self, path: str, limit: int) -> bytes:
        """See [`RepositoryFiles`]."""
        with self._path(path).open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"{path} has more than {limit:,} bytes.")
        return content

    def head(self, path: str) -> bytes:
        """See [`RepositoryFiles`]."""
        with self._path(path).open("rb") as file:
            return file.read(4096)

    def weights(self, path: str) -> tuple[dict[str, StoredTensor], str | None]:
        """See [`RepositoryFiles`]."""
        file_path = self._path(path)
        if (damage := describe_damage(file_path)) is not None:
            return {}, damage
        with file_path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _LONGEST_HEADER:
                return {}, f"has a header of {size:,} bytes."
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        return {name: StoredTensor(part["dtype"], tuple(part["shape"])) for name, part in header.items()}, None


class HubFiles:
    """
    The files of a repository on the Hub. Their list is fetched, and later only what is read: small files, into the
    Hub's cache, and the headers of weights.

    Args:
        repo_id (`str`): Hub id.
        revision (`str`, *optional*): Branch, tag or commit. Defaults to the main branch.
        token (`str` or `bool`, *optional*): Access token. Defaults to the one that `hf auth login` stored.

    Raises:
        OSError: If there is no such repository or revision, or the Hub cannot be reached.
    """

    name: str
    repo_id: str | None
    revision: str | None
    entries: Mapping[str, Entry]

    def __init__(self, repo_id: str, revision: str | None = None, token: str | bool | None = None):
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        self.api, self.token = HfApi(token=token), token
        # All is read from one commit, also where somebody pushes meanwhile.
        info = self.api.model_info(repo_id, revision=revision)
        self.name, self.repo_id, self.revision = repo_id, repo_id, info.sha
        tree = self.api.list_repo_tree(repo_id, recursive=True, revision=info.sha)
        self.entries = {
            file.path: Entry(file.size, is_large=file.lfs is not None) for file in tree if isinstance(file, RepoFile)
        }

    def _check(self, path: str) -> None:
        # The cache joins the name to a folder of this machine.
        if not is_safe_name(path):
            raise OSError(f"{path!r} is no name of a file in a folder; it is not fetched.")

    def read(self, path: str, limit: int) -> bytes:
        """See [`RepositoryFiles`]."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        self._check(path)
        where: dict[str, Any] = {"repo_id": self.repo_id, "filename": path, "revision": self.revision}
        url = hf_hub_url(**where, endpoint=self.api.endpoint)
        # What the file itself says: a list of files may name any size.
        size = get_hf_file_metadata(url, token=self.token).size
        if size is None or size > limit:
            raise ValueError(f"{path} has more than {limit:,} bytes.")
        content = Path(self.api.hf_hub_download(**where)).read_bytes()
        if len(content) > limit:
            raise ValueError(f"{path} has more than {limit:,} bytes.")
        return content

    def head(self, path: str) -> bytes:
        """See [`RepositoryFiles`]."""
        return b""

    def weights(self, path: str) -> tuple[dict[str, StoredTensor], str | None]:
        """See [`RepositoryFiles`]."""
        from huggingface_hub.errors import SafetensorsParsingError

        self._check(path)
        try:
            header = self.api.parse_safetensors_file_metadata(str(self.repo_id), path, revision=self.revision)
        except SafetensorsParsingError as error:
            return {}, f"is no safetensors file ({' '.join(str(error).split())[:200]})."
        tensors = {name: StoredTensor(part.dtype, tuple(part.shape)) for name, part in header.tensors.items()}
        return tensors, None


__all__ = ["Entry", "FolderFiles", "HubFiles", "RepositoryFiles", "is_safe_name"]
