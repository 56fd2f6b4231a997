# SPDX-License-Identifier: Apache-2.0
"""Print the oldest versions that pyproject.toml allows: `python .ci/minimum_versions.py > oldest.txt`."""

import re
import tomllib
from pathlib import Path


def oldest(requirements: list[str]) -> list[str]:
    """`name==version` of each requirement that states `name>=version`."""
    found = (re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*>=\s*([\w.]+)", requirement) for requirement in requirements)
    return [f"{match[1]}=={match[2]}" for match in found if match is not None]


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(oldest(project["dependencies"])))
