# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What a speech language model is asked: the prompts of tasks, rows of a corpus as sequences, and conversations."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.processing_utils import ProcessorMixin

from .speech_lm_layouts import SpeechIds
from .speech_lm_row_frames import RowFrames
from .speech_lm_sequences import PIECE_COLUMNS, SequenceWriter
from .speech_lm_tasks import SPEECH_COLUMN, Task, find_task
from .speech_lm_text import (
    AUDIO,
    AUDIO_START,
    checked_text,
    instruction_text,
    marked_conversation,
    phone_token,
    spoken_words,
)


class Attached:
    # What belongs to a processor and is not saved in its JSON. `to_dict` copies all attributes, so a copy of this
    # shares what is attached; what was built for a tokenizer is built anew.

    def __init__(self, codec: Any = None, pronouncer: Any = None):
        self.codec, self.pronouncer = codec, pronouncer
        self.writer: tuple[Any, SequenceWriter] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attached":
        return Attached(self.codec, self.pronouncer)


class SpeechLMRequests(RowFrames):
    """The part of a [`SpeechLMProcessor`] that knows tasks and conversations; see there for its fields."""

    tokenizer: Any
    feature_extractor: Any
    chat_template: Any
    text_alignment: str
    frame_rate: float
    max_length: int | None
    audio_offset: int
    num_units: int
    max_duration: int
    unit_merges: list[str]
    unit_durations: list[float]
    new_tasks: dict[str, dict[str, Any]]
    _ids: SpeechIds
    _piece_ids: dict[str, int]
    _attached: Attached

    @property
    def speech_ids(self) -> SpeechIds:
        """
        The ids of speech.

        Raises:
            ValueError: If the tokenizer has grown past `audio_offset`.
        """
        self._check_vocabulary()
        return self._ids

    @property
    def pronouncer(self) -> Any:
        """The attached lexicon, or `None`."""
        return self._attached.pronouncer

    def find_task(self, task: str | Task) -> Task:
        """
        The task of a name that this processor defines, or that is known to all; or the task itself.

        Raises:
            ValueError: As the function [`find_task`].
        """
        return find_task(task, self.new_tasks)

    def speech_prompt(self, text: str, pieces: Sequence[str] | None = None, voice: Any = None) -> str:
        """
        The prompt that asks for a text to be spoken, up to and with `<|audio_start|>`.

        Args:
            text (`str`): Text to speak. Control tokens in it are marked, to be read as ordinary text.
            pieces (sequence of `str`, *optional*): Labels of the phones, for `text_alignment="phone"`. Defaults to
                those that the attached lexicon gives.
            voice ([`Voice`], *optional*): Example of speech, which stands before the request with its text.

        Raises:
            ValueError: If the text is empty or has words without a pronunciation, no lexicon is attached, or a label
                is unknown; or if the template does not keep what stands before a request.
        """
        if voice is None:
            return self.task_prompt("tts", text, pieces)
        before = self.voice_prompt(voice)
        prompt = self.task_prompt("tts", text, pieces, self._turns_of_voice(voice))
        if not prompt.startswith(before):
            raise ValueError("The template writes an example otherwise when a request follows; mend it.")
        return prompt

    def voice_prompt(self, voice: Any) -> str:
        """
        The turn in which a [`Voice`] was asked and answered, with `<|audio|>` for its speech.

        Raises:
            ValueError: As `speech_prompt`.
        """
        return ProcessorMixin.apply_chat_template(self, self._turns_of_voice(voice), tokenize=False)

    def _turns_of_voice(self, voice: Any) -> list[dict[str, Any]]:
        task, text = find_task("tts"), checked_text(voice.text, "`text` of the voice")
        labels = None
        if self.text_alignment == "phone":
            given = voice.pieces
            labels = self.speech_pieces(text)[0] if given is None else self._writer.labels(given, "`audio_pieces`")
        asked = self._messages(task, *self._content_of_text(task, text, labels, "`audio_pieces`"))
        return [*asked, {"role": "assistant", "content": [{"type": "audio"}]}]

    def clip_values(
        self, audio: Any = None, audio_codes: Any = None, audio_latents: Any = None, sampling_rate: int | None = None
    ) -> torch.Tensor:
        """
        The frames of one clip, as the model reads them: codes `(num_codebooks, num_frames)`, or in the continuous
        layout latents `(num_frames, latent_dim)`.

        Args:
            audio, audio_codes, audio_latents, sampling_rate: One of them, as `__call__` takes it.

        Raises:
            ValueError: As `__call__`.
        """
        if audio_latents is not None and self.layout != "continuous":
            raise ValueError(f"`audio_latents` need `layout='continuous'`, but the processor's is {self.layout!r}.")
        if audio is None:
            return self._given_frames(audio_codes, audio_latents, "The clip")
        return self._recorded_frames({"The clip": audio}, sampling_rate)["The clip"]

    def task_prompt(
        self,
        task: str | Task,
        text: str | None = None,
        pieces: Sequence[str] | None = None,
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """
        The prompt of a task, as it stands in training.

        Args:
            task (`str` or `Task`): The task.
            text (`str`, *optional*): What a task reads that reads text; one that hears has `<|audio|>` in its place.
            pieces (sequence of `str`, *optional*): See `speech_prompt`.
            earlier (sequence of `Mapping`, *optional*): Messages that stand before, for a task that reads text.

        Returns:
            `str`: The prompt; for a task that answers by speech, with `<|audio_start|>` at its end.

        Raises:
            ValueError: As `speech_prompt`; or if text is given to a task that hears.
        """
        task = self.find_task(task)
        self.check_speaks(task)
        if task.source == SPEECH_COLUMN:
            if text is not None:
                raise ValueError(
                    f"The task {task.name!r} hears, so that it has no `text`; give `audio` to `__call__`."
                )
            prompt = self._render(task, {"type": "audio"})
        else:
            text = checked_text(text, "`text`")
            if pieces is None and task.speaks_its_text and self.text_alignment == "phone":
                pieces = self.speech_pieces(text)[0]
            prompt = self._prompt_of_text(task, text, pieces, "`pieces`", earlier)
        return prompt + AUDIO_START if task.output == "speech" else prompt

    def speech_pieces(self, text: str) -> tuple[list[str], list[list[int]]]:
        """
        The pieces of a text in the order in which they are spoken, for [`GuidedText`].

        Args:
            text (`str`): Text to speak.

        Returns:
            `tuple` of `list[str]` and `list[list[int]]`: Words or phones, and the ids of each.

        Raises:
            ValueError: If `text_alignment` is `"none"`, the text is empty or has words without a pronunciation, no
                lexicon is attached, or a label is unknown.
        """
        text = checked_text(text, "`text`")
        if self.text_alignment == "none":
            raise ValueError("With `text_alignment='none'` a text has no pieces; generate without guidance.")
        if self.text_alignment == "word":
            labels = spoken_words(text)
        elif self.pronouncer is None:
            raise ValueError("No lexicon is attached, which pronounces texts; call `attach_pronouncer` first.")
        else:
            labels = list(self.pronouncer.pronounce(text))
        if not labels:
            raise ValueError(f"`text` is {text!r}, in which there is nothing to say; give it a word.")
        return labels, self._writer.ids_of_pieces(labels, "`text`")

    def piece_ids(self, labels: Sequence[str]) -> list[list[int]]:
        """
        The ids of words or phones, for [`GuidedText`].

        Raises:
            ValueError: If a label is unknown.
        """
        return self._writer.ids_of_pieces(labels, "`pieces`")

    def words_of_pieces(self, text: str) -> list[tuple[str, int]]:
        """The words of a text, each with the number of its pieces in `speech_pieces`; a pause is the word `""`."""
        if self.text_alignment == "phone":
            return [(said.word, len(said.phones)) for said in self.pronouncer.pronounce_words(text)]
        return [(word, 1) for word in spoken_words(checked_text(text, "`text`"))]

    def missing_column(self, row: Mapping[str, Any], task: str | Task = "tts") -> str | None:
        """The first column that a task needs and that a row lacks or leaves empty; `None` if it has all."""
        task = self.find_task(task)
        needed = list(task.columns)
        if task.speaks_its_text and self.text_alignment != "none":
            needed.append(PIECE_COLUMNS[self.text_alignment][0])
        if self.layout == "continuous" and SPEECH_COLUMN in needed and not _is_missing(row.get("audio_latents")):
            needed.remove(SPEECH_COLUMN)  # a row of latents
        return next((name for name in needed if _is_missing(row.get(name))), None)

    def row_inputs(self, row: Mapping[str, Any], task: str | Task = "tts") -> dict[str, torch.Tensor]:
        """
        The sequence of a row of a corpus.

        Args:
            row (`Mapping`): Row of the Parquet rows, with `id`, `text`, `audio_codes`, `num_quantizers`, `num_frames`,
                `codec_fingerprint`, and the columns of the task. More codebooks than needed are left out. The
                continuous layout takes `audio_latents` and `latent_dim`, or the latents that the codes stand for.
            task (`str` or `Task`, *optional*, defaults to `"tts"`): What the model is asked to do.

        Returns:
            `dict` of `torch.Tensor`: `input_ids` of shape `(num_positions,)`, and `labels`, which stand at their own
            positions and are -100 in the prompt. In speech all behind `<|audio_start|>` is a target, with
            `<|audio_end|>` and the end of sequence. Other layouts than the flat one have frames, too; see
            [`SequenceWriter.sequence`].

        Raises:
            ValueError: If a column is missing, the row is of another codec or too long, or its codes or pieces are not
                those of this processor. The message names the row.
        """
        task, name = self.find_task(task), f"Row {row.get('id')!r}"
        self.check_speaks(task)
        missing = self.missing_column(row, task)
        if missing is not None:
            raise ValueError(f"{name} has no `{missing}`, or it is empty, but the task {task.name!r} needs it.")
        heard, said = self._clips_of_row(row, task, name)
        pieces: Any = None
        if task.speaks_its_text and self.text_alignment != "none":
            pieces = row[PIECE_COLUMNS[self.text_alignment][0]]
        if heard is not None:
            prompt = self._render(task, {"type": "audio"})
        else:
            aligned = pieces is not None and self.text_alignment == "phone"
            labels = self._writer.labels(pieces, name) if aligned else None
            prompt = self._prompt_of_text(
                task, checked_text(row[task.source], f"{name}: `{task.source}`"), labels, name
            )
        target = AUDIO
        if said is None:
            target = self.as_plain_text(checked_text(row[task.target], f"{name}: `{task.target}`"))
        clips = [] if heard is None else [self._writer.clip(heard, None, name)]
        clips += [] if said is None else [self._writer.clip(said, pieces, name)]
        return self._writer.sequence(prompt, target, iter(clips), name)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        output_labels: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        A conversation as a prompt, or as ids. Control tokens in what it says are ordinary text.

        Args:
            conversation (`list[dict]` or a list of these): Messages with `role` and `content`: a text, or parts
                `{"type": "text", "text"}` and `{"type": "audio"}`. A part of audio holds `audio_codes` of shape
                `(num_codebooks, num_frames)`, or `audio` or `path` as `__call__` takes them, and perhaps
                `audio_pieces`.
            chat_template (`str`, *optional*): Another template than the processor's.
            add_generation_prompt (`bool`, *optional*): Whether an answer is to follow.
            tokenize (`bool`, *optional*): Whether to give ids.
            return_dict (`bool`, *optional*): Whether to give all that `__call__` gives, and not `input_ids` alone.
            output_labels (`bool`, *optional*): Whether the last message, the assistant's, is to be learnt.
            processor_kwargs (`dict`, *optional*): Further arguments of `__call__`.
            kwargs: Further variables of the template, and `return_tensors`.

        Raises:
            ValueError: As `__call__`; or if labels are asked for and the last message is not the assistant's.
        """
        kwargs.pop("sanitize_control_tokens", None)  # always done
        options = {**(processor_kwargs or {}), "output_labels": output_labels}
        if kwargs.get("return_tensors") not in (None, "auto"):
            options["return_tensors"] = kwargs["return_tensors"]
        kwargs.pop("return_tensors", None)
        is_batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        clips: list[dict[str, Any]] = []
        conversations = [
            marked_conversation(messages, self.as_plain_text, clips)
            for messages in (conversation if is_batched else [conversation])
        ]

        def render(messages: list[dict[str, Any]], asks: bool) -> str:
            return ProcessorMixin.apply_chat_template(
                self, messages, chat_template, add_generation_prompt=asks, tokenize=False, **kwargs
            )

        if not output_labels:
            prompts = [render(messages, add_generation_prompt) for messages in conversations]
            if not tokenize:
                return prompts if is_batched else prompts[0]
        else:
            if any(messages[-1]["role"] != "assistant" for messages in conversations):
                raise ValueError("`output_labels` needs a last message of the assistant, which is what is learnt.")
            prompts = [render(messages[:-1], True) for messages in conversations]
            wholes = [render(messages, False) for messages in conversations]
            for prompt, whole in zip(prompts, wholes, strict=True):
                if not whole.startswith(prompt):
                    raise ValueError("The template writes the prompt otherwise when the answer is there; mend it.")
            options["text_target"] = [whole[len(prompt) :] for prompt, whole in zip(prompts, wholes, strict=True)]
        if clips:
            for name in ("audio", "audio_codes", "audio_pieces"):
                options[name] = [clip.get(name) for clip in clips]
        inputs = self(text=prompts, **options)  # type: ignore[operator] # the processor's own call
        return inputs if return_dict else inputs["input_ids"]

    def as_plain_text(self, text: str) -> str:
        """What a user wrote, with marks around control tokens, so that `__call__` reads them as ordinary text."""
        return self._writer.control.mark(text)

    @property
    def _default_template(self) -> str:
        return self.chat_template["default"] if isinstance(self.chat_template, dict) else str(self.chat_template)

    @property
    def _writer(self) -> SequenceWriter:
        # Kept until something that it is built from changes.
        template = self._default_template
        state = (len(self.tokenizer), template, self.text_alignment, self.frame_rate, self.max_length)
        kept = self._attached.writer
        if kept is None or kept[0] != state:
            writer = SequenceWriter(
                self.tokenizer,
                template,
                self.speech_ids,
                self.text_alignment,
                self._piece_ids,
                self.frame_rate,
                self.max_length,
                self.layout,
                self.codebook_size,
                self.codebook_delays,
                self.latent_dim,
                self.coding,
                self.projector_stack if self.audio_in == "embeds" else None,
            )
            kept = self._attached.writer = (state, writer)
        return kept[1]

    def _check_vocabulary(self) -> None:
        size = vocabulary_size(self.tokenizer)
        if size > self.audio_offset:
            raise ValueError(
                f"The tokenizer has {size} ids, but audio begins at {self.audio_offset} (`audio_offset`): tokens were"
                " added later, or it is another tokenizer. Add tokens before `from_tokenizer`."
            )

    def _messages(self, task: Task, content: dict[str, str], before_text: bool = False) -> list[dict[str, Any]]:
        before = instruction_text(task.instruction, self._default_template, before_text)
        return [{"role": "user", "content": [{"type": "text", "text": before}, content]}]

    def _render(
        self,
        task: Task,
        content: dict[str, str],
        before_text: bool = False,
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        messages = [*earlier, *self._messages(task, content, before_text)]
        return ProcessorMixin.apply_chat_template(self, messages, add_generation_prompt=True, tokenize=False)

    def _prompt_of_text(
        self,
        task: Task,
        text: str,
        labels: Sequence[str] | None,
        name: str,
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        return self._render(task, *self._content_of_text(task, text, labels, name), earlier=earlier)

    def _content_of_text(
        self, task: Task, text: str, labels: Sequence[str] | None, name: str
    ) -> tuple[dict[str, str], bool]:
        # What is read, and whether it is text rather than phones.
        if not (task.speaks_its_text and self.text_alignment == "phone"):
            if labels is not None:
                raise ValueError(
                    f"{name}: phones stand in prompts with `text_alignment='phone'` alone; leave them out."
                )
            return {"type": "text", "text": self.as_plain_text(text)}, True
        self._writer.ids_of_pieces(labels or [], name)  # refuses unknown ones
        return {"type": "text", "text": "".join(map(phone_token, labels or []))}, False


def vocabulary_size(tokenizer: Any) -> int:
    """Number of ids of a tokenizer, with holes: one more than the largest."""
    return max(len(tokenizer), max(tokenizer.added_tokens_decoder, default=-1) + 1)


def _is_missing(value: Any) -> bool:
    if value is None:
        return True
    return not value.strip() if isinstance(value, str) else hasattr(value, "__len__") and len(value) == 0


__all__ = ["Attached", "SpeechLMRequests", "vocabulary_size"]
