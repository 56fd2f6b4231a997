# SPDX-License-Identifier: Apache-2.0
"""Model, objectives and conditions that a recipe describes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import FEATURE_EXTRACTOR_MAPPING, AutoModel, SequenceFeatureExtractor

from speech_tokenizers.coding.loading import find_checkpoint, load, load_config
from speech_tokenizers.modeling.checked_loading import ModelFilesError
from speech_tokenizers.modeling.configuration_cst import CST_PRESETS
from speech_tokenizers.modeling.configuration_dm_codec import DM_CODEC_PRESETS, DMCodecConfig
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.configuration_unit_vocoder import UNIT_VOCODER_PRESETS, UnitVocoderConfig
from speech_tokenizers.modeling.modeling_cst import CSTModel
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments
from speech_tokenizers.training.codec.decorrelation import Decorrelation
from speech_tokenizers.training.codec.distillation import DISTILLATION_LOSS_NAMES, Distillation
from speech_tokenizers.training.codec.frozen_encoder import SpeechFeatureObjective
from speech_tokenizers.training.codec.joint_model import JointModel, build_joint
from speech_tokenizers.training.codec.latent_objectives import cst_objectives, new_cst, trains_cst
from speech_tokenizers.training.codec.objectives import CodecObjective, Conditions
from speech_tokenizers.training.codec.reconstruction_losses import RECONSTRUCTION_LOSSES
from speech_tokenizers.training.codec.vocoder_conditions import UnitConditions, new_vocoder
from speech_tokenizers.training.codec.warm_start import warm_start
from speech_tokenizers.training.common.recipe_files import check_names


def build_model(
    args: CodecTrainingArguments, report: Callable[[dict[str, str]], None] | None = None
) -> RVQCodecModel | UnitVocoderModel | CSTModel | JointModel:
    """
    The codec or vocoder that a recipe names, new or trained; or a tokenizer with a language model.

    Args:
        args ([`CodecTrainingArguments`]): Recipe of the training.
        report (callable, *optional*): Function that is given the origin of each part of a model that started warm; see
            [`warm_start`].
    """
    if args.joint is not None:
        return build_joint(args)
    if args.model.preset is not None:
        model = _new_model(args)
    else:
        path = find_checkpoint(str(args.model.pretrained))
        config = load_config(path)
        check_names(args.model.overrides, type(config).__dataclass_fields__, "The field", "model.overrides.")
        if not args.model.warm_start:
            return _load_trained(args, isinstance(config, UnitVocoderConfig))
        # Made anew, so that fields are checked and the weights are in float32, whatever the file has.
        given = {name: value for name, value in config.to_dict().items() if name in config.__dataclass_fields__}
        given = {name: value for name, value in given.items() if name not in ("dtype", "architectures")}
        model = AutoModel.from_config(type(config)(**{**given, **args.model.overrides}))
    if args.model.warm_start:
        origins = warm_start(str(args.model.pretrained), model)
        if report is not None:
            report(origins)
    return model


def _load_trained(args: CodecTrainingArguments, is_vocoder: bool) -> RVQCodecModel | UnitVocoderModel | CSTModel:
    pretrained, overrides = str(args.model.pretrained), args.model.overrides
    # Trained in float32, whatever the configuration says of inference.
    try:
        if is_vocoder:
            return UnitVocoderModel.from_pretrained(find_checkpoint(pretrained), dtype=torch.float32, **overrides)
        return load(pretrained, torch.float32, **overrides)[0]
    except ModelFilesError as error:
        if "has shape" not in str(error) or not overrides:
            raise
        raise ValueError(
            f"`model.overrides` ({', '.join(overrides)}) changes the sizes of networks of {pretrained!r}; give"
            " model.warm_start=true, which keeps what still fits."
        ) from error


def _new_model(args: CodecTrainingArguments) -> RVQCodecModel | UnitVocoderModel | CSTModel:
    preset = str(args.model.preset)
    if preset in UNIT_VOCODER_PRESETS:
        return new_vocoder(args)
    if preset in CST_PRESETS:
        return new_cst(args)
    if preset in DM_CODEC_PRESETS:
        return DMCodecModel(DMCodecConfig.from_preset(preset, **args.model.overrides))
    return RVQCodecModel(RVQCodecConfig.from_preset(preset, **args.model.overrides))


def keep_origins(args: CodecTrainingArguments, origins: dict[str, str]) -> None:
    """Say what a warm start took from where, and keep it in `warm_start.json`."""
    tqdm.write("\n".join(f"{part}: {origin}" for part, origin in origins.items()))
    path = Path(args.output_dir) / "warm_start.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pretrained": args.model.pretrained, "parts": origins}, indent=2), encoding="utf-8")


def build_objectives(args: CodecTrainingArguments) -> list[CodecObjective]:
    """Objectives that a recipe trains for besides reconstruction."""
    objectives: list[CodecObjective] = list(cst_objectives(args)) if trains_cst(args) else []
    if args.distillation.speech_teacher is not None or args.distillation.language_teacher is not None:
        objectives.append(Distillation(args.distillation))
    if "decorrelation" in args.loss_weights:
        objectives.append(Decorrelation())
    if args.speech_features is not None:
        objectives.append(SpeechFeatureObjective(args.speech_features))
    return objectives


def build_conditions(args: CodecTrainingArguments) -> Conditions | None:
    """Conditions that a recipe gives the model in place of the waveform."""
    return None if args.units is None else UnitConditions(args.units)


def default_feature_extractor(model: nn.Module) -> SequenceFeatureExtractor | None:
    """The feature extractor of a model's family, if there is one."""
    if type(model.config) not in FEATURE_EXTRACTOR_MAPPING:
        return None
    kind = FEATURE_EXTRACTOR_MAPPING[type(model.config)]
    return kind(sampling_rate=model.sampling_rate, hop_length=model.hop_length)


def untrained_parts(model: nn.Module, loss_names: Sequence[str]) -> set[str]:
    """Submodules of a model that none of the losses trains; see [`SpeechCodec.trained_parts`]."""
    parts: dict[str, str] = model.trained_parts  # type: ignore[assignment]
    return {*parts.values()} - {part for loss, part in parts.items() if loss in loss_names}


def check_crops(args: CodecTrainingArguments, model: Any) -> None:
    """
    Raises:
        ValueError: If a crop has less than a frame of the model.
    """
    num_samples = round(args.data.segment_seconds * model.sampling_rate)
    if num_samples < model.hop_length:
        raise ValueError(
            f"`data.segment_seconds` is {args.data.segment_seconds}, which are {num_samples} samples, but a frame of"
            f" the codec has {model.hop_length}; make crops longer."
        )


def check_loss_weights(
    args: CodecTrainingArguments, loss_names: Sequence[str], adversarial_loss_names: Sequence[str]
) -> dict[str, float]:
    """
    The weights of the losses by name.

    Args:
        args ([`CodecTrainingArguments`]): Recipe of the training.
        loss_names (sequence of `str`): Names of all losses of the training.
        adversarial_loss_names (sequence of `str`): Names of the losses that need no weight where there are no
            discriminators.

    Raises:
        ValueError: If a weight is missing or of an unknown loss, or those of all losses are 0.
    """
    weights = args.loss_weights
    # A recipe keeps its weights when its teachers, like its discriminators, are switched off.
    known = dict.fromkeys((*RECONSTRUCTION_LOSSES, *loss_names, *DISTILLATION_LOSS_NAMES))
    if "speech_features" in weights and args.speech_features is None:
        raise ValueError("`loss_weights.speech_features` needs a speech encoder; give speech_features.model.")
    check_names(weights, known, "The loss in `loss_weights`")
    needed = [
        name
        for name in dict.fromkeys(("mel", "waveform", *loss_names))
        if args.adversarial.discriminators or name not in adversarial_loss_names
    ]
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(f"`loss_weights` lacks {', '.join(missing)}; give each loss a weight, 0 to switch it off.")
    if not any(weights[name] for name in needed):
        raise ValueError(
            f"`loss_weights` are all 0 ({', '.join(needed)}), so that nothing is learnt; give one of them a weight."
        )
    return dict(weights)
