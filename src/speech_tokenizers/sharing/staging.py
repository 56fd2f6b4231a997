# SPDX-License-Identifier: Apache-2.0
"""A model as a folder that can be uploaded: weights, configuration, what prepares its input, code, card and sounds."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from speech_tokenizers.modeling.hub_export import card_of, save_pretrained_with_code, short_card, with_use
from speech_tokenizers.sharing.model_checks import CONFIG, PREPROCESSOR, PROCESSOR, without_auto_maps
from speech_tokenizers.sharing.sound_examples import (
    SoundExamples,
    reconstruct_examples,
    said_example,
    sound_section,
)


_WEIGHTS = "model.safetensors"
_CARD = "README.md"
# Beside the model and its card, what tells how it came about.
_ALONG = ("recipe.yaml", "training_log.jsonl", "LICENSE", "LICENSE.txt", "NOTICE")
_SOUNDS = re.compile(r"(?ms)^## Sound examples\n.*?(?=^## |^<details>|\Z)")


class Shared(NamedTuple):
    """
    A model with what belongs to it, as it is loaded for an upload.

    Attributes:
        model (`PreTrainedModel`): The model; a speech language model without its codec.
        preprocessor: Its feature extractor or processor; `None` if it has none.
        folder (`Path`, *optional*): Folder that it was loaded from, if that is on this machine.
    """

    model: Any
    preprocessor: Any
    folder: Path | None


def load_shared(name: str, **place: Any) -> Shared:
    """
    Load any model of this package: codec, units, vocoder, continuous tokens, speech language model.

    Args:
        name (`str`): Name, folder or Hub id; see [`find_checkpoint`].
        place: Arguments of `from_pretrained` that say where a repository is.

    Raises:
        ValueError: If there is no such model, or it is none of this package.
        OSError: If it cannot be downloaded.
    """
    from transformers import AutoModel

    from speech_tokenizers.auto_registration import AUTO_CLASSES, BASE_CLASSES, SPEECH_LM_CLASSES
    from speech_tokenizers.coding.loading import find_checkpoint, load, load_config
    from speech_tokenizers.coding.speech_lm_loading import load_speech_lm_without_codec

    checkpoint = find_checkpoint(name, **place)
    kind = load_config(checkpoint, **place).model_type
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else None
    if kind in SPEECH_LM_CLASSES:
        return Shared(*load_speech_lm_without_codec(checkpoint, **place), folder)
    if kind in AUTO_CLASSES:
        return Shared(*load(checkpoint, **place), folder)
    if kind in BASE_CLASSES:
        return Shared(AutoModel.from_pretrained(checkpoint, **place).eval(), None, folder)
    raise ValueError(
        f"{name} is a model of type {kind!r}; codecs, units, unit vocoders, continuous tokens and speech language"
        " models of this package can be pushed. Push others by their own `push_to_hub`."
    )


def stage(
    shared: Shared,
    folder: Path,
    repo_id: str,
    *,
    with_code: bool = True,
    card: Path | None = None,
    licence: str | None = None,
    codec: str | None = None,
) -> None:
    """
    Write a model as it will be uploaded, without sounds.

    Args:
        shared ([`Shared`]): The model.
        folder (`Path`): An empty folder.
        repo_id (`str`): Hub id that it will have.
        with_code (`bool`, *optional*, defaults to `True`): Whether its code goes along, so that transformers loads it
            with `trust_remote_code=True` where this package is not installed.
        card (`Path`, *optional*): A card. Defaults to that of the model's folder, if the weights are the same, and
            else to a short one, which claims nothing.
        licence (`str`, *optional*): The Hub's name of the weights' licence.
        codec (`str`, *optional*): Of a speech language model, Hub id of its codec, which the configuration will name.

    Raises:
        ValueError: If the code cannot travel, or `codec` is given for another kind of model.
        OSError: If the card cannot be read.
    """
    if codec is not None and not hasattr(shared.model, "generate_speech"):
        raise ValueError(f"`codec` is {codec!r}, but a {type(shared.model).__name__} needs none; leave it out.")
    with codec_named(shared, codec):
        _stage(shared, folder, repo_id, with_code, card, licence)


@contextlib.contextmanager
def codec_named(shared: Shared, name: str | None = None) -> Iterator[None]:
    """
    Within this context a speech language model names its codec as others can find it.

    Args:
        shared ([`Shared`]): Any model; those without a codec stay as they are.
        name (`str`, *optional*): Hub id of the codec. Defaults to what the model says, without the folders of this
            machine.
    """
    model, processor = shared.model, shared.preprocessor
    before = getattr(model.config, "codec_name", None)
    if before is None and name is None:
        yield
        return
    place = Path(before or "")
    is_place = bool(before) and (place.is_absolute() or place.is_dir())
    model.config.codec_name = processor.codec_name = name or (place.name if is_place else before)
    try:
        yield
    finally:
        model.config.codec_name = processor.codec_name = before


def _stage(
    shared: Shared, folder: Path, repo_id: str, with_code: bool, card: Path | None, licence: str | None
) -> None:
    model, preprocessor = shared.model, shared.preprocessor
    own = card if card is not None else card_of(model)
    if with_code:
        save_pretrained_with_code(model, preprocessor, folder, card=card or True, licence=licence, repo_id=repo_id)
    else:
        model.save_pretrained(folder)
        if preprocessor is not None:
            preprocessor.save_pretrained(folder)
        for name in (CONFIG, PREPROCESSOR, PROCESSOR):
            _drop_auto_maps(folder / name)
        _write_plain_card(shared, folder, repo_id, own, licence)
    config = folder / CONFIG
    fields = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(_without_places(fields), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if shared.folder is not None:
        if own is not None and card is None:
            # As they are stored: loading may have widened them. That they are the same is known by now.
            shutil.copyfile(shared.folder / _WEIGHTS, folder / _WEIGHTS)
        for name in _ALONG:
            if (shared.folder / name).is_file():
                shutil.copyfile(shared.folder / name, folder / name)
    if licence is not None and own is not None:
        _set_licence(folder / _CARD, licence)


def _without_places(fields: Any) -> Any:
    # Without the folders of this machine that parts of a model, such as its encoder, came from.
    if isinstance(fields, list):
        return [_without_places(value) for value in fields]
    if not isinstance(fields, dict):
        return fields
    place = Path(str(fields.get("_name_or_path") or ""))
    left_out = "_name_or_path" if place.is_absolute() or place.is_dir() else None
    return {name: _without_places(value) for name, value in fields.items() if name != left_out}


def _drop_auto_maps(path: Path) -> None:
    # Of a model that came with code which does not go along.
    if path.is_file():
        fields = json.loads(path.read_text(encoding="utf-8"))
        if (kept := without_auto_maps(fields)) != fields:
            path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_plain_card(shared: Shared, folder: Path, repo_id: str, own: Path | None, licence: str | None) -> None:
    use = plain_use_section(shared, repo_id)
    if own is None:
        text = short_card(shared.model, repo_id, licence) + use
    else:
        text = with_use(own.read_text(encoding="utf-8"), use)
        for picture in set(re.findall(r"!\[[^\]]*\]\(([\w.-]+)\)", text)):
            if own.with_name(picture).is_file():
                shutil.copyfile(own.with_name(picture), folder / picture)
    (folder / _CARD).write_text(text, encoding="utf-8")


def plain_use_section(shared: Shared, repo_id: str) -> str:
    """The part of a card that shows how a repository without code is loaded by this package."""
    loader, names = "load", "model, feature_extractor"
    if hasattr(shared.model, "generate_speech"):
        loader, names = "load_speech_lm", "model, processor"
    lines = [f"from speech_tokenizers import {loader}", "", f'{names} = {loader}("{repo_id}")']
    if shared.preprocessor is None:
        lines = ["import speech_tokenizers", "from transformers import AutoModel", ""]
        lines.append(f'model = AutoModel.from_pretrained("{repo_id}")')
    code = "\n".join(lines)
    return f"## Use\n\n```python\n{code}\n```\n\nThis needs the package: `pip install speech-tokenizers`.\n"


def _set_licence(path: Path, licence: str) -> None:
    from huggingface_hub import ModelCard

    card: Any = ModelCard(path.read_text(encoding="utf-8"))
    card.data.license = licence
    path.write_text(str(card), encoding="utf-8")


def add_sounds(
    shared: Shared, folder: Path, repo_id: str, revision: str | None, samples: Sequence[Path], codec: Any = None
) -> SoundExamples:
    """
    Write sound examples into a staged folder, and the part of its card that plays them.

    Args:
        shared ([`Shared`]): The model.
        folder (`Path`): What [`stage`] wrote.
        repo_id (`str`): Hub id of the repository.
        revision (`str`, *optional*): Branch that is pushed to.
        samples (sequence of `Path`): Audio files; empty for the recording of the package.
        codec ([`SpeechCodec`], *optional*): Codec of a speech language model.

    Returns:
        [`SoundExamples`]: The files; none if the model gives out no speech.

    Raises:
        ValueError: If a speech language model cannot say the sentence, or a file cannot be read.
    """
    model, preprocessor = shared.model, shared.preprocessor
    if hasattr(model, "generate_speech"):
        model.attach_codec(codec)
        preprocessor.attach_codec(model.codec)
        examples = said_example(model, preprocessor, folder)
    elif getattr(model, "kind", None) is None or preprocessor is None:
        examples = SoundExamples([], "")
    else:
        examples = reconstruct_examples(model, preprocessor, folder, samples)
    section = sound_section(examples, repo_id, revision)
    path = folder / _CARD
    if section and path.is_file():
        text = _SOUNDS.sub("", path.read_text(encoding="utf-8"))
        place = text.find("\n## Use\n") + 1
        text = f"{text[:place]}{section}{text[place:]}" if place else f"{text.rstrip()}\n\n{section.rstrip()}\n"
        path.write_text(text, encoding="utf-8")
    return examples


__all__ = ["Shared", "add_sounds", "codec_named", "load_shared", "plain_use_section", "stage"]
