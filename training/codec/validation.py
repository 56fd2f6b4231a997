# SPDX-License-Identifier: Apache-2.0
"""Losses, metrics and code use of a codec on whole held-out recordings, while it trains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from speech_tokenizers.training.codec.latent_health import LatentReport, latents_of
from speech_tokenizers.training.codec.reconstruction_losses import ReconstructionLoss, WaveformPair


def fewer_codebooks(num_quantizers: int) -> list[int]:
    """Powers of two below a number of codebooks."""
    return [2**power for power in range(num_quantizers) if 2**power < num_quantizers]


@torch.no_grad()
def validate(
    model: nn.Module,
    recordings: Sequence[np.ndarray],
    accelerator: Accelerator,
    losses: Mapping[str, ReconstructionLoss],
    max_seconds: float,
    forward: Callable[[int, torch.Tensor], Any],
    loss_names: Sequence[str],
    compute_metrics: Callable[[np.ndarray, np.ndarray, int], Mapping[str, float | None]] | None = None,
    keep_sample: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> dict[str, float]:
    """
    Code and decode recordings, one at a time and shared among processes.

    Args:
        model ([`RVQCodecModel`] or [`UnitVocoderModel`]): Model in evaluation mode.
        recordings (sequence of `np.ndarray` of shape `(num_samples,)`): Recordings as int16 or float32.
        accelerator (`Accelerator`): Accelerator of the run. It tells which recordings are this process's.
        losses (mapping of `str` to [`ReconstructionLoss`]): Losses that compare decoded with recorded speech, by name.
        max_seconds (`float`): Length in seconds that recordings are cut to.
        forward (callable): Function that gives the model's output for the index of a recording and its waveform
            `(1, 1, num_samples)`.
        loss_names (sequence of `str`): Losses that the model computes itself.
        compute_metrics (callable, *optional*): Function that gives numbers for a recorded and a decoded float array at
            a sampling rate; `None` where a metric has no value.
        keep_sample (callable, *optional*): Function called with the index, the recorded and the decoded waveform,
            `(num_samples,)`.

    Returns:
        `dict`: Means of the losses, the model's own losses and the metrics, each over the recordings that have a
        value. Where some have none, their number is `<metric>_left_out`. Where the model chooses codes,
        `codes_used_<stage>` and `perplexity_<stage>` are the share of codes used and the perplexity of each stage over
        all recordings, and `mel_at_<codebooks>` is the mel loss with fewer codebooks. Where it has latents, there are
        the measures of [`LatentReport`] over all recordings.
    """
    if not len(recordings):
        raise ValueError("There is no recording to evaluate on; see rejected.jsonl for those that were set aside.")
    sums: dict[str, float] = {}
    left_out: dict[str, int] = {}
    # A model of continuous latents chooses no codes.
    sizes = getattr(model.config, "num_quantizers", 0), getattr(model.config, "codebook_size", 0)
    counts = torch.zeros(*sizes, dtype=torch.float64)
    report = LatentReport()
    for index in range(accelerator.process_index, len(recordings), accelerator.num_processes):
        recording = np.asarray(recordings[index][: round(max_seconds * model.sampling_rate)])
        scale = 32767.0 if recording.dtype == np.int16 else 1.0
        recorded = torch.from_numpy(recording.astype(np.float32) / scale).to(accelerator.device)[None, None]
        outputs = forward(index, recorded)
        decoded = outputs.audio_values
        pair = WaveformPair(decoded, recorded, model.sampling_rate)
        values: dict[str, float | None] = {
            **{name: float(loss(pair)) for name, loss in losses.items()},
            **{name: float(outputs[f"{name}_loss"]) for name in loss_names},
        }
        if (latents := latents_of(outputs)) is not None:
            stages = outputs.get("stage_latents", ())
            report.add(latents, model.quantizer.project_in(latents) if stages else latents, stages)
            for used in fewer_codebooks(len(stages)):
                with accelerator.autocast():
                    fewer = model.decode(outputs.audio_codes[:, :used], num_samples=recorded.shape[-1]).audio_values
                fewer_pair = WaveformPair(fewer, recorded, model.sampling_rate)
                values[f"mel_at_{used}"] = float(losses["mel"](fewer_pair))
        if compute_metrics is not None:
            arrays = recorded[0, 0].cpu().numpy(), decoded[0, 0].cpu().numpy()
            values |= compute_metrics(*arrays, model.sampling_rate)
        if keep_sample is not None:
            keep_sample(index, recorded[0, 0], decoded[0, 0])
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + (0.0 if value is None else value)
            left_out[name] = left_out.get(name, 0) + (value is None)
        for stage, codes in enumerate(outputs.get("audio_codes", torch.empty(1, 0))[0].cpu()):
            counts[stage] += torch.bincount(codes, minlength=counts.shape[1])

    if accelerator.num_processes > 1:
        gathered: list = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(gathered, (sums, left_out, counts, report))
        names = sorted({name for part, *_ in gathered for name in part})
        sums = {name: sum(part[0].get(name, 0.0) for part in gathered) for name in names}
        left_out = {name: sum(part[1].get(name, 0) for part in gathered) for name in names}
        counts = torch.stack([part[2] for part in gathered]).sum(0)
        report = LatentReport()
        for part in gathered:
            report.merge(part[3])

    means: dict[str, float] = report.values()
    for name, value in sums.items():
        if left_out[name] < len(recordings):
            means[name] = value / (len(recordings) - left_out[name])
        if left_out[name]:
            means[f"{name}_left_out"] = left_out[name]
    if not counts.any():
        return means
    shares = counts / counts.sum(-1, keepdim=True)
    perplexities = torch.exp(-torch.xlogy(shares, shares).sum(-1))
    for stage in range(len(counts)):
        means[f"codes_used_{stage + 1}"] = float((counts[stage] > 0).double().mean())
        means[f"perplexity_{stage + 1}"] = float(perplexities[stage])
    return means
