# SPDX-License-Identifier: Apache-2.0
"""Recordings in two voices: the recorded one, and another one that says the same."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from speech_tokenizers.modeling.padding_invariance import frame_mask
from speech_tokenizers.processing.recordings import DecodedRecordings
from speech_tokenizers.processing.speaker_perturbation import SpeakerPerturbation
from speech_tokenizers.training.units.pseudo_labels import as_float


class PerturbedViewsDataset(torch.utils.data.Dataset):
    """
    Recordings, or parts of long ones, each with a version in another voice.

    An item depends only on the seed and its index. Workers, processes and an interruption change nothing. Indices
    beyond the length belong to later epochs, as a [`LengthBatchSampler`] gives them.

    Args:
        recordings ([`DecodedRecordings`]): Recordings as int16 audio.
        perturbation ([`SpeakerPerturbation`]): Perturbation that makes the other voice.
        min_seconds (`float`): Least length of a recording, in seconds. Shorter recordings are left out.
        max_seconds (`float`): Largest length of an item, in seconds. Of a longer recording, a part of this length is
            drawn each time.
        seed (`int`, *optional*, defaults to 0): Seed for parts and voices.

    Attributes:
        lengths (`np.ndarray` of shape `(len(dataset),)`): Number of samples of each item.

    Raises:
        ValueError: If every recording is too short.
    """

    def __init__(
        self,
        recordings: DecodedRecordings,
        perturbation: SpeakerPerturbation,
        min_seconds: float,
        max_seconds: float,
        seed: int = 0,
    ):
        self.recordings, self.perturbation, self.seed = recordings, perturbation, seed
        lengths = np.diff(recordings.starts)
        self.recording_of_item = np.flatnonzero(lengths >= min_seconds * recordings.sampling_rate)
        if len(self.recording_of_item) == 0:
            raise ValueError(f"Every recording is shorter than `data.min_seconds` ({min_seconds}).")
        self.lengths = np.minimum(lengths[self.recording_of_item], round(max_seconds * recordings.sampling_rate))

    def __len__(self) -> int:
        return len(self.recording_of_item)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_values` and `perturbed_values`, both `(num_samples,)`."""
        epoch, item = divmod(index, len(self))
        generator = np.random.default_rng((self.seed, epoch, item))
        recording = self.recordings[int(self.recording_of_item[item])]
        length = int(self.lengths[item])
        start = int(generator.integers(len(recording) - length + 1))
        waveform = as_float(recording[start : start + length])
        return {
            "input_values": torch.from_numpy(waveform),
            "perturbed_values": torch.from_numpy(self.perturbation(waveform, generator)),
        }


def pad_views(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    Pad items of a [`PerturbedViewsDataset`] with silence into the arguments of [`DCSpinModel`]: two tensors of shape
    `(batch, 1, num_samples)` and `padding_mask` of shape `(batch, num_samples)`, 1 = real.
    """
    batch = {name: pad_sequence([item[name] for item in items], batch_first=True)[:, None] for name in items[0]}
    num_samples = torch.tensor([len(item["input_values"]) for item in items])
    batch["padding_mask"] = frame_mask(num_samples, int(num_samples.max())).long()
    return batch
