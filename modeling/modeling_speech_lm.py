# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Any causal language model of transformers, with the codes of a codec as further words of its vocabulary."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .checked_loading import CheckedLoading
from .codec_interface import SpeechCodec
from .configuration_speech_lm import SpeechLMConfig
from .continuous_heads import init_head_weights
from .latent_bottleneck import LatentStatistics
from .speech_lm_answers import SpeechAnswers
from .speech_lm_checks import check_codec, check_kept, check_labels, given_frames
from .speech_lm_frames import CodeFrames, LatentFrames, ProjectedFrames
from .speech_lm_generation import SpeechGeneration
from .speech_lm_layouts import next_targets
from .speech_lm_pieces import PieceContext, PieceReading, check_all_ids, check_piece_context
from .speech_lm_vocabulary import AudioVocabulary
from .speech_lm_writers import generate_frames
from .transformers_codecs import as_speech_codec


logger = logging.get_logger(__name__)
_IGNORED = -100


@dataclass
class SpeechLMOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): Weighted sum of the losses of all targets over their number.
        text_loss (`torch.FloatTensor` of shape `()`): Mean cross entropy of targets that are no audio, in nats.
        audio_loss (`torch.FloatTensor` of shape `()`): Mean cross entropy of targets that are codes, in nats; in the
            continuous layout the mean loss of the head over frames.
        codebook_losses (`torch.FloatTensor` of shape `(num_codebooks,)`): The same for each codebook; 0 without any.
        stop_loss (`torch.FloatTensor` of shape `()`): In the continuous layout the mean binary cross entropy of ends.
        target_losses (`torch.FloatTensor`): Of the shape of `labels`: cross entropy of the target that stands at each
            position; 0 where there is none. Without gradients. Of the continuous layout, row 0 alone.
        logits (`torch.FloatTensor` of shape `(batch, num_positions, vocab_size)`): Scores of the next id.
        audio_logits (`torch.FloatTensor` of shape `(batch, num_positions, num_codebooks, codebook_size + 2)`): In the
            delay layout, without labels: scores of the next column.
        frame_states (`torch.FloatTensor` of shape `(batch, num_positions, state_size)`): In the continuous layout: the
            states that the heads read.
        past_key_values (`Cache`): What the model remembers of the positions.
        hidden_states, attentions (`tuple` of `torch.FloatTensor`): See the language model.
    """

    loss: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    audio_loss: torch.FloatTensor | None = None
    codebook_losses: torch.FloatTensor | None = None
    stop_loss: torch.FloatTensor | None = None
    target_losses: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    audio_logits: torch.FloatTensor | None = None
    frame_states: torch.FloatTensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

    @property
    def last_hidden_state(self) -> torch.FloatTensor:
        """Not there: what some trainers multiply by the output table themselves, in place of using the logits."""
        raise AttributeError(
            "A speech language model gives no `last_hidden_state`; ask for `output_hidden_states`. A trainer that"
            " multiplies it by the output table needs a flat model with `piece_context=0`; `Trainer` takes any."
        )


class AttachedCodec:
    """
    A codec that belongs to a model but is not saved with it.

    Neither PyTorch nor a copy of the owner looks into it.
    """

    def __init__(self, held: Any):
        self.held = held

    def __deepcopy__(self, memo: dict) -> "AttachedCodec":
        return self

    def __reduce__(self) -> tuple:
        return (AttachedCodec, (None,))


class SpeechLMForConditionalGeneration(
    AudioVocabulary, SpeechGeneration, SpeechAnswers, PieceReading, CheckedLoading, PreTrainedModel, GenerationMixin
):
    """
    A causal language model that reads and writes text and audio in one sequence.

    In the flat layout codes are ids. In the delay and the continuous layout the ids hold `<|audio|>` where a frame
    stands, and the frame itself comes beside the ids, on the same time axis.

    Labels stand at their own positions: `labels[t]` is the target `input_ids[t]` or -100. The model alone shifts them,
    by [`next_targets`], so that the state at `t - 1` predicts the target at `t`.

    Args:
        config ([`SpeechLMConfig`]): The language model, and where codes lie in its vocabulary.
    """

    config_class = SpeechLMConfig
    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    output_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    # As `Trainer` counts the targets of a loss that shifts: without position 0.
    loss_type = "ForCausalLM"
    accepts_loss_kwargs = True
    _keep_in_fp32_modules_strict = ["statistics"]
    # The wrapper has no attention of its own; the language model inside refuses what it has not.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    # None of its own; `peft` looks for those of the language model only where a mapping says so.
    _tied_weights_keys: dict[str, str] = {}

    def __init__(self, config: SpeechLMConfig):
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.frames: CodeFrames | LatentFrames | ProjectedFrames | None = None
        if config.layout != "flat":
            sizes = (
                self.get_input_embeddings().weight.shape[1],
                self.language_model.get_output_embeddings().weight.shape[1],
            )
            if config.layout == "delay":
                self.frames = CodeFrames(config.num_codebooks, config.codebook_size, *sizes)
            elif config.audio_in == "embeds":
                self.frames = ProjectedFrames(config, sizes[0])
            else:
                self.frames = LatentFrames(config, *sizes)
        self.pieces: PieceContext | None = None
        if config.piece_context:
            size = self.get_input_embeddings().weight.shape[1]
            self.pieces = PieceContext(len(config.piece_labels), config.piece_context, size)
        self._codec: AttachedCodec | None = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LatentStatistics):
            module.reset_parameters()
        elif isinstance(module, ProjectedFrames):
            module.size.fill_(1.0)
        elif not init_head_weights(module):
            super()._init_weights(module)

    def attach_codec(self, codec: Any) -> None:
        """
        Give the model the codec whose codes it reads and writes.

        The codec is not part of the model: it is not saved with it, trained, or moved to another device.

        Args:
            codec ([`SpeechCodec`] or codec of transformers): The codec.

        Raises:
            ValueError: If it is another codec than that of the configuration.
        """
        codec = as_speech_codec(codec)
        check_codec(codec, self.config)
        if isinstance(codec, nn.Module):
            codec.eval().requires_grad_(False)
        self._codec = AttachedCodec(codec)

    @property
    def codec(self) -> SpeechCodec:
        """The codec. Raises `ValueError` if none is attached."""
        if self._codec is None or self._codec.held is None:
            raise ValueError(
                f"No codec is attached. Load {self.config.codec_name or 'the one that wrote the codes'} and pass it to"
                " `attach_codec`."
            )
        return self._codec.held

    def get_input_embeddings(self) -> nn.Module:
        """Table of the ids that are read."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of the ids that are read."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Table of the ids that are written."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the table of the ids that are written."""
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        """The language model without its output table."""
        return self.language_model.get_decoder()

    @property
    def base_model(self) -> nn.Module:
        """
        What a trainer runs that multiplies by the output table itself: the language model without this table. Where
        the model reads more than ids, it is the model, which gives no such states, so that the trainer stops.
        """
        return self.get_decoder() if self.frames is None and self.pieces is None else self

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.FloatTensor | None = None,
        audio_codes: torch.LongTensor | None = None,
        audio_latents: torch.FloatTensor | None = None,
        audio_mask: torch.Tensor | None = None,
        piece_context: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> SpeechLMOutput:
        """
        Scores of the next id at each position and, with `labels`, the losses.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, num_positions)`, *optional*): Text and codes as ids. In the
                delay and the continuous layout `<|audio|>` where a frame stands.
            attention_mask (`torch.Tensor` of shape `(batch, num_positions)`, *optional*): 1 for real positions.
            position_ids, past_key_values, use_cache, logits_to_keep, kwargs: As the language model takes them. With
                labels, `logits_to_keep` may be a tensor of the positions before targets, where these are few: `logits`
                have these positions alone, and the losses are the same. It is for text; frames need all states.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, num_positions, input_size)`, *optional*): What is read
                in place of ids and frames, as [`~SpeechLMForConditionalGeneration.embed_inputs`] gives it.
            audio_codes (`torch.LongTensor` of shape `(batch, num_codebooks, num_positions)`, *optional*): In the delay
                layout the columns, as [`to_delay_grid`] makes them; -1 where there is none.
            audio_latents (`torch.FloatTensor` of shape `(batch, num_positions, latent_dim)`, *optional*): In the
                continuous layout the latents; what stands where `audio_mask` is 0 is not read. With
                `audio_in="embeds"` of shape `(batch, num_positions, projector_stack * latent_dim)`.
            audio_mask (`torch.Tensor` of shape `(batch, num_positions)`, *optional*): 1 where `audio_latents` has a
                frame. Defaults to where the ids say so.
            piece_context (`torch.LongTensor` of shape `(batch, num_positions, 2 + config.piece_context)`, *optional*):
                What [`~SpeechLMForConditionalGeneration.context_of_pieces`] tells of these positions. Defaults to what
                `input_ids` tell, which are then all ids.
            labels (`torch.LongTensor` of shape `(batch, num_positions)`, *optional*): Targets at their own positions:
                `input_ids` where the model is to learn, -100 elsewhere. A target at position 0 is never learnt, since
                nothing comes before it. In the delay layout `(batch, 1 + num_codebooks, num_positions)`: row 0 of the
                ids, the others of the columns. In the continuous layout `(batch, 2, num_positions)`: row 1 is 0 for a
                frame to learn, 1 for an end, and -100 elsewhere; but with `audio_in="embeds"` as in the flat layout.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): Number that the sum of the losses is divided by,
                where a step has several micro-batches. Defaults to the number of targets.
            generator (`torch.Generator`, *optional*): Generator of the noise of the continuous layout's losses. In
                evaluation mode it defaults to one of a fixed seed.

        Raises:
            ValueError: If the labels have another shape than the ids, or are ids that stand somewhere else, as those
                that were shifted by hand are; or if frames are given that the layout does not have, or elsewhere than
                the ids say; or if ids are not all and `piece_context` is not given, in a model that reads it.
        """
        if labels is not None:
            check_labels(self.config, input_ids, audio_codes, audio_mask, labels)
        if generator is None and not self.training and labels is not None:
            generator = torch.Generator(self.device).manual_seed(0)
        if position_ids is None and past_key_values is None:
            position_ids = self._positions(attention_mask)
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if inputs_embeds is None and (self.frames is not None or self.pieces is not None):
            if self.pieces is not None and piece_context is None:
                check_all_ids(past_key_values, position_ids)
            frames = (audio_codes, audio_latents, audio_mask)
            inputs_embeds = self.embed_inputs(input_ids, *frames, generator, piece_context)
        elif self.frames is None:
            given_frames(self.config, input_ids, audio_codes, audio_latents, audio_mask)
            check_piece_context(piece_context, input_ids, self.config.piece_context)
        is_chosen = isinstance(logits_to_keep, torch.Tensor)
        if labels is not None and is_chosen:
            check_kept(self.config, labels, logits_to_keep)
        with self._states_before_words() as states:
            outputs = self.language_model(
                input_ids=input_ids if inputs_embeds is None else None,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep if labels is None or is_chosen else 0,
                return_dict=True,
                **kwargs,
            )
        losses = {}
        if labels is not None:
            kept = logits_to_keep if is_chosen else None
            losses = self._losses(outputs.logits, labels, num_items_in_batch, states(), audio_latents, generator, kept)
        elif isinstance(self.frames, CodeFrames):
            losses["audio_logits"] = self.frames.logits(states())
        return SpeechLMOutput(
            **losses,
            logits=outputs.logits,
            frame_states=states() if isinstance(self.frames, LatentFrames) else None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def embed_inputs(
        self,
        input_ids: torch.LongTensor,
        audio_codes: torch.LongTensor | None = None,
        audio_latents: torch.FloatTensor | None = None,
        audio_mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        piece_context: torch.LongTensor | None = None,
    ) -> torch.FloatTensor:
        """
        What the language model reads, `(batch, num_positions, input_size)`: words, and frames in their places. With
        `config.piece_context`, `input_ids` are all ids, or `piece_context` is given.

        Args:
            input_ids, audio_codes, audio_latents, audio_mask, generator, piece_context: See
                [`~SpeechLMForConditionalGeneration.forward`].

        Raises:
            ValueError: As there.
        """
        read = self.get_input_embeddings()(input_ids)
        frames = given_frames(self.config, input_ids, audio_codes, audio_latents, audio_mask)
        if frames is not None:
            given, is_frame = frames
            if not isinstance(self.frames, CodeFrames):
                assert self.frames is not None
                embedded = self.frames.embed(given.masked_fill(~is_frame[..., None], 0.0), generator)
            else:
                embedded = self.frames.embed(given)
            read = torch.where(is_frame[..., None], embedded.to(read.dtype), read)
        check_piece_context(piece_context, input_ids, self.config.piece_context)
        if self.pieces is not None:
            told = self.context_of_pieces(input_ids) if piece_context is None else piece_context
            read = read + self.pieces(told).to(read.dtype)
        return read

    @contextmanager
    def _states_before_words(self) -> Iterator[Callable[[], torch.Tensor]]:
        # What the output table reads is what the outputs of frames read, whatever the language model does before.
        # Other threads may run the same model meanwhile.
        found: list[torch.Tensor] = []
        thread = threading.get_ident()

        def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if threading.get_ident() == thread:
                found.append(inputs[0])

        if not isinstance(self.frames, CodeFrames | LatentFrames):
            yield lambda: torch.empty(0)
            return
        table: Any = self.get_output_embeddings()
        handle = table.register_forward_pre_hook(keep)
        try:
            yield lambda: found[-1]
        finally:
            handle.remove()

    def _positions(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        # Not all language models count from the first real position by themselves.
        if attention_mask is None or attention_mask.ndim != 2 or not self._takes_positions:
            return None
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)

    @functools.cached_property
    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.language_model.forward).parameters

    def _losses(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items: torch.Tensor | int | None,
        states: torch.Tensor | None = None,
        audio_latents: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        kept: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        config = self.config
        ids = labels if labels.dim() == 2 else labels[:, 0]
        targets = next_targets(ids)  # (B, T): what the state at each position is to say
        is_target = targets != _IGNORED
        wanted = targets[is_target]
        scores = logits[is_target if kept is None else is_target[:, kept]]
        entropies = F.cross_entropy(scores.float(), wanted, reduction="none")  # (N,)
        at_target = entropies.new_zeros(ids.shape)
        at_target[:, 1:][is_target[:, :-1]] = entropies.detach()
        number = (labels[..., 1:] != _IGNORED).sum() if num_items is None else torch.as_tensor(num_items)
        number = number.to(logits.device).clamp(min=1)
        text, audio = float(config.text_loss_weight), float(config.audio_loss_weight)
        if not isinstance(self.frames, CodeFrames | LatentFrames):
            is_code = config.speech_ids.is_unit(wanted)
            loss = (entropies * torch.where(is_code, audio, text)).sum() / number
            told = entropies.detach()
            codebook = (wanted - config.audio_offset).div(config.codebook_size, rounding_mode="floor")
            of_codebook = [_mean_where(told, is_code & (codebook == q)) for q in range(config.num_codebooks)]
            return {
                "loss": loss,
                "text_loss": _mean_where(told, ~is_code),
                "audio_loss": _mean_where(told, is_code),
                "codebook_losses": torch.stack(of_codebook),
                "target_losses": at_target,
            }
        found = {"text_loss": entropies.detach().sum() / is_target.sum().clamp(min=1)}
        if isinstance(self.frames, CodeFrames):
            told = self.frames.entropies(states, labels[:, 1:])  # (B, Q, T)
            weights = told.new_tensor(config.codebook_weights or [1.0] * config.num_codebooks)
            loss = text * entropies.sum() + audio * (told * weights[:, None]).sum()
            counts = (labels[:, 1:, 1:] != _IGNORED).sum((0, 2))
            sums = told.detach().sum((0, 2))
            found |= {
                "audio_loss": sums.sum() / counts.sum().clamp(min=1),
                "codebook_losses": sums / counts.clamp(min=1),
                "target_losses": torch.cat([at_target[:, None], told.detach()], dim=1),
            }
        else:
            assert states is not None
            marks = labels[:, 1, 1:]
            if audio_latents is None:
                if bool((marks == 0).any()):
                    raise ValueError(
                        "`labels` has frames to learn, but `audio_latents` with what they are is missing."
                    )
                audio_latents = torch.zeros(*ids.shape, config.latent_dim, device=states.device)
            if self.training and not bool(self.frames.statistics.num_updates):
                logger.warning_once(
                    "The latents' mean and variance were never set, and are taken as 0 and 1. Measure them by"
                    " `latent_moments` and call `model.frames.set_statistics(mean, covariance.diagonal())`."
                )
            prediction, stop = self.frames.losses(states, audio_latents, labels[:, 1], generator)
            loss = text * entropies.sum() + audio * (marks == 0).sum() * prediction
            loss = loss + config.stop_loss_weight * (marks != _IGNORED).sum() * stop
            found |= {"audio_loss": prediction.detach(), "stop_loss": stop.detach(), "target_losses": at_target}
        return {"loss": loss / number, **found}

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """
        transformers' `generate`. Beside the flat layout it writes frames, too, unless these are only read: with
        `return_dict_in_generate` it gives a [`WrittenFrames`], else the ids alone.
        [`~SpeechLMForConditionalGeneration.generate_speech`] is for speech.
        """
        if isinstance(self.frames, ProjectedFrames):
            frames = {name: kwargs.pop(name, None) for name in ("audio_latents", "audio_mask")}
            ids = args[0] if args else kwargs.get("input_ids")
            if frames["audio_latents"] is not None and ids is not None:
                with torch.no_grad():
                    kwargs["inputs_embeds"] = self.embed_inputs(ids, **frames)
        elif self.frames is not None:
            if kwargs.get("streamer") is not None:
                raise ValueError("A `streamer` gets ids alone, which hold no frames here; use `stream_speech`.")
            kwargs.setdefault("custom_generate", generate_frames)
        return super().generate(*args, **kwargs)

    @torch.no_grad()
    def score(
        self,
        input_ids: torch.LongTensor,
        labels: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Log likelihoods of the targets of each row, `(batch,)` in nats, and their numbers, `(batch,)`.

        Args:
            input_ids, labels, attention_mask, kwargs: See [`~SpeechLMForConditionalGeneration.forward`].

        Raises:
            ValueError: If there are targets that are latents, whose heads give no likelihoods.
        """
        if isinstance(self.frames, LatentFrames) and bool((labels[:, 1:] != _IGNORED).any()):
            raise ValueError("The heads of continuous tokens give no likelihoods; compare their losses instead.")
        outputs = self(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        is_target = labels[..., 1:] != _IGNORED
        return -outputs.target_losses.flatten(1).sum(-1), is_target.flatten(1).sum(-1)


def _mean_where(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    # 0 of none.
    return (values * mask).sum() / mask.sum().clamp(min=1)


__all__ = ["SpeechLMForConditionalGeneration", "SpeechLMOutput"]
