# SPDX-License-Identifier: Apache-2.0
"""Speed at which a stream of speech becomes continuous tokens, and tokens become speech again."""

import time
from typing import Any

import torch

from speech_tokenizers.modeling.codec_streaming import LatentStream
from speech_tokenizers.modeling.configuration_cst import CSTConfig
from speech_tokenizers.modeling.modeling_cst import CSTModel


# Tokens without look-ahead. The fast preset has one; its networks are measured in their causal form.
STREAMING_TOKENS: dict[str, dict[str, Any]] = {
    "cst-streaming-16khz": {},
    "cst-fast-16khz": {"causal": True},
}


def random_tokens(preset: str, **overrides: Any) -> CSTModel:
    """Continuous tokens with seeded random weights; speed does not depend on them. Weight norm is folded."""
    torch.manual_seed(0)
    model = CSTModel(CSTConfig.from_preset(preset, **overrides)).eval()
    model.remove_weight_norm()
    return model


@torch.inference_mode()
def stream_speed(model: Any, audio: torch.Tensor, chunk_frames: int = 1) -> dict[str, Any]:
    """
    Speed of a stream in either direction.

    Args:
        model ([`CSTModel`]): Model in evaluation mode. One with look-ahead runs in windows, and its answers come late.
        audio (`torch.Tensor` of shape `(1, 1, num_samples)`): Recording at the model's rate.
        chunk_frames (`int`, *optional*, defaults to 1): Number of frames that arrive at once.

    Returns:
        `dict`: Speed of the stream. `real_time_factor_encode` and `real_time_factor_decode` are the process's
        processor time divided by the time of the audio; the same names with `_wall` use wall-clock time. `frame_ms` is
        the duration of a frame. There are also the median and the 95th percentile of the processor time, in ms, of the
        calls that answered a frame.
    """
    seconds = audio.shape[-1] / model.sampling_rate
    chunk = chunk_frames * model.hop_length
    result: dict[str, Any] = {"frame_ms": 1000 / model.frame_rate, "chunk_frames": chunk_frames}
    result["is_streamable"] = model.is_streamable
    warm_up = LatentStream(model)  # the first calls allocate
    warm_up.decode(torch.cat([warm_up.encode(audio[..., : 4 * chunk]), warm_up.finish_encode()], dim=1))
    warm_up.finish_decode()
    stream = LatentStream(model)
    encoded = _time_calls(stream.encode, list(audio.split(chunk, dim=-1)), stream.finish_encode)
    latents = torch.cat(encoded.pop("results"), dim=1)
    decoded = _time_calls(stream.decode, list(latents.split(chunk_frames, dim=1)), stream.finish_decode)
    decoded.pop("results")
    for side, measured in (("encode", encoded), ("decode", decoded)):
        result[f"real_time_factor_{side}"] = measured["cpu"] / seconds
        result[f"real_time_factor_{side}_wall"] = measured["wall"] / seconds
        calls = torch.tensor(measured["calls"]) * 1000
        result[f"{side}_median_ms"] = calls.median().item()
        result[f"{side}_p95_ms"] = calls.quantile(0.95).item()
    return result


def _time_calls(push: Any, chunks: list[torch.Tensor], finish: Any) -> dict[str, Any]:
    # Results, the time of all calls, and the time of each call that answered something.
    results, calls = [], []
    wall, cpu = time.perf_counter(), time.process_time()
    for chunk in chunks:
        start = time.process_time()
        results.append(push(chunk))
        if results[-1].numel():
            calls.append(time.process_time() - start)
    results.append(finish())
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {"results": results, "calls": calls or [spent["cpu"]], **spent}
