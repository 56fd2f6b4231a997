# SPDX-License-Identifier: Apache-2.0
"""Upload a staged folder, and say in one sentence why it could not be."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi


class UploadError(ValueError):
    """An upload that the Hub refused or that could not reach it. The message says what to do."""


@contextlib.contextmanager
def told_plainly(repo_id: str) -> Iterator[None]:
    """
    Within this context the errors of the Hub's client become one sentence.

    Raises:
        UploadError: If the Hub refused or could not be reached.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    again = "the same command goes on where this one stopped"
    try:
        yield
    except HFValidationError as error:
        raise UploadError(f"{repo_id!r} is no Hub id; write NAMESPACE/NAME ({_one_line(error)}).") from error
    except LocalTokenNotFoundError as error:
        raise UploadError("the Hub does not know who you are; log in by `hf auth login`, or set HF_TOKEN.") from error
    except OfflineModeIsEnabled as error:
        raise UploadError("HF_HUB_OFFLINE is set, so that nothing can be uploaded; unset it.") from error
    except RevisionNotFoundError as error:
        raise UploadError(f"{repo_id} has no such revision; name another, or leave it out.") from error
    except RepositoryNotFoundError as error:
        raise UploadError(
            f"{repo_id} is not there, or you may not see it; log in by `hf auth login` as one who may write to it."
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UploadError(
                f"the Hub refuses ({status}): your token may not write to {repo_id}; log in by `hf auth login` with a"
                " token that may write, or name another repository."
            ) from error
        raise UploadError(f"the Hub refuses: {_one_line(error)}; {again}.") from error
    except Exception as error:
        # The client's own errors of the network differ among its versions; none of ours are of these modules.
        if type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")) or isinstance(
            error, ConnectionError | TimeoutError
        ):
            raise UploadError(f"the Hub cannot be reached ({_one_line(error)}); {again}.") from error
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def prepare_repository(
    api: HfApi, repo_id: str, *, private: bool | None = None, revision: str | None = None, create_pr: bool = False
) -> str:
    """
    Create a repository and its branch, where they are absent.

    Args:
        api (`HfApi`): Client of the Hub.
        repo_id (`str`): Hub id; without a namespace the user's own.
        private (`bool`, *optional*): Whether nobody else may see it.
        revision (`str`, *optional*): Branch.
        create_pr (`bool`, *optional*, defaults to `False`): Whether a pull request will be opened.

    Returns:
        `str`: Hub id with its namespace.

    Raises:
        UploadError: If the repository exists and others can see it, though `private` was asked for; or if the Hub
            refuses.
    """
    with told_plainly(repo_id):
        if create_pr:
            return api.model_info(repo_id).id
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise UploadError(
                f"{repo_id} exists and is public, but you asked for a private one; name another, or make it private by"
                f" `HfApi().update_repo_settings({repo_id!r}, private=True)` first. Nothing was uploaded."
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def upload(api: HfApi, folder: Path, repo_id: str, message: str, **options: Any) -> CommitInfo:
    """
    Upload a folder. Where an earlier upload of the same files was interrupted, what has arrived is not sent again: the
    Hub knows large files by their content, and the client leaves out those that are committed.

    Args:
        api (`HfApi`): Client of the Hub.
        folder (`Path`): The folder.
        repo_id (`str`): Hub id of a repository that exists.
        message (`str`): Title of the commit.
        options: Arguments of `upload_folder`, such as `revision` and `create_pr`.

    Returns:
        `CommitInfo`: The commit, with its address.

    Raises:
        UploadError: If the Hub refuses or cannot be reached.
    """
    with told_plainly(repo_id):
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, **options)


__all__ = ["UploadError", "prepare_repository", "told_plainly", "upload"]
