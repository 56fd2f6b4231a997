# SPDX-License-Identifier: Apache-2.0
"""Settings of what keeps latents from collapse: continuous ones, and those of codecs with codebooks."""

from dataclasses import dataclass, field
from typing import Any

from speech_tokenizers.training.common.recipe_files import check_not_negative, check_positive


@dataclass
class LatentArguments:
    """
    Limits below which the latents of a [`CSTModel`] count as collapsed, which stops the training.

    Args:
        min_rank (`float`): Least effective rank; see [`latent_health`].
        min_active_share (`float`): Least share of active dimensions.
        min_variance_share (`float`): Least variance, relative to that of the statistics that the latents are
            normalized by. It is judged only where these are frozen, as in stage 2.
        grace_steps (`int`): Number of first batches that are not judged.
        window_steps (`int`): Number of batches whose means are judged.
    """

    min_rank: float = 2.0
    min_active_share: float = 0.1
    min_variance_share: float = 0.1
    grace_steps: int = 500
    window_steps: int = 50

    def __post_init__(self):
        if not 0 <= self.min_active_share <= 1:
            raise ValueError(f"`min_active_share` must lie between 0 and 1, but got {self.min_active_share}.")
        check_not_negative(self, "min_rank", "min_variance_share", prefix="latents.")
        if self.window_steps < 1 or self.grace_steps < 0:
            raise ValueError("`window_steps` must be at least 1, and `grace_steps` not negative.")


@dataclass
class LatentHealthArguments:
    """
    Settings that keep the latent directions of a codec alive, and that say when an evaluation warns of dead ones.

    Codebooks fitted to latents of few directions can be used evenly and yet carry little information. Directions below
    the quantizer's noise are noise to the decoder. It learns to ignore them, so that no gradient brings them back. The
    decorrelation of latents is a loss; see [`decorrelation_loss`].

    At a step at which a revival or a start changes latents or codebooks, the weight average starts anew, and so do
    Adam's moments of the weights that changed.

    Args:
        min_live_share (`float`): Share of live directions below which an evaluation warns. A direction is live if its
            variance exceeds 1e-3 of the largest. A share of 0 never warns.
        quantizer_start_step (`int`): Step until which the decoder hears the latents unquantized, also in evaluations.
            Then the codebooks start. In a run with `max_minutes` they start after a tenth of that time, if their step
            has not come before. Not together with distillation. Codebooks of a trained codec are kept, and act from
            the first step on.
        kmeans_frames (`int`, *optional*): Number of frames of the coming crops that the codebooks start from, by
            k-means. Where `quantizer_start_step` or `revival_steps` fit the codebooks, the default is eight frames a
            codebook entry. Otherwise the codebooks start from the frames of the first batch.
        revival_steps (`list` of `int`): Steps after which dead directions are filled with other information of the
            encoder, and the codebooks are fitted anew; see [`revive_latents`]. A 0 stands for a revival before the
            first step. Where all directions are live, nothing changes.
        live_threshold (`float`): Share of the largest variance above which a direction is live at a revival.
        revival_seconds (`float`): Seconds of audio of the coming crops that a revival looks at.
    """

    min_live_share: float = 0.5
    quantizer_start_step: int = 0
    kmeans_frames: int | None = None
    revival_steps: list[int] = field(default_factory=list)
    live_threshold: float = 1e-3
    revival_seconds: float = 160.0

    def __post_init__(self):
        if not 0 <= self.min_live_share <= 1:
            raise ValueError(f"`min_live_share` must lie between 0 and 1, but got {self.min_live_share}.")
        if not 0 < self.live_threshold < 1:
            raise ValueError(f"`live_threshold` must lie strictly between 0 and 1, but got {self.live_threshold}.")
        if self.quantizer_start_step < 0 or any(step < 0 for step in self.revival_steps):
            raise ValueError("`quantizer_start_step` and `revival_steps` must not be negative.")
        check_positive(self, "revival_seconds", "kmeans_frames", prefix="latent_health.")


@dataclass
class RecognitionArguments:
    """
    Texts that a [`CSTModel`] learns from by CTC.

    A crop is learnt from where word times tell which words lie in it, or where it holds the whole recording.

    Args:
        head (`bool`): Whether to read the latents with the model's own small head, which learns along: the loss
            `latent_ctc`.
        recognizer (`str`, *optional*): Folder or Hub id of a frozen CTC model that hears the reconstruction: the loss
            `reconstruction_ctc` (arXiv 2410.17081).
        unit (`str`): Unit that the head writes: `"character"` or `"phone"`. A recogniser writes the unit that it has
            learnt.
        column (`str`, *optional*): Column of the text, or of the phones (parted by spaces, words by `|`). Defaults to
            `"text"` or `"phones"`.
        word_times (`str`, *optional*): File of JSON lines with `file_name` and `words`, as `speech-tokenizers align`
            writes them. Their words take the place of the column, where `unit` is `"character"`.
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
    """
    A language model that learns to predict the latents of a trained [`CSTModel`] while its encoder learns along (stage
    2 of arXiv 2410.17081): the loss `prediction`.

    Args:
        head (`str`): Kind of head: `"flow"`, `"energy"`, `"gaussian"` or `"mse"`, which is the paper's; see
            [`build_head`].
        head_options (`dict`): Arguments of the head's class.
        language_model (`dict`): Configuration of the transformer with its `model_type`. Defaults to
            [`LatentLMConfig`]'s.
        pretrained (`str`, *optional*): Folder or Hub id of a causal language model to begin with, in place of
            `language_model`.
        input_noise_std (`float`): Standard deviation of the noise that is added to the latents which the language
            model reads.
        stop_gradient (`bool`): Whether gradients are kept out of the targets. Without this and without the
            reconstruction losses, as in the paper, constant latents are the best ones.
    """

    head: str = "flow"
    head_options: dict[str, Any] = field(default_factory=dict)
    language_model: dict[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    input_noise_std: float = 0.0
    stop_gradient: bool = True

    def __post_init__(self):
        check_not_negative(self, "input_noise_std", prefix="joint.")
        if self.pretrained is not None and self.language_model:
            raise ValueError("`joint.pretrained` and `joint.language_model` exclude each other; give one of them.")
