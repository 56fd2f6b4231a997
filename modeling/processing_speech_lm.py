# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Processor of speech language models: texts, recordings, codes and rows of a corpus to ids on one time axis."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

from .configuration_speech_lm import check_audio_in
from .speech_lm_clips import as_clips, decode_codes
from .speech_lm_ids import checked_delays
from .speech_lm_layouts import LAYOUTS, SpeechIds, flat_to_codes
from .speech_lm_making import ProcessorMaking
from .speech_lm_requests import Attached, SpeechLMRequests
from .speech_lm_sequences import WrittenClip, pad_sequences
from .speech_lm_task_inputs import TaskInputs
from .speech_lm_tasks import defined_tasks, task_definitions
from .speech_lm_text import (
    AUDIO,
    AUDIO_END,
    AUDIO_START,
    TEMPLATE_VERSION,
    phone_token,
    prompt_template,
)
from .speech_lm_unit_coding import CODING_FIELDS, check_codec_sizes, check_has_codes, written_sizes
from .transformers_codecs import as_speech_codec


PRONUNCIATIONS_FILE = "pronunciations.txt.gz"
_ALIGNMENTS = ("none", "word", "phone")


class SpeechLMProcessor(ProcessorMaking, TaskInputs, SpeechLMRequests, ProcessorMixin):
    """
    Turn texts, recordings, codes, and rows of a corpus into the ids of a [`SpeechLMForConditionalGeneration`].

    A clip is written as `<|audio_start|>`, the ids of its codes frame by frame, and `<|audio_end|>`. Codes have no
    names: their ids follow from `audio_offset`, which is the size of the vocabulary of text. Other layouts than the
    flat one write `<|audio|>` for each frame, and give the frames beside the ids. An answer ends with the base's own
    end of sequence. [`~SpeechLMProcessor.from_tokenizer`] makes a processor for a language model.

    Args:
        feature_extractor (`SequenceFeatureExtractor`): Feature extractor of the codec.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer with the marks of audio, and the phones if there are any.
        chat_template (`str`, *optional*): Jinja template of prompts. Defaults to [`prompt_template`].
        layout (`str`, *optional*, defaults to `"flat"`): How audio is laid out: `"flat"`, `"delay"` or
            `"continuous"`; see [`SpeechLMConfig`].
        text_alignment (`str`, *optional*, defaults to `"none"`): What stands before its frames in speech that says a
            text: `"none"`, each `"word"`, or each `"phone"`.
        num_codebooks (`int`): Number of codebooks that the language model reads and writes, Q.
        codebook_size (`int`): Codes of a codebook, K.
        codebook_sizes (sequence of `int`, *optional*): See [`SpeechLMConfig`].
        frame_rate (`float`): Frames a second, in Hz.
        sampling_rate (`int`): Sampling rate of recordings, in Hz.
        codec_name (`str`): Name or Hub id of the codec.
        codec_fingerprint (`str`): What [`SpeechCodec.fingerprint`] says of it.
        piece_labels (sequence of `str`): Labels of the phones; their tokens have ids in this order.
        audio_offset (`int`): Id of code 0 of the first codebook.
        max_length (`int`, *optional*): Most positions of a sequence; longer ones are refused.
        delays (sequence of `int`, *optional*): Columns by which each codebook is late, in the delay layout. Defaults
            to 0, 1, 2 and so on.
        latent_dim (`int`, *optional*, defaults to 0): Numbers of a frame, in the continuous layout.
        audio_in (`str`, *optional*, defaults to `"tokens"`), projector_stack (`int`, *optional*), latent_source
            (`str`, *optional*): See [`SpeechLMConfig`]. With `audio_in="embeds"` recordings are heard only.
        unit_coding (`str`, *optional*, defaults to `"frames"`): What stands for the codec's codes: those of each frame
            (`"frames"`), of runs of equal units (`"units"`), these with durations (`"runs"`), or such runs merged to
            tokens (`"bpe"`); see [`UnitCoding`]. Durations are a second codebook.
        num_units, max_duration (`int`, *optional*), unit_merges (sequence of `str`, *optional*), unit_durations
            (sequence of `float`, *optional*): See [`UnitCoding`].
        new_tasks (`Mapping`, *optional*): Definitions of tasks that the package does not have, by name; see
            [`defined_tasks`]. They are saved with the processor and its model, and are known to these alone.

    Raises:
        ValueError: If a field makes no sense, or the tokenizer lacks a token or has grown past `audio_offset`.
    """

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        chat_template: str | dict[str, str] | None = None,
        layout: str = "flat",
        text_alignment: str = "none",
        num_codebooks: int = 1,
        codebook_size: int = 1024,
        frame_rate: float = 50.0,
        sampling_rate: int = 16000,
        codec_name: str = "",
        codec_fingerprint: str = "",
        piece_labels: Sequence[str] = (),
        audio_offset: int = 0,
        max_length: int | None = None,
        delays: Sequence[int] | None = None,
        latent_dim: int = 0,
        audio_in: str = "tokens",
        projector_stack: int = 2,
        latent_source: str = "features",
        unit_coding: str = "frames",
        num_units: int = 0,
        max_duration: int = 0,
        unit_merges: Sequence[str] = (),
        unit_durations: Sequence[float] = (),
        new_tasks: Mapping[str, Mapping[str, Any]] | None = None,
        codebook_sizes: Sequence[int] | None = None,
    ):
        if layout not in LAYOUTS:
            raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, but is {layout!r}.")
        check_has_codes(unit_coding, layout)
        if delays is not None:
            if layout != "delay":
                raise ValueError(f"`delays` belong to `layout='delay'`, but the layout is {layout!r}.")
            checked_delays(delays, num_codebooks)
        if (layout == "continuous") != (latent_dim > 0):
            raise ValueError(f"`latent_dim` belongs to `layout='continuous'`, but with {layout!r} it is {latent_dim}.")
        if text_alignment not in _ALIGNMENTS:
            raise ValueError(f"`text_alignment` must be one of {', '.join(_ALIGNMENTS)}, but is {text_alignment!r}.")
        if (text_alignment == "phone") != bool(piece_labels) or len(set(piece_labels)) < len(piece_labels):
            raise ValueError(
                f"`piece_labels` must be the distinct labels of phones with `text_alignment='phone'`, and empty with"
                f" others, but with {text_alignment!r} they are {list(piece_labels)}."
            )
        if max_length is not None and max_length < 1:
            raise ValueError(f"`max_length` must be at least 1, but is {max_length}.")
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or prompt_template(tokenizer))
        self.layout, self.text_alignment = layout, text_alignment
        self.num_codebooks, self.codebook_size = int(num_codebooks), int(codebook_size)
        self.frame_rate, self.sampling_rate = float(frame_rate), int(sampling_rate)
        self.codec_name, self.codec_fingerprint = codec_name, codec_fingerprint
        self.piece_labels, self.audio_offset, self.max_length = list(piece_labels), int(audio_offset), max_length
        self.audio_in, self.projector_stack, self.latent_source = audio_in, int(projector_stack), latent_source
        check_audio_in(self)
        self.delays, self.latent_dim = None if delays is None else [int(late) for late in delays], int(latent_dim)
        self.unit_coding, self.num_units, self.max_duration = unit_coding, int(num_units), int(max_duration)
        self.unit_merges, self.unit_durations = list(unit_merges), [float(value) for value in unit_durations]
        self.coding.codec_sizes(self.num_codebooks, self.codebook_size)
        self.codebook_sizes = None if codebook_sizes is None else [int(size) for size in codebook_sizes]
        check_codec_sizes(self)
        self.new_tasks = task_definitions(defined_tasks(new_tasks or {}))
        self.audio_token, self.audio_token_id = AUDIO, self._token_id(AUDIO)
        piece_ids = {label: self._token_id(phone_token(label)) for label in self.piece_labels}
        first = min(piece_ids.values(), default=0)
        if list(piece_ids.values()) != list(range(first, first + len(piece_ids))):
            raise ValueError("The tokens of the phones have no contiguous ids; begin with a tokenizer without them.")
        self._piece_ids = piece_ids
        self._ids = SpeechIds(
            self._token_id(AUDIO_START),
            self._token_id(AUDIO_END),
            *(
                (self.audio_offset, self.num_codebooks, self.codebook_size)
                if layout == "flat"
                else (self.audio_token_id, 1, 1)
            ),
            first,
            len(piece_ids),
            written_sizes(self) if layout == "flat" else None,
        )
        self._attached = Attached()
        self._check_vocabulary()

    # --- What is attached, and what follows from the fields ---

    @property
    def vocab_size_needed(self) -> int:
        """Fewest rows of the language model's embeddings."""
        return self._ids.audio_stop if self.layout == "flat" else self.audio_offset

    def model_fields(self) -> dict[str, Any]:
        """The fields of [`SpeechLMConfig`] that the processor decides."""
        ids = self.speech_ids
        names = ["layout", "text_alignment", "num_codebooks", "codebook_size", "frame_rate", "sampling_rate"]
        names += ["codebook_sizes"]
        names += ["delays", "latent_dim", "audio_in", "projector_stack", "latent_source", "new_tasks", *CODING_FIELDS]
        return {
            **{name: getattr(self, name) for name in names},
            "codec_name": self.codec_name or None,
            "codec_fingerprint": self.codec_fingerprint,
            "audio_start_token_id": ids.audio_start,
            "audio_end_token_id": ids.audio_end,
            "audio_token_id": self.audio_token_id,
            "audio_offset": self.audio_offset,
            "piece_offset": ids.piece_offset,
            "piece_labels": list(self.piece_labels),
            "template_version": TEMPLATE_VERSION,
        }

    def check_model(self, model: Any) -> None:
        """
        Check that a model reads the ids that this processor writes.

        Raises:
            ValueError: If a field of its configuration says otherwise.
        """
        for name, value in self.model_fields().items():
            found = getattr(model.config, name)
            if name != "codec_name" and found != value:
                is_long = name in ("unit_merges", "unit_durations", "new_tasks")
                told = ("others", "its own") if is_long else (repr(found), repr(value))
                raise ValueError(
                    f"The model has `{name}` {told[0]}, but the processor {told[1]}: they do not belong together. Load"
                    " both from one folder."
                )

    @property
    def codec(self) -> Any:
        """The attached codec, or `None`."""
        return self._attached.codec

    def attach_codec(self, codec: Any) -> None:
        """
        Attach the codec, which encodes recordings and decodes codes. It is never saved with the processor.

        Raises:
            ValueError: If it is another codec than `codec_fingerprint` says.
        """
        codec = as_speech_codec(codec, self.feature_extractor)
        if codec.fingerprint() != self.codec_fingerprint:
            raise ValueError(
                f"This {codec.family} has the fingerprint {codec.fingerprint()}, but the processor needs the codec"
                f" {self.codec_name!r} of fingerprint {self.codec_fingerprint}; attach that one."
            )
        self._attached.codec = codec

    def attach_pronouncer(self, pronouncer: Any) -> None:
        """Attach a [`PronunciationLexicon`], or what has `pronounce(text)` and `save(path)`; it is saved beside."""
        self._attached.pronouncer = pronouncer

    @property
    def model_input_names(self) -> list[str]:
        """Names of what the model is given."""
        frames = {"flat": [], "delay": ["audio_codes"], "continuous": ["audio_latents", "audio_mask"]}
        return ["input_ids", "attention_mask", *frames[self.layout]]

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Save all fields, the tokenizer, the feature extractor, the chat template, and the lexicon if any."""
        if self.pronouncer is not None:
            os.makedirs(save_directory, exist_ok=True)
            self.pronouncer.save(Path(save_directory) / PRONUNCIATIONS_FILE)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load what `save_pretrained` saved; the codec has to be attached again."""
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        names = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
        place = {name: kwargs[name] for name in names if name in kwargs}
        found = cached_file(
            pretrained_model_name_or_path,
            PRONUNCIATIONS_FILE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **place,
        )
        if found is not None:
            from .pronunciations import PronunciationLexicon

            processor.attach_pronouncer(PronunciationLexicon.from_file(found))
        return processor

    # --- Texts with clips ---

    def __call__(  # type: ignore[override]
        self,
        text: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | None = None,
        audio: Any = None,
        audio_codes: Any = None,
        audio_pieces: Any = None,
        audio_latents: Any = None,
        output_labels: bool = False,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """
        Texts with recordings or codes in them, as ids. Nothing is added to the texts, and control tokens count: give
        what users write to [`~SpeechLMProcessor.speech_prompt`], [`~SpeechLMProcessor.apply_chat_template`] or
        [`~SpeechLMProcessor.as_plain_text`] first.

        Args:
            text (`str` or a list): Prompts. Each `<|audio|>` stands for one clip with its start and end.
            text_target (`str` or a list, *optional*): Answers, to which the end of sequence is added.
            audio (*optional*): Recordings, in the order of their `<|audio|>`: row by row, the prompt before the
                answer. Each is a mono waveform in [-1, 1], a path, or `{"array", "sampling_rate"}`; or `None` where
                `audio_codes` has the clip.
            audio_codes (*optional*): Codes of clips, `(num_codebooks, num_frames)` each, or `None` where `audio` has
                the clip. More codebooks than needed are left out.
            audio_pieces (*optional*): Pieces of clips that are aligned, as rows have them: a list of `{"word", "end"}`
                or `{"label", "end"}` a clip, or `None` for one that is not aligned.
            audio_latents (*optional*): In the continuous layout latents of clips, `(num_frames, latent_dim)` each, or
                `None` where another has the clip. There `audio_codes` mean the latents that they stand for.
            output_labels (`bool`, *optional*, defaults to `False`): Whether to give `labels`: -100 in the prompt and
                in padding, and in an `<|audio_start|>` that begins an answer.
            padding_side (`str`, *optional*): `"right"` or `"left"`. Defaults to `"left"`, and to `"right"`
                with `output_labels`.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"`, or `None` for lists without padding.
            sampling_rate (`int`, *optional*): Rate of the waveforms in Hz, to be checked.

        Returns:
            `BatchFeature`: `input_ids`, `attention_mask` and perhaps `labels`, `(batch, num_positions)`. Beside the
            flat layout, the frames as [`SpeechLMForConditionalGeneration`] takes them, and its shape of labels.

        Raises:
            ValueError: If the clips are not as many as their places, no codec is attached for waveforms, a sequence
                is too long, or a codec, rate, code or piece is not that of this processor.
        """
        if audio_latents is not None and self.layout != "continuous":
            raise ValueError(f"`audio_latents` need `layout='continuous'`, but the processor's is {self.layout!r}.")
        if text is None:
            raise ValueError("`text` is missing; '<|audio|>' alone stands for a clip without text.")
        prompts = [text] if isinstance(text, str) else list(text)
        targets = [text_target] if text_target is None or isinstance(text_target, str) else list(text_target)
        targets = targets * len(prompts) if text_target is None else targets
        if not prompts or len(targets) != len(prompts):
            raise ValueError(f"`text` has {len(prompts)} rows, but `text_target` has {len(targets)}; give as many.")
        if output_labels and text_target is None:
            raise ValueError("`output_labels` needs `text_target`: the answers, which are what is learnt.")

        clips = self._clips(audio, audio_codes, audio_pieces, audio_latents, sampling_rate)
        left = iter(clips)
        rows = [
            self._writer.sequence(prompt, target, left, f"Row {place} of `text`")
            for place, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
        ]
        unused = len(list(left))
        if unused:
            raise ValueError(f"There are {len(clips)} clips, but places {AUDIO} for {len(clips) - unused} of them.")
        if not output_labels:
            rows = [{name: part for name, part in row.items() if name != "labels"} for row in rows]
        if return_tensors is None:
            rows = [{"attention_mask": torch.ones_like(row["input_ids"]), **row} for row in rows]
            return BatchFeature({name: [row[name].tolist() for row in rows] for name in rows[0]})
        if return_tensors != "pt":
            raise ValueError(f"`return_tensors` must be 'pt' or None, but is {return_tensors!r}.")
        # Behind prompts something is written, so that they end side by side.
        side = ("right" if output_labels else "left") if padding_side is None else padding_side
        return BatchFeature(pad_sequences(rows, self.pad_token_id, side))

    def decode(self, ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> Any:  # type: ignore[override]
        """
        The waveform of the last clip in a sequence, `(num_samples,)`, if there is one and a codec is attached; else
        the text, in which `<|audio|>` stands for each clip. Codes that are in no whole frame are left out. Beside the
        flat layout ids hold no codes, so that it is always the text.

        Args:
            ids (`torch.Tensor` of shape `(num_positions,)`, or a list): A sequence; several give a list.
            skip_special_tokens (`bool`, *optional*, defaults to `True`): Whether to leave special tokens out of text.
            kwargs: Arguments of the tokenizer's `decode`.
        """
        sequence = torch.as_tensor(ids)
        if sequence.dim() == 2:
            return [self.decode(row, skip_special_tokens, **kwargs) for row in sequence]
        is_unit = self.speech_ids.is_unit(sequence)
        if self.layout == "flat" and self.codec is not None and bool(is_unit.any()):
            starts = (sequence == self._ids.audio_start).nonzero()[:, 0].tolist()
            begun = [start for start in starts if bool(is_unit[start:].any())]
            codes = flat_to_codes(sequence[begun[-1] if begun else 0 :], self._ids).audio_codes
            return decode_codes(self.codec, self.coding.decode(codes))
        parts: list[str] = []
        text: list[int] = []
        was_unit = False
        for number, unit in zip(sequence.tolist(), is_unit.tolist(), strict=True):
            if unit and not was_unit:
                parts += [self.tokenizer.decode(text, skip_special_tokens=skip_special_tokens, **kwargs), AUDIO]
                text = []
            elif not unit and 0 <= number < self.audio_offset:  # neither a row without a name nor a masked label
                text.append(number)
            was_unit = unit
        return "".join([*parts, self.tokenizer.decode(text, skip_special_tokens=skip_special_tokens, **kwargs)])

    def batch_decode(self, sequences: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """What `decode` gives for each sequence."""
        return [self.decode(ids, *args, **kwargs) for ids in sequences]

    # --- Helpers ---

    @property
    def pad_token_id(self) -> int:
        """Id in padding; the end of sequence where the tokenizer has none of its own."""
        found = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if found is None else found

    def _token_id(self, token: str) -> int:
        found = self.tokenizer.added_tokens_encoder.get(token)
        if found is None or self.tokenizer.encode(token, add_special_tokens=False) != [found]:
            raise ValueError(
                f"The tokenizer does not read {token!r} as one token; make the processor by `from_tokenizer`, from a"
                " tokenizer that does not split special tokens."
            )
        return found

    def _clips(
        self, audio: Any, audio_codes: Any, audio_pieces: Any, audio_latents: Any, sampling_rate: int | None
    ) -> list[WrittenClip]:
        clips = as_clips(audio, audio_codes, audio_pieces, audio_latents)
        recordings = {f"Clip {place}": clip[0] for place, clip in enumerate(clips) if clip[0] is not None}
        recorded = self._recorded_frames(recordings, sampling_rate)
        written = []
        for place, (_, codes, latents, pieces) in enumerate(clips):
            name = f"Clip {place}"
            values = recorded[name] if name in recorded else self._given_frames(codes, latents, name)
            written.append(self._writer.clip(values, pieces, name))
        return written


__all__ = ["SpeechLMProcessor"]
