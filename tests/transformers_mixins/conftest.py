# SPDX-License-Identifier: Apache-2.0
r"""
Make the common tests of the installed transformers importable as `transformers_common_tests`.

The wheel of transformers leaves its tests out; the source distribution carries them. It is fetched once with pip, for
the version that is installed, into `.cache/` at the root of the repository. Four modules that the common tests import
are missing from the source distribution too; what is used of them is written here.

Without a network (and without the cache) the tests of this folder are skipped and say why; with the environment
variable `CI` set they are an error instead, so that no pipeline passes by leaving them out.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import pytest
import transformers


# Marks of the common tests, none of which has a meaning here.
FOREIGN_MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
)

CACHE_FOLDER = Path(__file__).parents[2] / ".cache"
PACKAGE_NAME = "transformers_common_tests"

COMMON_TESTS = (
    "test_modeling_common.py",
    "test_configuration_common.py",
    "test_feature_extraction_common.py",
    "test_sequence_feature_extraction_common.py",
)

MISSING_MODULES = {
    "__init__.py": "unavailable = None\n",
    "exporters/__init__.py": "",
    # Export to ONNX and ExecuTorch; torch.export has tests of its own in tests/modeling/test_compile_export.py.
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    # Fields every `PreTrainedConfig` has, each with a value other than its default.
    "utils/test_configuration_utils.py": """\
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "first", 1: "second", 2: "third"},
    "label2id": {"first": 0, "second": 1, "third": 2},
    "problem_type": "regression",
}
""",
}


def pytest_configure(config: pytest.Config) -> None:
    for name in FOREIGN_MARKERS:
        config.addinivalue_line("markers", f"{name}: used by the common tests of transformers")


def fetch_common_tests(folder: Path) -> None:
    r"""
    Write the common tests of the installed transformers to `folder`, a package of the name `PACKAGE_NAME`.

    Raises:
        RuntimeError: If pip cannot fetch the source distribution, or it lacks one of the tests.
    """
    with tempfile.TemporaryDirectory(dir=CACHE_FOLDER) as download_folder:
        requirement = f"transformers=={transformers.__version__}"
        # fmt: off
        command = [
            sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--no-binary", "transformers",
            # setuptools, which the project's own build needs, is all that transformers' metadata needs
            "--no-build-isolation", "--quiet", "--disable-pip-version-check", "--dest", download_folder,
        ]
        # fmt: on
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode != 0:
            reason = [line for line in process.stderr.splitlines() if "ERROR" in line] or ["pip failed"]
            raise RuntimeError(reason[0].strip())

        package = Path(download_folder) / PACKAGE_NAME
        (source,) = Path(download_folder).glob("transformers-*.tar.gz")
        with tarfile.open(source) as archive:
            root = archive.getnames()[0].split("/")[0]
            for name, text in MISSING_MODULES.items():
                path = package / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            for name in COMMON_TESTS:
                try:
                    member = archive.extractfile(f"{root}/tests/{name}")
                except KeyError:
                    raise RuntimeError(f"the source distribution of {requirement} has no tests/{name}") from None
                (package / name).write_bytes(member.read())
        if not folder.exists():
            os.replace(package, folder)


def provide_common_tests() -> None:
    root = CACHE_FOLDER / f"transformers-{transformers.__version__}"
    if not (root / PACKAGE_NAME).exists():
        root.mkdir(parents=True, exist_ok=True)
        (CACHE_FOLDER / ".gitignore").write_text("*\n")
        try:
            fetch_common_tests(root / PACKAGE_NAME)
        except RuntimeError as error:
            reason = f"pip could not fetch the common tests of transformers {transformers.__version__}: {error}"
            if os.environ.get("CI"):
                raise pytest.UsageError(reason) from error
            placeholder = types.ModuleType(PACKAGE_NAME)
            placeholder.unavailable = reason
            sys.modules[PACKAGE_NAME] = placeholder
            return
    sys.path.append(str(root))


provide_common_tests()
