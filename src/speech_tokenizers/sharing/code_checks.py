# SPDX-License-Identifier: Apache-2.0
"""Checks of the code in a repository, by reading it: it is parsed, and never run."""

import ast
import sys
from collections.abc import Iterator
from typing import Any

from speech_tokenizers.modeling.hub_export import PACKAGE_NAME
from speech_tokenizers.sharing.findings import Finding, error, warning
from speech_tokenizers.sharing.repository_files import RepositoryFiles


# What stands beside transformers wherever that can load a model of sound.
_EVERYWHERE = {"torch", "transformers", "tokenizers", "numpy", "huggingface_hub", "safetensors", "tqdm", "packaging"}
_EVERYWHERE |= {"yaml", "regex"}
_LONGEST_CODE = 2_000_000
_MAPPED = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")


def check_code(files: RepositoryFiles, settings: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """
    Args:
        files ([`RepositoryFiles`]): The repository.
        settings (`dict`): Fields of its JSON files by the files' names.
    """
    waiting: list[str] = []
    for name, fields in settings.items():
        for auto_class, reference in auto_map_of(fields):
            if not isinstance(reference, str) or "." not in reference:
                what = f"has the `auto_map` {auto_class}: {reference!r}, which is no `module.Class`"
                yield error(name, what, "write it anew by `push`")
                continue
            repository, _, own = reference.rpartition("--")
            if repository:
                what = (
                    f"names code of another repository, {repository}, which can change without notice ({auto_class})"
                )
                yield error(name, what, "put the code itself beside the model, as `push` does")
                continue
            module, _, class_name = own.rpartition(".")
            path = f"{module.replace('.', '/')}.py"
            if path not in files.entries:
                yield error(name, f"names {path} as code of {auto_class}, which is not there", "add it, by `push`")
                continue
            waiting.append(path)
            tree, found = _parse(files, path)
            yield from found
            if tree is not None and class_name not in _defined(tree):
                yield error(name, f"names {own} as {auto_class}, but {path} has no {class_name}", "write it anew")
    done: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        tree, _ = _parse(files, path)
        if tree is not None:
            yield from _check_imports(files, path, tree, waiting)
    for path in sorted(
        path for path in files.entries if path.endswith(".py") and "/" not in path and path not in done
    ):
        yield warning(path, "is code that no `auto_map` leads to", "remove it, if nobody needs it")


def auto_map_of(fields: Any) -> Iterator[tuple[str, Any]]:
    """Auto class and class of each entry of the `auto_map`s in a file and its parts."""
    waiting = [fields]
    while waiting:
        part = waiting.pop()
        for name, value in part.items():
            if name == "auto_map" and isinstance(value, dict):
                for auto_class, reference in value.items():
                    # Of a text tokenizer there are two, a slow one and a fast one.
                    several = reference if isinstance(reference, list | tuple) else [reference]
                    yield from ((auto_class, one) for one in several if one is not None)
            elif isinstance(value, dict):
                waiting.append(value)


def _parse(files: RepositoryFiles, path: str) -> tuple[ast.Module | None, list[Finding]]:
    try:
        return ast.parse(files.read(path, _LONGEST_CODE)), []
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError) as reason:
        text = " ".join(str(reason).split())
        return None, [error(path, f"is no code that Python can read ({text})", "write it anew by `push`")]


def _defined(tree: ast.Module) -> set[str]:
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _check_imports(files: RepositoryFiles, path: str, tree: ast.Module, waiting: list[str]) -> Iterator[Finding]:
    guarded = _guarded(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            if node.level > 1:
                what = f"imports from a parent folder (line {node.lineno}), which a repository does not have"
                yield error(path, what, "write `from .sibling import Name`")
                continue
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            for module in modules:
                sibling = f"{module.replace('.', '/')}.py"
                if sibling in files.entries:
                    waiting.append(sibling)
                else:
                    yield error(path, f"imports {sibling} (line {node.lineno}), which is not there", "add that file")
            continue
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            package = module.split(".")[0]
            if package == PACKAGE_NAME:
                what = f"imports {module} (line {node.lineno}), which is absent where this package is not installed"
                yield error(path, what, "write `from .sibling import Name`, or save it by `push`")
            elif package not in sys.stdlib_module_names | _EVERYWHERE and node.lineno not in guarded:
                what = f"imports {package}, which transformers does not bring"
                yield warning(path, what, "say so in the card, or import it where it is used")


def _guarded(tree: ast.Module) -> set[int]:
    # Lines of imports that are made only where a function needs them, or may fail.
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try | ast.If):
            lines |= {inner.lineno for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)}
    return lines


__all__ = ["auto_map_of", "check_code"]
