# SPDX-License-Identifier: Apache-2.0
"""Many recordings to units, in batches of about equal length, and the command `units` that writes them."""

import argparse
import collections
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import numpy as np
    import torch


FORMATS = ("jsonl", "km", "textless", "array")
# Decoded and padded before the encoder asks for them.
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class EncodedRecording:
    r"""
    What [`encode_recordings`] finds in one recording.

    Args:
        index (`int`): Its place among the recordings.
        name (`str`): Its path, or the `file_name` of its row.
        num_samples (`int`): Its length at the model's rate.
        audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`, *optional*):
            Its codes, int64; if de-duplicated, those of runs. `None` if it failed.
        durations (`np.ndarray` of shape `(num_units,)`, *optional*): Of the runs, in frames.
        latents (`torch.Tensor` of shape `(num_frames, dim)`, *optional*): The frames that were coded, on the CPU.
        reason (`str`, *optional*): Why it failed, in one line.
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
    batch_seconds: float = 60.0,
    deduplicate: bool = False,
    with_latents: bool = False,
    in_order: bool = True,
    num_threads: int = 2,
) -> Iterator[EncodedRecording]:
    r"""
    Encode recordings in batches, while threads decode those that come next.

    Recordings of about equal length go together, the longest first. Those longer than a batch, or than the encoder can
    hear at once, are read in blocks and encoded in windows (see [`WindowedEncoder`] and [`CodecStream`]). Memory holds
    some batches, and the codes that wait for their turn.

    Args:
        model: Any of the common interface, in evaluation mode, such as a [`KMeansUnitsModel`].
        feature_extractor: Its feature extractor.
        recordings (sequence): Paths; waveforms (`np.ndarray` of shape `(num_samples,)`) at the model's rate; or rows
            with undecoded `audio`, such as the dataset that [`load_recordings`] returns.
        batch_seconds (`float`, *optional*, defaults to 60.0): Audio in a batch, with its padding.
        deduplicate (`bool`, *optional*, defaults to `False`): Merge runs of equal frames.
        with_latents (`bool`, *optional*, defaults to `False`): Give the frames that were coded as well. Recordings
            that need windows fail then.
        in_order (`bool`, *optional*, defaults to `True`): Give the results in the order of `recordings`; else as they
            come.
        num_threads (`int`, *optional*, defaults to 2): That decode audio.

    Returns:
        `Iterator[EncodedRecording]`: One for each recording. What cannot be read or encoded has a `reason`.

    Raises:
        ValueError: If `batch_seconds` is not positive.
    """
    if batch_seconds <= 0:
        raise ValueError(f"`batch_seconds` must be positive, but got {batch_seconds}.")
    coding = _Coding(model, feature_extractor, recordings, deduplicate, with_latents)
    results = coding.run(int(batch_seconds * feature_extractor.sampling_rate), num_threads)
    return _in_order(results) if in_order else results


class _Coding:
    # One call of `encode_recordings`. Recordings are known by their index, waveforms are `(num_samples,)`.

    def __init__(self, model: Any, feature_extractor: Any, recordings: Any, deduplicate: bool, with_latents: bool):
        self.model = model
        self.feature_extractor = feature_extractor
        self.recordings = recordings
        self.deduplicate = deduplicate
        self.with_latents = with_latents
        self.sampling_rate: int = feature_extractor.sampling_rate

    def run(self, samples_per_batch: int, num_threads: int) -> Iterator[EncodedRecording]:
        from speech_tokenizers.training.common.length_batches import pack_by_length

        with ThreadPoolExecutor(num_threads) as pool:
            lengths = [0] * len(self.recordings)
            for index, length in enumerate(pool.map(self._num_samples, range(len(lengths)))):
                if isinstance(length, Exception):
                    yield self._failed(index, length)
                elif length == 0:
                    yield self._failed(index, ValueError("contains no samples."))
                else:
                    lengths[index] = length
            readable = [index for index, length in enumerate(lengths) if length]
            longest_first = sorted(readable, key=lambda index: -lengths[index])
            limit = min(samples_per_batch, getattr(self.model, "longest_input", None) or samples_per_batch)
            for index in longest_first:
                if lengths[index] > limit:
                    yield self._encode_in_windows(index)

            short = [index for index in longest_first if lengths[index] <= limit]
            batches = (self._read_batch(batch, pool) for batch in pack_by_length(lengths, short, samples_per_batch))
            # The results of a batch are fetched when the next one is under way, lest a GPU waits for us.
            pending: list[tuple[dict[int, np.ndarray], Any]] = []
            for waveforms, inputs, failed in _ahead(batches):
                yield from failed
                previous, pending = pending, self._forward(waveforms, inputs)
                yield from self._results(previous)
            yield from self._results(pending)

    def _num_samples(self, index: int) -> "int | Exception":
        # By the header, before anything is decoded.
        import numpy as np
        import soundfile

        from speech_tokenizers.processing.audio_files import AudioFileError, AudioReader

        source = _audio_of(self.recordings[index])
        try:
            if isinstance(source, np.ndarray):
                return len(source)
            if isinstance(source, bytes):
                info = soundfile.info(io.BytesIO(source))
                return round(info.frames * self.sampling_rate / info.samplerate)
            with AudioReader(source, self.sampling_rate) as reader:
                return reader.expected_num_samples
        except (AudioFileError, soundfile.LibsndfileError) as error:
            return error

    def _read(self, index: int) -> "np.ndarray | Exception":
        import numpy as np

        from speech_tokenizers.processing.audio_files import AudioFileError, load_audio

        recording = self.recordings[index]
        source = _audio_of(recording)
        try:
            if isinstance(source, np.ndarray):
                return source
            if isinstance(source, bytes):
                from speech_tokenizers.processing.recordings import decode_recording

                return decode_recording(recording, self.sampling_rate)
            return load_audio(source, self.sampling_rate)
        except AudioFileError as error:
            return error

    def _read_batch(
        self, batch: list[int], pool: ThreadPoolExecutor
    ) -> "tuple[dict[int, np.ndarray], Any, list[EncodedRecording]]":
        found = dict(zip(batch, pool.map(self._read, batch), strict=True))
        failed = [self._failed(index, error) for index, error in found.items() if isinstance(error, Exception)]
        waveforms = {index: samples for index, samples in found.items() if not isinstance(samples, Exception)}
        try:
            return waveforms, self._pad(waveforms) if waveforms else None, failed
        except ValueError:
            return waveforms, None, failed  # `_forward` finds out which one it was

    def _pad(self, waveforms: "dict[int, np.ndarray]") -> Any:
        return self.feature_extractor(
            list(waveforms.values()), sampling_rate=self.sampling_rate, padding=True, return_tensors="pt"
        )

    def _forward(self, waveforms: "dict[int, np.ndarray]", inputs: Any = None) -> "list[tuple[dict, Any]]":
        # Waveforms with the output of the model. If a batch is refused, each recording is tried alone.
        import torch

        if not waveforms:
            return []
        try:
            inputs = self._pad(waveforms) if inputs is None else inputs
            with torch.no_grad():
                return [(waveforms, self.model.encode(**inputs.to(self.model.device)))]
        except ValueError as error:
            if len(waveforms) == 1:
                return [(waveforms, error)]
        return [part for index, samples in waveforms.items() for part in self._forward({index: samples})]

    def _results(self, pending: "list[tuple[dict[int, np.ndarray], Any]]") -> Iterator[EncodedRecording]:
        for waveforms, outputs in pending:
            if isinstance(outputs, ValueError):
                yield from (self._failed(index, outputs) for index in waveforms)
                continue
            masks = outputs.audio_codes_mask.bool().cpu()
            codes = outputs.audio_codes.cpu()
            for row, (index, samples) in enumerate(waveforms.items()):
                latents = outputs.latents[row].cpu()[masks[row]] if self.with_latents else None
                yield self._encoded(index, len(samples), codes[row][:, masks[row]], latents)

    def _encode_in_windows(self, index: int) -> EncodedRecording:
        from speech_tokenizers.processing.audio_files import AudioReader

        if self.with_latents:
            return self._failed(index, ValueError("needs windows, which give no latents; raise `batch_seconds`."))
        source, num_samples = _audio_of(self.recordings[index]), 0

        def chunks() -> "Iterator[torch.Tensor]":
            nonlocal num_samples
            import torch

            if isinstance(source, str | os.PathLike):
                with AudioReader(source, self.sampling_rate) as reader:
                    for block in reader:
                        num_samples += len(block)
                        yield torch.from_numpy(block)
            else:
                samples = self._read(index)
                if isinstance(samples, Exception):
                    raise samples
                num_samples = len(samples)
                yield torch.from_numpy(samples)

        try:
            codes = self._stream(_ahead(chunks()))
        except ValueError as error:
            return self._failed(index, error)
        return self._encoded(index, num_samples, codes, None)

    def _stream(self, chunks: "Iterator[torch.Tensor]") -> "torch.Tensor":
        import torch

        from speech_tokenizers.modeling.codec_streaming import CodecStream
        from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
        from speech_tokenizers.modeling.windowed_encoding import WindowedEncoder

        if not isinstance(self.model, RVQCodecModel):
            return WindowedEncoder(self.model).encode(chunks)
        stream = CodecStream(self.model)
        parts = [stream.encode(chunk[None, None].to(self.model.device)).cpu() for chunk in chunks]
        return torch.cat([*parts, stream.finish_encode().cpu()], dim=-1)[0]

    def _encoded(
        self, index: int, num_samples: int, audio_codes: "torch.Tensor", latents: "torch.Tensor | None"
    ) -> EncodedRecording:
        from speech_tokenizers.processing.unit_sequences import deduplicate

        codes, durations = audio_codes.numpy(), None
        if self.deduplicate:
            codes, durations = deduplicate(codes)
        return EncodedRecording(index, self._name(index), num_samples, codes, durations, latents)

    def _failed(self, index: int, error: Exception) -> EncodedRecording:
        return EncodedRecording(index, self._name(index), reason=" ".join(str(error).split()))

    def _name(self, index: int) -> str:
        recording = self.recordings[index]
        if isinstance(recording, str | os.PathLike):
            return os.fspath(recording)
        if isinstance(recording, dict):
            from speech_tokenizers.processing.recordings import recording_name

            return recording_name(recording, index)
        return f"recording {index}"


def _audio_of(recording: Any) -> Any:
    # A path, the bytes of a file, or samples.
    if not isinstance(recording, dict):
        return recording
    audio = recording["audio"]
    if isinstance(audio, dict):
        return audio["path"] if audio.get("bytes") is None else audio["bytes"]
    return audio


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    # The same items, made by another thread before they are asked for.
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(pool.submit(next, items, end) for _ in range(_BATCHES_AHEAD))
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", metavar="AUDIO", nargs="+", help="audio files, folders of them, or globs (quote them)"
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="a file; textless: a folder")
    parser.add_argument("--model", metavar="NAME", required=True, help="checkpoint name, folder or Hub id")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="jsonl",
        help="jsonl: a line a recording, as slamkit has them (default); km: fairseq's, with a .tsv beside it; "
        "textless: textlesslib's dictionary, a .safetensors a recording; array: (batch, time, codebooks) with lengths",
    )
    parser.add_argument(
        "--deduplicate", action="store_true", help="merge runs of equal frames, with durations (km: in .durations)"
    )
    parser.add_argument(
        "--bpe", metavar="FOLDER", help="of `units-bpe`: write merged ids too (jsonl: `bpe_ids`); de-duplicates"
    )
    parser.add_argument("--dense", action="store_true", help="textless: the frames that were coded too")
    parser.add_argument(
        "--batch-seconds", metavar="S", type=float, default=60.0, help="audio in a batch (default: 60)"
    )
    parser.add_argument("--device", default=None, help="such as cpu or cuda:0; by default a GPU if there is one")
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew; otherwise jsonl and textless keep what is there"
    )


def run(args: argparse.Namespace) -> int:
    try:
        num_failed = _write_units(args)
    except (ValueError, OSError) as error:
        print(f"speech-tokenizers units: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return int(num_failed > 0)


def _write_units(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES, find_files

    files: dict[str, Path] = {}
    for path, relative in find_files(args.inputs, AUDIO_SUFFIXES):
        other = files.setdefault(relative.as_posix(), path)
        if other != path:
            raise ValueError(f"{other} and {path} would both be named {relative}; treat them in two runs.")
    _check_arguments(args)
    model, feature_extractor = _load_model(args.model, args.device)
    bpe = _check_model(args, model)

    args.output.parent.mkdir(parents=True, exist_ok=True)
    known = set() if args.overwrite else _known_names(args, files)
    if args.overwrite and args.format == "jsonl":
        args.output.unlink(missing_ok=True)
    names = [name for name in files if name not in known]
    rejected_path = args.output.with_name(f"{args.output.name}.rejected.jsonl")
    rejected_path.unlink(missing_ok=True)  # what failed before is tried again
    deduplicate = args.deduplicate or bpe is not None
    results = encode_recordings(
        model,
        feature_extractor,
        [files[name] for name in names],
        args.batch_seconds,
        deduplicate,
        args.dense,
        in_order=args.format in ("km", "array"),
    )

    failed: list[EncodedRecording] = []

    def encoded() -> Iterator[EncodedRecording]:
        for result in tqdm(results, total=len(names), desc="units", unit="file", disable=None):
            if result.reason is None:
                yield result
                continue
            failed.append(result)
            with rejected_path.open("a", encoding="utf-8") as file:
                entry = {"name": names[result.index], "reason": result.reason}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    if args.format == "jsonl":
        _append_lines(args.output, encoded(), names, bpe)
    elif args.format == "textless":
        _save_items(args.output, encoded(), names)
    elif args.format == "km":
        _save_km(args.output, encoded(), [files[name] for name in names])
    else:
        _save_arrays(args.output, encoded(), names)
    if failed:
        print(f"{len(failed)} of {len(names)} recordings failed: see {rejected_path}", file=sys.stderr)
    return len(failed)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.bpe is not None and args.format != "jsonl":
        raise ValueError("--bpe is for --format jsonl.")
    if args.dense and args.format != "textless":
        raise ValueError("--dense is for --format textless.")
    if args.deduplicate and args.format == "array":
        raise ValueError("--format array holds frames and no durations; leave out --deduplicate.")
    if args.batch_seconds <= 0:
        raise ValueError(f"--batch-seconds must be positive, but is {args.batch_seconds}.")
    if args.format == "km" and args.output.suffix in (".tsv", ".durations"):
        raise ValueError(f"{args.output} would be replaced by what is written beside it; name it .km.")
    if args.format != "textless" and args.output.is_dir():
        raise ValueError(f"{args.output} is a folder; --format {args.format} writes a file.")
    if args.format in ("km", "array") and args.output.exists() and not args.overwrite:
        raise ValueError(f"{args.output} exists; pass --overwrite to replace it.")


def _load_model(name: str, device: str | None) -> tuple[Any, Any]:
    import torch
    from transformers.utils import logging

    from speech_tokenizers.coding.loading import load

    logging.disable_progress_bar()
    model, feature_extractor = load(name)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device), feature_extractor
    except (RuntimeError, AssertionError) as error:
        # torch's words for a device that is misspelt or absent.
        raise ValueError(f"--device {device}: {error}") from error


def _check_model(args: argparse.Namespace, model: Any) -> Any:
    from speech_tokenizers.processing.unit_bpe import UnitBPE

    num_quantizers, codebook_size = _sizes(model, args.model)
    if num_quantizers > 1 and (args.format in ("km", "textless") or args.bpe is not None):
        what = "--bpe" if args.bpe is not None else f"--format {args.format}"
        raise ValueError(f"{what} is for one codebook, but {args.model} has {num_quantizers}; use jsonl or array.")
    if args.bpe is None:
        return None
    bpe = UnitBPE.from_pretrained(args.bpe)
    if bpe.codebook_size != codebook_size:
        raise ValueError(f"{args.bpe} merges {bpe.codebook_size} units, but {args.model} has {codebook_size}.")
    return bpe


def _sizes(model: Any, name: str) -> tuple[int, int]:
    num_quantizers, codebook_size = (
        getattr(model.config, field, None) for field in ("num_quantizers", "codebook_size")
    )
    if not isinstance(num_quantizers, int) or not isinstance(codebook_size, int) or not hasattr(model, "encode"):
        raise ValueError(
            f"{name} is a {type(model).__name__}, which has no units; `speech-tokenizers fit-units` finds those of a"
            " speech encoder."
        )
    return num_quantizers, codebook_size


def _known_names(args: argparse.Namespace, names: Iterable[str]) -> set[str]:
    from speech_tokenizers.processing.unit_exports import load_unit_lines

    if args.format == "textless":
        return {name for name in names if _item_path(args.output, name).exists()}
    if args.format != "jsonl" or not args.output.exists():
        return set()
    content = args.output.read_bytes()
    end = content.rfind(b"\n") + 1
    if content[end:].startswith(b'{"file_name"'):
        os.truncate(args.output, end)  # an interrupted run left it unfinished
    lines = load_unit_lines(args.output)
    is_deduplicated = args.deduplicate or args.bpe is not None
    if any((line.durations is not None) != is_deduplicated for line in lines):
        raise ValueError(
            f"{args.output} holds units that are {'not ' * is_deduplicated}de-duplicated; choose another output."
        )
    return {line.file_name for line in lines}


def _append_lines(path: Path, results: Iterable[EncodedRecording], names: Sequence[str], bpe: Any) -> None:
    from speech_tokenizers.processing.unit_exports import UnitLine, format_unit_line

    with path.open("a", encoding="utf-8") as file:
        for result in results:
            merged = {} if bpe is None else {"bpe_ids": bpe.encode(result.units, result.durations)[0].tolist()}
            line = UnitLine(names[result.index], result.units, result.durations)
            file.write(format_unit_line(line, **merged) + "\n")
            file.flush()


def _save_items(folder: Path, results: Iterable[EncodedRecording], names: Sequence[str]) -> None:
    from speech_tokenizers.processing.unit_exports import save_textless, to_textless

    for result in results:
        item = to_textless(result.units, result.durations, result.latents)
        save_textless(_item_path(folder, names[result.index]), item)


def _item_path(folder: Path, name: str) -> Path:
    # The suffix stays: a.wav and a.flac are two recordings.
    return folder / f"{name}.safetensors"


def _save_km(path: Path, results: Iterable[EncodedRecording], files: Sequence[Path]) -> None:
    from speech_tokenizers.processing.unit_exports import save_km, save_manifest

    encoded = list(results)
    if not encoded:
        return
    root = os.path.commonpath([os.path.dirname(os.path.abspath(files[result.index])) for result in encoded])
    manifest = [(os.path.relpath(files[result.index], root), result.num_samples) for result in encoded]
    save_manifest(path.with_suffix(".tsv"), root, manifest)
    durations = [result.durations for result in encoded if result.durations is not None]
    if durations:
        save_km(path.with_suffix(".durations"), durations)
    save_km(path, [result.units for result in encoded])


def _save_arrays(path: Path, results: Iterable[EncodedRecording], names: Sequence[str]) -> None:
    from speech_tokenizers.processing.unit_exports import save_code_arrays

    encoded = list(results)
    if encoded:
        audio_codes = [result.audio_codes for result in encoded if result.audio_codes is not None]
        save_code_arrays(path, [names[result.index] for result in encoded], audio_codes)
