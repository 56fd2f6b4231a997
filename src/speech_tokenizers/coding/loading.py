# SPDX-License-Identifier: Apache-2.0
"""Load a codec and its feature extractor by name, and store one in half the bytes."""

import difflib
import importlib.util
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any


DEFAULT_CHECKPOINT = "rvq-codec-16khz-4kbps"
# Units that the demo shows.
DEFAULT_UNITS = "dc-spin-small-16khz"
# The distribution of the checkpoints that the wheel does not embed.
_OTHERS = "speech-tokenizers-checkpoints"
# Arguments of `from_pretrained` that say where a model is, and which of them find a repository.
PLACE = ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only", "subfolder")
_REPOSITORY = ("revision", "token", "cache_dir", "local_files_only")


def list_checkpoints() -> list[str]:
    """Names of the checkpoints that this installation has and [`load`] loads."""
    return _answering_by(None)


def list_voices() -> list[str]:
    """Names of the voices that this installation has, which [`load_speech_lm`] loads."""
    return _answering_by("speech")


def list_listeners() -> list[str]:
    """Names of the models of this installation that are asked about speech, which [`load_speech_lm`] loads."""
    return _answering_by("text")


def _answering_by(answers: str | None) -> list[str]:
    released = released_checkpoints()
    return sorted(name for name in _checkpoint_folders() if released.get(name, {}).get("answers") == answers)


def released_checkpoints() -> dict[str, dict[str, Any]]:
    """
    All released checkpoints by name: their `family`, whether the wheel has them `embedded`, and of speech language
    models what they answer by, `answers`: `"speech"` or `"text"`.
    """
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


def find_checkpoint(name_or_path: str | Path | None = None, *, argument: str = "name_or_path", **place: Any) -> str:
    """
    Turn the name of a checkpoint into what `from_pretrained` takes.

    Args:
        name_or_path (`str` or `Path`, *optional*): A name of [`list_checkpoints`], a local folder, or the id of a Hub
            repository (`namespace/name`), in this order. Defaults to `DEFAULT_CHECKPOINT`.
        argument (`str`, *optional*, defaults to `"name_or_path"`): Name of the argument or option, for messages.
        place: Arguments of `from_pretrained` that say where a repository is, such as `revision`.

    Returns:
        `str`: A local folder or a Hub id.

    Raises:
        ValueError: If it is neither, or the Hub cannot be asked.
    """
    name = str(DEFAULT_CHECKPOINT if name_or_path is None else name_or_path)
    if name in (folders := _checkpoint_folders()):
        return str(folders[name])
    if not os.path.exists(os.path.expanduser(name)):
        if name in released_checkpoints():
            raise ValueError(
                f"{name} is a released checkpoint that this installation does not have; `pip install {_OTHERS}` brings"
                " it."
            )
        if name and "/" not in name:
            known = ", ".join(folders) or "none"
            meant = difflib.get_close_matches(name, folders, n=1)
            raise ValueError(
                f"`{argument}` is {name!r}, but there is no such file or folder, nor a repository of that name,"
                f" which would be `namespace/name`; the checkpoints of this installation are {known}"
                + (f"; did you mean {meant[0]}" if meant else "")
                + "."
            )
    from speech_tokenizers.modeling.model_names import find_model

    found = find_model(
        name, argument=argument, known=folders, **{key: place[key] for key in _REPOSITORY if key in place}
    )
    folder = Path(found, place.get("subfolder") or "")
    if os.path.isdir(found) and not (folder / "config.json").is_file():
        why = ""
        if (folder / "trainer_state.json").is_file():
            why = " It is a checkpoint of a training that had no codes yet, or that an older version saved."
        raise ValueError(
            f"`{argument}` is the folder {name}, which has no config.json; name a saved model's folder.{why}"
        )
    return found


def load_config(checkpoint: str, **place: Any) -> Any:
    """
    The configuration of a model, read by `AutoConfig`.

    Args:
        checkpoint (`str`): What [`find_checkpoint`] returned.
        place: Arguments of `from_pretrained` that say where a repository is, such as `revision`.

    Raises:
        ModelFilesError: If the file is damaged, or a field in it is wrong.
        OSError: If it cannot be downloaded.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    from speech_tokenizers.coding.foreign_settings import read_settings, refuse_untrusted_code
    from speech_tokenizers.modeling.checked_loading import ModelFilesError, quiet_report

    path = _file(checkpoint, "config.json", place)
    # Left to itself, transformers asks whether to run code, and takes the "y" of any input, such as a text to say.
    place["trust_remote_code"] = bool(place.get("trust_remote_code"))
    fields = read_settings(checkpoint, "config.json", place, trusted=place["trust_remote_code"])
    if fields is None:
        raise ModelFilesError(path, "is missing; name the folder or repository of a saved model.")
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if "auto_map" not in fields:
            raise ModelFilesError(
                path, f"`model_type` is {kind!r}, which neither this package nor the installed transformers has."
            )
        if not place["trust_remote_code"]:
            refuse_untrusted_code(checkpoint, fields, "config.json")
    try:
        with quiet_report():
            config = AutoConfig.from_pretrained(checkpoint, **place)
    except StrictDataclassError as error:
        raise ModelFilesError(path, " ".join(str(error.__cause__ or error).split())) from error
    except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ModelFilesError(path, f"describes no model ({' '.join(str(error).split())}).") from error
    dtype = getattr(config, "dtype", None)
    if dtype is not None and dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ModelFilesError(
            path, f"`dtype` is {dtype}; it must be float32, or another type that can be computed in."
        )
    return config


def load(name_or_path: str | Path | None = None, dtype: Any = None, **kwargs: Any) -> tuple[Any, Any]:
    """
    Load a codec, in evaluation mode, and its feature extractor.

    Args:
        name_or_path (`str` or `Path`, *optional*): Name, folder or Hub id of a checkpoint; see [`find_checkpoint`].
            The checkpoints of this installation need no network. A checkpoint that a training saved is a folder, too.
        dtype (`torch.dtype` or `str`, *optional*): Type that the model computes in. Defaults to the configuration's,
            as for `AutoModel.from_pretrained`: float32 for all released checkpoints, however their weights are stored.
            In half precision some codes are others, of which a warning tells.
        kwargs: Arguments of `AutoModel.from_pretrained`, such as `device_map`, `revision` or `trust_remote_code`.

    Returns:
        `tuple`: The model ([`RVQCodecModel`] or another of the common interface) and the feature extractor.

    Raises:
        ValueError: If there is no such checkpoint, a file of it is damaged or missing ([`ModelFilesError`]), `dtype`
            is none, or `device_map` would split the model.
        OSError: If it cannot be downloaded.
    """
    from transformers import AutoModel

    from speech_tokenizers.coding.foreign_settings import refuse_adapter
    from speech_tokenizers.modeling.checked_loading import check_tensors, quiet_report

    kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
    place = {name: kwargs[name] for name in PLACE if name in kwargs}
    checkpoint = find_checkpoint(name_or_path, **place)
    config = load_config(checkpoint, **place)
    if config.model_type == "speech_tokenizers_speech_lm":
        raise ValueError(f"{checkpoint} is a speech language model; load it by `load_speech_lm`.")
    _check_architecture(checkpoint, config, place)
    feature_extractor = _load_feature_extractor(checkpoint, config, place)
    dtype = kwargs.pop("torch_dtype", None) if dtype is None else dtype
    kwargs.pop("torch_dtype", None)
    refuse_adapter(checkpoint, place)
    try:
        with quiet_report():
            model, info = AutoModel.from_pretrained(
                checkpoint,
                dtype=_known_dtype(dtype),
                output_loading_info=True,
                **{"use_safetensors": True, **kwargs},
            )
    except OSError as error:
        if Path(checkpoint).is_dir():
            raise
        raise OSError(
            f"{checkpoint}: the weights, model.safetensors, are not there or cannot be fetched; pickled weights could"
            f" run code, and are never read. ({' '.join(str(error).split())})"
        ) from error
    if not hasattr(model, "lies_on_one_device"):
        # A codec of transformers; ours have looked at themselves.
        check_tensors(model, info, str(_file(checkpoint, "model.safetensors", place)), strict=False)
    return model.eval(), feature_extractor


def _check_architecture(checkpoint: str, config: Any, place: dict[str, Any]) -> None:
    from transformers import MODEL_MAPPING

    from speech_tokenizers.modeling.checked_loading import ModelFilesError

    made, saved = MODEL_MAPPING.get(type(config), None), config.architectures
    if made is not None and isinstance(saved, list) and saved and made.__name__ not in saved:
        raise ModelFilesError(
            _file(checkpoint, "config.json", place),
            f"describes a {saved[0]}, but its `model_type` {config.model_type!r} would make a {made.__name__} of it;"
            " only codecs and units can be loaded here.",
        )


def _load_feature_extractor(checkpoint: str, config: Any, place: dict[str, Any]) -> Any:
    from transformers import FEATURE_EXTRACTOR_MAPPING, AutoFeatureExtractor

    from speech_tokenizers.coding.foreign_settings import read_settings
    from speech_tokenizers.modeling.checked_loading import ModelFilesError
    from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor

    path = _file(checkpoint, "preprocessor_config.json", place)
    fields = read_settings(checkpoint, "preprocessor_config.json", place, trusted=place["trust_remote_code"])
    if fields is None:
        raise ValueError(
            f"{checkpoint} has no preprocessor_config.json: it is a model without a feature extractor, such as a"
            " vocoder alone. Load it by `AutoModel.from_pretrained`, or save its feature extractor beside it."
        )
    try:
        feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint, **place)
    except (TypeError, AttributeError, LookupError) as error:
        raise ModelFilesError(path, f"describes no feature extractor ({' '.join(str(error).split())}).") from error
    except ValueError as error:
        reason = str(error)
        if "Unrecognized feature extractor" in reason:  # followed by the names of all that are known
            reason = "`feature_extractor_type` is none that this package or transformers has."
        raise ModelFilesError(path, " ".join(reason.split())) from error
    wanted, found = getattr(config, "sampling_rate", None), getattr(feature_extractor, "sampling_rate", None)
    if wanted is not None and wanted != found:
        raise ModelFilesError(path, f"`sampling_rate` is {found!r}, but the model in config.json has {wanted} Hz.")
    own = FEATURE_EXTRACTOR_MAPPING.get(type(config), None)
    if own is None or not issubclass(own, RVQCodecFeatureExtractor):
        return feature_extractor
    # One of the same base: others scale the waveform, which changes the codes.
    if not isinstance(feature_extractor, RVQCodecFeatureExtractor):
        kind = type(feature_extractor).__name__
        raise ModelFilesError(path, f"describes a {kind}, but the model takes what a {own.__name__} makes.")
    return feature_extractor


def _known_dtype(dtype: Any) -> Any:
    import torch

    known = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype).removeprefix("torch."), None)
    if dtype is None or dtype == "auto":
        return "auto"
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise ValueError(f"`dtype` must be a floating-point type such as torch.float32, or 'auto', but got {dtype!r}.")
    return known


def _file(checkpoint: str, name: str, place: dict[str, Any]) -> Path | str:
    # For messages: the file of a folder, or the repository with the file's name.
    if Path(checkpoint).is_dir():
        return Path(checkpoint, place.get("subfolder") or "", name)
    return f"{checkpoint} ({name})"


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
