# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""How a speech language model speaks: requests in, ids by `generate`, audio out."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import ModelOutput

from .speech_lm_plans import SaidRow, SpeechPlan, SpeechSettings, Utterance
from .speech_lm_streaming import SpeechChunk, check_chunks, look_ahead_seconds, stream_texts
from .speech_lm_voices import Voice, make_voice


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
        tries (`torch.LongTensor` of shape `(batch,)`): How often each text was said; this is the last time.
        alarms (`list` of `list[str]`): What seemed wrong with each try of each text that failed; if they are as many
            as `tries`, the last one failed, too.
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
    tries: torch.LongTensor | None = None
    alarms: list[list[str]] | None = None
    num_dropped: torch.LongTensor | None = None
    pieces: list[list[str]] | None = None
    piece_times: list[torch.Tensor] | None = None
    word_times: list[list[tuple[str, float, float]]] | None = None
    sequences: torch.LongTensor | None = None
    seconds: float | None = None
    realtime_factor: float | None = None


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
        voice: Voice | Sequence[Voice | None] | None = None,
        retries: int = 0,
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
                `repetition_limit` times; 0 for no limit. In the delay layout the first codebook alone is limited.
                Codebooks that are smaller than others, as that of F0, are not.
            repetition_limit (`int`, *optional*, defaults to 3): See `repetition_window`.
            durations (sequence of sequences of `int`, *optional*): Frames of each piece of each text, where they are
                given in place of the model's own.
            pieces (sequence of sequences of `str`, *optional*): Phones of each text, where they are not to be looked
                up.
            min_frames (`int`, *optional*, defaults to 1): Fewest frames of a text; only without an alignment, where
                the pieces decide.
            max_frames (`int`, *optional*): Most frames of a text. Defaults to what training measured.
            generators (sequence of `torch.Generator`, *optional*): One a text, for one call: how much
                each draws depends on the longest text. Defaults to PyTorch's global one.
                Nothing is drawn with a temperature of 0.
            cfg_scale (`float`, *optional*, defaults to 1.0): In the continuous layout, strength of the guidance away
                from what the model says without the text; needs a model that was trained with `condition_dropout`.
            head_steps (`int`, *optional*): In the continuous layout, steps of a head that needs several.
            voice ([`Voice`], or sequence of these and `None`, *optional*): Example of speech that stands before each
                text, for all texts or one for each. A single text uses its cache, if it has one; several texts read
                their examples anew.
            retries (`int`, *optional*, defaults to 0): How often a text whose speech seems wrong is said again, by
                another seed: one that did not end, is far shorter than texts of training, or repeats its frames for a
                second. With `generators`, the seed follows from the state of the text's generator and the number of
                the try. What was wrong is told in `alarms`, with and without `retries`.
            decode (`bool`, *optional*, defaults to `True`): Whether the codes are made audible.

        Raises:
            ValueError: If a text is empty or has no pronunciation, a prompt leaves no room for speech in the model's
                context, a number is out of its range, or no codec is attached.
        """
        begun = time.perf_counter()
        settings = SpeechSettings(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_window=repetition_window,
            repetition_limit=repetition_limit,
            durations=durations,
            pieces=pieces,
            min_frames=min_frames,
            max_frames=max_frames,
            generators=generators,
            cfg_scale=cfg_scale,
            head_steps=head_steps,
            voice=voice,
            retries=retries,
        )
        codec = self.codec if decode else None  # type: ignore[attr-defined]
        plan = SpeechPlan(self, processor, [text] if isinstance(text, str) else list(text), settings)
        rows, alarms, tries = plan.say()
        output = {**_output(rows, plan), "alarms": alarms, "tries": torch.tensor(tries)}
        if codec is not None:
            _sound(output, codec)
        output["seconds"] = time.perf_counter() - begun
        length = float(output["audio_codes_mask"].sum()) / plan.config.frame_rate
        output["realtime_factor"] = output["seconds"] / length if length else float("inf")
        return SpeechOutput(**output)

    def stream_speech(
        self,
        text: str | Iterable[str],
        processor: Any,
        chunk_frames: int = 10,
        first_chunk_frames: int = 3,
        **options: Any,
    ) -> Iterator[SpeechChunk]:
        """
        Say a text, and give its audio while the model still writes.

        The model writes the same ids as in [`~SpeechGeneration.generate_speech`], and the chunks joined are the same
        audio, to 1e-5. Where the codec is causal, a frame sounds at once. Other codecs need the frames behind it
        first, so that audio comes `look_ahead_seconds` later; see there.

        A text that arrives in pieces is said sentence by sentence, each once it is complete: at a line break, or at
        `.`, `!`, `?`, `…` or `。`, with closing quotes and brackets behind it, once white space follows. What has
        neither letters nor digits goes with the next sentence. The last piece needs no mark at its end. Each sentence
        is a request of its own.

        Args:
            text (`str` or iterable of `str`): What to say: a text, which is said as a whole, or pieces of one, which
                are joined as they are.
            processor ([`SpeechLMProcessor`]): The model's processor.
            chunk_frames (`int`, *optional*, defaults to 10): Frames of a chunk.
            first_chunk_frames (`int`, *optional*, defaults to 3): Frames of the first chunk of each sentence.
            options: Further arguments of [`~SpeechGeneration.generate_speech`] but `decode` and `retries`. What has an
                entry a text has one here: `generators` for all sentences, `durations` and `pieces` for a text that is
                no iterable.

        Returns:
            Iterator of [`SpeechChunk`].

        Raises:
            TypeError: If there is no such option.
            ValueError: As `generate_speech`; of a sentence that is still to come, once it is there.
        """
        settings = SpeechSettings(**options)
        settings.check(self)
        if settings.retries:
            raise ValueError("What was heard cannot be said again; leave out `retries`, or use `generate_speech`.")
        check_chunks(chunk_frames, first_chunk_frames)
        sizes = (chunk_frames, first_chunk_frames)
        return stream_texts(self, processor, text, settings, sizes, self.codec)  # type: ignore[attr-defined]

    def make_voice(
        self,
        text: str,
        processor: Any,
        *,
        audio: Any = None,
        audio_codes: Any = None,
        audio_latents: Any = None,
        audio_pieces: Sequence[Mapping[str, Any]] | None = None,
        sampling_rate: int | None = None,
        cache: bool = False,
    ) -> Voice:
        """
        A voice, of a recording and its text: an example that stands before what is to be said, as an earlier turn.

        A model imitates it as far as it was trained on such turns.

        Args:
            text (`str`): What is said in the recording.
            processor ([`SpeechLMProcessor`]): The model's processor.
            audio, audio_codes, audio_latents (*optional*): The recording, its codes or its latents: one of them, as
                the processor takes it.
            audio_pieces (sequence of `Mapping`, *optional*): Words or phones of the recording with their ends in
                seconds, as rows have them. A model with a `text_alignment` learnt speech with these.
            sampling_rate (`int`, *optional*): Rate of a waveform in Hz, to be checked.
            cache (`bool`, *optional*, defaults to `False`): Whether to keep what the model remembers of the example,
                so that a text that is said in this voice need not read it.

        Raises:
            ValueError: If the recording or the text is empty or not what the processor takes, the example is too long
                for the model's context, or the model remembers more than keys and values.
        """
        clip = {"audio": audio, "audio_codes": audio_codes, "audio_latents": audio_latents}
        return make_voice(self, text, processor, {**clip, "audio_pieces": audio_pieces}, sampling_rate, cache)

    @property
    def look_ahead_seconds(self) -> float:
        """
        Seconds of speech that [`~SpeechGeneration.stream_speech`] writes before it can give the audio of a frame, in
        addition to the frames of the chunk: what the codec's decoder needs behind a frame, and what the codebooks of
        the delay layout are late. Infinity where the codec decodes the whole at once.
        """
        return look_ahead_seconds(self.codec, self.config)  # type: ignore[attr-defined]

    def check_text(self, text: str, processor: Any, voice: Voice | None = None) -> None:
        """
        Refuse a text, or a voice, that [`generate_speech`] would refuse, without saying it.

        Raises:
            ValueError: As there.
        """
        SpeechPlan(self, processor, [text], SpeechSettings(voice=voice))


def _output(rows: Sequence[SaidRow], plan: SpeechPlan) -> dict[str, Any]:
    config = plan.config
    lengths = torch.tensor([row.num_frames for row in rows])
    frames: dict[str, torch.Tensor] = {}
    if config.layout == "continuous":
        frames["audio_latents"] = pad_sequence([row.frames for row in rows], batch_first=True)
    else:
        codes = [row.frames.T for row in rows]
        frames["audio_codes"] = pad_sequence(codes, batch_first=True).transpose(1, 2).contiguous()
    num_frames = int(lengths.max())
    times = [row.times for row in rows]
    pairs = list(zip(plan.utterances, times, strict=True))
    # Rows that were written together are equally long, since those that had ended repeat their end.
    written = pad_sequence([row.ids for row in rows], batch_first=True, padding_value=config.audio_end_token_id)
    return {
        **frames,
        "audio_codes_mask": (torch.arange(num_frames) < lengths[:, None]).long(),
        "ended": torch.tensor([row.ended for row in rows]),
        "num_dropped": torch.tensor([int(row.aligned.num_dropped) for row in rows]),
        "pieces": [utterance.labels[: len(time)] for utterance, time in pairs],
        "piece_times": times,
        "word_times": [_word_times(utterance, time) for utterance, time in pairs],
        "sequences": torch.cat([plan.inputs["input_ids"].cpu(), written], dim=1),
    }


def _sound(output: dict[str, Any], codec: Any) -> None:
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


def _word_times(utterance: Utterance, times: torch.Tensor) -> list[tuple[str, float, float]]:
    # Words in order, each from the start of its first piece to the end of its last; pauses belong to none.
    found, place = [], 0
    for word, num_pieces in utterance.words:
        if place + num_pieces > len(times):
            break
        if word and num_pieces:
            found.append((word, float(times[place, 0]), float(times[place + num_pieces - 1, 1])))
        place += num_pieces
    return found


__all__ = ["SpeechGeneration", "SpeechOutput"]
