# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What a speech language model is about to say: texts, settings and prompts, checked before the first id is chosen."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import LogitsProcessorList

from .audio_logits import AudioOnly, GuidedText, MinFrames, RowSampling, WindowedRepetition
from .input_checks import check_number, check_whole_number
from .speech_lm_alarms import alarm_of, generators_again
from .speech_lm_layouts import AlignedCodes, split_pieces
from .speech_lm_voices import Voice, one_voice_a_text
from .speech_lm_writers import DelayWriter, FlatWriter, LatentWriter, Writing, at_times, check_guidance, write_ids


@dataclass
class Utterance:
    """
    What is asked of one row.

    Args:
        text (`str`): The text.
        labels (`list[str]`), pieces (`list` of `list[int]`): Its words or phones, and the ids of each; empty without
            an alignment.
        words (`list` of `tuple`): Its words, each with the number of its pieces.
        fewest, most (`list[int]`): Frames that each piece has at least and at most.
    """

    text: str
    labels: list[str] = field(default_factory=list)
    pieces: list[list[int]] = field(default_factory=list)
    words: list[tuple[str, int]] = field(default_factory=list)
    fewest: list[int] = field(default_factory=list)
    most: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SpeechSettings:
    """How texts are said; see [`~SpeechGeneration.generate_speech`]."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_window: int = 0
    repetition_limit: int = 3
    durations: Sequence[Sequence[int]] | None = None
    pieces: Sequence[Sequence[str]] | None = None
    min_frames: int = 1
    max_frames: int | None = None
    generators: Sequence[torch.Generator] | None = None
    cfg_scale: float = 1.0
    head_steps: int | None = None
    voice: Voice | Sequence[Voice | None] | None = None
    retries: int = 0

    def check(self, model: Any) -> None:
        """
        Raises:
            ValueError: If a number is out of its range, or means nothing for the model.
        """
        config = model.config
        check_number(self.temperature, "temperature", 0.0)
        check_whole_number(self.min_frames, "min_frames", 1)
        if not self.temperature and (self.top_k is not None or self.top_p is not None):
            raise ValueError("`top_k` and `top_p` choose what is drawn from; give a `temperature` above 0 with them.")
        if check_whole_number(self.retries, "retries", 0) and not self.temperature:
            raise ValueError(
                f"`retries` is {self.retries}, but with `temperature=0` every try says the same; give a temperature"
                " above 0, or no `retries`."
            )
        if self.min_frames > 1 and config.text_alignment != "none":
            raise ValueError("`min_frames` needs a model without a `text_alignment`; give `durations` instead.")
        if self.max_frames is not None and check_whole_number(self.max_frames, "max_frames", 1) < self.min_frames:
            raise ValueError(f"`max_frames` is {self.max_frames}, but `min_frames` is {self.min_frames}.")
        if model.training:
            raise ValueError("The model is in training mode, in which dropout changes what it says; call `.eval()`.")
        for name in ("pieces", "durations"):
            if getattr(self, name) is not None and config.text_alignment == "none":
                raise ValueError(f"`{name}` needs a model with a `text_alignment`; this one has none.")
        if self.durations is not None and config.unit_coding != "frames":
            raise ValueError("`durations` needs a model of frames; this one writes runs, which last as they do.")
        check_guidance(config, self.cfg_scale, self.head_steps)
        if self.repetition_window and config.layout == "continuous":
            raise ValueError("`repetition_window` counts codes, which the continuous layout has not; leave it out.")

    def check_count(self, num_texts: int) -> None:
        """
        Raises:
            ValueError: If there are no texts, or what each text has of its own is not there for each.
        """
        if not num_texts:
            raise ValueError("`text` is empty; pass at least one text.")
        for name in ("pieces", "durations", "generators"):
            given = getattr(self, name)
            if given is not None and len(given) != num_texts:
                raise ValueError(f"`{name}` must have one a text ({num_texts}), but has {len(given)}.")


@dataclass
class SaidRow:
    """
    What a row said.

    Args:
        aligned ([`AlignedCodes`]): The first codebook's codes, or all of the flat layout, and the places of pieces.
        frames (`torch.Tensor`): Codes of the codec `(num_codebooks, num_frames)`, or latents `(num_frames,
            latent_dim)`.
        times (`torch.FloatTensor` of shape `(num_pieces, 2)`): Start and end of each piece, in seconds.
        ended (`bool`): Whether the model wrote the end.
        ids (`torch.LongTensor` of shape `(num_written,)`): The ids behind the prompt, as the model read them.
        alarm (`str`, *optional*): What seems to be wrong with it.
    """

    aligned: AlignedCodes
    frames: torch.Tensor
    times: torch.Tensor
    ended: bool
    ids: torch.Tensor
    alarm: str | None = None

    @property
    def num_frames(self) -> int:
        """Frames of the row."""
        return len(self.frames) if self.frames.is_floating_point() else self.frames.shape[1]


class SpeechPlan:
    """
    Texts with their prompts and limits, ready to be written, in one go or step by step.

    Args:
        model ([`SpeechLMForConditionalGeneration`]): The model.
        processor ([`SpeechLMProcessor`]): Its processor.
        texts (sequence of `str`): The texts, one a row.
        settings ([`SpeechSettings`]): How they are said.

    Raises:
        ValueError: See [`~SpeechGeneration.generate_speech`].
    """

    def __init__(self, model: Any, processor: Any, texts: Sequence[str], settings: SpeechSettings):
        self.begun = time.perf_counter()
        processor.check_model(model)
        settings.check(model)
        settings.check_count(len(texts))
        self.model, self.config, self.settings = model, model.config, settings
        self.utterances = self._utterances(texts, processor)
        self.voices = one_voice_a_text(settings.voice, len(texts))
        for voice in self.voices:
            if voice is not None:
                voice.check(model)
        self.inputs = self._inputs(processor)
        self.limits, self.code_limits = self._limits(self.inputs["attention_mask"].sum(-1).tolist())

    def write(self) -> tuple[FlatWriter, Iterator[Writing]]:
        """The writer of the layout, and the steps in which it writes all rows."""
        settings, config = self.settings, self.config
        processors = self._logits_processors()
        generators = None if settings.generators is None else list(settings.generators)
        sampling = None
        if settings.temperature:
            sampling = RowSampling(settings.temperature, settings.top_k, settings.top_p, generators)
            processors.append(sampling)
        writer = FlatWriter()
        if config.layout == "delay":
            writer = DelayWriter(self.model, sampling)
        elif config.layout == "continuous":
            writer = LatentWriter(
                self.model, settings.temperature, settings.head_steps, settings.cfg_scale, generators
            )
        steps = write_ids(
            self.model,
            self.inputs,
            writer,
            processors,
            self.limits,
            [config.audio_end_token_id],
            codes=config.written_ids,
            max_codes=self.code_limits,
            past_key_values=self._past(),
        )
        return writer, steps

    def said(self, writer: FlatWriter, writing: Writing) -> list[SaidRow]:
        """What each row said, once it is written."""
        config = self.config
        length = self.inputs["input_ids"].shape[1]
        chosen = writing.ids[:, length:].cpu()
        read = chosen
        written: dict[str, torch.Tensor] = {}
        if isinstance(writer, DelayWriter | LatentWriter):
            read = torch.stack(writer.ids_read, dim=1).cpu()
            written = writer.clips(len(chosen))
        judges_length = self.settings.pieces is None and self.settings.durations is None
        rows = []
        for place, utterance in enumerate(self.utterances):
            ids = chosen[place, : int(writing.lengths[place])]
            ends = (ids == config.audio_end_token_id).nonzero()
            aligned = split_pieces(
                ids[: int(ends[0])] if len(ends) else ids, config.written_ids, utterance.pieces or None
            )
            frames = aligned.audio_codes
            if written:
                kept = written["audio_codes_mask"][place].bool()
                is_latent = isinstance(writer, LatentWriter)
                frames = written["audio_latents"][place][kept] if is_latent else written["audio_codes"][place][:, kept]
            times = torch.stack([aligned.starts, aligned.ends], dim=-1)
            length = len(frames) if frames.is_floating_point() else frames.shape[1]
            if not frames.is_floating_point():
                times = config.coding.frames_of_runs(frames, times)
                frames = config.coding.decode(frames)
            row = SaidRow(aligned, frames, times / config.frame_rate, len(ends) > 0, read[place])
            row.alarm = alarm_of(row.frames, row.ended, utterance.text, self.model, length, judges_length)
            rows.append(row)
        return rows

    def say(self) -> tuple[list[SaidRow], list[list[str]], list[int]]:
        """
        Write all rows, and those that fail once more, at most `retries` times.

        Returns:
            `tuple`: What each row said in its last try, what was wrong with each try that failed, and the numbers of
            tries.
        """
        generators, retries = self.settings.generators, self.settings.retries
        states = [generator.get_state() for generator in generators or ()] if retries else []
        rows = self._say_once()
        tries = [1] * len(rows)
        alarms: list[list[str]] = [[row.alarm] if row.alarm else [] for row in rows]
        for attempt in range(1, retries + 1):
            failed = [place for place, row in enumerate(rows) if row.alarm]
            if not failed:
                break
            drawn = None if generators is None else generators_again(generators, states, failed, attempt)
            for place, row in zip(failed, self._of_rows(failed, drawn)._say_once(), strict=True):
                rows[place] = row
                tries[place] += 1
                alarms[place] += [row.alarm] if row.alarm else []
        return rows, alarms, tries

    def _say_once(self) -> list[SaidRow]:
        writer, steps = self.write()
        for writing in steps:  # noqa: B007
            pass
        return self.said(writer, writing)

    def _of_rows(self, rows: Sequence[int], generators: Sequence[torch.Generator] | None) -> "SpeechPlan":
        # The same for some of the rows, without the padding that only others needed.
        plan = copy.copy(self)
        plan.settings = replace(self.settings, generators=generators)
        for name in ("utterances", "voices", "limits", "code_limits"):
            setattr(plan, name, [getattr(self, name)[row] for row in rows])
        first = int(self.inputs["attention_mask"][rows].argmax(1).min())
        kept = slice(first, None)
        plan.inputs = {name: at_times(name, part[rows], kept) for name, part in self.inputs.items()}
        return plan

    # --- Texts, prompts and limits ---

    def _utterances(self, texts: Sequence[str], processor: Any) -> list[Utterance]:
        config, settings = self.config, self.settings
        utterances = []
        for number, text in enumerate(texts):
            utterance = Utterance(text)
            if config.text_alignment != "none":
                if settings.pieces is None:
                    utterance.labels, utterance.pieces = processor.speech_pieces(text)
                    utterance.words = processor.words_of_pieces(text)
                else:
                    utterance.labels = list(settings.pieces[number])
                    if not utterance.labels:
                        raise ValueError(f"`pieces` of {text!r} is empty; give at least one.")
                    utterance.pieces = processor.piece_ids(utterance.labels)
                self._set_durations(utterance, None if settings.durations is None else settings.durations[number])
            utterances.append(utterance)
        return utterances

    def _set_durations(self, utterance: Utterance, durations: Sequence[int] | None) -> None:
        config = self.config
        if durations is not None:
            if len(durations) != len(utterance.pieces):
                raise ValueError(
                    f"`durations` of {utterance.text!r} must have {len(utterance.pieces)} entries, one a piece, but"
                    f" has {len(durations)}."
                )
            for value in durations:
                check_whole_number(value, "durations", 1)
            utterance.fewest = utterance.most = [int(value) for value in durations]
        elif config.piece_frames and config.text_alignment == "phone":
            limits = dict(zip(config.piece_labels, config.piece_frames, strict=True))
            utterance.fewest = [limits[label][0] for label in utterance.labels]
            utterance.most = [limits[label][1] for label in utterance.labels]
        else:
            utterance.fewest = [1] * len(utterance.pieces)
            utterance.most = [most_frames(label, config) for label in utterance.labels]

    def _inputs(self, processor: Any) -> dict[str, torch.Tensor]:
        is_phones = self.config.text_alignment == "phone"
        prompts = [
            processor.speech_prompt(utterance.text, utterance.labels if is_phones else None, voice)
            for utterance, voice in zip(self.utterances, self.voices, strict=True)
        ]
        clips = [voice.clip() for voice in self.voices if voice is not None]
        parts = ("audio_codes", "audio_latents", "audio_pieces")
        given = {name: [clip.get(name) for clip in clips] for name in parts if any(name in clip for clip in clips)}
        inputs = processor(text=prompts, **given, padding_side="left", return_tensors="pt")
        self._check_known(inputs["input_ids"], processor.tokenizer)
        names = list(inputs) if clips else ["input_ids", "attention_mask"]
        return {name: inputs[name].to(self.model.device) for name in names}

    def _past(self) -> Any:
        # What the model remembers of the voice. Several rows read their voices anew, as does guidance, which hides
        # their texts.
        voice = self.voices[0]
        if len(self.voices) > 1 or voice is None or voice.past is None or self.settings.cfg_scale != 1:
            return None
        ids = voice.input_ids
        if not torch.equal(self.inputs["input_ids"][0, : len(ids)].cpu(), ids):
            raise ValueError(
                "The voice has a cache of other ids than this processor writes for it; make the voice anew with this"
                " model and processor, or use `voice.without_cache()`."
            )
        return voice.cache(self.model.device)

    def _check_known(self, ids: torch.Tensor, tokenizer: Any) -> None:
        # Phones are looked up; letters and words that a vocabulary lacks would be said as if they were not there.
        unknown = tokenizer.unk_token_id
        if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
            return
        for utterance, row in zip(self.utterances, ids, strict=True):
            if bool((row == unknown).any()) or any(unknown in piece for piece in utterance.pieces):
                raise ValueError(
                    f"The text {_beginning(utterance.text)!r} has characters or words that the model's vocabulary"
                    " lacks; write them otherwise."
                )

    def _limits(self, prompt_lengths: Sequence[int]) -> tuple[list[int], list[int]]:
        # The most ids and the most codes that each row writes; of its own text and prompt, whatever stands beside it.
        config, max_frames = self.config, self.settings.max_frames
        context = getattr(config.text_config, "max_position_embeddings", None)
        limits, codes = [], []
        for utterance, prompt_length in zip(self.utterances, prompt_lengths, strict=True):
            most = sum(utterance.most) if utterance.pieces else most_frames(utterance.text, config)
            usual = max(sum(utterance.fewest), _usual_frames(utterance.text, config))
            if max_frames is not None:
                most, usual = min(most, max_frames), min(usual, max_frames)
            others = sum(len(piece) for piece in utterance.pieces) + 1
            late = max(config.codebook_delays)
            # Speech that does not fit is refused, not cut.
            needed = prompt_length + max(1, min(usual, most)) * config.positions_per_frame + others + late
            if context is not None and needed > context:
                raise ValueError(
                    f"The text {_beginning(utterance.text)!r} takes about {needed} positions, its prompt"
                    f" {prompt_length} of them, but the model has {context}; say it in parts, such as sentences."
                )
            limit = most * config.positions_per_frame + others
            limits.append(limit if context is None else min(limit, context - prompt_length - late))
            codes.append(most * config.positions_per_frame)
        return limits, codes

    def _logits_processors(self) -> LogitsProcessorList:
        settings, ids = self.settings, self.config.written_ids
        if self.config.text_alignment != "none":
            processors = [
                GuidedText(
                    ids,
                    [utterance.pieces for utterance in self.utterances],
                    min_frames=[utterance.fewest for utterance in self.utterances],
                    max_frames=[utterance.most for utterance in self.utterances],
                )
            ]
        else:
            processors = [AudioOnly(ids), MinFrames(ids, settings.min_frames)]
        coding = self.config.coding
        if settings.repetition_window:
            # Of runs, units alone; and no smaller codebooks behind them: what these hold, such as F0, stays the same.
            largest = [size == ids.codebook_size for size in (*ids.sizes, 0)]
            counted = 1 if coding.sizes else largest.index(False)
            window, limit = settings.repetition_window, settings.repetition_limit
            processors.append(WindowedRepetition(ids, window, limit, num_codebooks=counted))
        return LogitsProcessorList(processors)


def most_frames(text: str, config: Any) -> int:
    """Frames of a text, or a word, at most, by its letters; without statistics half a second a character."""
    per_character = config.frames_per_character[1] if config.frames_per_character else config.frame_rate / 2
    return max(1, round(per_character * (len(text) + 1)))


def _usual_frames(text: str, config: Any) -> int:
    # By its letters; 0 without statistics.
    known = config.frames_per_character
    return round(known[0] * (len(text) + 1)) if known else 0


def _beginning(text: str, num_characters: int = 40) -> str:
    return text if len(text) <= num_characters else text[: num_characters - 3] + "..."


__all__ = ["SaidRow", "SpeechPlan", "SpeechSettings", "Utterance", "most_frames"]
