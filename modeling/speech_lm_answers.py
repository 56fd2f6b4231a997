# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""How a speech language model answers by text what it is asked about a recording."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, GenerationConfig, GenerationMixin, LogitsProcessorList

from .audio_logits import AllowedIds


# What an answer may be long, in ids, where nobody says it.
_USUAL_LENGTH = 256
_FRAMES = ("audio_codes", "audio_latents", "audio_mask")


@dataclass(frozen=True)
class TextAnswers:
    """
    Answers that were generated.

    Args:
        texts (`list[str]`): The answers without special tokens.
        ended (`torch.BoolTensor` of shape `(batch,)`): Whether the model itself wrote the end; else a limit cut it.
    """

    texts: list[str]
    ended: torch.Tensor


@dataclass(frozen=True)
class ChosenAnswers:
    """
    Answers that were chosen from a set.

    Args:
        texts (`list[str]`): The likeliest answer of each row.
        probabilities (`torch.FloatTensor` of shape `(batch, num_answers)`): Probability of each answer, if it is one
            of the set.
        scores (`torch.FloatTensor` of shape `(batch, num_answers)`): Their log likelihoods in nats.
    """

    texts: list[str]
    probabilities: torch.Tensor
    scores: torch.Tensor


class SpeechAnswers:
    """What a speech language model answers by text; see [`SpeechLMForConditionalGeneration`]."""

    @torch.no_grad()
    def score_answers(
        self: Any,
        inputs: Mapping[str, torch.Tensor],
        answers: Sequence[str],
        processor: Any,
        max_batch: int | None = None,
    ) -> torch.Tensor:
        """
        How likely each answer is behind each prompt, with its end: what [`~SpeechLMForConditionalGeneration.score`]
        gives of the whole sequences. The prompts are read once. All layouts have these likelihoods, since they are
        those of text.

        Args:
            inputs (`Mapping` of `torch.Tensor`): Prompts, as [`~SpeechLMProcessor.task_inputs`] gives them.
            answers (sequence of `str`): The answers, which are compared for every prompt.
            processor ([`SpeechLMProcessor`]): The model's processor.
            max_batch (`int`, *optional*): Most sequences that are read at once, but at least one a prompt. Defaults to
                all.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_answers)`: Log likelihoods in nats, on the CPU.

        Raises:
            ValueError: If an answer is empty or joins with the end of the prompt, the prompts do not ask for an
                answer, a sequence is longer than the model's context, or the model remembers what cannot be repeated.
        """
        written = processor.answer_ids(answers)
        inputs = self._checked_prompts(inputs, processor, written.prompt_end, max(map(len, written.ids)))
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"`max_batch` must be at least 1, but is {max_batch}.")
        outputs = self(**inputs, use_cache=True, logits_to_keep=1)
        past = getattr(outputs, "past_key_values", None)
        layers = getattr(past, "layers", ())
        repeats = isinstance(past, Cache) and all(hasattr(layer, "batch_repeat_interleave") for layer in layers)
        if not repeats:
            raise ValueError(
                f"What this language model remembers, a {type(past).__name__}, cannot be repeated for several answers;"
                " compare whole sequences by `score`."
            )
        first = _log_softmax(outputs.logits[:, -1])  # (B, V)
        batch_size = len(first)
        num_at_once = len(answers) if max_batch is None else max(1, max_batch // batch_size)
        found = []
        for begin in range(0, len(answers), num_at_once):
            ids = written.ids[begin : begin + num_at_once]
            is_last = begin + num_at_once >= len(answers)
            found.append(self._score_behind(inputs, past if is_last else copy.deepcopy(past), first, ids))
        return torch.cat(found, dim=1).cpu()

    def _score_behind(
        self: Any, inputs: Mapping[str, torch.Tensor], past: Any, first: torch.Tensor, answers: list[list[int]]
    ) -> torch.Tensor:
        # (batch, num_answers); `past` is used up.
        device, batch_size, num_answers = first.device, len(first), len(answers)
        length = max(map(len, answers))
        lengths = torch.tensor([len(ids) for ids in answers], device=device)
        padded = torch.tensor([ids + ids[-1:] * (length - len(ids)) for ids in answers], device=device)  # (A, N)
        is_real = torch.arange(length, device=device) < lengths[:, None]
        scores = first[:, padded[:, 0]]  # (B, A)
        past.batch_repeat_interleave(num_answers)
        mask = inputs["attention_mask"].repeat_interleave(num_answers, dim=0)
        read, is_read = padded[:, :-1].repeat(batch_size, 1), is_real[:, :-1].repeat(batch_size, 1)
        mask = torch.cat([mask, is_read.to(mask.dtype)], dim=1)
        options: dict[str, Any] = {"input_ids": read}
        if self._takes_positions:
            options["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -read.shape[1] :]
        if self.pieces is not None:
            whole = torch.cat([inputs["input_ids"].repeat_interleave(num_answers, dim=0), read], dim=1)
            options["piece_context"] = self.context_of_pieces(whole)[:, -read.shape[1] :]
        outputs = self(**options, attention_mask=mask, past_key_values=past, use_cache=True)
        told = _log_softmax(outputs.logits[:, -read.shape[1] :])  # (B * A, N - 1, V)
        wanted = padded[:, 1:].repeat(batch_size, 1)
        told = told.gather(-1, wanted[..., None])[..., 0].masked_fill(~is_real[:, 1:].repeat(batch_size, 1), 0.0)
        return scores + told.sum(-1).view(batch_size, num_answers)

    @torch.no_grad()
    def choose(
        self: Any,
        inputs: Mapping[str, torch.Tensor],
        answers: Sequence[str],
        processor: Any,
        max_batch: int | None = None,
    ) -> ChosenAnswers:
        """
        The likeliest answer of a set, and how probable each is among them.

        Args:
            inputs, answers, processor, max_batch: See [`~SpeechAnswers.score_answers`].

        Raises:
            ValueError: As there; or if two answers are the same to the model.
        """
        seen: dict[tuple[int, ...], str] = {}
        for answer, ids in zip(answers, processor.answer_ids(answers).ids, strict=True):
            other = seen.setdefault(tuple(ids), answer)
            if other is not answer:
                raise ValueError(
                    f"The answers {other!r} and {answer!r} are the same to this model's tokenizer, so that neither can"
                    " be chosen; give each once, in characters that the tokenizer knows."
                )
        scores = self.score_answers(inputs, answers, processor, max_batch)
        texts = [answers[place] for place in scores.argmax(-1).tolist()]
        return ChosenAnswers(texts, scores.softmax(-1), scores)

    @torch.no_grad()
    def answer(
        self: Any,
        inputs: Mapping[str, torch.Tensor],
        processor: Any,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
    ) -> TextAnswers:
        """
        Answer by text: the likeliest id at each step, or the best found by a search over beams. Only ids of text and
        the end of sequence are written. A batch gives what single prompts give.

        Args:
            inputs (`Mapping` of `torch.Tensor`): Prompts, as [`~SpeechLMProcessor.task_inputs`] gives them.
            processor ([`SpeechLMProcessor`]): The model's processor.
            max_new_tokens (`int`, *optional*): Most ids of an answer, with its end. Defaults to 256, or what the
                model's context leaves.
            num_beams (`int`, *optional*, defaults to 1): Beams of the search.

        Raises:
            ValueError: If a number is below 1, the prompts do not ask for an answer, or the model's context is too
                short.
        """
        for name, number in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
            if number is not None and number < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {number}.")
        end = processor.answer_ids(["a"]).prompt_end
        inputs = self._checked_prompts(inputs, processor, end, max_new_tokens or 1)
        length = inputs["input_ids"].shape[1]
        context = getattr(self.config.text_config, "max_position_embeddings", None)
        if max_new_tokens is None:
            max_new_tokens = _USUAL_LENGTH if context is None else min(_USUAL_LENGTH, context - length)
        ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if self.frames is not None:
            told = {} if self.pieces is None else {"piece_context": self.context_of_pieces(ids["input_ids"])}
            frames = {name: inputs[name] for name in _FRAMES if name in inputs}
            ids["inputs_embeds"] = self.embed_inputs(ids["input_ids"], **frames, **told)
        eos = processor.tokenizer.eos_token_id
        is_allowed = processor.is_text_id(self.config.text_config.vocab_size)
        is_allowed[eos] = True
        # What the checkpoint says about drawing texts is not asked: an answer follows from its prompt alone.
        # Transformers takes from there all that is not given, so a shallow copy of the model goes without.
        plain = copy.copy(self)
        plain.generation_config = GenerationConfig()
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=eos,
            pad_token_id=eos,
        )
        # The model's own `generate` writes frames beside the flat layout, which no answer of text has.
        sequences = GenerationMixin.generate(
            plain,
            **ids,
            generation_config=settings,
            logits_processor=LogitsProcessorList([AllowedIds(is_allowed)]),
        )
        written = sequences[:, length:].cpu()
        texts, ended = [], []
        for row in written.tolist():
            ended.append(eos in row)
            said = row[: row.index(eos)] if eos in row else row
            texts.append(processor.tokenizer.decode(said, skip_special_tokens=True).strip())
        return TextAnswers(texts, torch.tensor(ended))

    def _checked_prompts(
        self: Any, inputs: Mapping[str, torch.Tensor], processor: Any, prompt_end: list[int], num_coming: int
    ) -> dict[str, torch.Tensor]:
        # The prompts on the model's device.
        processor.check_model(self)
        known = {"input_ids", "attention_mask", *_FRAMES}
        if not {"input_ids", "attention_mask"} <= set(inputs) <= known:
            raise ValueError(
                f"`inputs` must be prompts as `task_inputs` of the processor gives them, but hold {', '.join(inputs)}."
            )
        found = {name: part.to(self.device) for name, part in inputs.items()}
        ids, end = found["input_ids"], torch.tensor(prompt_end, device=self.device)
        is_asked = found["attention_mask"][:, -1].bool()
        # Some tokenizers have no id for what stands behind the clip.
        last = ids[:, max(0, ids.shape[1] - len(end)) :]
        is_asked &= (last == end).all(-1) if last.shape[1] == len(end) else False
        if not bool(is_asked.all()):
            row = int((~is_asked).long().argmax())
            raise ValueError(
                f"Prompt {row} does not end where an answer begins; make it by `task_inputs` of the processor, padded"
                " on the left."
            )
        context = getattr(self.config.text_config, "max_position_embeddings", None)
        if context is not None and ids.shape[1] + num_coming > context:
            raise ValueError(
                f"The longest prompt has {ids.shape[1]} positions and an answer {num_coming}, but the language model"
                f" has {context} in all; give a shorter recording."
            )
        return found


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    # At least in float32.
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


__all__ = ["ChosenAnswers", "SpeechAnswers", "TextAnswers"]
