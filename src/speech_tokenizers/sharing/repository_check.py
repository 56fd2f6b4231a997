# SPDX-License-Identifier: Apache-2.0
"""What a stranger would miss in a repository: all checks of it, none of which runs anything in it."""

from typing import Any

from speech_tokenizers.sharing.card_checks import check_card
from speech_tokenizers.sharing.code_checks import check_code
from speech_tokenizers.sharing.file_checks import check_files
from speech_tokenizers.sharing.findings import Finding, read_json
from speech_tokenizers.sharing.model_checks import CONFIG, check_model, kind_of
from speech_tokenizers.sharing.repository_files import FolderFiles, HubFiles, RepositoryFiles


_READ = (
    CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "generation_config.json",
)


def open_repository(name: str, revision: str | None = None, token: str | bool | None = None) -> RepositoryFiles:
    """
    Args:
        name (`str`): A folder, the name of a checkpoint of this installation, or the id of a Hub repository.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        token (`str` or `bool`, *optional*): Access token of the Hub.

    Raises:
        ValueError: If there is no such folder or repository.
        OSError: If the Hub cannot be asked.
    """
    import os

    from speech_tokenizers.coding.loading import find_checkpoint, list_checkpoints, list_listeners, list_voices

    if os.path.isdir(os.path.expanduser(name)):
        if revision is not None:
            raise ValueError(f"`revision` is {revision}, but {name} is a folder, which has no revisions.")
        return FolderFiles(os.path.expanduser(name))
    if name in {*list_checkpoints(), *list_voices(), *list_listeners()}:
        return FolderFiles(find_checkpoint(name))
    found = find_checkpoint(name, revision=revision, token=token)
    return FolderFiles(found) if os.path.isdir(found) else HubFiles(found, revision, token)


def check_repository(files: RepositoryFiles) -> list[Finding]:
    """
    Check a repository by its names, the text of its small files and the headers of its weights.

    Args:
        files ([`RepositoryFiles`]): The repository.

    Returns:
        `list` of [`Finding`]: What is wrong, errors first.
    """
    findings = list(check_files(files))
    settings: dict[str, dict[str, Any]] = {}
    for name in _READ:
        fields = read_json(files, name, findings)
        if fields is not None:
            settings[name] = fields
    findings += check_code(files, settings)
    findings += check_model(files, settings)
    speaks = None
    config = settings.get(CONFIG, {})
    if config and (kind_of(config) == "other" or config.get("vocoder_config", 0) is None):
        speaks = False
    findings += check_card(files, speaks)
    unique = dict.fromkeys(findings)
    return sorted(unique, key=lambda finding: finding.level != "error")


__all__ = ["check_repository", "open_repository"]
