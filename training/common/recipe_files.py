# SPDX-License-Identifier: Apache-2.0
"""Recipes: YAML files that a dataclass describes, overrides of their keys, and the recipe of an output folder."""

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

import yaml


def load_recipe(path_or_name: str, overrides: Sequence[str], section: type) -> Any:
    """
    Read a recipe and change some of it.

    Args:
        path_or_name (`str`): A YAML file, or the name of a recipe of this package, such as `rvq_codec_16khz_4kbps`.
        overrides (sequence of `str`): `key=value` pairs; dots lead into sections (`data.train=recordings`), values are
            YAML.
        section (`type`): Dataclass of what the recipe describes. Its class attribute `trainer` is the trainer that a
            recipe of it names.

    Raises:
        ValueError: If the recipe does not exist or names another trainer, or a key is unknown or has a value of the
            wrong type.
    """
    recipe = _read(path_or_name, overrides)
    named = recipe.pop("trainer", section.trainer)
    if named != section.trainer:
        raise ValueError(
            f"`{path_or_name}` is a recipe for the trainer `{named}`, but one for `{section.trainer}` is needed here."
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
    return _read(path_or_name, overrides).get("trainer", "codec")


def _read(path_or_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    named = Path(path_or_name)
    if named.suffix not in (".yaml", ".yml"):
        named = named.with_name(named.name + ".yaml")
    path: Path | Traversable = named
    if not path.is_file() and named.parent == Path("."):
        path = resources.files("speech_tokenizers.training").joinpath("recipes", named.name)
    if not path.is_file():
        raise ValueError(f"`{path_or_name}` is neither a YAML file nor a recipe; the recipes are {recipe_names()}.")
    recipe = parse_yaml(path.read_text(encoding="utf-8"), f"`{path_or_name}`")
    if not isinstance(recipe, dict):
        raise ValueError(f"`{path_or_name}` must hold a mapping of keys to values.")
    for override in overrides:
        override_key(recipe, override)
    return recipe


# Of a recipe's settings those that say how often and where, not what is trained.
_INCIDENTAL = ("output_dir", "logging_steps", "save_steps", "save_total_limit", "num_workers")


def keep_recipe(path: Path, args: Any, incidental: Sequence[str] = _INCIDENTAL) -> None:
    """
    Write the settings of an output folder down, or check that they are still those.

    Args:
        path (`Path`): The YAML file.
        args (dataclass): The settings; their class has the attribute `trainer`.
        incidental (sequence of `str`): Settings that may change. Defaults to those that say how often and where.

    Raises:
        ValueError: If the file tells of other settings.
    """
    if changed := changed_settings(path, args, incidental):
        key, (before, now) = next(iter(changed.items()))
        raise ValueError(
            f"{path.parent} was begun with other settings (`{key}` was {before!r} and is {now!r}); choose another"
            " `output_dir`, or delete that folder."
        )
    text = yaml.safe_dump({"trainer": args.trainer, **dataclasses.asdict(args)}, sort_keys=False)
    # What is right is left alone: another process may be reading it.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def changed_settings(path: Path, args: Any, incidental: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """
    What an output folder's recipe and the settings differ in: both values by their dotted keys.

    A setting that the folder's recipe lacks is newer than the folder, which had what is its default today.

    Args:
        path (`Path`): The YAML file; nothing differs where there is none.
        args (dataclass): The settings.
        incidental (sequence of `str`): Settings that may change.
    """
    if not path.is_file():
        return {}
    settings = dataclasses.asdict(args)
    before = _flattened(_completed(yaml.safe_load(path.read_text(encoding="utf-8")), args))
    now = _flattened(settings)
    compared = settings.keys() - set(incidental)
    return {
        key: (before.get(key), now.get(key))
        for key in {**now, **before}
        if key.split(".")[0] in compared and before.get(key) != now.get(key)
    }


def _completed(values: dict[str, Any], section: Any) -> dict[str, Any]:
    # What a file says of a dataclass, with the defaults of the fields that it lacks.
    completed = dict(values)
    for field in dataclasses.fields(section):
        now, before = getattr(section, field.name), values.get(field.name)
        if field.name not in values:
            if field.default is not dataclasses.MISSING:
                completed[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
                completed[field.name] = dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default
        elif isinstance(before, dict) and dataclasses.is_dataclass(now):
            completed[field.name] = _completed(before, now)
        elif isinstance(before, dict) and isinstance(now, dict):
            completed[field.name] = {
                name: _completed(value, now[name]) if dataclasses.is_dataclass(now.get(name)) else value
                for name, value in before.items()
            }
    return completed


def _flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    # Values by their dotted keys.
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("speech_tokenizers.training").joinpath("recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def override_key(recipe: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in the nested dict `recipe`."""
    dotted_key, separator, value = override.partition("=")
    if not separator or not dotted_key:
        raise ValueError(f"An override must read `key=value`, but got {override!r}.")
    *sections, key = dotted_key.split(".")
    for section in sections:
        if not isinstance(recipe.get(section), dict):
            recipe[section] = {}
        recipe = recipe[section]
    recipe[key] = parse_yaml(value, f"The value in {override!r}")


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text; `what` it is stands in the error if it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is no YAML: {' '.join(str(error).split())}.") from error


def build_section(section: type, values: Any, prefix: str) -> Any:
    """Make the dataclass `section` from a dict, refusing keys that it lacks and values of the wrong type."""
    if not isinstance(values, dict):
        raise ValueError(f"`{prefix.rstrip('.')}` must be a mapping of keys to values, but got {values!r}.")
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
    return section(**{key: convert(value, hints[key], f"{prefix}{key}") for key, value in values.items()})


def check_names(given: Iterable[str], known: Iterable[str], what: str, prefix: str = "") -> None:
    """Raises `ValueError`, with the nearest known name, if one of the names `given` is not `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known are {', '.join(known)}."
            raise ValueError(f"{what} `{prefix}{name}` is unknown; {hint}")


def convert(value: Any, hint: Any, key: str) -> Any:
    """Check a recipe value against a field's annotation. YAML reads 1e-4 as text, which becomes a number here."""
    if hint is Any:
        return value
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in hint.__args__:
            return None
        (hint,) = (option for option in hint.__args__ if option is not type(None))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build_section(hint, value, f"{key}.")
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"`{key}` must be a number, but got {value!r}.")
        return number
    if origin is str and isinstance(value, bool):
        return "yes" if value else "no"  # what YAML took for a truth value
    if origin is str and isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        raise ValueError(f"`{key}` must be of type {origin.__name__}, but got {value!r}.")
    if origin is list and arguments:
        return [convert(element, arguments[0], f"{key}[{i}]") for i, element in enumerate(value)]
    if origin is dict and arguments:
        return {name: convert(element, arguments[1], f"{key}.{name}") for name, element in value.items()}
    return value


def check_not_negative(section: Any, *names: str) -> None:
    """Raises `ValueError` if one of the fields `names` of a dataclass is negative."""
    for name in names:
        if getattr(section, name) < 0:
            raise ValueError(f"`{name}` must not be negative, but got {getattr(section, name)}.")


@contextmanager
def recipe_errors() -> Iterator[None]:
    """Within this context settings that contradict each other raise `ValueError`, whoever finds them."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (TypeError, StrictDataclassError) as error:
        raise ValueError(" ".join(str(error).split())) from error
