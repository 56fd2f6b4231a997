# SPDX-License-Identifier: Apache-2.0
"""Recipes: YAML files that a dataclass describes, and overrides of their keys."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from speech_tokenizers.training.common.recipe_yaml import Plain, as_written, is_plain, parse_yaml, plain_value


def load_recipe(path_or_name: str, overrides: Sequence[str], section: type) -> Any:
    """
    Read a recipe and change some of it.

    Args:
        path_or_name (`str`): A YAML file, or the name of a recipe of this package, such as `rvq_codec_16khz_4kbps`.
        overrides (sequence of `str`): `key=value` pairs; dots lead into sections (`data.train=recordings`); see
            [`override_key`].
        section (`type`): Dataclass of what the recipe describes. Its class attribute `trainer` is the trainer that a
            recipe of it names.

    Raises:
        ValueError: If the recipe does not exist or names another trainer, or a key is unknown or has a value of the
            wrong type.
    """
    recipe = read_recipe(path_or_name, overrides)
    named = as_written(recipe.pop("trainer", section.trainer))
    if named != section.trainer:
        raise ValueError(
            f"`{path_or_name}` is a recipe for the trainer `{named}`, but one for `{section.trainer}` is needed here."
        )
    known = {field.name for field in dataclasses.fields(section)}
    pushing = [key for key in recipe if key == "push_to_hub" or str(key).startswith("hub_")]
    if pushing and "push_to_hub" not in known:
        raise ValueError(
            f"`{pushing[0]}`: trainings of `{section.trainer}` push nothing; leave it out. A result that is a model of"
            " transformers is pushed by its own `push_to_hub`, any other by `speech-tokenizers push`."
        )
    return build_section(section, recipe, "")


def trainer_name(path_or_name: str, overrides: Sequence[str] = ()) -> str:
    """
    Name of the trainer that a recipe is for, its key `trainer`. A recipe without that key is for a codec.

    Args:
        path_or_name (`str`), overrides (sequence of `str`): See [`load_recipe`].

    Raises:
        ValueError: If the recipe does not exist.
    """
    return as_written(read_recipe(path_or_name, overrides).get("trainer", "codec"))


def read_recipe(path_or_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """
    What a recipe says, with some of it changed, as plain values; nothing is checked but that it is a mapping.

    Args:
        path_or_name (`str`), overrides (sequence of `str`): See [`load_recipe`].

    Raises:
        ValueError: If the recipe does not exist or is no mapping.
    """
    named = Path(path_or_name)
    if named.suffix not in (".yaml", ".yml"):
        named = named.with_name(named.name + ".yaml")
    path: Path | Traversable = named
    if not path.is_file() and named.parent == Path("."):
        path = resources.files("speech_tokenizers.training").joinpath("recipes", named.name)
    if not path.is_file():
        raise ValueError(f"`{path_or_name}` is neither a YAML file nor a recipe; the recipes are {recipe_names()}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path_or_name}` is not written in UTF-8 ({error}); convert it.") from error
    recipe = parse_yaml(text, f"`{path_or_name}`")
    if not isinstance(recipe, dict):
        raise ValueError(f"`{path_or_name}` must hold a mapping of keys to values.")
    for override in overrides:
        override_key(recipe, override)
    return recipe


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("speech_tokenizers.training").joinpath("recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def override_key(recipe: dict[str, Any], override: str) -> None:
    """
    Set one `dotted.key=value` in the nested dict `recipe`.

    Numbers, truth values, `null`, lists in `[]`, mappings in `{}` and what stands between quotes are YAML. Anything
    else is text, as it was typed.
    """
    dotted_key, separator, value = override.partition("=")
    if not separator or not dotted_key:
        raise ValueError(f"An override must read `key=value`, but got {override!r}.")
    *sections, key = dotted_key.split(".")
    for section in sections:
        if not isinstance(recipe.get(section), dict):
            recipe[section] = {}
        recipe = recipe[section]
    recipe[key] = _typed_value(value, f"The value in {override!r}")


def _typed_value(value: str, what: str) -> Any:
    text = value.strip()
    if (text[:1], text[-1:]) in (("[", "]"), ("{", "}"), ("'", "'"), ('"', '"')) and len(text) > 1:
        return parse_yaml(text, what)
    if text == "" or is_plain(text):
        return parse_yaml(text, what)
    return value


def build_section(section: type, values: Any, prefix: str) -> Any:
    """Make the dataclass `section` from a dict, refusing keys that it lacks and values of the wrong type."""
    if not isinstance(values, dict):
        name = prefix.rstrip(".")
        raise ValueError(f"`{name}` must be a mapping of keys to values, but got {as_written(values)!r}.")
    hints = typing.get_type_hints(section)
    hints = {field.name: hints[field.name] for field in dataclasses.fields(section)}
    check_names(values, hints, "The recipe's key", prefix)
    required = {
        f.name
        for f in dataclasses.fields(section)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise ValueError(
            f"The recipe lacks {', '.join(f'`{prefix}{name}`' for name in missing)}; give it as key=value."
        )
    fields = {key: convert(value, hints[key], f"{prefix}{key}") for key, value in values.items()}
    try:
        return section(**fields)
    except ValueError as error:
        if not prefix or f"`{prefix}" in str(error):
            raise
        # Several sections may have settings of one name.
        raise ValueError(f"In `{prefix.rstrip('.')}`: {error}") from error


def check_names(given: Iterable[str], known: Iterable[str], what: str, prefix: str = "") -> None:
    """Raises `ValueError`, with the nearest known name, if one of the names `given` is not `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            listed = ", ".join(map(str, known[:40])) + (f", ... ({len(known)} in all)" if len(known) > 40 else "")
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known are {listed}."
            raise ValueError(f"{what} `{prefix}{name}` is unknown; {hint}")


def convert(value: Any, hint: Any, key: str) -> Any:
    """
    Check a recipe's value against a field's annotation.

    Args:
        value: As [`parse_yaml`] gives it, or plain Python values.
        hint: Annotation: a dataclass, `str`, `int`, `float`, `bool`, a list or a dict of these, one of them or `None`,
            `str | list[str]`, `str | dict[str, Any]`, or `Any`.
        key (`str`): Name of the setting, for the message.

    Raises:
        ValueError: If the value is of another type, or a number is not finite.
    """
    if hint is Any:
        return plain_value(value, key)
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in hint.__args__:
            return None
        options = [option for option in hint.__args__ if option is not type(None)]
        # Lists and mappings are told from each other and from single values.
        kind = next((shape for shape in (list, dict) if isinstance(value, shape)), None)
        matching = [option for option in options if _shape_of(option) is kind]
        hint = (matching or options)[0]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build_section(hint, value, f"{key}.")
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is list and isinstance(value, list):
        return [convert(element, arguments[0], f"{key}[{i}]") for i, element in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: convert(element, arguments[1], f"{key}.{name}") for name, element in value.items()}
    converted = _scalar(value, origin)
    if converted is None:
        given = f"{as_written(value)!r}" if not isinstance(value, Plain) else value.text
        kind = "a number" if origin is float else f"of type {origin.__name__}"
        raise ValueError(f"`{key}` must be {kind}, but got {given}.")
    return converted


def _shape_of(hint: Any) -> type | None:
    origin = typing.get_origin(hint) or hint
    return origin if origin in (list, dict) else None


def _scalar(value: Any, kind: type) -> Any:
    # The value as that kind, or `None` if it is not of it. Numbers may be quoted.
    text, value = value if isinstance(value, Plain) else (value, value)
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else text if kind is str else None
    if kind is str:
        return str(text) if isinstance(text, (str, int, float)) else None
    if kind not in (int, float) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, float) and kind is int:
        return None
    try:
        number = kind(value)
        return number if math.isfinite(number) else None
    except (ValueError, OverflowError):
        return None


def check_not_negative(section: Any, *names: str, prefix: str = "") -> None:
    """Raises `ValueError` if one of the fields `names` of a dataclass is negative. `None` is none of them."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not value >= 0:
            raise ValueError(f"`{prefix}{name}` must not be negative, but got {value}.")


def check_positive(section: Any, *names: str, prefix: str = "") -> None:
    """Raises `ValueError` if one of the fields `names` of a dataclass is 0 or negative. `None` is none of them."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not value > 0:
            raise ValueError(f"`{prefix}{name}` must be positive, but got {value}.")


def check_seed(seed: int) -> None:
    """Raises `ValueError` if a seed is not one for NumPy's and PyTorch's generators alike."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must lie between 0 and 2**32 - 1, but got {seed}.")


def check_betas(betas: Sequence[float]) -> None:
    """Raises `ValueError` if Adam's decays are not two numbers from 0 to below 1."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"`betas` must be two numbers from 0 to below 1, but got {list(betas)}.")


@contextmanager
def recipe_errors() -> Iterator[None]:
    """Within this context settings that contradict each other raise `ValueError`, whoever finds them."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (TypeError, StrictDataclassError) as error:
        raise ValueError(" ".join(str(error).split())) from error
