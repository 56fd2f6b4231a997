# SPDX-License-Identifier: Apache-2.0
"""Load a codec and its feature extractor by name, and store one in half the bytes."""

import importlib.util
import json
from importlib import resources
from pathlib import Path
from typing import Any


DEFAULT_CHECKPOINT = "rvq-codec-16khz-4kbps"
# Units that the demo shows.
DEFAULT_UNITS = "dc-spin-small-16khz"
# The distribution of the checkpoints that the wheel does not embed.
_OTHERS = "speech-tokenizers-checkpoints"


def list_checkpoints() -> list[str]:
    """Names of the checkpoints that this installation has."""
    return sorted(_checkpoint_folders())


def released_checkpoints() -> dict[str, dict[str, Any]]:
    """All released checkpoints by name: their `family`, and whether the wheel has them `embedded`."""
    index = resources.files("speech_tokenizers.model_cards").joinpath("released.json")
    return json.loads(index.read_text(encoding="utf-8"))


def _checkpoint_folders() -> dict[str, Any]:
    # Those of the package and, where it is installed, of the distribution that has the others.
    packages = ["speech_tokenizers.model_cards"]
    if importlib.util.find_spec(_OTHERS.replace("-", "_")) is not None:
        packages.append(_OTHERS.replace("-", "_"))
    return {
        entry.name: entry
        for package in packages
        for entry in resources.files(package).iterdir()
        if entry.joinpath("config.json").is_file()
    }


def find_checkpoint(name_or_path: str | Path | None = None) -> str:
    """
    Turn the name of a checkpoint into what `from_pretrained` takes.

    Args:
        name_or_path (`str` or `Path`, *optional*): A name of [`list_checkpoints`], a local folder, or the id of a Hub
            repository (`namespace/name`), in this order. Defaults to `DEFAULT_CHECKPOINT`.

    Returns:
        `str`: A local folder or a Hub id.

    Raises:
        ValueError: If it is neither.
    """
    name = str(DEFAULT_CHECKPOINT if name_or_path is None else name_or_path)
    if name in (folders := _checkpoint_folders()):
        return str(folders[name])
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"`name_or_path` is the folder {name}, which has no config.json; name a saved model's folder."
            )
        return name
    if name in released_checkpoints():
        raise ValueError(
            f"{name} is a released checkpoint that this installation does not have; `pip install {_OTHERS}` brings it."
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = ", ".join(list_checkpoints()) or "none"
        raise ValueError(
            f"`name_or_path` is {name!r}, which is no folder and no checkpoint of this installation ({known}); "
            "name one of these, a folder, or a Hub repository as `namespace/name`."
        )
    return name


def load(name_or_path: str | Path | None = None, dtype: Any = None, **kwargs: Any) -> tuple[Any, Any]:
    """
    Load a codec, in evaluation mode, and its feature extractor.

    Args:
        name_or_path (`str` or `Path`, *optional*): Name, folder or Hub id of a checkpoint; see [`find_checkpoint`].
            The checkpoints of this installation need no network.
        dtype (`torch.dtype`, *optional*): Type of the weights. Defaults to float32, whatever precision the file has.
        kwargs: Arguments of `AutoModel.from_pretrained`, such as `device_map`, `revision` or `trust_remote_code`.

    Returns:
        `tuple`: The model ([`RVQCodecModel`] or another of the common interface) and the feature extractor.

    Raises:
        ValueError: If there is no such checkpoint, or it has no feature extractor.
        OSError: If it cannot be downloaded or is damaged.
    """
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    checkpoint = find_checkpoint(name_or_path)
    if (folder := Path(checkpoint)).is_dir() and not (folder / "preprocessor_config.json").is_file():
        raise ValueError(
            f"{checkpoint} has no preprocessor_config.json: it is a model without a feature extractor, such as a"
            " vocoder alone. Load it by `AutoModel.from_pretrained`, or save its feature extractor beside it."
        )
    shared = {
        name: kwargs[name]
        for name in ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only", "subfolder")
        if name in kwargs
    }
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32 if dtype is None else dtype, **kwargs)
    return model.eval(), AutoFeatureExtractor.from_pretrained(checkpoint, **shared)


def store_in_half(folder: str | Path) -> None:
    """
    Store the float32 weights of a saved model as float16, in half the bytes. The model computes in float32 as before,
    however it is loaded, since config.json says so. In float16 a codec would choose other codes than in float32.

    Args:
        folder (`str` or `Path`): Folder that `save_pretrained` wrote. Each weight is rounded to 11 bits, so that a
            codec or unit model may choose a few other codes than before: compare.

    Raises:
        ValueError: If there is no `model.safetensors`, or a weight is too large for float16. Nothing is changed then.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save

    from speech_tokenizers.processing.whole_files import write_whole

    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder} has no model.safetensors; name the folder of a model that was saved in one file.")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    for name, exact in weights.items():
        if exact.dtype == torch.float32:
            weights[name] = exact.half()
            if bool((weights[name].isinf() & exact.isfinite()).any()):
                raise ValueError(f"`{name}` in {path} has values beyond 65,504, the largest of float16.")
    config_path = path.with_name("config.json")
    config = json.loads(config_path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    write_whole(config_path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_whole(path, save(weights, metadata))
