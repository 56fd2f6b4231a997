# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""How a speech language model speaks: requests in, ids by `generate`, audio out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.utils import ModelOutput

from .audio_logits import AudioOnly, GuidedText, MinFrames, RowSampling, WindowedRepetition
from .continuous_heads import check_draw
from .input_checks import check_number, check_whole_number
from .speech_lm_layouts import AlignedCodes, split_pieces
from .speech_lm_unit_coding import UnitCoding
from .speech_lm_writers import DelayWriter, FlatWriter, LatentWriter, padded, write_ids


@dataclass
class SpeechOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): Speech in [-1, 1]; 0 behind an end.
        audio_mask (`torch.LongTensor` of shape `(batch, num_samples)`): 1 before an item's end.
        audio_codes (`torch.LongTensor` of shape `(batch, num_codebooks, num_frames)`): Codes; 0 behind an end. The
            continuous layout has none.
        audio_latents (`torch.FloatTensor` of shape `(batch, num_frames, latent_dim)`): In the continuous layout the
            latents; 0 behind an end.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): 1 before an item's end.
        ended (`torch.BoolTensor` of shape `(batch,)`): Whether the model itself wrote the end; else a limit cut it.
        num_dropped (`torch.LongTensor` of shape `(batch,)`): Ids that made no whole frame.
        pieces (`list` of `list[str]`): Words or phones that were said, in order; empty without an alignment.
        piece_times (`list` of `torch.Tensor` of shape `(num_pieces, 2)`): Their starts and ends, in seconds.
        word_times (`list` of `list` of `tuple`): Words with their starts and ends, in seconds.
        sequences (`torch.LongTensor` of shape `(batch, num_positions)`): All ids, the prompt included; `<|audio|>` for
            each frame beside the flat layout.
        seconds (`float`): Time that all of it took, in seconds.
        realtime_factor (`float`): That time over the length of all speech.
    """

    audio_values: torch.FloatTensor | None = None
    audio_mask: torch.LongTensor | None = None
    audio_codes: torch.LongTensor | None = None
    audio_latents: torch.FloatTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None
    ended: torch.BoolTensor | None = None
    num_dropped: torch.LongTensor | None = None
    pieces: list[list[str]] | None = None
    piece_times: list[torch.Tensor] | None = None
    word_times: list[list[tuple[str, float, float]]] | None = None
    sequences: torch.LongTensor | None = None
    seconds: float | None = None
    realtime_factor: float | None = None


@dataclass
class _Request:
    # What is asked of one row.
    text: str
    labels: list[str] = field(default_factory=list)
    pieces: list[list[int]] = field(default_factory=list)
    words: list[tuple[str, int]] = field(default_factory=list)  # each with the number of its pieces
    fewest: list[int] = field(default_factory=list)
    most: list[int] = field(default_factory=list)


class SpeechGeneration:
    """What a speech language model says aloud; see [`SpeechLMForConditionalGeneration`]."""

    @torch.no_grad()
    def generate_speech(
        self,
        text: str | Sequence[str],
        processor: Any,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_window: int = 0,
        repetition_limit: int = 3,
        durations: Sequence[Sequence[int]] | None = None,
        pieces: Sequence[Sequence[str]] | None = None,
        min_frames: int = 1,
        max_frames: int | None = None,
        generators: Sequence[torch.Generator] | None = None,
        cfg_scale: float = 1.0,
        head_steps: int | None = None,
        decode: bool = True,
    ) -> SpeechOutput:
        """
        Say texts.

        With a `text_alignment`, each word or phone of the text is said once, in order, and then speech ends: no
        sequence of ids in which it is otherwise is allowed. Without one, only whole frames are allowed.

        A batch gives what single texts give: with `temperature=0` always, else with a generator for each text.

        Args:
            text (`str` or sequence of `str`): What to say.
            processor ([`SpeechLMProcessor`]): The model's processor.
            temperature (`float`, *optional*, defaults to 1.0): Temperature of the draws; 0 takes the likeliest code.
            top_k (`int`, *optional*): Draw from so many of the likeliest ids; needs a temperature above 0.
            top_p (`float`, *optional*): Draw from the likeliest ids whose probabilities sum to it; likewise.
            repetition_window (`int`, *optional*, defaults to 0): Frames back in which a code of a codebook may occur
                `repetition_limit` times; 0 for no limit.
            repetition_limit (`int`, *optional*, defaults to 3): See `repetition_window`.
            durations (sequence of sequences of `int`, *optional*): Frames of each piece of each text, where they are
                given in place of the model's own.
            pieces (sequence of sequences of `str`, *optional*): Phones of each text, where they are not to be looked
                up.
            min_frames (`int`, *optional*, defaults to 1): Fewest frames of a text; only without an alignment, where
                the pieces decide.
            max_frames (`int`, *optional*): Most frames of a text. Defaults to what training measured.
            generators (sequence of `torch.Generator`, *optional*): One a text. Defaults to PyTorch's global one.
                Nothing is drawn with a temperature of 0.
            cfg_scale (`float`, *optional*, defaults to 1.0): In the continuous layout, strength of the guidance away
                from what the model says without the text; needs a model that was trained with `condition_dropout`.
            head_steps (`int`, *optional*): In the continuous layout, steps of a head that needs several.
            decode (`bool`, *optional*, defaults to `True`): Whether the codes are made audible.

        Raises:
            ValueError: If a text is empty or has no pronunciation, a prompt leaves no room for speech in the model's
                context, a number is out of its range, or no codec is attached.
        """
        begun = time.perf_counter()
        check_number(temperature, "temperature", 0.0)
        check_whole_number(min_frames, "min_frames", 1)
        if not temperature and (top_k is not None or top_p is not None):
            raise ValueError("`top_k` and `top_p` choose what is drawn from; give a `temperature` above 0 with them.")
        if min_frames > 1 and self.config.text_alignment != "none":  # type: ignore[attr-defined]
            raise ValueError("`min_frames` needs a model without a `text_alignment`; give `durations` instead.")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("`text` is empty; pass at least one text.")
        codec = self.codec if decode else None  # type: ignore[attr-defined]
        processor.check_model(self)
        if max_frames is not None and check_whole_number(max_frames, "max_frames", 1) < min_frames:
            raise ValueError(f"`max_frames` is {max_frames}, but `min_frames` is {min_frames}.")
        if generators is not None and len(generators) != len(texts):
            raise ValueError(f"`generators` must have one a text ({len(texts)}), but has {len(generators)}.")
        if self.training:  # type: ignore[attr-defined]
            raise ValueError("The model is in training mode, in which dropout changes what it says; call `.eval()`.")
        self._check_guidance(cfg_scale, head_steps)
        requests, inputs, limits = self._prepared(texts, processor, pieces, durations, max_frames)
        processors = self._logits_processors(requests, min_frames, repetition_window, repetition_limit)
        sampling = None
        if temperature:
            sampling = RowSampling(temperature, top_k, top_p, None if generators is None else list(generators))
            processors.append(sampling)
        config = self.config  # type: ignore[attr-defined]
        writer = FlatWriter()
        if config.layout == "delay":
            writer = DelayWriter(self, sampling)
        elif config.layout == "continuous":
            writer = LatentWriter(self, temperature, head_steps, cfg_scale, generators)
        for writing in write_ids(  # noqa: B007
            self,
            inputs,
            writer,
            processors,
            limits[0],
            [config.audio_end_token_id],
            codes=config.written_ids,
            max_codes=limits[1],
        ):
            pass
        written = writing.ids[:, inputs["input_ids"].shape[1] :]
        said = [
            self._said(row[:length], request)
            for row, length, request in zip(written, writing.lengths.tolist(), requests, strict=True)
        ]
        output = self._output(said, requests, writer, config.coding)
        output["sequences"] = writing.ids
        if isinstance(writer, DelayWriter | LatentWriter):
            output["sequences"] = torch.cat([inputs["input_ids"], torch.stack(writer.ids_read, dim=1)], dim=1)
        if codec is not None:
            self._sound(output, codec)
        output["seconds"] = time.perf_counter() - begun
        length = float(output["audio_codes_mask"].sum()) / config.frame_rate
        output["realtime_factor"] = output["seconds"] / length if length else float("inf")
        return SpeechOutput(**output)

    def _check_guidance(self, cfg_scale: float, head_steps: int | None) -> None:
        check_draw(1.0, head_steps, cfg_scale)
        config = self.config  # type: ignore[attr-defined]
        if config.layout != "continuous":
            if cfg_scale != 1 or head_steps is not None:
                raise ValueError(
                    f"`cfg_scale` and `head_steps` belong to the continuous layout; this model's is {config.layout!r}."
                )
        elif cfg_scale != 1 and not config.condition_dropout:
            raise ValueError(
                f"`cfg_scale` is {cfg_scale}, but this model never learnt to speak without its text; train it with"
                " `condition_dropout` above 0."
            )

    def check_text(self, text: str, processor: Any) -> None:
        """
        Refuse a text that [`generate_speech`] would refuse, without saying it.

        Raises:
            ValueError: As there.
        """
        processor.check_model(self)
        self._prepared([text], processor, None, None, None)

    def _prepared(
        self,
        texts: Sequence[str],
        processor: Any,
        pieces: Sequence[Sequence[str]] | None,
        durations: Sequence[Sequence[int]] | None,
        max_frames: int | None,
    ) -> tuple[list[_Request], dict[str, torch.Tensor], tuple[list[int], list[int]]]:
        # What is asked, the prompts, and the limits of `_limits`.
        requests = self._requests(texts, processor, pieces, durations)
        inputs = self._prompts(requests, processor)
        return requests, inputs, self._limits(requests, inputs["attention_mask"].sum(-1).tolist(), max_frames)

    def _requests(
        self,
        texts: Sequence[str],
        processor: Any,
        pieces: Sequence[Sequence[str]] | None,
        durations: Sequence[Sequence[int]] | None,
    ) -> list[_Request]:
        config = self.config  # type: ignore[attr-defined]
        for name, given in (("pieces", pieces), ("durations", durations)):
            if given is None:
                continue
            if config.text_alignment == "none":
                raise ValueError(f"`{name}` needs a model with a `text_alignment`; this one has none.")
            if name == "durations" and config.unit_coding != "frames":
                raise ValueError("`durations` needs a model of frames; this one writes runs, which last as they do.")
            if len(given) != len(texts):
                raise ValueError(f"`{name}` must have an entry a text ({len(texts)}), but has {len(given)}.")
        requests = []
        for number, text in enumerate(texts):
            request = _Request(text)
            if config.text_alignment != "none":
                if pieces is None:
                    request.labels, request.pieces = processor.speech_pieces(text)
                    request.words = processor.words_of_pieces(text)
                else:
                    request.labels = list(pieces[number])
                    if not request.labels:
                        raise ValueError(f"`pieces` of {text!r} is empty; give at least one.")
                    request.pieces = processor.piece_ids(request.labels)
                self._set_durations(request, None if durations is None else durations[number])
            requests.append(request)
        return requests

    def _set_durations(self, request: _Request, durations: Sequence[int] | None) -> None:
        config = self.config  # type: ignore[attr-defined]
        if durations is not None:
            if len(durations) != len(request.pieces):
                raise ValueError(
                    f"`durations` of {request.text!r} must have {len(request.pieces)} entries, one a piece, but has"
                    f" {len(durations)}."
                )
            for value in durations:
                check_whole_number(value, "durations", 1)
            request.fewest = request.most = [int(value) for value in durations]
        elif config.piece_frames and config.text_alignment == "phone":
            limits = dict(zip(config.piece_labels, config.piece_frames, strict=True))
            request.fewest = [limits[label][0] for label in request.labels]
            request.most = [limits[label][1] for label in request.labels]
        else:
            request.fewest = [1] * len(request.pieces)
            request.most = [self._most_frames(label) for label in request.labels]

    def _most_frames(self, text: str) -> int:
        # Of a text, or a word, by its letters; without statistics half a second a character.
        config = self.config  # type: ignore[attr-defined]
        per_character = config.frames_per_character[1] if config.frames_per_character else config.frame_rate / 2
        return max(1, round(per_character * (len(text) + 1)))

    def _prompts(self, requests: Sequence[_Request], processor: Any) -> dict[str, torch.Tensor]:
        is_phones = self.config.text_alignment == "phone"  # type: ignore[attr-defined]
        prompts = [
            processor.speech_prompt(request.text, request.labels if is_phones else None) for request in requests
        ]
        inputs = processor(text=prompts, padding_side="left", return_tensors="pt")
        _check_known(requests, inputs["input_ids"], processor.tokenizer)
        device = self.device  # type: ignore[attr-defined]
        return {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}

    def _limits(
        self, requests: Sequence[_Request], prompt_lengths: Sequence[int], max_frames: int | None
    ) -> tuple[list[int], list[int]]:
        # The most ids and the most codes that each row writes; of its own text and prompt, whatever stands beside it.
        config = self.config  # type: ignore[attr-defined]
        context = getattr(config.text_config, "max_position_embeddings", None)
        limits, codes = [], []
        for request, prompt_length in zip(requests, prompt_lengths, strict=True):
            most = sum(request.most) if request.pieces else self._most_frames(request.text)
            usual = max(sum(request.fewest), self._usual_frames(request.text))
            if max_frames is not None:
                most, usual = min(most, max_frames), min(usual, max_frames)
            others = sum(len(piece) for piece in request.pieces) + 1
            # Speech that does not fit is refused, not cut.
            others += max(config.codebook_delays)
            needed = prompt_length + max(1, min(usual, most)) * config.positions_per_frame + others
            if context is not None and needed > context:
                raise ValueError(
                    f"The text {_beginning(request.text)!r} takes about {needed} positions, its prompt {prompt_length}"
                    f" of them, but the model has {context}; say it in parts, such as sentences."
                )
            limit = most * config.positions_per_frame + others
            limits.append(limit if context is None else min(limit, context - prompt_length))
            codes.append(most * config.positions_per_frame)
        return limits, codes

    def _usual_frames(self, text: str) -> int:
        # By its letters; 0 without statistics.
        known = self.config.frames_per_character  # type: ignore[attr-defined]
        return round(known[0] * (len(text) + 1)) if known else 0

    def _logits_processors(
        self, requests: Sequence[_Request], min_frames: int, window: int, limit: int
    ) -> LogitsProcessorList:
        ids = self.config.written_ids  # type: ignore[attr-defined]
        if self.config.text_alignment != "none":  # type: ignore[attr-defined]
            processors = [
                GuidedText(
                    ids,
                    [request.pieces for request in requests],
                    min_frames=[request.fewest for request in requests],
                    max_frames=[request.most for request in requests],
                )
            ]
        else:
            processors = [AudioOnly(ids)]
            if min_frames > 0:
                processors.append(MinFrames(ids, min_frames))
        coding = self.config.coding  # type: ignore[attr-defined]
        if unused := coding.unused_ids(ids):
            processors.insert(0, SuppressTokensLogitsProcessor(unused, device=str(self.device)))  # type: ignore[attr-defined]
        if window:
            processors.append(WindowedRepetition(ids, window, limit, num_codebooks=1 if coding.sizes else None))
        return LogitsProcessorList(processors)

    def _said(self, row: torch.Tensor, request: _Request) -> tuple[AlignedCodes, bool]:
        config = self.config  # type: ignore[attr-defined]
        ends = (row == config.audio_end_token_id).nonzero()
        ended = len(ends) > 0
        row = row[: int(ends[0])] if ended else row
        return split_pieces(row.cpu(), config.written_ids, request.pieces or None), ended

    def _output(
        self,
        said: Sequence[tuple[AlignedCodes, bool]],
        requests: Sequence[_Request],
        writer: FlatWriter,
        coding: UnitCoding,
    ) -> dict[str, Any]:
        config = self.config  # type: ignore[attr-defined]
        times = [torch.stack([aligned.starts, aligned.ends], dim=-1) for aligned, _ in said]
        if isinstance(writer, LatentWriter):
            frames = writer.clips(len(said))
        else:
            clips = [aligned.audio_codes for aligned, _ in said]
            if isinstance(writer, DelayWriter):
                columns = writer.clips(len(said))
                masks = columns["audio_codes_mask"].bool()
                clips = [codes[:, mask] for codes, mask in zip(columns["audio_codes"], masks, strict=True)]
            times = [coding.frames_of_runs(clip, time) for clip, time in zip(clips, times, strict=True)]
            codes, mask = padded([coding.decode(clip).T for clip in clips])
            frames = {"audio_codes": codes.transpose(1, 2).contiguous(), "audio_codes_mask": mask}
        times = [time / config.frame_rate for time in times]
        return {
            **frames,
            "ended": torch.tensor([ended for _, ended in said]),
            "num_dropped": torch.tensor([int(aligned.num_dropped) for aligned, _ in said]),
            "pieces": [request.labels[: len(time)] for request, time in zip(requests, times, strict=True)],
            "piece_times": times,
            "word_times": [_word_times(request, time) for request, time in zip(requests, times, strict=True)],
        }

    def _sound(self, output: dict[str, Any], codec: Any) -> None:
        mask = output["audio_codes_mask"]
        if not mask.shape[1]:
            output["audio_values"] = torch.zeros(len(mask), 1, 0)
            output["audio_mask"] = torch.zeros(len(mask), 0, dtype=torch.long)
            return
        place = {"device": codec.device} if getattr(codec, "device", None) is not None else {}
        name = "latents" if "audio_latents" in output else "audio_codes"
        tokens = output["audio_latents" if name == "latents" else name].to(**place)
        decoded = codec.decode(**{name: tokens}, audio_codes_mask=mask.to(**place))
        values = (decoded[0] if isinstance(decoded, tuple) else decoded.audio_values).float().cpu()
        lengths = mask.sum(-1) * round(codec.sampling_rate / codec.frame_rate)
        output["audio_mask"] = (torch.arange(values.shape[-1]) < lengths[:, None]).long()
        output["audio_values"] = values * output["audio_mask"][:, None]


def _check_known(requests: Sequence[_Request], ids: torch.Tensor, tokenizer: Any) -> None:
    # Phones are looked up; letters and words that a vocabulary lacks would be said as if they were not there.
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return
    for request, row in zip(requests, ids, strict=True):
        if bool((row == unknown).any()) or any(unknown in piece for piece in request.pieces):
            raise ValueError(
                f"The text {_beginning(request.text)!r} has characters or words that the model's vocabulary lacks;"
                " write them otherwise."
            )


def _beginning(text: str, num_characters: int = 40) -> str:
    return text if len(text) <= num_characters else text[: num_characters - 3] + "..."


def _word_times(request: _Request, times: torch.Tensor) -> list[tuple[str, float, float]]:
    # Words in order, each from the start of its first piece to the end of its last; pauses belong to none.
    found, place = [], 0
    for word, num_pieces in request.words:
        if place + num_pieces > len(times):
            break
        if word and num_pieces:
            found.append((word, float(times[place, 0]), float(times[place + num_pieces - 1, 1])))
        place += num_pieces
    return found


__all__ = ["SpeechGeneration", "SpeechOutput"]
