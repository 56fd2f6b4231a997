# SPDX-License-Identifier: Apache-2.0
"""The settings of a fine-tuning by CTC, and which of them decide what is learnt."""

import math
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from speech_tokenizers.training.common.recipe_files import check_not_negative, check_positive, check_seed


# Settings of `TrainingArguments` that decide what is learnt.
_DECIDING = (
    *("max_steps", "learning_rate", "warmup_steps", "lr_scheduler_type", "gradient_accumulation_steps"),
    "weight_decay",
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim", "optim_args", "seed", "data_seed"),
    *("fp16", "bf16", "label_smoothing_factor", "neftune_noise_alpha", "full_determinism"),
)


@dataclass
class CTCFinetuningArguments(TrainingArguments):
    """
    `TrainingArguments` of a fine-tuning, with the settings of fairseq's recipes for HuBERT where none are given.

    Numbers of steps below 1 are shares of `max_steps`, as `warmup_steps` is.

    Args:
        batch_seconds (`float`): Audio of a micro-batch, with padding, of one process; takes the place of
            `per_device_train_batch_size`.
        freeze_encoder_steps (`float`): Steps in which the head alone learns.
        hold_steps (`float`): Steps at the peak of the learning rate, after `warmup_steps`; then it decays
            exponentially until the last step.
        final_learning_rate_ratio (`float`): Of the last step, relative to the peak.
        mask_time_prob (`float`), mask_time_length (`int`): Spans of frames are masked; see [`span_mask`].
        mask_feature_prob (`float`), mask_feature_length (`int`): Spans of feature channels are set to 0.
        layerdrop (`float`): Share of the transformer layers that a step skips.
        cache_dir (`str`, *optional*): Where decoded audio is kept. Defaults to `audio_cache` in `output_dir`.
    """

    max_steps: int = 25_000
    learning_rate: float = 2e-5
    adam_beta2: float = 0.98
    warmup_steps: float = 0.1
    per_device_eval_batch_size: int = 4
    remove_unused_columns: bool | None = False
    batch_seconds: float = 200.0
    freeze_encoder_steps: float = 0.4
    hold_steps: float = 0.4
    final_learning_rate_ratio: float = 0.05
    mask_time_prob: float = 0.75
    mask_time_length: int = 10
    mask_feature_prob: float = 0.5
    mask_feature_length: int = 64
    layerdrop: float = 0.1
    cache_dir: str | None = None

    def __post_init__(self):
        for name in vars(CTCFinetuningArguments)["__annotations__"]:
            if isinstance(value := getattr(self, name), float) and not math.isfinite(value):
                raise ValueError(f"`{name}` must be a finite number, but got {value}.")
        if self.eval_steps is not None and not 0 < self.eval_steps < math.inf:
            raise ValueError(f"`eval_steps` must be positive, but got {self.eval_steps}.")
        if self.push_to_hub or self.hub_token is not None:
            # transformers would push the whole folder, with the decoded recordings; and a token would be written down.
            raise ValueError(
                "`push_to_hub` and `hub_token`: a fine-tuning by CTC pushes nothing, since its folder holds the"
                " recordings, too; leave them out, and push the model and its processor by their own `push_to_hub`."
            )
        check_not_negative(self, "warmup_steps", "hold_steps", "freeze_encoder_steps", "weight_decay", "max_grad_norm")
        super().__post_init__()
        self.label_names = ["labels"]
        if self.max_steps < 1:
            raise ValueError(f"`max_steps` must be at least 1, but got {self.max_steps}.")
        if self.batch_seconds <= 0:
            raise ValueError(f"`batch_seconds` must be positive, but got {self.batch_seconds}.")
        check_seed(self.seed)
        check_positive(self, "gradient_accumulation_steps", "learning_rate", "final_learning_rate_ratio", "save_steps")
        check_positive(self, "mask_time_length", "mask_feature_length")
        for name in ("mask_time_prob", "mask_feature_prob", "layerdrop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie between 0 and 1, but got {getattr(self, name)}.")
        if self.get_warmup_steps(self.max_steps) + self.get_hold_steps() > self.max_steps:
            raise ValueError(
                f"`warmup_steps` ({self.warmup_steps}) and `hold_steps` ({self.hold_steps}) must fit into `max_steps`"
                f" ({self.max_steps})."
            )

    def get_hold_steps(self) -> int:
        """Steps at the peak of the learning rate."""
        return self._in_steps(self.hold_steps)

    def get_freeze_encoder_steps(self) -> int:
        """Steps in which the head alone learns."""
        return self._in_steps(self.freeze_encoder_steps)

    def _in_steps(self, value: float) -> int:
        return int(value if value >= 1 else value * self.max_steps)


def deciding_settings(args: CTCFinetuningArguments) -> dict[str, Any]:
    """The settings that decide what is learnt, as plain values."""
    own = [name for name in vars(CTCFinetuningArguments)["__annotations__"] if name != "cache_dir"]
    values, incidental = args.to_dict(), ("per_device_eval_batch_size", "remove_unused_columns")
    return {name: values[name] for name in dict.fromkeys([*_DECIDING, *own]) if name not in incidental}


def check_masks(args: CTCFinetuningArguments, config: Any) -> None:
    """
    Raises:
        ValueError: If the spans of channels that are to be masked are longer than an encoder has channels.
    """
    if args.mask_feature_prob > 0 and args.mask_feature_length > config.hidden_size:
        raise ValueError(
            f"`mask_feature_length` (--mask-feature-length) is {args.mask_feature_length}, but the encoder has"
            f" {config.hidden_size} channels; give a smaller one, or mask none (--mask-feature-prob 0)."
        )
