# SPDX-License-Identifier: Apache-2.0
"""
Save a model together with its code, so that `trust_remote_code=True` loads it where this package is not installed.

transformers flattens the code of a repository into one folder and finds imports by regular expression. What it cannot
follow fails only when a user loads the repository, so everything is checked before the first file is written.
"""

import ast
import inspect
import json
import re
import shutil
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import CommitInfo, HfApi
from safetensors import safe_open
from transformers import FeatureExtractionMixin, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.dynamic_module_utils import get_relative_imports
from transformers.modeling_utils import PreTrainedAudioTokenizerBase


PACKAGE_NAME = "speech_tokenizers"
# The part of a card that shows how the model is loaded: it ends where the next part begins.
_USE = re.compile(r"(?ms)^## Use\n.*?(?=^## |^<details><summary>(?!More code)|\Z)")
_PICTURE = re.compile(r"!\[[^\]]*\]\(([\w.-]+)\)")


class _Exported(NamedTuple):
    # A class that a saved file names for auto classes, perhaps in a part of the file.
    file: str
    part: str | None
    auto_classes: tuple[str, ...]
    exported_class: type


def save_pretrained_with_code(
    model: PreTrainedModel,
    feature_extractor: FeatureExtractionMixin | ProcessorMixin | None,
    folder: str | PathLike,
    *,
    card: bool | str | PathLike = True,
    licence: str | None = None,
    repo_id: str | None = None,
) -> list[Path]:
    """
    Save weights, config and preprocessor as `save_pretrained` does, and beside them the code of their classes and a
    model card.

    `AutoConfig`, `AutoModel` and `AutoFeatureExtractor` or `AutoProcessor` load the folder with
    `trust_remote_code=True`; `AutoModelForAudioTokenization` loads a codec, and `AutoModelForTextToWaveform` a speech
    language model. The codec of a speech language model has a folder of its own: save it with its code too. The
    objects may themselves come from such a repository.

    Args:
        model (`PreTrainedModel`): Model to save.
        feature_extractor (`FeatureExtractionMixin`, `ProcessorMixin` or `None`): The model's feature extractor, or its
            processor with all that belongs to it: tokenizer, feature extractor, template, lexicon.
        folder (`str` or `PathLike`): Folder to write; created if absent.
        card (`bool`, `str` or `PathLike`, *optional*, defaults to `True`): Whether to write a card, `README.md`. It is
            the card of the folder that the model was loaded from, pictures included, if the weights are still those.
            Else it is a short one, which claims nothing and leaves a `README.md` of the folder as it is. A path names
            another card. Each shows how the repository is loaded with its code.
        licence (`str`, *optional*): The Hub's name of the weights' licence, for a short card, such as `"apache-2.0"`.
        repo_id (`str`, *optional*): Name of the repository, `namespace/name`, in the card. Defaults to `USER/` and the
            folder's name.

    Returns:
        `list[Path]`: The code files that were written.

    Raises:
        ValueError: If the code could not be loaded from a flat folder; see [`find_code_files`]. If a processor's
            tokenizer is not a class of transformers.
        OSError: If there is no such card.
    """
    folder = Path(folder)
    own_card = Path(card) if isinstance(card, str | PathLike) else card_of(model) if card else None
    text = None if own_card is None else own_card.read_text(encoding="utf-8")
    exports = _exports(model, feature_extractor)
    code_files = find_code_files([export.exported_class for export in exports])

    # The map is written into the saved files, not set on the live objects: a later plain `save_pretrained` of the same
    # model would otherwise point to code that it does not write.
    model.save_pretrained(folder)
    if feature_extractor is not None:
        feature_extractor.save_pretrained(folder)
    _write_auto_maps(folder, exports)
    name = repo_id or f"USER/{folder.resolve().name}"
    if text is not None and own_card is not None:
        for picture in {own_card.with_name(found) for found in _PICTURE.findall(text)}:
            if picture.is_file() and picture.parent.resolve() != folder.resolve():
                shutil.copyfile(picture, folder / picture.name)
        (folder / "README.md").write_text(
            with_use(text, use_section(model, feature_extractor, name)), encoding="utf-8"
        )
    elif card and not (folder / "README.md").exists():
        text = short_card(model, name, licence) + use_section(model, feature_extractor, name)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return [Path(shutil.copyfile(source, folder / name)) for name, source in code_files.items()]


def push_to_hub_with_code(
    model: PreTrainedModel,
    feature_extractor: FeatureExtractionMixin | ProcessorMixin | None,
    repo_id: str,
    *,
    commit_message: str = "Upload model, feature extractor and code",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    card: bool | str | PathLike = True,
    licence: str | None = None,
) -> CommitInfo:
    """
    Do what [`save_pretrained_with_code`] does, on the Hub and in one commit.

    A short card does not replace a `README.md` that the repository has.

    Args:
        model (`PreTrainedModel`): Model to push.
        feature_extractor: See [`save_pretrained_with_code`].
        repo_id (`str`): Name of the repository, `namespace/name`; created if absent.
        commit_message (`str`, *optional*): Title of the commit.
        private (`bool`, *optional*): Visibility of a repository that is created. Defaults to the namespace's setting.
        revision (`str`, *optional*): Branch to commit to; created if absent. Defaults to the main branch.
        create_pr (`bool`, *optional*, defaults to `False`): Whether to open a pull request instead of committing.
        token (`str` or `bool`, *optional*): Access token. Defaults to the one that `hf auth login` stored.
        card, licence: See [`save_pretrained_with_code`].

    Returns:
        `CommitInfo`: The commit, with its address.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if card is True and card_of(model) is None:
            card = not api.file_exists(repo_id, "README.md", revision=None if create_pr else revision)
        save_pretrained_with_code(model, feature_extractor, folder, card=card, licence=licence, repo_id=repo_id)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )


def _exports(model: PreTrainedModel, preprocessor: Any) -> list[_Exported]:
    # What each saved file has to name. transformers finds its own classes without that.
    exports = [
        _Exported("config.json", None, ("AutoConfig",), type(model.config)),
        _Exported("config.json", None, _auto_classes(model), type(model)),
    ]
    if isinstance(preprocessor, ProcessorMixin):
        file = "processor_config.json"
        exports.append(_Exported(file, None, ("AutoProcessor",), type(preprocessor)))
        for name in preprocessor.get_attributes():
            part = getattr(preprocessor, name)
            if isinstance(part, FeatureExtractionMixin):
                exports.append(_Exported(file, name, ("AutoFeatureExtractor",), type(part)))
            elif isinstance(part, PreTrainedTokenizerBase):
                if not _is_of_transformers(type(part)):
                    raise ValueError(
                        f"The processor's `{name}` is a `{type(part).__name__}`, whose code cannot travel; use a"
                        " tokenizer class of transformers, such as `PreTrainedTokenizerFast`."
                    )
                # Its file names no code, also where the processor itself comes from a repository with code.
                exports.append(_Exported("tokenizer_config.json", None, (), type(part)))
    elif preprocessor is not None:
        exports.append(_Exported("preprocessor_config.json", None, ("AutoFeatureExtractor",), type(preprocessor)))
    return [
        export._replace(auto_classes=()) if _is_of_transformers(export.exported_class) else export
        for export in exports
    ]


def _auto_classes(model: PreTrainedModel) -> tuple[str, ...]:
    # The auto classes of transformers that load such a model.
    found = ["AutoModel"]
    if isinstance(model, PreTrainedAudioTokenizerBase):
        found.append("AutoModelForAudioTokenization")
    if model.can_generate() and "audio" in getattr(model, "output_modalities", ()):
        found.append("AutoModelForTextToWaveform")
    return tuple(found)


def _write_auto_maps(folder: Path, exports: list[_Exported]) -> None:
    maps: dict[tuple[str, str | None], dict[str, str]] = {}
    for file, part, auto_classes, exported_class in exports:
        names = dict.fromkeys(auto_classes, class_reference(exported_class))
        maps.setdefault((file, part), {}).update(names)
    for (file, part), auto_map in maps.items():
        set_auto_map(folder / file, auto_map, part)


def _is_of_transformers(some_class: type) -> bool:
    return some_class.__module__.split(".")[0] == "transformers"


def card_of(model: PreTrainedModel) -> Path | None:
    """The card of the folder that a model comes from, if it is still a card of these weights."""
    folder = Path(model.name_or_path or "")
    card, weights = folder / "README.md", folder / "model.safetensors"
    if not (model.name_or_path and card.is_file() and weights.is_file()):
        return None
    present = model.state_dict()
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - a file, not a dictionary
            stored = file.get_tensor(name)
            if name not in present or not torch.equal(present[name].detach().cpu().to(stored.dtype), stored):
                return None
    return card


def with_use(card: str, use: str) -> str:
    """A card with its part on use exchanged, or with the part at its end."""
    if _USE.search(card):
        return _USE.sub(lambda _: use + "\n", card, count=1).rstrip() + "\n"
    return f"{card.rstrip()}\n\n{use}"


def use_section(model: Any, preprocessor: Any, name: str) -> str:
    """The part of a card that shows how the repository of this Hub id is loaded with its code."""
    kind = None if preprocessor is None else getattr(model, "kind", None)
    is_processor = isinstance(preprocessor, ProcessorMixin)
    variable = "processor" if is_processor else "feature_extractor"
    loader = "AutoProcessor" if is_processor else "AutoFeatureExtractor"
    loaders = ["AutoModel"] if preprocessor is None else sorted(["AutoModel", loader])
    lines = [
        *["import torch"] * (kind is not None),
        f"from transformers import {', '.join(loaders)}",
        "",
        f'model = AutoModel.from_pretrained("{name}", trust_remote_code=True)',
    ]
    if preprocessor is not None:
        lines.append(f'{variable} = {loader}.from_pretrained("{name}", trust_remote_code=True)')
    if kind is not None:
        lines += _coding(model, kind)
    elif is_processor and _speaks(model):
        lines += _speaking(model, name)
    code = "\n".join(lines)
    return f"## Use\n\n```python\n{code}\n```\n\nThe code comes along; no other package is needed.\n"


def _coding(model: Any, kind: str) -> list[str]:
    # What one does with a codec.
    tokens, shape = "audio_codes", "num_quantizers, num_frames"
    if kind == "latents":
        tokens, shape = "latents", "num_frames, dim"
    rate = model.sampling_rate
    lines = [
        f"# speech: mono floats in [-1, 1] at {rate} Hz, (num_samples,)",
        f'inputs = feature_extractor(speech, sampling_rate={rate}, return_tensors="pt")',
        "with torch.no_grad():",
        f"    {tokens} = model.encode(**inputs).{tokens}  # (1, {shape})",
    ]
    if kind in model.decodable_kinds:
        lines.append(f"    decoded = model.decode({tokens}, num_samples=len(speech)).audio_values  # (1, 1, samples)")
    return lines


def _speaking(model: Any, name: str) -> list[str]:
    # What one does with a speech language model.
    codec = model.config.codec_name or "CODEC"
    codec = codec if "/" in codec else f"{name.split('/')[0]}/{codec}"
    return [
        "# the codec has a repository of its own",
        f'processor.attach_codec(AutoModel.from_pretrained("{codec}", trust_remote_code=True))',
        "model.attach_codec(processor.codec)",
        "",
        f"# text: what to say; speech: mono floats in [-1, 1] at {model.config.sampling_rate} Hz, (1, 1, samples)",
        "speech = model.generate_speech(text, processor).audio_values",
    ]


def _speaks(model: Any) -> bool:
    # Whether it is a speech language model. Its class may be a copy that travelled.
    return hasattr(model, "generate_speech")


def short_card(model: Any, name: str, licence: str | None) -> str:
    """A card without the part on use, which claims nothing that the configuration does not say."""
    kind, facts = getattr(model, "kind", None), []
    if kind is not None:
        facts.append(f"It turns speech at {model.sampling_rate} Hz into {model.frame_rate:g} frames a second")
        if kind == "codes":
            facts[-1] += f" of {model.num_quantizers} codes, each one of {model.codebook_size}."
        else:
            facts[-1] += f" of {model.latent_dim} numbers."
        decodes = kind in model.decodable_kinds
        facts.append("It turns them back into speech." if decodes else "It does not turn them back into speech.")
    if _speaks(model):
        config = model.config
        facts.append(
            f"It says texts: a `{config.text_config.model_type}` that writes speech as {config.frame_rate:g} frames a"
            f" second of {config.num_codebooks} codes."
        )
        facts.append(
            f"The codes are those of the codec `{config.codec_name or 'CODEC'}`, of fingerprint"
            f" `{config.codec_fingerprint}`."
        )
    origin = model.name_or_path
    if origin:
        facts.append(f"It comes from `{Path(origin).name}`; numbers that were measured there do not hold for it.")
    facts.append("Nothing has been measured of these weights.")
    if licence is None:
        facts.append("No licence is stated; state it as `license` above.")
    data = ["library_name: transformers"]
    if licence is not None:
        data.append(f"license: {licence}")
    if kind is not None and kind in model.decodable_kinds:
        data.append("pipeline_tag: audio-to-audio")
    if _speaks(model):
        data.append("pipeline_tag: text-to-speech")
    data += ["tags:", *(f"- {tag}" for tag in ("speech", *["audio-tokenizer"] * (kind is not None)))]
    body = "\n".join(facts)
    header = "\n".join(data)
    return f"---\n{header}\n---\n\n# {name.split('/')[-1]}\n\nA `{type(model).__name__}`.\n{body}\n\n"


def find_code_files(exported_classes: list[type]) -> dict[str, Path]:
    """
    Find the files that define classes, and the siblings that those import, at any depth.

    Args:
        exported_classes (`list[type]`): Classes that a repository will name in its `auto_map`. Those of transformers
            itself are left out.

    Returns:
        `dict[str, Path]`: Present path of each file, by the name that it will have in the flat folder.

    Raises:
        ValueError: If a class is not defined in a file; if its name or its file's contains "Tokenizer", which
            transformers takes for a text tokenizer; if a file imports from a subfolder, from a parent folder, whole
            modules (`from . import x`) or this package by its absolute name; if a line outside the imports reads like
            one; or if two different files share a name.
    """
    code_files: dict[str, Path] = {}
    waiting = []
    for exported_class in exported_classes:
        if _is_of_transformers(exported_class):
            continue
        reference = class_reference(exported_class)
        if "Tokenizer" in reference:
            raise ValueError(
                f"`{reference}` cannot be exported: transformers treats every name with `Tokenizer` in it as a text "
                "tokenizer; rename the class or its file."
            )
        waiting.append(Path(inspect.getfile(exported_class)))

    while waiting:
        source = waiting.pop()
        known = code_files.get(source.name)
        if known is not None and known.read_bytes() != source.read_bytes():
            raise ValueError(
                f"Two different files are named `{source.name}` ({known} and {source}), but a Hub repository is flat; "
                "rename one."
            )
        if known is None:
            code_files[source.name] = source
            waiting.extend(source.with_name(f"{sibling}.py") for sibling in find_siblings(source))
    return dict(sorted(code_files.items()))


def find_siblings(source: Path) -> list[str]:
    """
    List the modules that a file imports from its own folder, in the one form that transformers can follow.

    Raises:
        ValueError: If the file imports in a way that transformers cannot follow from a flat folder.
    """
    siblings = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            absolute = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            absolute = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            absolute = []
            problem = None
            if node.level > 1:
                problem = "a parent folder"
            elif node.module is None:
                problem = "`.` (`from . import name`)"
            elif "." in node.module:
                problem = "a subfolder"
            if problem is not None:
                raise ValueError(
                    f"{source.name}, line {node.lineno}, imports from {problem}, which cannot travel to the Hub; "
                    "write `from .sibling import Name`."
                )
            siblings.add(str(node.module))
        else:
            continue
        for name in absolute:
            if name.split(".")[0] == PACKAGE_NAME:
                raise ValueError(
                    f"{source.name}, line {node.lineno}, imports `{name}` by its absolute name, which is absent where "
                    "this package is not installed; write `from .sibling import Name`."
                )

    seen_by_transformers = set(get_relative_imports(source))
    if seen_by_transformers != siblings:
        raise ValueError(
            f"transformers reads the relative imports of {source.name} as {sorted(seen_by_transformers)}, but they "
            f"are {sorted(siblings)}: no line of a docstring may begin like an import, and no import may leave out "
            "the space after the module's name."
        )
    return sorted(siblings)


def class_reference(exported_class: type) -> str:
    """Name a class as an `auto_map` does: `module.Class`, without the packages above the module."""
    if exported_class.__module__ == "__main__":
        raise ValueError(
            f"`{exported_class.__name__}` is defined in a script or notebook and has no file to export; move it to a "
            "module."
        )
    return f"{exported_class.__module__.split('.')[-1]}.{exported_class.__name__}"


def set_auto_map(path: Path, auto_map: dict[str, str], part: str | None = None) -> None:
    """Write a map into a saved file, or into a part of it; an empty map leaves the file without one."""
    content = json.loads(path.read_text(encoding="utf-8"))
    target = content if part is None else content[part]
    if target.get("auto_map", {}) == auto_map:
        return
    target.pop("auto_map", None)
    if auto_map:
        target["auto_map"] = auto_map
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
