# SPDX-License-Identifier: Apache-2.0
"""
Pseudo-labels: a class for each frame of each recording, by k-means of MFCC or by any model with codes, in one file; or
a vector for each, the continuous tokens of a model.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr
import torch
from tqdm import tqdm

from speech_tokenizers.coding.file_coding import encode_blocks
from speech_tokenizers.modeling.codec_interface import TokenKind, pad_waveforms
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
from speech_tokenizers.processing.packing import pack_by_length
from speech_tokenizers.processing.recordings import DecodedRecordings
from speech_tokenizers.processing.whole_files import write_whole
from speech_tokenizers.training.units.kmeans import assign
from speech_tokenizers.training.units.mfcc import mfcc_features


# Shorter recordings get no labels, unless it is asked for them.
MIN_LABELLED_SECONDS = 0.1
# A recording is given to a stream in blocks of this length.
_BLOCK_SECONDS = 10.0


class Labeler(Protocol):
    """
    Source of the labels of waveforms.

    Attributes:
        label_rate (`float`): Number of labels per second.
        num_labels (`int`): Number of different labels, which count from 0. It is 0 where labels are vectors of
            float32; then there also is `label_shape`, `(dim,)`.
    """

    label_rate: float
    num_labels: int

    @property
    def description(self) -> dict[str, Any]:
        """Plain values that the labels depend on besides the recording."""
        ...

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The labels of float32 waveforms `(num_samples,)` of like length, `(num_labels, *label_shape)` each."""
        ...


class MfccLabeler:
    """
    Labels by k-means of MFCC, as for the first iteration of HuBERT.

    Args:
        centroids (`torch.Tensor` of shape `(num_labels, 39)`): Centroids of MFCC with their differences.
        sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate of the recordings, in Hz.
        subtract_mean (`bool`, *optional*, defaults to `False`): Whether to take off the mean over time; see
            [`mfcc_features`].
    """

    label_rate = 100.0

    def __init__(self, centroids: torch.Tensor, sampling_rate: int = 16000, subtract_mean: bool = False):
        self.centroids, self.sampling_rate, self.subtract_mean = centroids, sampling_rate, subtract_mean

    @property
    def num_labels(self) -> int:
        """Number of centroids."""
        return len(self.centroids)

    @property
    def description(self) -> dict[str, Any]:
        """The kind of labels, and the centroids' checksum."""
        description = {"kind": "mfcc", "centroids": _checksum(self.centroids)}
        return {**description, "subtract_mean": True} if self.subtract_mean else description

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        features = [mfcc_features(waveform, self.sampling_rate, self.subtract_mean) for waveform in waveforms]
        return [assign(torch.as_tensor(row), self.centroids).numpy() for row in features]


class TokenLabeler:
    """
    Labels that are the tokens of a model: codes of one codebook or of all, or latents. Recordings too long to be heard
    at once are encoded in windows, as by the command `units`; silence follows those that are shorter than a frame.

    Args:
        model ([`SpeechCodec`] or codec of transformers): Model that gives the tokens.
        sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate of the recordings, in Hz. They are
            resampled where the model needs another.
        codebook (`int`, *optional*): Number of the one codebook that is used, from 0. Without it, all codes of a frame
            follow each other, and there are `num_quantizers` times as many labels.
        num_quantizers (`int`, *optional*): Number of first codebooks, where all codes are wanted. Defaults to all.
        kind (`str`, *optional*): Kind of tokens: `"latents"` for the frames before quantization. Defaults to the
            model's.
        feature_extractor (`SequenceFeatureExtractor`, *optional*): Feature extractor of the model; see
            [`as_speech_codec`].

    Raises:
        ValueError: If the model has no such tokens.
    """

    def __init__(
        self,
        model: Any,
        sampling_rate: int = 16000,
        codebook: int | None = None,
        kind: TokenKind | None = None,
        num_quantizers: int | None = None,
        feature_extractor: Any = None,
    ):
        self.model = as_speech_codec(model, feature_extractor).eval()
        self.kind, self.codebook, self.sampling_rate = self.model.check_kind(kind), codebook, sampling_rate
        self.num_quantizers = num_quantizers
        self.label_rate = float(self.model.frame_rate)
        self.num_labels, self.label_shape = 0, ()
        if self.kind == "latents":
            self.label_shape = (int(self.model.latent_dim),)
            return
        self.model.encode_stream("codes", num_quantizers)  # refuses a number that cannot be had
        self.num_labels, available = int(self.model.codebook_size), self.model.num_quantizers
        if codebook is None:
            self.label_rate *= num_quantizers or available
        elif not 0 <= codebook < available:
            raise ValueError(f"`codebook` must lie below {available}, but got {codebook}.")

    @property
    def description(self) -> dict[str, Any]:
        """The kind of labels, and the checksum of the model's weights."""
        description = {"kind": self.kind, "model": _weights_checksum(self.model)}
        if self.kind == "codes":
            description["codebook"] = f"first {self.num_quantizers}" if self.codebook is None else self.codebook
        return description

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        model = self.model
        if model.sampling_rate != self.sampling_rate:
            waveforms = [soxr.resample(row, self.sampling_rate, model.sampling_rate) for row in waveforms]
        longest = sys.maxsize if model.longest_exact_stream is None else model.longest_exact_stream
        at_once = iter(self._at_once([row for row in waveforms if len(row) <= longest]))
        return [next(at_once) if len(row) <= longest else self._in_windows(row) for row in waveforms]

    def _in_windows(self, waveform: np.ndarray) -> np.ndarray:
        # As the command `units` encodes it; Whisper's encoder could not hear it at once.
        blocks = torch.from_numpy(waveform).split(round(_BLOCK_SECONDS * self.model.sampling_rate))
        kind = "latents" if self.kind == "latents" else "codes"
        parts = list(encode_blocks(self.model, blocks, self.num_quantizers, kind))
        if kind == "latents":
            return torch.cat(parts).float().numpy()
        codes = torch.cat(parts, dim=-1).T  # (F, num_quantizers)
        return (codes if self.codebook is None else codes[:, self.codebook]).reshape(-1).numpy()

    def _at_once(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        if not waveforms:
            return []
        model = self.model
        missing = [max(0, model.shortest_input - len(row)) for row in waveforms]
        features = pad_waveforms([np.pad(row, (0, count)) for row, count in zip(waveforms, missing, strict=True)])
        features = {name: value.to(model.device) for name, value in features.items()}
        outputs = model.encode_features(features, self.num_quantizers)
        counts = outputs.audio_codes_mask.sum(-1).cpu().tolist()
        if self.kind == "latents":
            rows = outputs.latents.float().cpu()
        else:
            rows = outputs.audio_codes.cpu().transpose(1, 2)  # (B, F, num_quantizers)
            rows = rows if self.codebook is None else rows[..., self.codebook]
        labels = [row[:count].numpy() for row, count in zip(rows, counts, strict=True)]
        return labels if self.label_shape else [row.reshape(-1) for row in labels]


class PseudoLabels(Sequence):
    """
    The labels of recordings, in a memory-mapped file.

    Args:
        path (`Path`): File of the index that [`label_all`] wrote, beside the labels.
    """

    def __init__(self, path: Path):
        index = json.loads(path.read_text(encoding="utf-8"))
        self.label_rate: float = index["label_rate"]
        self.num_labels: int = index["num_labels"]
        self._spans: list[tuple[int, int]] = index["spans"]
        shape = (-1, *index.get("label_shape", ()))  # older files have none
        self._labels = np.memmap(path.with_suffix(".labels"), dtype=index["dtype"], mode="r").reshape(shape)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index):
        """Labels of recording `index`, `(num_labels, *label_shape)`, a view of the file."""
        start, end = self._spans[index]
        return self._labels[start:end]

    def shares(self) -> np.ndarray:
        """Share of each label, `(num_labels,)`. The largest is the accuracy of always guessing the same label."""
        return np.bincount(self._labels, minlength=self.num_labels) / len(self._labels)


def frame_labels(
    labels: np.ndarray, label_rate: float, frame_rate: float, first_frame: int, num_frames: int
) -> np.ndarray:
    """
    Labels of some frames. Frame f gets the label numbered `floor(f * label_rate / frame_rate)`, as in fairseq.

    Args:
        labels (`np.ndarray` of shape `(num_labels,)`): Labels of a whole recording.
        label_rate (`float`), frame_rate (`float`): Rates of the labels and of the frames, in Hz.
        first_frame (`int`): Number of the first frame within the recording.
        num_frames (`int`): Number of frames that follow each other from there.

    Returns:
        `np.ndarray` of shape `(num_frames,)`, int64; -100 for frames after the last label.
    """
    frames = np.arange(first_frame, first_frame + num_frames)
    # A rate such as 16000 / 320 is exact; others may be a hair below the whole number that is meant.
    positions = np.floor(frames * (label_rate / frame_rate) + 1e-6).astype(np.int64)
    result = np.full(num_frames, -100, dtype=np.int64)
    within = positions < len(labels)
    result[within] = labels[positions[within]]
    return result


def label_all(
    recordings: DecodedRecordings,
    labeler: Labeler,
    cache_dir: str | os.PathLike,
    batch_seconds: float = 60.0,
    min_seconds: float = MIN_LABELLED_SECONDS,
    show_progress: bool = True,
) -> PseudoLabels:
    """
    Label recordings once. A second call with the same recordings and the same labeler reads what the first one wrote.
    A call after an interruption continues where the first one stopped.

    Args:
        recordings ([`DecodedRecordings`]): Recordings to label.
        labeler ([`Labeler`]): Labeler that gives the labels.
        cache_dir (`str` or `os.PathLike`): Folder of the kept labels.
        batch_seconds (`float`): Seconds of recordings that are labelled at once, with padding.
        min_seconds (`float`): Least length in seconds. Shorter recordings get no labels, since a model may refuse
            them.
        show_progress (`bool`): Whether to show a progress bar.
    """
    content = json.dumps([recordings.path.stem, min_seconds, labeler.description], sort_keys=True)
    path = Path(cache_dir) / f"{hashlib.sha256(content.encode()).hexdigest()[:20]}.json"
    if path.is_file() and not _is_whole(path):
        tqdm.write(f"{path} or its labels are damaged; the recordings are labelled anew.", file=sys.stderr)
        path.unlink()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        lengths = np.diff(recordings.starts)
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] >= min_seconds * recordings.sampling_rate]
        batches = pack_by_length(lengths, order, round(batch_seconds * recordings.sampling_rate))
        dtype = np.dtype(np.float32) if _label_shape(labeler) else np.min_scalar_type(labeler.num_labels - 1)
        _write_labels(path, recordings, labeler, batches, dtype, show_progress)
    return PseudoLabels(path)


def _is_whole(path: Path) -> bool:
    # Whether an index can be read, and its labels are as many as it says.
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        size = np.dtype(index["dtype"]).itemsize * math.prod(index.get("label_shape", ()))
        return path.with_suffix(".labels").stat().st_size == size * max(end for _, end in index["spans"])
    except (ValueError, KeyError, TypeError, OSError):
        return False


def _write_labels(
    path: Path,
    recordings: DecodedRecordings,
    labeler: Labeler,
    batches: list[list[int]],
    dtype: np.dtype,
    show_progress: bool,
) -> None:
    # Finished labels are noted in a second file, after the labels themselves. Labels beyond the notes, left by a
    # crash, are cut off.
    partial, done_path = path.with_suffix(".partial"), path.with_suffix(".done")
    done = np.fromfile(done_path, dtype=np.int64) if done_path.is_file() else np.empty(0, dtype=np.int64)
    order = [index for batch in batches for index in batch]
    with open(partial, "ab") as labels_file, open(done_path, "ab") as done_file:
        labels_file.truncate(int(done.sum()) * dtype.itemsize * math.prod(_label_shape(labeler)))
        done_file.truncate(len(done) * 8)
        num_labels = done.tolist()
        total = sum(len(recordings[index]) for index in order) / recordings.sampling_rate
        with tqdm(total=round(total), desc="Labelling", unit="s", disable=not show_progress) as progress:
            position = 0
            for batch in batches:
                position += len(batch)
                if position > len(done):
                    # A batch of which a part is noted is labelled again as a whole, to be padded as before.
                    rows = labeler([as_float(recordings[index]) for index in batch])
                    rows = rows[max(0, len(batch) - (position - len(done))) :]
                    for row in rows:
                        labels_file.write(row.astype(dtype).tobytes())
                    labels_file.flush()
                    counts = np.array([len(row) for row in rows], dtype=np.int64)
                    done_file.write(counts.tobytes())
                    done_file.flush()
                    num_labels += counts.tolist()
                progress.update(round(sum(len(recordings[index]) for index in batch) / recordings.sampling_rate))
    ends = np.cumsum(num_labels)
    spans = [[0, 0]] * len(recordings)
    for index, end, count in zip(order, ends.tolist(), num_labels, strict=True):
        spans[index] = [end - count, end]
    contents = {
        "label_rate": labeler.label_rate,
        "num_labels": labeler.num_labels,
        "label_shape": _label_shape(labeler),
        "dtype": dtype.name,
    }
    os.replace(partial, path.with_suffix(".labels"))
    # The index is written last: where it exists, the labels are complete.
    write_whole(path, json.dumps({**contents, **labeler.description, "spans": spans}))
    done_path.unlink()


def _label_shape(labeler: Labeler) -> tuple[int, ...]:
    return getattr(labeler, "label_shape", ())


def as_float(recording: np.ndarray) -> np.ndarray:
    """A recording of 16-bit samples as float32 in [-1, 1]."""
    return np.asarray(recording, dtype=np.float32) / np.float32(32767.0)


def _weights_checksum(model: Any) -> str:
    lines = "".join(f"{name} {_checksum(value)}" for name, value in model.state_dict().items())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _checksum(values: torch.Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
