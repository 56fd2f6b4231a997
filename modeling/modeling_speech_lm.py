# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Any causal language model of transformers, with the codes of a codec as further words of its vocabulary."""

import copy
import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .checked_loading import CheckedLoading
from .codec_interface import SpeechCodec
from .configuration_speech_lm import SpeechLMConfig
from .input_checks import check_whole_number
from .speech_lm_generation import SpeechGeneration
from .speech_lm_layouts import next_targets
from .transformers_codecs import as_speech_codec


# Rows of the vocabulary are a multiple of it, as servers like to split them.
_ROWS_MULTIPLE = 64
# Tables of words are padded beyond their tokenizer by a few hundred rows; more is another tokenizer.
_LEAST_SHARE = 0.9
_IGNORED = -100


@dataclass
class SpeechLMOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): Weighted sum of the cross entropies of all targets over their number.
        text_loss (`torch.FloatTensor` of shape `()`): Mean cross entropy of targets that are no codes, in nats.
        audio_loss (`torch.FloatTensor` of shape `()`): Mean cross entropy of targets that are codes, in nats.
        codebook_losses (`torch.FloatTensor` of shape `(num_codebooks,)`): The same for each codebook; 0 without any.
        target_losses (`torch.FloatTensor` of shape `(batch, num_positions)`): Cross entropy of the target that stands
            at each position; 0 where there is none. Without gradients.
        logits (`torch.FloatTensor` of shape `(batch, num_positions, vocab_size)`): Scores of the next id.
        past_key_values (`Cache`): What the model remembers of the positions.
        hidden_states, attentions (`tuple` of `torch.FloatTensor`): See the language model.
    """

    loss: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    audio_loss: torch.FloatTensor | None = None
    codebook_losses: torch.FloatTensor | None = None
    target_losses: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class Attached:
    """
    Something that belongs to a model or processor but is not saved with it, such as its codec.

    Neither PyTorch nor a copy of the owner looks into it.
    """

    def __init__(self, held: Any):
        self.held = held

    def __deepcopy__(self, memo: dict) -> "Attached":
        return self

    def __reduce__(self) -> tuple:
        return (Attached, (None,))


class SpeechLMForConditionalGeneration(SpeechGeneration, CheckedLoading, PreTrainedModel, GenerationMixin):
    """
    A causal language model that reads and writes text and codes in one sequence.

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
    # The wrapper has no attention of its own; the language model inside refuses what it has not.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    # None of its own; `peft` looks for those of the language model only where a mapping says so.
    _tied_weights_keys: dict[str, str] = {}

    def __init__(self, config: SpeechLMConfig):
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self._codec: Attached | None = None
        self.post_init()

    @classmethod
    def from_causal_lm(
        cls,
        lm: str | PreTrainedModel,
        codec: Any,
        processor: Any,
        *,
        init: str = "codebook",
        seed: int = 0,
        dtype: Any = torch.float32,
        **fields: Any,
    ) -> Self:
        """
        Teach a causal language model the ids of a codec's codes.

        Args:
            lm (`str` or `PreTrainedModel`): The language model, or its folder or Hub id. A model is taken over: its
                tables of words are enlarged in place.
            codec ([`SpeechCodec`] or codec of transformers): Attached to the model.
            processor ([`SpeechLMProcessor`]): Made for this codec and the language model's own names; its ids are the
                model's.
            init (`str`, *optional*, defaults to `"codebook"`): How the rows of the codes begin; see
                [`~SpeechLMForConditionalGeneration.init_audio_rows`].
            seed (`int`, *optional*, defaults to 0): Seed of the new rows.
            dtype (*optional*): Type of the weights, where `lm` is loaded here. Defaults to `torch.float32`, as small
                steps of a training vanish in half precision, of which published weights often are.
            fields: Further fields of [`SpeechLMConfig`], such as `audio_loss_weight`.

        Raises:
            ValueError: If the processor belongs to another vocabulary or codec.
        """
        if isinstance(lm, str):
            lm = AutoModelForCausalLM.from_pretrained(lm, dtype=dtype)
        old_rows = lm.get_input_embeddings().weight.shape[0]
        ids = processor.speech_ids
        first_new = min(ids.audio_start, ids.audio_end, ids.piece_offset if ids.num_pieces else ids.audio_start)
        if first_new > old_rows:
            raise ValueError(
                f"The processor's audio ids begin at {first_new}, but the language model has {old_rows} rows: ids in"
                " between would have none. Make the processor with this model's own tokenizer."
            )
        needed = processor.vocab_size_needed
        is_made_for_it = needed <= old_rows < needed + _ROWS_MULTIPLE
        if ids.audio_offset < _LEAST_SHARE * old_rows and not is_made_for_it:
            raise ValueError(
                f"The processor's tokenizer knows {ids.audio_offset} words, the language model {old_rows}: it is that"
                " of another model. Make the processor with this model's own tokenizer."
            )
        if needed > old_rows:
            lm.resize_token_embeddings(needed, pad_to_multiple_of=_ROWS_MULTIPLE, mean_resizing=False)
        config = SpeechLMConfig(
            text_config=copy.deepcopy(lm.config),
            **processor.model_fields(),
            **fields,
        )
        with torch.device("meta"):
            model = cls(config)
        model.language_model = lm
        model.config.text_config = lm.config
        model.generation_config = model._speech_generation_config(lm.generation_config)
        model.attach_codec(codec)
        model.init_audio_rows(init, first_new=first_new, seed=seed)
        return model.eval()

    def _speech_generation_config(self, base: GenerationConfig | None) -> GenerationConfig:
        # A list is kept here only, and servers read it: the base's own end comes after the end of audio.
        config = copy.deepcopy(base) if base is not None else GenerationConfig()
        ends = config.eos_token_id if config.eos_token_id is not None else self.config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        config.eos_token_id = [*ends, self.config.audio_end_token_id]
        if config.pad_token_id is None:
            pad = self.config.pad_token_id
            config.pad_token_id = pad if pad is not None else (ends[0] if ends else self.config.audio_end_token_id)
        return config

    @torch.no_grad()
    def init_audio_rows(self, strategy: str = "codebook", first_new: int | None = None, seed: int = 0) -> None:
        """
        Begin the rows of new ids anew, in both tables where they are not tied.

        With the mean and the standard deviation, dimension by dimension, of the rows that were there before, a row is

        - `"codebook"`: the code's vector in the codec, standardised over its codebook, through a random map that keeps
          distances, so that codes that sound alike begin alike;
        - `"normal"`: drawn at random;
        - `"mean"`: the mean.

        Rows of marks and pieces are drawn at random, except with `"mean"`. (transformers' own enlargement draws rows
        that are nearly the mean. Measured on a model of two layers and 512 units: twice the steps to the same loss.)

        Args:
            strategy (`str`, *optional*, defaults to `"codebook"`): One of the three.
            first_new (`int`, *optional*): First id whose row is new. Defaults to the first mark, piece or code.
            seed (`int`, *optional*, defaults to 0): Seed of what is random.

        Raises:
            ValueError: If there is no such strategy, or no codec is attached whose vectors could be used.
        """
        if strategy not in ("codebook", "normal", "mean"):
            raise ValueError(f"`init` must be 'codebook', 'normal' or 'mean', but got {strategy!r}.")
        ids = self.config.speech_ids
        if first_new is None:
            first_new = min(ids.audio_start, ids.audio_end, ids.piece_offset if ids.num_pieces else ids.audio_start)
        tables = [self.get_input_embeddings().weight]
        output = self.get_output_embeddings()
        if output is not None and output.weight is not tables[0]:
            tables.append(output.weight)
            if getattr(output, "bias", None) is not None:
                output.bias[first_new:] = output.bias[:first_new].mean() if first_new else 0.0
        for table in tables:
            old = table[:first_new].float()
            scale = self.config.initializer_range
            mean = old.mean(0) if len(old) else table.new_zeros(table.shape[1], dtype=torch.float32)
            std = old.std(0) if len(old) > 1 else torch.full_like(mean, scale)
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randn(len(table) - first_new, len(mean), generator=generator).to(mean)
            if strategy == "mean":
                rows.zero_()
            elif strategy == "codebook":
                place = slice(ids.audio_offset - first_new, ids.audio_stop - first_new)
                rows[place] = self._mapped_codebooks(len(mean), generator).to(mean)
            table[first_new:] = (mean + std * rows).to(table.dtype)

    def _mapped_codebooks(self, dim: int, generator: torch.Generator) -> torch.Tensor:
        # (num_codebooks * codebook_size, dim), of unit variance: the codebooks through one random map each.
        mapped = []
        for vectors in self.codec.codebook_vectors()[: self.config.num_codebooks].cpu():
            deviation = vectors.std(0)
            vectors = (vectors - vectors.mean(0)) / deviation.clamp(min=1e-6 * float(deviation.max()) + 1e-12)
            size = vectors.shape[1]
            # Orthonormal columns or rows, whichever there are fewer of.
            basis = torch.linalg.qr(torch.randn(max(size, dim), min(size, dim), generator=generator))[0]
            mapped.append(vectors @ (basis if size >= dim else basis.T) * math.sqrt(dim / min(size, dim)))
        return torch.cat(mapped)

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
        self._codec = Attached(codec)

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
        """The same, by the name under which trainers that multiply by the output table themselves ask for it."""
        return self.get_decoder()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> SpeechLMOutput:
        """
        Scores of the next id at each position and, with `labels`, the losses.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, num_positions)`, *optional*): Text and codes as ids.
            attention_mask (`torch.Tensor` of shape `(batch, num_positions)`, *optional*): 1 for real positions.
            position_ids, past_key_values, inputs_embeds, use_cache, logits_to_keep, kwargs: As the language model
                takes them.
            labels (`torch.LongTensor` of shape `(batch, num_positions)`, *optional*): Targets at their own positions:
                `input_ids` where the model is to learn, -100 elsewhere. A target at position 0 is never learnt, since
                nothing comes before it.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): Number that the sum of the losses is divided by,
                where a step has several micro-batches. Defaults to the number of targets.

        Raises:
            ValueError: If the labels have another shape than the ids, or are ids that stand somewhere else, as those
                that were shifted by hand are.
        """
        if labels is not None:
            check_labels_stand_at_their_positions(input_ids, labels)
            self._check_length(labels.shape[1])
        if position_ids is None and past_key_values is None:
            position_ids = self._positions(attention_mask)
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        outputs = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep if labels is None else 0,
            return_dict=True,
            **kwargs,
        )
        losses = {} if labels is None else self._losses(outputs.logits, labels, num_items_in_batch)
        return SpeechLMOutput(
            **losses,
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _check_length(self, num_positions: int) -> None:
        context = getattr(self.config.text_config, "max_position_embeddings", None)
        if context is not None and num_positions > context:
            raise ValueError(
                f"A batch has {num_positions} positions, but the language model has {context}. Pass `max_length` to"
                " the collator, which names the row."
            )

    def _positions(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        # Not all language models count from the first real position by themselves.
        if attention_mask is None or attention_mask.ndim != 2 or not self._takes_positions:
            return None
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)

    @functools.cached_property
    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.language_model.forward).parameters

    def _losses(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> dict[str, torch.Tensor]:
        targets = next_targets(labels)  # (B, T): what the state at each position is to say
        is_target = targets != _IGNORED
        wanted = targets[is_target]
        entropies = F.cross_entropy(logits[is_target].float(), wanted, reduction="none")  # (N,)
        is_code = self.config.speech_ids.is_unit(wanted)
        weights = torch.where(is_code, float(self.config.audio_loss_weight), float(self.config.text_loss_weight))
        number = is_target.sum() if num_items is None else torch.as_tensor(num_items, device=logits.device)
        loss = (entropies * weights).sum() / number.clamp(min=1)
        with torch.no_grad():
            told = entropies.detach()
            codebook = (wanted - self.config.audio_offset).div(self.config.codebook_size, rounding_mode="floor")
            of_codebook = [is_code & (codebook == q) for q in range(self.config.num_codebooks)]
            at_target = told.new_zeros(labels.shape)
            at_target[:, 1:][is_target[:, :-1]] = told
            return {
                "loss": loss,
                "text_loss": _mean_where(told, ~is_code),
                "audio_loss": _mean_where(told, is_code),
                "codebook_losses": torch.stack([_mean_where(told, mask) for mask in of_codebook]),
                "target_losses": at_target,
            }

    @torch.no_grad()
    def score(
        self, input_ids: torch.LongTensor, labels: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Log likelihoods of the targets of each row, `(batch,)` in nats, and their numbers, `(batch,)`.

        Args:
            input_ids, labels, attention_mask: See [`~SpeechLMForConditionalGeneration.forward`].
        """
        outputs = self(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return -outputs.target_losses.sum(-1), (labels[:, 1:] != _IGNORED).sum(-1)

    def set_piece_frames(self, piece_frames: Sequence[Sequence[int]]) -> None:
        """
        Fewest and most frames of each label that generation allows.

        Raises:
            ValueError: If there is not one pair a label, or a pair is not in order.
        """
        if len(piece_frames) != len(self.config.piece_labels):
            raise ValueError(f"There are {len(self.config.piece_labels)} labels, but {len(piece_frames)} pairs.")
        for label, (fewest, most) in zip(self.config.piece_labels, piece_frames, strict=True):
            check_whole_number(fewest, f"fewest frames of {label}", 1)
            check_whole_number(most, f"most frames of {label}", fewest)
        self.config.piece_frames = [[int(fewest), int(most)] for fewest, most in piece_frames]


def _mean_where(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    # 0 of none.
    return (values * mask).sum() / mask.sum().clamp(min=1)


def check_labels_stand_at_their_positions(input_ids: torch.Tensor | None, labels: torch.Tensor) -> None:
    """
    Refuse labels that are not the ids at their own positions.

    Labels that were shifted by hand are shifted again by the loss, and the model learns to skip a token. (Five public
    projects have that fault.)

    Raises:
        ValueError: If a shape differs, or a label is another id than the one at its position.
    """
    if input_ids is None:
        return
    if labels.shape != input_ids.shape:
        raise ValueError(
            f"`labels` must have the shape of `input_ids`, {tuple(input_ids.shape)}, but has {tuple(labels.shape)}."
        )
    if torch.compiler.is_compiling():
        return
    differs = (labels != _IGNORED) & (labels != input_ids)
    if not bool(differs.any()):
        return
    row, position = (int(value) for value in differs.nonzero()[0])
    shifted = labels[:, :-1] == input_ids[:, 1:]
    hint = ""
    if bool((shifted | (labels[:, :-1] == _IGNORED)).all()):
        hint = " They look shifted by hand by one: the model shifts them itself."
    label, here = int(labels[row, position]), int(input_ids[row, position])
    raise ValueError(
        f"`labels` must be the ids at their own positions, or -100, but row {row} has label {label} at position"
        f" {position}, where the id is {here}.{hint}"
    )


def check_codec(codec: Any, config: Any) -> None:
    """
    Check that a codec is the one that a model or a processor was made for.

    Args:
        codec ([`SpeechCodec`]): The codec.
        config: Object with the fields `num_codebooks`, `codebook_size`, `codec_name` and `codec_fingerprint`.

    Raises:
        ValueError: If it is another one.
    """
    if codec.kind != "codes":
        raise ValueError(f"A {codec.family} gives continuous tokens; the layout 'flat' needs codes.")
    if codec.num_quantizers < config.num_codebooks or codec.codebook_size != config.codebook_size:
        raise ValueError(
            f"The codec has {codec.num_quantizers} codebooks of {codec.codebook_size} codes, but"
            f" {config.num_codebooks} of {config.codebook_size} are needed."
        )
    fingerprint = codec.fingerprint()
    if config.codec_fingerprint and fingerprint != config.codec_fingerprint:
        raise ValueError(
            f"The codec's fingerprint is {fingerprint}, but {config.codec_fingerprint}"
            f"{f' ({config.codec_name})' if config.codec_name else ''} is needed: its codes would mean other sounds."
        )


__all__ = ["SpeechLMForConditionalGeneration", "SpeechLMOutput"]
