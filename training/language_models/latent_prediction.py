# SPDX-License-Identifier: Apache-2.0
"""How well a language model of continuous tokens predicts held-out speech, and how it continues recordings."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from speech_tokenizers.modeling.modeling_latent_lm import LatentLanguageModel


def energy_score(draws: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """
    E|x - y| - E|x - x'| / 2 for draws x of a forecast and the truth y (Gneiting and Raftery, 2007). Its mean is least
    for the forecast that is the true distribution, whatever model it comes from.

    Args:
        draws (`torch.Tensor` of shape `(num_draws, ..., dim)`): Draws of the forecast, at least one. With a single
            draw the score is the distance.
        truth (`torch.Tensor` of shape `(..., dim)`): True vectors.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    count = len(draws)
    errors = torch.linalg.vector_norm(draws - truth, dim=-1).mean(dim=0)
    if count == 1:
        return errors
    first, second = torch.triu_indices(count, count, offset=1, device=draws.device)
    return errors - 0.5 * torch.linalg.vector_norm(draws[first] - draws[second], dim=-1).mean(dim=0)


@torch.no_grad()
def judge(
    model: LatentLanguageModel,
    recordings: Sequence[np.ndarray],
    ended: Sequence[bool],
    num_draws: int,
    seed: int,
    **options: Any,
) -> dict[str, float]:
    """
    Predict each frame of some recordings from the real ones before it.

    Args:
        model ([`LatentLanguageModel`]): Model in evaluation mode.
        recordings (sequence of arrays of shape `(num_frames, latent_dim)`): Latents of recordings from the beginning.
        ended (sequence of `bool`): Whether each array is the whole recording. Otherwise the recording was cut.
        num_draws (`int`): Number of draws for each frame.
        seed (`int`): Seed for the draws.
        options: Arguments of [`ContinuousHead.sample`].

    Returns:
        `dict`: Means over all frames. `prediction_loss` is the loss of the head, which is not comparable between
        heads. `stop_loss` is the loss of the end. `energy_score` is the score of the draws. `draw_spread` is the mean
        distance between two of them. `repetition_score` is the score of the previous frame as the only forecast, and
        `marginal_score` that of random frames of the recordings. The distances are of latents of zero mean and
        unit variance.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    everywhere = torch.from_numpy(np.concatenate(recordings)).to(model.device)
    normalize = model.statistics.normalize
    sums: dict[str, float] = {}
    for recording, is_whole in zip(recordings, ended, strict=True):
        latents = torch.from_numpy(np.array(recording)).to(model.device)[None]
        outputs = model(latents, ended=torch.tensor([is_whole], device=latents.device))
        draws, truth = normalize(model.draw(latents, num_draws, generator, **options)), normalize(latents)
        shape = (num_draws, latents.shape[1])
        rows = torch.randint(len(everywhere), shape, generator=generator, device=latents.device)
        before = torch.cat([torch.zeros_like(truth[:, :1]), truth[:, :-1]], dim=1)
        scores = {
            "prediction_loss": outputs.prediction_loss,
            "stop_loss": outputs.stop_loss,
            "energy_score": energy_score(draws, truth).mean(),
            "draw_spread": torch.linalg.vector_norm(draws[1:] - draws[:-1], dim=-1).mean() if num_draws > 1 else 0.0,
            "repetition_score": energy_score(before[None], truth).mean(),
            "marginal_score": energy_score(normalize(everywhere[rows])[:, None], truth).mean(),
        }
        for name, value in scores.items():
            sums[name] = sums.get(name, 0.0) + float(value) * latents.shape[1]
    return {name: value / len(everywhere) for name, value in sums.items()}


def generation_milliseconds(model: LatentLanguageModel, num_frames: int = 50) -> dict[str, float]:
    """
    Milliseconds of one core that a frame takes at batch size 1: `frame_ms` with the transformer, `head_ms` without.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in model.stream(max_frames=5, stop_threshold=None):
            pass
        started = time.process_time()
        for _ in model.stream(max_frames=num_frames, stop_threshold=None):
            pass
        whole = time.process_time() - started
        hidden = torch.zeros(1, model.config.hidden_size)
        started = time.process_time()
        for _ in range(num_frames):
            model.head.sample(hidden)
        head = time.process_time() - started
    finally:
        torch.set_num_threads(threads)
    return {"frame_ms": 1000 * whole / num_frames, "head_ms": 1000 * head / num_frames}


@torch.no_grad()
def write_continuations(
    model: LatentLanguageModel,
    codec: Any,
    recordings: Sequence[tuple[str, np.ndarray]],
    folder: Path,
    prompt_seconds: float,
    seconds: float,
    seed: int,
    **options: Any,
) -> list[Path]:
    """
    Continue the beginnings of recordings, and decode beginning and continuation together.

    Args:
        model ([`LatentLanguageModel`]): Model in evaluation mode.
        codec (`PreTrainedModel`): Codec that the latents come from.
        recordings (sequence of names and arrays of shape `(num_frames, latent_dim)`): Names and latents of the
            recordings whose beginnings are continued.
        folder (`Path`): Folder for `NAME.wav` and, beside it, `NAME.real.wav`: the codec's version of the recording
            itself.
        prompt_seconds (`float`), seconds (`float`): Lengths of beginning and continuation, in seconds.
        seed (`int`): Seed for the draws.
        options: Arguments of [`LatentLanguageModel.stream`].

    Returns:
        `list` of `Path`: Paths of the continuations. A recording that ends before its prompt gives none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_prompt, num_frames = round(prompt_seconds * codec.frame_rate), round(seconds * codec.frame_rate)
    written = []
    for name, recording in recordings:
        if len(recording) <= num_prompt:
            continue
        latents = torch.from_numpy(np.array(recording)).to(model.device)[None]
        generator = torch.Generator(model.device).manual_seed(seed)
        drawn = model.generate_latents(latents[:, :num_prompt], num_frames, generator=generator, **options).latents
        versions = {
            f"{name}.wav": torch.cat([latents[:, :num_prompt], drawn], dim=1),
            f"{name}.real.wav": latents[:, : num_prompt + num_frames],
        }
        for file_name, frames in versions.items():
            audio = codec.decode(latents=frames.to(codec.dtype)).audio_values[0, 0]
            soundfile.write(folder / file_name, audio.float().clamp(-1, 1).cpu().numpy(), codec.sampling_rate)
        written.append(folder / f"{name}.wav")
    return written
