# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""An F0 codebook beside fitted units: its bins and its prior from the voices of recordings."""

import argparse
from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np
import torch
from tqdm import tqdm

from speech_tokenizers.modeling.f0_codebook import LEAST_DEVIATION
from speech_tokenizers.modeling.unit_model import UnitPreTrainedModel
from speech_tokenizers.processing.recordings import DecodedRecordings
from speech_tokenizers.training.units.pseudo_labels import as_float


# Fewer voiced frames tell too little of a speaker; a second and a half of speech has about as many.
FEWEST_VOICED_FRAMES = 25
# Speech to learn from, in seconds: two numbers and some bins need no more.
MOST_SECONDS = 4 * 3600
SPEAKER_COLUMN = "speaker"


@dataclass(frozen=True)
class F0Fit:
    """
    What [`fit_f0`] found.

    Args:
        f0_bins, f0_stride (`int`): Codes, and frames that one lasts.
        speakers (`int`): Speakers, or recordings where no column tells the speaker, that were heard.
        by_speaker (`bool`): Whether F0 was normalised by the column of speakers, and not by recording.
        seconds (`float`): Speech that was heard.
        voiced (`float`): Share of voiced frames.
        mean (`float`), deviation (`float`): Of log2 F0 in Hz: mean of the speakers' means, and deviation within them.
        entropy (`float`): Bits that a code has, by how often each was given.
    """

    f0_bins: int
    f0_stride: int
    speakers: int
    by_speaker: bool
    seconds: float
    voiced: float
    mean: float
    deviation: float
    entropy: float


def fit_f0(
    model: UnitPreTrainedModel,
    recordings: DecodedRecordings,
    f0_bins: int,
    f0_stride: int = 1,
    fit_seconds: float | None = None,
    max_seconds: float = 20.0,
    seed: int = 0,
) -> F0Fit:
    """
    Put a codebook of F0 beside the codebooks of units, with bins that the recordings fill alike.

    F0 is normalised by the mean and deviation of the recording's speaker, if the recordings have a column `speaker`,
    and else by those of each recording.

    Args:
        model ([`UnitPreTrainedModel`]): Fitted units without F0; changed in place.
        recordings ([`DecodedRecordings`]): At the model's rate.
        f0_bins (`int`): Codes: one for unvoiced frames, the others for bins.
        f0_stride (`int`): Frames that a code lasts.
        fit_seconds (`float`, *optional*): Speech to hear, drawn at random; at most, and by default, `MOST_SECONDS`.
        max_seconds (`float`): Longer recordings are heard in parts of this length.
        seed (`int`): Of the drawing.

    Raises:
        ValueError: If rates differ, the model has F0 or a vocoder already, a number is wrong, or there is too little
            voiced speech.
    """
    if recordings.sampling_rate != model.sampling_rate:
        raise ValueError(f"`recordings` must be at {model.sampling_rate} Hz, but are at {recordings.sampling_rate}.")
    model.add_f0(f0_bins, f0_stride=f0_stride)
    try:
        fit = _fit(model, recordings, min(fit_seconds or MOST_SECONDS, MOST_SECONDS), max_seconds, seed)
    except ValueError:
        model.f0_codebook = model.config.f0_bins = None
        model.config.f0_stride = 1
        raise
    return fit


def _fit(
    model: UnitPreTrainedModel, recordings: DecodedRecordings, fit_seconds: float, max_seconds: float, seed: int
) -> F0Fit:
    config, codebook = model.config, model.f0_codebook
    assert codebook is not None
    by_speaker = SPEAKER_COLUMN in recordings.metadata.column_names
    names = recordings.metadata[SPEAKER_COLUMN] if by_speaker else recordings.names
    pitch, most = codebook.pitch_frames(), round(max_seconds * recordings.sampling_rate)
    tracks: dict[str, list[np.ndarray]] = defaultdict(list)
    left = round(fit_seconds * recordings.sampling_rate)
    order = np.random.default_rng(seed).permutation(len(recordings)).tolist()
    heard = num_frames = 0
    for index in tqdm(order, desc="F0", unit="file", disable=None):
        for start in range(0, len(recordings[index]), most):
            samples = as_float(recordings[index][start : start + most])
            count = int(model.get_encoded_length(len(samples)))
            if count < 1 or heard >= left:
                continue
            waveform = torch.from_numpy(samples)[None]
            octaves = pitch.track(waveform, torch.tensor([len(samples)]), count)[0].numpy()
            heard, num_frames = heard + len(samples), num_frames + count
            tracks[str(names[index])].append(octaves)
    voices = {name: np.concatenate(parts) for name, parts in tracks.items()}
    voices = {name: track[track > 0] for name, track in voices.items()}
    num_voiced = sum(len(track) for track in voices.values())
    voices = {name: track for name, track in voices.items() if len(track) >= FEWEST_VOICED_FRAMES}
    if not voices:
        raise ValueError(
            f"There is too little voice between {config.f0_floor:g} and {config.f0_ceiling:g} Hz to fit `f0_bins`"
            f" (--f0-bins): no {SPEAKER_COLUMN if by_speaker else 'recording'} has {FEWEST_VOICED_FRAMES} voiced"
            " frames; give more speech."
        )
    means = {name: float(track.mean()) for name, track in voices.items()}
    deviations = {name: max(float(track.std()), LEAST_DEVIATION) for name, track in voices.items()}
    weights = np.array([len(track) for track in voices.values()])
    config.f0_prior_mean = round(float(np.mean(list(means.values()))), 4)
    squares = np.square(list(deviations.values()))
    config.f0_prior_deviation = round(float(np.sqrt((weights * squares).sum() / weights.sum())), 4)

    values, is_voiced = [], []
    for name, parts in tracks.items():
        if name not in voices:
            continue
        speaker = torch.tensor([[means[name], deviations[name]]], dtype=torch.float64)
        for part in parts:
            latents = codebook.averaged(torch.from_numpy(part)[None], speaker)[0, :: config.f0_stride]
            is_voiced.append(latents[:, 0].numpy() > 0)
            values.append(latents[:, 1].numpy())
    deviation, voiced = np.concatenate(values), np.concatenate(is_voiced)
    num_bins = config.f0_bins - 1
    quantiles = np.quantile(deviation[voiced], np.arange(1, 2 * num_bins) / (2 * num_bins))
    codebook.set_bins(torch.from_numpy(quantiles[1::2]).float(), torch.from_numpy(quantiles[::2]).float())
    latents = torch.from_numpy(np.stack([voiced, deviation], axis=-1))[None]
    shares = np.bincount(codebook.codes(latents)[0].numpy(), minlength=config.f0_bins) / len(voiced)
    entropy = -float((shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    return F0Fit(
        config.f0_bins,
        config.f0_stride,
        len(voices),
        by_speaker,
        heard / recordings.sampling_rate,
        num_voiced / num_frames,
        config.f0_prior_mean,
        config.f0_prior_deviation,
        entropy,
    )


def add_f0_arguments(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Arguments of `fit-units` and `units add-f0` for an F0 codebook, which may be required."""
    parser.add_argument(
        "--f0-bins",
        metavar="N",
        type=int,
        default=None,
        required=required,
        help="a codebook of F0 beside the units, with N codes: unvoiced, and bins relative to the speaker (a column"
        " `speaker`, if there is one, else the recording)",
    )
    parser.add_argument("--f0-stride", metavar="S", type=int, default=1, help="frames that an F0 code lasts")


def check_f0_arguments(args: argparse.Namespace) -> None:
    """Raises `ValueError` if the arguments of F0 are impossible, before anything is fitted."""
    if args.f0_bins is None:
        if args.f0_stride != 1:
            raise ValueError("--f0-stride is for units with F0; give --f0-bins too.")
    else:
        most = min(args.codebook_size)
        check_f0_sizes(args.f0_bins, args.f0_stride, most, f"--codebook-size, {most}")


def check_f0_sizes(f0_bins: int, f0_stride: int, most: int, what: str) -> None:
    """Raises `ValueError` if there are fewer than 3 bins or more than `most`, which is `what`, or no stride."""
    if not 3 <= f0_bins <= most:
        raise ValueError(f"--f0-bins must lie between 3 and {what}, but is {f0_bins}.")
    if f0_stride < 1:
        raise ValueError(f"--f0-stride must be at least 1, but is {f0_stride}.")


def f0_facts(model: UnitPreTrainedModel, recordings: DecodedRecordings, args: argparse.Namespace) -> dict[str, object]:
    """Give units the F0 codebook that arguments ask for; returns the entries of `fit.json` that tell of it."""
    if args.f0_bins is None:
        return {}
    return {
        "f0": asdict(
            fit_f0(model, recordings, args.f0_bins, args.f0_stride, args.fit_seconds, args.max_seconds, args.seed)
        )
    }
