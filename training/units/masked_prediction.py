# SPDX-License-Identifier: Apache-2.0
"""Batches and trainer of masked prediction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from speech_tokenizers.modeling.configuration_hubert_masked_prediction import HubertMaskedPredictionConfig
from speech_tokenizers.modeling.encoder_geometry import shortest_input
from speech_tokenizers.modeling.modeling_hubert_masked_prediction import span_mask
from speech_tokenizers.modeling.padding_invariance import num_conv_frames
from speech_tokenizers.processing.recordings import DecodedRecordings
from speech_tokenizers.training.common.recipe_trainer import RecipeTrainer
from speech_tokenizers.training.units.pseudo_labels import MIN_LABELLED_SECONDS, PseudoLabels, frame_labels


class MaskedPredictionDataset(torch.utils.data.Dataset):
    """
    Recordings, or parts of long ones, with the labels of their frames and the frames to mask.

    An item depends on the seed and its index only. Indices beyond the length belong to later epochs, as a
    [`LengthBatchSampler`] gives them.

    Args:
        recordings ([`DecodedRecordings`]): int16 audio.
        labels ([`PseudoLabels`]): Labels of each recording.
        config ([`HubertMaskedPredictionConfig`]): Tells the frames of the encoder, and how to mask.
        min_seconds, max_seconds (`float`): See [`RecordingsArguments`].
        seed (`int`): Seed of parts and masks.

    Attributes:
        lengths (`np.ndarray` of shape `(len(dataset),)`): Samples of each item.

    Raises:
        ValueError: If every recording is too short.
    """

    def __init__(
        self,
        recordings: DecodedRecordings,
        labels: PseudoLabels,
        config: HubertMaskedPredictionConfig,
        min_seconds: float,
        max_seconds: float,
        seed: int = 0,
    ):
        self.recordings, self.labels, self.config, self.seed = recordings, labels, config, seed
        self.max_samples = round(max_seconds * recordings.sampling_rate)
        lengths = np.diff(recordings.starts)
        is_long_enough = lengths >= least_samples(config, min_seconds, recordings.sampling_rate)
        self.recording_of_item = np.flatnonzero(is_long_enough)
        if len(self.recording_of_item) == 0:
            raise ValueError(
                f"Every recording is shorter than `data.min_seconds` ({min_seconds}), or than a labelled frame."
            )
        self.lengths = np.minimum(lengths[self.recording_of_item], self.max_samples)

    def __len__(self) -> int:
        return len(self.recording_of_item)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_values` `(num_samples,)`, `labels` and `mask_time_indices` `(num_frames,)`."""
        epoch, item = divmod(index, len(self))
        generator = torch.Generator().manual_seed(int(np.random.default_rng((self.seed, epoch, item)).integers(2**63)))
        number = int(self.recording_of_item[item])
        recording, hop = self.recordings[number], self.config.inputs_to_logits_ratio
        # Parts begin with a frame of the whole recording, so that frames keep their labels.
        last_frame = (len(recording) - int(self.lengths[item])) // hop
        first_frame = int(torch.randint(last_frame + 1, (), generator=generator))
        samples = recording[first_frame * hop :][: self.max_samples]
        num_frames = num_conv_frames(self.config, len(samples))
        labels = frame_labels(
            self.labels[number], self.labels.label_rate, self.recordings.sampling_rate / hop, first_frame, num_frames
        )
        config = self.config
        return {
            "input_values": torch.from_numpy(samples.astype(np.float32) / np.float32(32767.0)),
            "labels": torch.from_numpy(labels),
            "mask_time_indices": span_mask(
                num_frames, config.mask_prob, config.mask_length, config.mask_min_spans, generator
            ),
        }


def least_samples(config: HubertMaskedPredictionConfig, min_seconds: float, sampling_rate: int) -> float:
    """Fewest samples of a recording that is learnt from: those that give a frame and have labels."""
    return max(max(min_seconds, MIN_LABELLED_SECONDS) * sampling_rate, shortest_input(config))


def pad_batch(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    Pad items of a [`MaskedPredictionDataset`] into the arguments of [`HubertForMaskedPrediction`]; labels with -100,
    the mask with `False`.
    """
    padding = {"input_values": 0.0, "labels": -100, "mask_time_indices": False}
    batch = {
        name: pad_sequence([item[name] for item in items], batch_first=True, padding_value=value)
        for name, value in padding.items()
    }
    lengths = torch.tensor([len(item["input_values"]) for item in items])
    batch["attention_mask"] = (torch.arange(batch["input_values"].shape[1]) < lengths[:, None]).long()
    return batch


class MaskedPredictionTrainer(RecipeTrainer):
    """
    [`RecipeTrainer`] whose loss is the mean over the masked frames of a whole step.

    Args:
        args, kwargs: See [`RecipeTrainer`]; `train_dataset` is a [`MaskedPredictionDataset`].
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, data_collator=pad_batch, **kwargs)

    def num_items(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Number of frames that are learnt from."""
        model = self.accelerator.unwrap_model(self.model)
        return model.learnt_frames(inputs["labels"], inputs["mask_time_indices"]).sum()

    def measures(
        self, outputs: Any, inputs: dict[str, torch.Tensor]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
        """Loss and accuracy of masked and of other frames, the penalty, and the speed."""
        found = {}
        for kind in ("masked", "unmasked"):
            count = outputs[f"num_{kind}"]
            for name in (f"{kind}_loss", f"{kind}_accuracy"):
                found[name] = outputs[name] * count, count
        found["features_penalty"] = outputs["features_penalty"] * outputs["num_masked"], outputs["num_masked"]
        seconds = inputs["attention_mask"].sum() / self.train_dataset.recordings.sampling_rate
        return {**found, "audio_seconds_per_second": (seconds, None)}
