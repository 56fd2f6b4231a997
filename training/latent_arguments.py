# SPDX-License-Identifier: Apache-2.0
"""Settings of what only a model of continuous latents is trained for."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LatentArguments:
    r"""
    When the latents of a [`CSTModel`] count as collapsed, which stops the training.

    Args:
        min_rank (`float`): Least effective rank; see [`latent_health`].
        min_active_share (`float`): Least share of active dimensions.
        min_variance_share (`float`): Least variance, relative to that of the statistics that the latents are
            normalized by. Judged where these are frozen, as in stage 2.
        grace_steps (`int`): Batches that are not judged.
        window_steps (`int`): Batches whose means are judged.
    """

    min_rank: float = 2.0
    min_active_share: float = 0.1
    min_variance_share: float = 0.1
    grace_steps: int = 500
    window_steps: int = 50

    def __post_init__(self):
        if not 0 <= self.min_active_share <= 1:
            raise ValueError(f"`min_active_share` must lie between 0 and 1, but got {self.min_active_share}.")
        if self.window_steps < 1 or self.grace_steps < 0:
            raise ValueError("`window_steps` must be at least 1, and `grace_steps` not negative.")


@dataclass
class RecognitionArguments:
    r"""
    What a [`CSTModel`] learns from the texts of its recordings, by CTC.

    A crop is learnt from where word times tell which words lie in it, or where it holds the whole recording.

    Args:
        head (`bool`): Read the latents with the model's own small head, which learns along: the loss `latent_ctc`.
        recognizer (`str`, *optional*): Folder or Hub id of a frozen CTC model that hears the reconstruction: the loss
            `reconstruction_ctc` (arXiv 2410.17081).
        unit (`str`): `"character"` or `"phone"`; what the head writes. A recogniser writes what it has learnt to.
        column (`str`, *optional*): Holds the text, or the phones (parted by spaces, words by `|`). Defaults to
            `"text"` or `"phones"`.
        word_times (`str`, *optional*): JSON lines with `file_name` and `words`, as `speech-tokenizers align` writes
            them. Their words take the place of the column, where `unit` is `"character"`.
    """

    head: bool = True
    recognizer: str | None = None
    unit: str = "character"
    column: str | None = None
    word_times: str | None = None

    def __post_init__(self):
        if self.unit not in ("character", "phone"):
            raise ValueError(f"`unit` must be 'character' or 'phone', but got {self.unit!r}.")
        if not self.head and self.recognizer is None:
            raise ValueError("`recognition` needs `head=true`, a `recognizer`, or both.")
        if self.unit == "phone" and self.word_times is not None:
            raise ValueError("`word_times` hold words, which are written in characters; set `unit` to 'character'.")


@dataclass
class JointArguments:
    r"""
    A language model that learns to predict the latents of a trained [`CSTModel`] while its encoder learns along (stage
    2 of arXiv 2410.17081): the loss `prediction`.

    Args:
        head (`str`): `"flow"`, `"energy"`, `"gaussian"` or `"mse"`, which is the paper's; see [`build_head`].
        head_options (`dict`): Of the head's class.
        language_model (`dict`): Configuration of the transformer with its `model_type`. Defaults to
            [`LatentLMConfig`]'s.
        pretrained (`str`, *optional*): Folder or Hub id of a causal language model to begin with, instead.
        input_noise_std (`float`): Of noise on the latents that it reads.
        stop_gradient (`bool`): No gradient enters the targets. Without this and without the reconstruction losses, as
            in the paper, constant latents are the best ones.
    """

    head: str = "flow"
    head_options: dict[str, Any] = field(default_factory=dict)
    language_model: dict[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    input_noise_std: float = 0.0
    stop_gradient: bool = True

    def __post_init__(self):
        if self.pretrained is not None and self.language_model:
            raise ValueError("`joint.pretrained` and `joint.language_model` exclude each other; give one of them.")
