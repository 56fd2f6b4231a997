# SPDX-License-Identifier: Apache-2.0
"""Many recordings to codes, in batches of about equal length, or to latents."""

import collections
import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import numpy as np
    import torch


# Pieces of a long recording that are decoded before the encoder asks for them.
_BLOCKS_AHEAD = 2
# Latents of recordings up to this length are those of the whole recording.
_WHOLE_SECONDS = 60


@dataclass(frozen=True)
class EncodedRecording:
    """
    What [`encode_recordings`] finds in one recording.

    Args:
        index (`int`): Index of the recording.
        name (`str`): Path of the recording, or the `file_name` of its row.
        num_samples (`int`): Length of the recording at the model's rate, in samples.
        audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`, *optional*): Codes, int64; if de-duplicated,
            those of runs. `None` if the recording failed, or latents alone were asked for.
        durations (`np.ndarray` of shape `(num_units,)`, *optional*): Frames that each run lasts.
        latents (`torch.Tensor` of shape `(num_frames, dim)`, *optional*): The frames that were coded, or continuous
            tokens, in float32 on the CPU.
        reason (`str`, *optional*): Reason why the recording failed, in one line.
    """

    index: int
    name: str
    num_samples: int = 0
    audio_codes: "np.ndarray | None" = None
    durations: "np.ndarray | None" = None
    latents: "torch.Tensor | None" = None
    reason: str | None = None

    @property
    def units(self) -> "np.ndarray":
        """The codes as files of units have them: without the dimension of codebooks where there is one of these."""
        assert self.audio_codes is not None
        return self.audio_codes[0] if len(self.audio_codes) == 1 else self.audio_codes


def encode_recordings(
    model: Any,
    feature_extractor: Any,
    recordings: Sequence[Any],
    batch_seconds: float | None = None,
    deduplicate: bool = False,
    with_latents: bool = False,
    in_order: bool = True,
    num_threads: int = 2,
    kind: str = "codes",
) -> Iterator[EncodedRecording]:
    """
    Encode recordings in batches, while threads decode those that come next.

    Recordings of about equal length go together, the longest first. Recordings longer than a batch, or of units than
    `longest_exact_stream`, are read in blocks and encoded by [`SpeechCodec.encode_stream`]. The codes do not depend on
    `batch_seconds`. On a CPU each core encodes a batch of its own ([`EncodingThreads`]), so that they do not depend on
    the number of cores either. Memory holds a batch for each core and some more, and the codes that wait for their
    turn.

    Latents are numbers, the last bits of which would depend on the other recordings of a batch. So with
    `kind="latents"` each recording is encoded alone. It gets what `encode` gives it, on a CPU with one thread.
    Recordings longer than a minute go through a stream where `decode` takes the latents, and get the same up to
    rounding. Units longer than `longest_exact_stream` have no latents, and fail.

    Args:
        model: A [`SpeechCodec`] or a codec of transformers, in evaluation mode.
        feature_extractor: The model's feature extractor.
        recordings (sequence): Paths; waveforms (`np.ndarray` of shape `(num_samples,)`) at the model's rate; or rows
            with undecoded `audio`, such as the dataset that [`load_recordings`] returns.
        batch_seconds (`float`, *optional*): Length of the audio in a batch, with its padding, in seconds. Of codes
            alone. Defaults to 30 on a CPU, where larger batches are slower, and to 60 elsewhere. By default, only
            recordings longer than 60 seconds count as longer than a batch.
        deduplicate (`bool`, *optional*, defaults to `False`): Whether to merge runs of equal frames.
        with_latents (`bool`, *optional*, defaults to `False`): Whether to give the frames that were coded as well.
            Recordings that need windows fail then.
        in_order (`bool`, *optional*, defaults to `True`): Whether to give the results in the order of `recordings`;
            else they are given as they come.
        num_threads (`int`, *optional*, defaults to 2): Number of threads that read and decode audio.
        kind (`str`, *optional*, defaults to `"codes"`): What to give: `"codes"`, or `"latents"` in their place.

    Returns:
        `Iterator[EncodedRecording]`: One result for each recording. A recording that cannot be read or encoded has a
            `reason`.

    Raises:
        ValueError: If `batch_seconds` is not positive, the model gives nothing of that kind, or latents are to be
            de-duplicated.
    """
    if batch_seconds is not None and batch_seconds <= 0:
        raise ValueError(f"`batch_seconds` must be positive, but got {batch_seconds}.")
    coding = _Coding(model, feature_extractor, recordings, deduplicate, with_latents, kind)
    results = coding.run(batch_seconds, num_threads)
    return _in_order(results) if in_order else results


def default_batch_seconds(device: "torch.device") -> float:
    """Length of the audio in a batch, in seconds: on a CPU, larger batches leave the caches of a core."""
    return 30.0 if device.type == "cpu" else 60.0


@dataclass
class _Batch:
    # Waveforms that go through the model together, with its inputs; mostly one such part. Others need windows, and may
    # not be read yet.
    parts: "list[tuple[dict[int, np.ndarray], Any]]" = field(default_factory=list)
    windows: "dict[int, np.ndarray | None]" = field(default_factory=dict)
    failed: list[EncodedRecording] = field(default_factory=list)


class _Coding:
    # One call of `encode_recordings`. Recordings are known by their index, waveforms are `(num_samples,)`.

    def __init__(
        self, model: Any, feature_extractor: Any, recordings: Any, deduplicate: bool, with_latents: bool, kind: str
    ):
        from speech_tokenizers.modeling.transformers_codecs import as_speech_codec

        self.model = as_speech_codec(model, feature_extractor)
        if kind == "latents":
            self.model.check_gives_latents()
            if deduplicate:
                raise ValueError("`deduplicate` merges equal codes, of which latents have none; leave it out.")
        else:
            self.model.check_kind(kind)
        self.kind = kind
        self.feature_extractor = feature_extractor
        self.recordings = recordings
        self.deduplicate = deduplicate
        self.with_latents = with_latents
        self.sampling_rate: int = feature_extractor.sampling_rate
        self.has_ended = False  # or is not wanted any more

    def run(self, batch_seconds: float | None, num_threads: int) -> Iterator[EncodedRecording]:
        from speech_tokenizers.coding.encoding_threads import EncodingThreads, map_ahead
        from speech_tokenizers.processing.packing import pack_by_length

        seconds = batch_seconds or default_batch_seconds(self.model.device)
        self.samples_per_batch = int(seconds * self.sampling_rate)
        # Units near the edge of a window differ from those of the whole recording, so that the size of a batch
        # does not decide which recordings go through windows; other models do not mind.
        exact = self.model.longest_exact_stream
        self.limit = int((batch_seconds or _WHOLE_SECONDS) * self.sampling_rate) if exact is None else exact
        if self.kind == "latents" and exact is None:
            can_stream = "latents" in self.model.decodable_kinds
            self.limit = _WHOLE_SECONDS * self.sampling_rate if can_stream else sys.maxsize
        with ThreadPoolExecutor(num_threads) as readers, EncodingThreads(self.model) as encoders:
            lengths = [0] * len(self.recordings)
            for index, length in enumerate(readers.map(self._num_samples, range(len(lengths)))):
                if isinstance(length, Exception):
                    yield self._failed(index, length)
                elif length == 0:
                    yield self._failed(index, ValueError("contains no samples."))
                else:
                    lengths[index] = length
            readable = [index for index, length in enumerate(lengths) if length]
            longest_first = sorted(readable, key=lambda index: -lengths[index])
            long = [index for index in longest_first if lengths[index] > self.limit]
            short = longest_first[len(long) :]
            packed = pack_by_length(lengths, short, self.samples_per_batch)
            if self.kind == "latents":
                packed = [[index] for index in short]
            read = map_ahead(self._read_batch, packed, readers, num_threads)
            work = itertools.chain((_Batch(windows={index: None}) for index in long), read)
            try:
                for coded, outputs in encoders.map(self._encode_batch, work):
                    yield from coded
                    yield from self._results(outputs)
            finally:
                self.has_ended = True

    def _num_samples(self, index: int) -> "int | Exception":
        from speech_tokenizers.processing.audio_files import announced_num_samples

        # By the header, before anything is decoded. What it says is checked where it decides.
        audio = self._audio(index)
        quick = announced_num_samples(audio, self.sampling_rate) if isinstance(audio, str | os.PathLike | bytes) else 0
        if quick and quick <= self.limit:
            return quick
        try:
            if (reader := self._reader(index)) is None:
                samples = self._read(index)
                return samples if isinstance(samples, Exception) else len(samples)
            with reader:
                return reader.expected_num_samples
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            return error

    def _reader(self, index: int) -> Any:
        # Of a file or its bytes; `None` for samples.
        from speech_tokenizers.processing.audio_files import AudioReader

        audio = self._audio(index)
        if not isinstance(audio, str | os.PathLike | bytes):
            return None
        is_named = isinstance(audio, bytes) and isinstance(self.recordings[index], dict)
        return AudioReader(audio, self.sampling_rate, name=self._name(index) if is_named else None)

    def _audio(self, index: int) -> Any:
        # A path, bytes or samples.
        recording = self.recordings[index]
        audio = recording["audio"] if isinstance(recording, dict) else recording
        if isinstance(audio, dict) and audio.get("array") is None:
            return audio.get("path") if audio.get("bytes") is None else audio["bytes"]
        return audio

    def _read(self, index: int) -> "np.ndarray | Exception":
        from speech_tokenizers.processing.recordings import decode_recording

        recording = self.recordings[index]
        try:
            if (reader := self._reader(index)) is not None:
                with reader:
                    return reader.read()
            return decode_recording(recording, self.sampling_rate) if isinstance(recording, dict) else recording
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            return error

    def _read_batch(self, indices: list[int]) -> "_Batch":
        from speech_tokenizers.processing.packing import pack_by_length

        batch, waveforms = _Batch(), {}
        for index in indices:
            samples = self._read(index)
            if isinstance(samples, Exception):
                batch.failed.append(self._failed(index, samples))
            elif len(samples) > self.limit:  # its header has announced less
                batch.windows[index] = samples
            else:
                waveforms[index] = samples
        # Headers may have announced too little for all of them to go together.
        lengths = {index: len(samples) for index, samples in waveforms.items()}
        longest_first = sorted(lengths, key=lambda index: -lengths[index])
        for together in pack_by_length(lengths, longest_first, self.samples_per_batch):
            part, inputs = {index: waveforms[index] for index in together}, None
            # `_forward` finds out which recording it is that cannot be padded.
            with contextlib.suppress(ValueError, RuntimeError, MemoryError):
                inputs = self._pad(part)
            batch.parts.append((part, inputs))
        return batch

    def _encode_batch(self, model: Any, batch: "_Batch") -> "tuple[list[EncodedRecording], list[tuple[dict, Any]]]":
        # What is done already, and waveforms with the output of the model.
        in_windows = [self._encode_in_windows(model, index, samples) for index, samples in batch.windows.items()]
        outputs = [output for part, inputs in batch.parts for output in self._forward(model, part, inputs)]
        return batch.failed + in_windows, outputs

    def _pad(self, waveforms: "dict[int, np.ndarray]") -> Any:
        return self.model.batch_features(list(waveforms.values()), self.feature_extractor)

    def _forward(self, model: Any, waveforms: "dict[int, np.ndarray]", inputs: Any) -> "list[tuple[dict, Any]]":
        # Waveforms with the output of the model. If a batch is refused, each recording is tried alone.
        import torch

        if not waveforms:
            return []
        try:
            inputs = self._pad(waveforms) if inputs is None else inputs
            with torch.no_grad():
                on_device = {name: value.to(model.device) for name, value in inputs.items()}
                return [(waveforms, model.encode(**on_device))]
        except (ValueError, RuntimeError, MemoryError) as error:
            if len(waveforms) == 1:
                return [(waveforms, error)]
        return [part for index, samples in waveforms.items() for part in self._forward(model, {index: samples}, None)]

    def _results(self, pending: "list[tuple[dict[int, np.ndarray], Any]]") -> Iterator[EncodedRecording]:
        for waveforms, outputs in pending:
            if isinstance(outputs, Exception):
                yield from (self._failed(index, outputs) for index in waveforms)
                continue
            masks = outputs.audio_codes_mask.bool().cpu()
            if self.kind == "latents":
                yield from self._latents(waveforms, outputs.latents.float().cpu(), masks)
                continue
            codes, real = outputs.audio_codes.cpu().numpy(), masks.numpy()
            for row, (index, samples) in enumerate(waveforms.items()):
                latents = outputs.latents[row].cpu()[masks[row]] if self.with_latents else None
                yield self._encoded(index, len(samples), codes[row][:, real[row]], latents)

    def _latents(
        self, waveforms: "dict[int, np.ndarray]", latents: "torch.Tensor", masks: "torch.Tensor"
    ) -> Iterator[EncodedRecording]:
        for row, (index, samples) in enumerate(waveforms.items()):
            if latents.shape[1] != masks.shape[1]:
                what = f"has {latents.shape[1]} latents and {masks.shape[1]} frames of codes, which do not fit."
                yield self._failed(index, ValueError(what))
            else:
                yield self._encoded(index, len(samples), None, latents[row][masks[row]])

    def _encode_in_windows(self, model: Any, index: int, samples: "np.ndarray | None") -> EncodedRecording:
        import torch

        from speech_tokenizers.coding.file_coding import encode_blocks

        if self.with_latents or (self.kind == "latents" and self.model.longest_exact_stream is not None):
            remedy = "raise `batch_seconds`" if self.model.longest_exact_stream is None else "cut it"
            seconds = self.limit / self.sampling_rate
            return self._failed(
                index, ValueError(f"is longer than {seconds:g} s and needs windows, which give no latents; {remedy}.")
            )
        num_samples = 0

        def chunks() -> "Iterator[torch.Tensor]":
            nonlocal num_samples
            with contextlib.ExitStack() as stack:
                blocks = self._reader(index) if samples is None else None
                if blocks is None:
                    found = self._read(index) if samples is None else samples
                    if isinstance(found, Exception):
                        raise found
                    blocks = [found]
                else:
                    stack.enter_context(blocks)
                for block in blocks:
                    if self.has_ended:  # lest one waits for hours of audio
                        raise RuntimeError("was not finished.")
                    num_samples += len(block)
                    yield torch.from_numpy(block)

        try:
            tokens = list(encode_blocks(model, _ahead(chunks()), kind=self.kind))
        except (ValueError, RuntimeError, MemoryError) as error:
            return self._failed(index, error)
        if self.kind == "latents":
            return self._encoded(index, num_samples, None, torch.cat(tokens).float())
        return self._encoded(index, num_samples, torch.cat(tokens, dim=-1).numpy(), None)

    def _encoded(
        self, index: int, num_samples: int, audio_codes: "np.ndarray | None", latents: "torch.Tensor | None"
    ) -> EncodedRecording:
        from speech_tokenizers.processing.unit_sequences import deduplicate

        if audio_codes is None:
            return EncodedRecording(index, self._name(index), num_samples, latents=latents)
        codes, durations = audio_codes, None
        if self.deduplicate:
            codes, durations = deduplicate(codes)
        return EncodedRecording(index, self._name(index), num_samples, codes, durations, latents)

    def _failed(self, index: int, error: Exception) -> EncodedRecording:
        return EncodedRecording(
            index, self._name(index), reason=" ".join((str(error) or type(error).__name__).split())
        )

    def _name(self, index: int) -> str:
        recording = self.recordings[index]
        if isinstance(recording, str | os.PathLike):
            return os.fspath(recording)
        if isinstance(recording, dict):
            from speech_tokenizers.processing.recordings import recording_name

            return recording_name(recording, index)
        return f"recording {index}"


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    # The same items, made by another thread before they are asked for.
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(pool.submit(next, items, end) for _ in range(_BLOCKS_AHEAD))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(results: Iterable[EncodedRecording]) -> Iterator[EncodedRecording]:
    early: dict[int, EncodedRecording] = {}
    following = 0
    for result in results:
        early[result.index] = result
        while following in early:
            yield early.pop(following)
            following += 1
