# SPDX-License-Identifier: Apache-2.0
"""
Stage 2 of arXiv 2410.17081: a language model learns to predict continuous tokens while their encoder learns along.

Target and input come from the same encoder there, so that latents which do not change at all are predicted perfectly.
By default no gradient enters the target and the frozen decoder still has to reconstruct the speech; the plain form is
an option: `joint.stop_gradient=false`, `joint.head=mse`, and all weights 0 but that of `prediction`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from speech_tokenizers.coding.loading import find_checkpoint, load_config
from speech_tokenizers.modeling.configuration_latent_lm import LatentLMConfig
from speech_tokenizers.modeling.model_names import find_model
from speech_tokenizers.modeling.modeling_cst import CSTModel, CSTOutput
from speech_tokenizers.modeling.modeling_latent_lm import LatentLanguageModel
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments
from speech_tokenizers.training.common.recipe_files import check_names


# The paper's learning rate of the encoder relative to the language model's, and its frozen decoder.
LEARNING_RATE_SCALES = {"tokenizer": 0.05, "tokenizer.decoder": 0.0}


@dataclass
class JointOutput(CSTOutput):
    """
    What a [`CSTOutput`] holds, and the language model's loss.

    Args:
        prediction_loss (`torch.FloatTensor` of shape `()`): Loss of each latent predicted from those before it.
    """

    prediction_loss: torch.FloatTensor | None = None


class JointModel(nn.Module):
    """
    A tokenizer and a language model on its latents, for [`CodecTrainer`].

    The latents are normalized by statistics that no longer change. So if gradients may enter the targets, a smaller
    scale is a way to a lower loss.

    Args:
        tokenizer ([`CSTModel`]): Trained tokenizer. Its statistics are frozen here.
        language_model ([`LatentLanguageModel`]): Language model that takes the tokenizer's latents as they are.
        stop_gradient (`bool`, *optional*, defaults to `True`): Whether gradients are kept out of the targets. `False`
            is the paper's form.

    Raises:
        ValueError: If the latents have another dimension.
    """

    def __init__(self, tokenizer: CSTModel, language_model: LatentLanguageModel, stop_gradient: bool = True):
        super().__init__()
        if language_model.config.latent_dim != tokenizer.config.hidden_size:
            raise ValueError(
                f"The language model is for latents of {language_model.config.latent_dim} dimensions, but the"
                f" tokenizer's have {tokenizer.config.hidden_size}."
            )
        self.tokenizer, self.language_model = tokenizer, language_model
        self.stop_gradient = stop_gradient
        tokenizer.statistics.frozen = True
        tokenizer.statistics.eval()

    # What a trainer of codecs asks a model for.

    @property
    def config(self) -> Any:
        """Configuration of the tokenizer."""
        return self.tokenizer.config

    @property
    def sampling_rate(self) -> int:
        """Samples per second, in Hz."""
        return self.tokenizer.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples per latent."""
        return self.tokenizer.hop_length

    @property
    def decoder(self) -> nn.Module:
        """Decoder of the tokenizer."""
        return self.tokenizer.decoder

    @property
    def bottleneck(self) -> nn.Module:
        """Bottleneck of the tokenizer."""
        return self.tokenizer.bottleneck

    @property
    def statistics(self) -> nn.Module:
        """Statistics of the tokenizer, which are frozen."""
        return self.tokenizer.statistics

    @property
    def ctc_projection(self) -> nn.Module | None:
        """Projection of the tokenizer's latents to CTC labels."""
        return self.tokenizer.ctc_projection

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the tokenizer's losses, and of the language model's."""
        return (*self.tokenizer.loss_names, "prediction")

    @property
    def trained_parts(self) -> dict[str, str]:
        """Parts of the tokenizer that its losses train; see [`SpeechCodec.trained_parts`]."""
        return self.tokenizer.trained_parts

    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        return_loss: bool = True,
    ) -> JointOutput:
        """As [`CSTModel.forward`], with `prediction_loss`. A crop says nothing about ends."""
        outputs = self.tokenizer(input_values, padding_mask, noise, return_loss, return_dict=True)
        mask = None if padding_mask is None else outputs.audio_codes_mask
        return JointOutput(**outputs, prediction_loss=self.prediction_loss(outputs.latents, mask))

    def prediction_loss(self, latents: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Loss of the head on latents (batch, num_frames, dim), padded on the right where the mask is 0."""
        targets = latents.detach() if self.stop_gradient else latents
        return self.language_model(latents, mask, targets=targets, return_dict=True).prediction_loss

    def save_pretrained(self, folder: str | Path) -> None:
        """The tokenizer in the folder itself, the language model and its head in `language_model`."""
        self.tokenizer.save_pretrained(folder)
        self.language_model.save_pretrained(Path(folder) / "language_model")


def build_joint(args: CodecTrainingArguments) -> JointModel:
    """
    The model that a recipe's `joint` describes. The learning rates of its parts are the paper's unless the recipe says
    otherwise.

    Args:
        args ([`CodecTrainingArguments`]): Recipe with `joint`, and with a trained tokenizer in `model.pretrained`.

    Raises:
        ValueError: If there is no trained tokenizer of continuous tokens, or it is to start warm.
    """
    joint = args.joint
    assert joint is not None
    if args.model.warm_start:
        raise ValueError(
            "`model.warm_start` and `joint` exclude each other; give the tokenizer as model.pretrained=PATH with"
            " model.preset=null and without `model.warm_start`, or start it warm in a training of its own before."
        )
    if args.model.pretrained is None:
        raise ValueError("Stage 2 needs a trained tokenizer; name it as model.pretrained=PATH and model.preset=null.")
    found = find_checkpoint(args.model.pretrained)
    config = load_config(found)
    if config.model_type != CSTModel.config_class.model_type:
        raise ValueError(f"`model.pretrained` is a `{config.model_type}`; stage 2 is for continuous tokens.")
    check_names(args.model.overrides, type(config).__dataclass_fields__, "The field", "model.overrides.")
    tokenizer = CSTModel.from_pretrained(found, dtype=torch.float32, **args.model.overrides)
    transformer = None
    text_config: Any = dict(joint.language_model) or None
    if joint.pretrained is not None:
        found = find_model(joint.pretrained, argument="joint.pretrained")
        transformer = AutoModel.from_pretrained(found, dtype=torch.float32)
        text_config = transformer.config
    language_model = LatentLanguageModel(
        LatentLMConfig(
            text_config=text_config,
            latent_dim=tokenizer.config.hidden_size,
            head=joint.head,
            head_options=dict(joint.head_options),
            input_noise_std=joint.input_noise_std,
        )
    )
    # Crops have no ends, and no gradient would come.
    language_model.stop_head.requires_grad_(False)
    if transformer is not None:
        language_model.language_model.load_state_dict(transformer.state_dict())
    for name, scale in LEARNING_RATE_SCALES.items():
        args.optimizer.learning_rate_scales.setdefault(name, scale)
    return JointModel(tokenizer, language_model, joint.stop_gradient)
