# SPDX-License-Identifier: Apache-2.0
"""
The YAML of recipes. What is not quoted keeps its spelling, so that a setting that wants text gets what was written.

Numbers are those of YAML 1.2: 1e-4 is one, and 010 is ten. YAML 1.1 takes the one for text and the other for eight.
"""

import math
import re
from collections.abc import Hashable
from typing import Any, NamedTuple

import yaml


# A recipe has a few hundred values. Aliases can make billions of a few lines.
_MOST_VALUES = 100_000
_DEEPEST = 50


class Plain(NamedTuple):
    """
    A number or a truth value that stood without quotes.

    Args:
        text (`str`): What was written.
        value (`bool`, `int` or `float`): What YAML takes it for.
    """

    text: str
    value: Any


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` stands twice", key.start_mark)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def _construct_plain(loader: _Loader, node: yaml.ScalarNode) -> Plain:
    text = node.value
    kind = node.tag.rpartition(":")[2]
    if kind == "bool":
        return Plain(text, text.lower() in ("yes", "true", "on"))
    try:
        return Plain(text, int(text) if kind == "int" else float(re.sub(r"\.(inf|nan)$", r"\1", text.lower())))
    except ValueError as error:
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


for _kind, _pattern, _first in (
    ("bool", r"(?i:yes|no|true|false|on|off)", "yYnNtTfFoO"),
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+(?:_[0-9]+)*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?i:inf)|\.(?i:nan)", "-+."),
    ("null", r"~|(?i:null)|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct_plain)


def is_plain(text: str) -> bool:
    """Whether a text without quotes is a number, a truth value or null."""
    resolvers = _Loader.yaml_implicit_resolvers.get(text[:1], [])
    return any(pattern.match(text) for tag, pattern in resolvers if not tag.endswith(":merge"))


def parse_yaml(text: str, what: str) -> Any:
    """
    The value of a YAML text: mappings by text, lists, text, `None` and [`Plain`].

    Args:
        text (`str`): The YAML.
        what (`str`): What it is, for the message.

    Raises:
        ValueError: If it is no YAML, has a key twice, or is nested without an end.
    """
    try:
        parsed = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{what} is no YAML{place}: {problem}.") from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # of values that do not fit their tags
        reason = " ".join(str(error).split())
        raise ValueError(f"{what} has a value that does not fit its tag ({reason}); leave tags (!!) out.") from error
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply; a recipe has a few levels.") from error
    _check_size(parsed, what, 0, 0)
    return parsed


def _check_size(value: Any, what: str, depth: int, count: int) -> int:
    if depth > _DEEPEST:
        raise ValueError(f"{what} is nested too deeply, or contains itself; a recipe has a few levels.")
    if count > _MOST_VALUES:
        raise ValueError(f"{what} has more than {_MOST_VALUES:,} values once its aliases are written out.")
    if not isinstance(value, dict | list | str | Plain | None):
        kind = type(value).__name__
        raise ValueError(f"{what} has a value of type {kind}, which no setting is; leave tags (!!) out.")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for element in inner:
        count = _check_size(element, what, depth + 1, count + 1)
    return count


def plain_value(value: Any, key: str) -> Any:
    """
    What YAML takes a value for, where a setting may be of any type.

    Args:
        value: As [`parse_yaml`] gives it, or plain Python values.
        key (`str`): Name of the setting, for the message.

    Raises:
        ValueError: If a number in it is not finite.
    """
    if isinstance(value, Plain):
        value = value.value
    if isinstance(value, dict):
        return {name: plain_value(element, f"{key}.{name}") for name, element in value.items()}
    if isinstance(value, list):
        return [plain_value(element, f"{key}[{i}]") for i, element in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{key}` must be a finite number, but got {value}.")
    return value


def as_written(value: Any) -> Any:
    """The same, with the text of what was not quoted; for messages."""
    if isinstance(value, Plain):
        return value.text
    if isinstance(value, dict):
        return {name: as_written(element) for name, element in value.items()}
    return [as_written(element) for element in value] if isinstance(value, list) else value
