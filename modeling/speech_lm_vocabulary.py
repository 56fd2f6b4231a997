# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""How a causal language model gets the words of audio: new rows of its tables, and how these begin."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from .configuration_speech_lm import SpeechLMConfig
from .input_checks import check_whole_number
from .speech_lm_frames import CodeFrames, LatentFrames, ProjectedFrames


# Rows of the vocabulary are a multiple of it, as servers like to split them.
_ROWS_MULTIPLE = 64
# Tables of words are padded beyond their tokenizer by a few hundred rows; more is another tokenizer.
_LEAST_SHARE = 0.9
# Phones behind the own one that each position of speech is told.
_PIECE_CONTEXT = 2

# Fields of one layout alone.
_OF_LAYOUT = {
    "delay": ("codebook_weights",),
    "continuous": (
        "head",
        "head_options",
        "input_noise_std",
        "stop_loss_weight",
        "stop_pos_weight",
        "condition_dropout",
    ),
}


def _check_fields(fields: dict[str, Any], layout: str) -> None:
    known = {field.name for field in dataclasses.fields(SpeechLMConfig)}
    if unknown := sorted(set(fields) - known):
        raise TypeError(f"`from_causal_lm` knows no field {unknown[0]!r}; see `SpeechLMConfig`.")
    for other, names in _OF_LAYOUT.items():
        if other != layout and (given := [name for name in names if fields.get(name) is not None]):
            raise ValueError(f"`{given[0]}` belongs to the layout {other!r}, but the processor's is {layout!r}.")


class AudioVocabulary:
    """The part of a [`SpeechLMForConditionalGeneration`] that makes it of a causal language model."""

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
            fields: Further fields of [`SpeechLMConfig`], such as `audio_loss_weight`. `piece_context` defaults to 2
                where speech is aligned by phones, but for the flat layout, whose models others can serve without it.

        Raises:
            TypeError: If there is no such field.
            ValueError: If the processor belongs to another vocabulary or codec, or a field to another layout.
        """
        _check_fields(fields, processor.layout)
        if fields.get("piece_context") is None:
            reads = processor.text_alignment == "phone" and processor.layout != "flat"
            fields["piece_context"] = _PIECE_CONTEXT if reads else 0
        if isinstance(lm, str):
            lm = AutoModelForCausalLM.from_pretrained(lm, dtype=dtype, trust_remote_code=False)
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
        if processor.audio_offset < _LEAST_SHARE * old_rows and not is_made_for_it:
            raise ValueError(
                f"The processor's tokenizer knows {processor.audio_offset} words, the language model {old_rows}: it is"
                " that of another model. Make the processor with this model's own tokenizer."
            )
        if needed > old_rows:
            lm.resize_token_embeddings(needed, pad_to_multiple_of=_ROWS_MULTIPLE, mean_resizing=False)
        config = SpeechLMConfig(
            text_config=copy.deepcopy(lm.config),
            **processor.model_fields(),
            **fields,
        )
        with torch.device("meta"):
            model: Any = cls(config)  # type: ignore[call-arg]
        model.language_model = lm
        model._new_modules(seed)
        model.config.text_config = lm.config
        model.generation_config = model._speech_generation_config(lm.generation_config)
        model.attach_codec(codec)
        model.init_audio_rows(init, first_new=first_new, seed=seed)
        if isinstance(model.frames, ProjectedFrames):
            table = model.get_input_embeddings()
            model.frames.match(table(torch.arange(processor.audio_offset, device=table.weight.device)))
        return model.eval()

    def _speech_generation_config(self: Any, base: GenerationConfig | None) -> GenerationConfig:
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
    def init_audio_rows(self: Any, strategy: str = "codebook", first_new: int | None = None, seed: int = 0) -> None:
        """
        Begin the rows of new ids anew, in both tables where they are not tied; in the delay layout those of codes in
        the table of columns.

        With the mean and the standard deviation, dimension by dimension, of the rows that were there before, a row is

        - `"codebook"`: the code's vector in the codec, standardised over its codebook, through a random map that keeps
          distances, so that codes that sound alike begin alike; a token of several units has the mean of theirs, and
          durations are drawn at random;
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
            elif strategy == "codebook" and self.config.layout == "flat":
                place = slice(ids.audio_offset - first_new, ids.audio_stop - first_new)
                rows[place] = self._mapped_codebooks(len(mean), generator).flatten(0, 1).to(mean)
            table[first_new:] = (mean + std * rows).to(table.dtype)
        if isinstance(self.frames, CodeFrames) and strategy == "codebook":
            # A column is a sum over codebooks, and is to be as large as a word.
            table, scale = self.frames.embedding.weight, float(std.mean()) / math.sqrt(self.config.num_codebooks)
            mapped = self._mapped_codebooks(table.shape[1], torch.Generator().manual_seed(seed))
            table.view(len(mapped), -1, table.shape[1])[:, : mapped.shape[1]] = (scale * mapped).to(table)

    def _new_modules(self: Any, seed: int) -> None:
        # Off the meta device, where they were made beside a language model that was there already.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for new in (self.frames, self.pieces):
                if new is None:
                    continue
                new.to_empty(device=self.language_model.device)
                for module in new.modules():
                    self._init_weights(module)
                for name, buffer in new.named_buffers():
                    if not name.startswith("statistics."):
                        raise AssertionError(f"the buffer {name} {tuple(buffer.shape)} would have no value")
                new.to(self.language_model.dtype)
            if isinstance(self.frames, LatentFrames | ProjectedFrames):
                self.frames.statistics.float()

    def _mapped_codebooks(self: Any, dim: int, generator: torch.Generator) -> torch.Tensor:
        # (num_codebooks, codebook_size, dim), of unit variance: the codebooks through one random map each. Codes that
        # have no vectors, as durations, are drawn at random.
        config = self.config
        mapped = []
        found = config.coding.token_vectors(self.codec.codebook_vectors().cpu())[: config.num_codebooks]
        for vectors, num_codes in zip(found, config.code_sizes, strict=False):
            vectors = vectors[:num_codes]
            deviation = vectors.std(0)
            varies = deviation > 1e-6 * float(deviation.max())  # of F0 codes, two dimensions alone do
            if varies.any():
                vectors, deviation = vectors[:, varies], deviation[varies]
            vectors = (vectors - vectors.mean(0)) / deviation.clamp(min=1e-12)
            size = vectors.shape[1]
            # Orthonormal columns or rows, whichever there are fewer of.
            basis = torch.linalg.qr(torch.randn(max(size, dim), min(size, dim), generator=generator))[0]
            mapped.append(vectors @ (basis if size >= dim else basis.T) * math.sqrt(dim / min(size, dim)))
        rows = torch.randn(config.num_codebooks, config.codebook_size, dim, generator=generator)
        for row, vectors in zip(rows, mapped, strict=False):
            row[: len(vectors)] = vectors
        return rows

    def set_piece_frames(self: Any, piece_frames: Sequence[Sequence[int]]) -> None:
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


__all__ = ["AudioVocabulary"]
