# SPDX-License-Identifier: Apache-2.0
"""Distance between the units of a stream and those of the whole recording, by the latency of the stream."""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from speech_tokenizers.evaluation.bootstrap import bootstrap_sums
from speech_tokenizers.evaluation.units.encoded_clips import EncodedClips, Measured, UnitSettings
from speech_tokenizers.evaluation.units.measures import grouped
from speech_tokenizers.evaluation.units.robustness import unit_edit_distance, unit_edits
from speech_tokenizers.modeling.unit_streaming import UnitStream


class StreamSetting(NamedTuple):
    """
    Seconds of a [`UnitStream`].

    Args:
        chunk, left_context, right_context (`float`): Arguments `chunk`, `left_context` and `right_context` of the
            stream, in seconds.
    """

    chunk: float
    left_context: float
    right_context: float


STREAM_SETTINGS = (
    StreamSetting(0.1, 4.0, 0.0),
    StreamSetting(0.1, 4.0, 0.1),
    StreamSetting(0.2, 4.0, 0.2),
    StreamSetting(0.5, 4.0, 0.5),
    StreamSetting(1.0, 4.0, 1.0),
)


def measure_streaming(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    """
    Unit edit distance between the units of a stream and those of the whole recording, over the clips that are also
    perturbed, for each of `STREAM_SETTINGS` that the encoder can hear; in the details, latency and equal frames.

    Raises:
        ValueError: If the model cannot be streamed.
    """
    model = encoded.system.model
    if model.longest_exact_stream is None:
        raise ValueError("only units of speech encoders come in streams of chunks with context; see `CodecStream`")
    order = np.random.default_rng(settings.seed).permutation(len(encoded.data.clips))
    drawn = set(order[: settings.robustness_clips].tolist())
    chosen = [(n, codes) for n, codes in zip(encoded.numbers, encoded.codes, strict=True) if n in drawn]
    if not chosen:
        raise ValueError("none of the clips that were drawn could be encoded; raise --robustness-clips")
    groups = [encoded.data.groups[number] for number, _ in chosen]
    measured = Measured()
    with tqdm(total=len(chosen) * len(STREAM_SETTINGS), desc="streaming", leave=False, disable=None) as progress:
        for setting in STREAM_SETTINGS:
            stream = UnitStream(model, *setting)
            edits, num_equal = [], 0
            for number, codes in chosen:
                streamed = _streamed(encoded, number, stream, setting)
                edits.append(unit_edits(codes, streamed))
                num_equal += int((codes == streamed).all(0).sum())
                progress.update()
            name = f"ued_streaming[{stream.latency_seconds:.2f} s]"
            estimate = bootstrap_sums(grouped(np.array(edits), groups), unit_edit_distance, seed=settings.seed)
            measured.add(name, estimate, len(edits))
            measured.details.setdefault("streaming", {})[name] = {
                **setting._asdict(),
                "latency": stream.latency_seconds,
                "equal_frames": num_equal / sum(codes.shape[1] for _, codes in chosen),
            }
    return measured


def _streamed(encoded: EncodedClips, number: int, stream: UnitStream, setting: StreamSetting) -> np.ndarray:
    # Codes of a clip as they come from a stream, (num_quantizers, num_frames).
    clip = encoded.data.clips[number]

    def encode(audio: np.ndarray) -> np.ndarray:
        return torch.cat([stream.push(torch.from_numpy(audio)), stream.flush()], dim=1).numpy()

    return encoded.encode_view(clip, f"streamed {tuple(setting)}", clip.load, encode)
