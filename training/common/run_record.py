# SPDX-License-Identifier: Apache-2.0
"""
What a run was begun with, its settings and its data, kept beside its checkpoints; and whether it may go on with what
it is given now.

There is one rule for all trainers. Settings that say how long, how often and where may differ, and a changed length
is told. Data and models may lie elsewhere, since they are known by their contents. Anything else that differs is
refused by its name.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from tqdm import tqdm

from speech_tokenizers.coding.loading import find_checkpoint
from speech_tokenizers.processing.recording_fingerprint import recording_fingerprints
from speech_tokenizers.processing.recordings import load_recordings, recording_name
from speech_tokenizers.processing.whole_files import write_whole
from speech_tokenizers.training.common.checkpoints import CHECKPOINT_NAME, initial_rates
from speech_tokenizers.training.common.processes import process_state


# Last parts of the names of settings that may change: how often, where, and at what limits a run is stopped or warned
# of.
MAY_CHANGE = frozenset(
    {
        *("output_dir", "cache_dir", "train_files", "eval_files", "resume_from_checkpoint", "hub_model_id"),
        *("logging_steps", "eval_steps", "save_steps", "save_total_limit", "metrics", "num_audio_samples"),
        *("max_eval_recordings", "report_to", "num_workers", "allow_changes"),
        *("min_rank", "min_active_share", "min_variance_share", "min_live_share", "grace_steps", "window_steps"),
    }
)
_PUSHING = frozenset(
    {
        *("push_to_hub", "hub_strategy", "hub_token", "hub_private_repo", "hub_revision", "hub_always_push"),
        *("hub_licence", "hub_with_code"),
    }
)
# Those that may change too, which is worth a word: how long.
LENGTHS = frozenset({"max_steps", "max_minutes"})
# Fields of a configuration that say who wrote it.
_VOLATILE = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "torch_dtype", "dtype")
# Parts of the names of a model's files that decide what it hears or writes, beside its weights and configuration.
_DECIDING_FILES = ("processor", "feature_extractor", "vocab", "token", "merges")


@dataclasses.dataclass
class RunRecord:
    """
    What a run is for: `recipe.yaml` and `inputs.json` in its folder. Checkpoints have copies, which are read where
    these are gone; see [`copy_record`].

    Args:
        folder (`Path`): The folder.
        args (dataclass or `dict`): Settings. A dataclass may have the attribute `trainer`.
        inputs (mapping): What is learnt from, by the setting that names it: what [`recordings_of`] and
            [`fingerprint_of`] return, or a list of names, such as a vocabulary.
        finished (collection of `str`, *optional*): Beginnings of dotted names, such as `iterations.first.`, of
            settings whose work is done; their lengths are settled. An empty one stands for all.
        allowed (collection of `str`, *optional*): Dotted names of settings, sections or inputs that may change.
        measured (collection of `str`, *optional*): Inputs that are only measured on, which may change.
        recipe_name (`str`): Name of the file of settings.
    """

    folder: Path
    args: Any
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finished: Collection[str] = ()
    allowed: Collection[str] = ()
    measured: Collection[str] = ()
    recipe_name: str = "recipe.yaml"

    def check(self) -> list[str]:
        """
        Compare what the folder was begun with.

        Returns:
            `list[str]`: What differs and may, in words.

        Raises:
            ValueError: If anything else differs, or a file is damaged.
        """
        known, differing, told = read_inputs(self._kept("inputs.json")), self._changed(), []
        for key in list(differing):
            is_settled = any(key.startswith(part) for part in self.finished)
            if (_last(key) in LENGTHS and not is_settled) or _is_within(key, self.allowed):
                before, now = differing.pop(key)
                told.append(f"`{key}` was {before!r} and is {now!r}")
        if differing:
            listed = "; ".join(f"`{key}` was {before!r} and is {now!r}" for key, (before, now) in differing.items())
            raise ValueError(f"{self.folder} was begun with other settings ({listed}); {self._advice(differing)}.")
        data = inputs_changed(known, self.inputs)
        told += [
            f"`{key}`: {data.pop(key)}" for key in list(data) if key in self.measured or _is_within(key, self.allowed)
        ]
        if data:
            listed = "; ".join(f"`{key}`: {difference}" for key, difference in data.items())
            raise ValueError(f"{self.folder} was begun with other data ({listed}); {self._advice(data)}.")
        if self._kept(self.recipe_name).is_file() and (unknown := sorted(set(self.inputs) - set(known))):
            told.append(f"{', '.join(unknown)} of its beginning are not known, and taken to be these")
        if not self._kept(self.recipe_name).is_file() and (known or self._checkpoints()):
            self._check_rates()
            told.append(f"{self.folder / self.recipe_name} is missing, so its settings are taken to be these")
        return told

    def _checkpoints(self) -> list[Path]:
        # All of the run, oldest first; a run of several parts has a folder of them in each.
        found = [path for path in self.folder.rglob("checkpoint-*") if CHECKPOINT_NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))

    def _kept(self, name: str) -> Path:
        # A file of the record; where it is gone, the copy in the newest checkpoint that has one.
        path = self.folder / name
        if path.exists():
            return path
        copies = [folder / name for folder in self._checkpoints() if (folder / name).is_file()]
        return copies[-1] if copies else path

    def _check_rates(self) -> None:
        # Checkpoints of older versions have no copy of the settings, but an optimizer, which goes on at its own rate.
        settings = _flattened(_as_dict(self.args))
        keys = [key for key in settings if _last(key) == "learning_rate" and not _is_within(key, self.allowed)]
        now = {settings[key] for key in keys}
        for folder in reversed(self._checkpoints() if now else []):
            if (rates := initial_rates(folder)) and not now & rates:
                raise ValueError(
                    f"{self.folder / self.recipe_name} is missing, and {folder} was trained at the learning rate"
                    f" {', '.join(map(repr, sorted(rates)))}, but `learning_rate` is"
                    f" {', '.join(map(repr, sorted(now)))}; give it as it was, put that file back, or choose another"
                    " output folder."
                )
            if rates:
                return

    def _advice(self, differing: Iterable[str]) -> str:
        advice = "keep what it was begun with, choose another output folder, or delete that one"
        if hasattr(self.args, "allow_changes"):
            advice += f"; to go on nevertheless, give `allow_changes=[{', '.join(differing)}]`"
        return advice

    def write(self) -> None:
        """Write both files, where they do not say this already."""
        known = read_inputs(self._kept("inputs.json"))
        text = yaml.safe_dump(_as_dict(self.args), sort_keys=False, allow_unicode=True)
        _write_changed(self.folder / self.recipe_name, text)
        _write_changed(self.folder / "inputs.json", json.dumps({**known, **self.inputs}, ensure_ascii=False))

    def keep(self, output_dir: Path | None = None, older_name: str | None = None, place: str = "") -> None:
        """
        Check, say what differs and may, and write. All processes call it; the main one speaks and writes.

        Args:
            output_dir (`Path`, *optional*): Folder to write into. Defaults to the one that is checked.
            older_name (`str`, *optional*): Name under which an older recipe is kept beside a new one that differs in
                more than its length.
            place (`str`, *optional*): Words that say where the run goes on.

        Raises:
            ValueError: See `check`.
        """
        processes = process_state()
        with processes.main_process_first():
            told = self.check()
            if processes.is_main_process:
                if told:
                    words = " ".join(filter(None, ("the run goes on", place, "with other settings")))
                    tqdm.write(f"warning: {words}: {'; '.join(told)}.", file=sys.stderr)
                output_dir = output_dir or self.folder
                output_dir.mkdir(parents=True, exist_ok=True)
                if older_name is not None and any(key for key in self._changed() if _last(key) not in LENGTHS):
                    shutil.copy(self._kept(self.recipe_name), output_dir / older_name)
                dataclasses.replace(self, folder=output_dir).write()

    def _changed(self) -> dict[str, tuple[Any, Any]]:
        known = read_inputs(self._kept("inputs.json"))
        return settings_changed(self._kept(self.recipe_name), self.args, set(known) & set(self.inputs))


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _is_within(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _write_changed(path: Path, text: str) -> None:
    # What is right is left alone: another process may be reading it.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)


def _as_dict(args: Any) -> dict[str, Any]:
    if isinstance(args, dict):
        return args
    settings: dict[str, Any] = dataclasses.asdict(args)
    # Where the model is pushed decides nothing of the run, and a token must not be written down.
    settings = {name: value for name, value in settings.items() if name not in _PUSHING}
    trainer = getattr(args, "trainer", None)
    return settings if trainer is None else {"trainer": trainer, **settings}


def settings_changed(path: Path, args: Any, by_contents: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """
    What an output folder's recipe and the settings differ in: both values by their dotted keys.

    A setting that the folder's recipe lacks is newer than the folder, which had what is its default today.

    Args:
        path (`Path`): The YAML file; nothing differs where there is none.
        args (dataclass or `dict`): The settings.
        by_contents (collection of `str`, *optional*): Settings that name what is compared by its contents.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); restore it. {_TRUST}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} is damaged, since it holds no settings; restore it. {_TRUST}")
    settings = _as_dict(args)
    before, now = _flattened(read if isinstance(args, dict) else _completed(read, args)), _flattened(settings)
    compared = [key for key in {**now, **before} if key.split(".")[0] in settings and key != "trainer"]
    if isinstance(args, dict):
        # Whoever gives these has defaults of his own, which another version may not have.
        compared = [key for key in compared if key in before and key in now]
    return {
        key: (before.get(key), now.get(key))
        for key in compared
        if _last(key) not in MAY_CHANGE and key not in by_contents and before.get(key) != now.get(key)
    }


_TRUST = "If you know that nothing else has changed, delete it; it is then written anew."


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


def read_inputs(path: Path) -> dict[str, Any]:
    """
    What `inputs.json` says; nothing where there is none.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        inputs = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(inputs, dict):
            raise ValueError("it holds no names")
        for name, value in inputs.items():
            if not _is_input(value):
                raise ValueError(f"`{name}` names neither recordings nor contents")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it. {_TRUST}") from error
    return inputs


def _is_input(value: Any) -> bool:
    # Whether it is what `recordings_of` or `fingerprint_of` returns, or a list of names.
    if not isinstance(value, dict):
        return isinstance(value, str | list) or value is None
    names, audio, columns = (value.get(key) for key in ("names", "audio", "columns"))
    if not (isinstance(names, list) and isinstance(audio, list) and isinstance(columns, dict)):
        return False
    return all(isinstance(said, list) and len(said) == len(names) for said in (audio, *columns.values()))


def is_older_fingerprint(known: Any, now: Any) -> bool:
    """Whether `known` is what an older version wrote, which knew a model by its weights and configuration alone."""
    return isinstance(known, str) and isinstance(now, str) and "+" not in known and now.startswith(f"{known}+")


def inputs_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """
    How inputs differ, by their names; those that one side does not know do not.

    Args:
        before, now (mapping): As [`keep_run`] takes them.
    """
    found = {}
    for key, value in now.items():
        known = before.get(key)
        if known is None or known == value:
            continue
        if is_older_fingerprint(known, value):
            continue
        if type(known) is not type(value):
            difference = f"inputs.json holds {_kind(known)} where {_kind(value)} is expected; restore the file"
        elif isinstance(value, dict):
            difference = _difference_of_recordings(known, value)
        elif isinstance(value, list):
            difference = _difference_of_names(known, value)
        else:
            difference = "it has other contents"
        if difference:
            found[key] = difference
    return found


def _kind(value: Any) -> str:
    return "recordings" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a fingerprint"


def _difference_of_recordings(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before["audio"] == now["audio"]:
        for column in [column for column in now["columns"] if column in before["columns"]]:
            pairs = zip(before["columns"][column], now["columns"][column], strict=True)
            if other := [name for name, (old, new) in zip(now["names"], pairs, strict=True) if old != new]:
                return f"`{column}` has other values for {_counted(other)}"
        return ""
    old, new = (dict(zip(side["names"], side["audio"], strict=True)) for side in (before, now))
    parts = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "with other audio under the same name": [name for name in new if old.get(name, new[name]) != new[name]],
    }
    listed = "; ".join(f"{_counted(names)} {what}" for what, names in parts.items() if names)
    return f"recordings {listed}" if listed else "the same recordings, but in another order"


def _difference_of_names(before: Sequence[str], now: Sequence[str]) -> str:
    parts = {
        "new": [name for name in now if name not in before],
        "gone": [name for name in before if name not in now],
    }
    listed = "; ".join(f"{what} {', '.join(map(repr, names[:5]))}" for what, names in parts.items() if names)
    return listed or "the same names, but in another order"


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} ({names[0]!r}{', ...' if len(names) > 1 else ''})"


def recordings_of(rows: Any, columns: Iterable[str | None] = ()) -> dict[str, Any]:
    """
    What tells recordings from others: their audio, in their order, and what is said of them.

    Args:
        rows (`datasets.Dataset` or sequence of arrays): As [`load_recordings`] returns them.
        columns (iterable of `str`, *optional*): Columns that are learnt from, where the rows have them.

    Returns:
        `dict`: `names` and `audio`, a list each, and `columns`, a list each by name.
    """
    names: list[str] = []
    has_columns = hasattr(rows, "column_names")

    def named() -> Iterator[Any]:
        for index, row in enumerate(rows.select_columns(_audio_columns(rows)) if has_columns else rows):
            names.append(recording_name(row, index) if isinstance(row, dict) else f"row {index}")
            yield row

    audio = list(recording_fingerprints(named()))
    kept = [column for column in columns if column is not None and has_columns and column in rows.column_names]
    said = {column: [_digest(json.dumps(v, default=str))[:8] for v in rows[column][:]] for column in kept}
    return {"names": names, "audio": audio, "columns": said}


def _audio_columns(rows: Any) -> list[str]:
    return [name for name in ("audio", "file_name") if name in rows.column_names]


def recordings_named(data: Any, part: str = "train", columns: Iterable[str | None] = ()) -> dict[str, Any]:
    """
    The recordings that a section of a recipe names; see [`recordings_of`].

    Args:
        data (dataclass): Section with the fields of [`RecordingsArguments`], or some of them.
        part (`str`): `"train"` or `"eval"`.
        columns (iterable of `str`, *optional*): Columns that are learnt from.
    """
    rows = load_recordings(
        getattr(data, part),
        getattr(data, f"{part}_filter"),
        getattr(data, f"{part}_files", None),
        getattr(data, f"{part}_split", "train"),
        getattr(data, "audio_column", "audio"),
    )
    return recordings_of(rows, columns)


def fingerprint_of(name: str | Path) -> str:
    """
    Fingerprint of a model or a file, wherever it lies.

    Args:
        name (`str` or `Path`): Folder of a model, name of a released one, id of one on the Hub, or a file.

    Returns:
        `str`: 24 hexadecimal digits of the weights and the configuration, `+`, and 24 of the files of its feature
        extractor and tokenizer; 24 digits of a file; for a model of the Hub the id and the cached commit.
    """
    path = Path(name)
    if path.is_file():
        return _digest(path.read_bytes())
    try:
        folder = Path(find_checkpoint(name))
    except ValueError:
        folder = path
    if not folder.is_dir():
        config = try_to_load_from_cache(str(name), "config.json") if str(name).count("/") == 1 else None
        return f"{name}@{Path(config).parent.name}" if isinstance(config, str) else str(name)
    digest = hashlib.sha256()
    weights = sorted(file for kind in ("*.safetensors", "*.bin", "*.pt") for file in folder.glob(kind))
    for file in weights or sorted(file for file in folder.rglob("*") if file.is_file()):
        if file.name != "training_args.bin":
            digest.update(file.relative_to(folder).as_posix().encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    if weights and (folder / "config.json").is_file():
        digest.update(_settled(folder / "config.json"))
    if not weights:
        return digest.hexdigest()[:24]
    others = hashlib.sha256()
    for file in sorted(file for kind in ("*.json", "*.txt", "*.model") for file in folder.glob(kind)):
        if any(part in file.name for part in _DECIDING_FILES):
            others.update(file.name.encode() + _settled(file))
    return f"{digest.hexdigest()[:24]}+{others.hexdigest()[:24]}"


def _settled(file: Path) -> bytes:
    # The contents of a file, of JSON without what says who wrote it.
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return hashlib.sha256(file.read_bytes()).digest()
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _VOLATILE}
    return json.dumps(content, sort_keys=True).encode()


def _digest(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:24]
