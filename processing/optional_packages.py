# SPDX-License-Identifier: Apache-2.0
"""Packages that only some functions need."""

import importlib.util


class MissingPackageError(ImportError):
    """
    An optional package is not installed.

    Args:
        package (`str`): Name of the package.
        purpose (`str`): Name of what needs the package; the message begins with it.
        command (`str`, *optional*): Command that installs it. Defaults to that of the extra `evaluation`.
    """

    def __init__(self, package: str, purpose: str, command: str = "pip install 'speech-tokenizers[evaluation]'"):
        super().__init__(f"{purpose} needs the package `{package}`; install it with `{command}`.")


def require_package(package: str, purpose: str, **kwargs: str) -> str:
    """Folder of an installed package, which is not imported; raises `MissingPackageError` where it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise MissingPackageError(package, purpose, **kwargs)
    return list(spec.submodule_search_locations or [""])[0]
