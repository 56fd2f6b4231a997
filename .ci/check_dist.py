# SPDX-License-Identifier: Apache-2.0
"""
Check what `make dist` left in a folder before it is published: `python .ci/check_dist.py dist v0.1.0`.

All three files are there, of the version that the tag names, and none is larger than its limit.
"""

import re
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).parents[1]
# Bytes. PyPI takes files up to 100 MB.
LARGEST_WHEEL, LARGEST_SDIST, LARGEST_CHECKPOINTS = 60_000_000, 100_000_000, 100_000_000


def versions() -> tuple[str, str]:
    """Versions of the package and of its second distribution, as the tree states them."""
    text = (ROOT / "src/speech_tokenizers/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert found is not None, "src/speech_tokenizers/__init__.py states no __version__"
    others = tomllib.loads((ROOT / "model_cards/pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return found[1], others


def faults(folder: Path, tag: str | None = None) -> list[str]:
    """
    Args:
        folder (`Path`): What `make dist` wrote.
        tag (`str`, *optional*): Name of the tag that is released, such as `v0.1.0`.

    Returns:
        `list[str]`: What is wrong, in words.
    """
    version, others = versions()
    wanted = {
        f"speech_tokenizers-{version}-py3-none-any.whl": LARGEST_WHEEL,
        f"speech_tokenizers-{version}.tar.gz": LARGEST_SDIST,
        f"speech_tokenizers_checkpoints-{others}-py3-none-any.whl": LARGEST_CHECKPOINTS,
    }
    there = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}
    found = [f"{name} is missing; run `make dist`" for name in wanted if name not in there]
    found += [f"{name} is of another version; remove it" for name in sorted(there.keys() - wanted.keys())]
    found += [
        f"{name} has {there[name] / 1e6:.1f} MB, where {limit / 1e6:.0f} are the limit"
        for name, limit in wanted.items()
        if there.get(name, 0) > limit
    ]
    if tag is not None and tag != f"v{version}":
        found.append(f"the tag is {tag}, but the package states {version}; tag v{version}, or change the version")
    return found


def main(arguments: list[str]) -> int:
    """Print what is wrong; returns the exit code."""
    folder, tag = Path(arguments[0]), arguments[1] if len(arguments) > 1 else None
    wrong = faults(folder, tag)
    for line in wrong:
        print(f"error: {line}.")
    if not wrong:
        sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(folder.iterdir()))
        print(f"ready: {sizes}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
