# SPDX-License-Identifier: Apache-2.0
"""Frames of a fit of units, with directions appended in which given labels are told apart."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.numpy import load_file, save_file

from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.processing.whole_files import WholeFile
from speech_tokenizers.training.common.checkpoint_faults import remove_damaged
from speech_tokenizers.training.units.frame_files import changed_frames
from speech_tokenizers.training.units.kept_directions import (
    MOST_DIRECTIONS,
    discriminative_directions,
    fit_weighting,
)


# Weight of the frames themselves. Only its ratio to the others counts.
BASE_WEIGHT = 1.0


@dataclass(frozen=True)
class KeptClasses:
    """
    A set of labels that units are told.

    Args:
        name (`str`): Name of the set.
        numbers (`np.ndarray` of shape `(num_frames,)`): Class of each frame; -1 where there is none.
        weight (`float`): Weight of the set's directions.
    """

    name: str
    numbers: np.ndarray
    weight: float

    def num_directions(self, hidden_size: int) -> int:
        """Directions that are kept. Raises `ValueError` if the frames are of fewer than two classes."""
        num_classes = len(np.unique(self.numbers[self.numbers >= 0]))
        if num_classes < 2:
            raise ValueError(
                f"The frames have {num_classes} class of {self.name}, but two are needed to tell them apart; name"
                " other labels, or give more speech."
            )
        return min(num_classes - 1, hidden_size, MOST_DIRECTIONS)


class KeptFrames:
    """
    What is appended to the frames of a fit.

    Args:
        sets (sequence of [`KeptClasses`]): What units are told, of the same frames each.
        codebook_size (`int`): Centroids of a codebook of what is appended alone. With 0, there is none, and frames are
            clustered with it.
    """

    def __init__(self, sets: Sequence[KeptClasses], codebook_size: int = 0):
        self.sets, self.codebook_size = list(sets), codebook_size
        digest = hashlib.sha256(repr([(part.name, part.weight) for part in sets] + [codebook_size]).encode())
        for part in sets:
            digest.update(np.ascontiguousarray(part.numbers, dtype=np.int64).tobytes())
        self.key = digest.hexdigest()[:20]
        self.eigenvalues: dict[str, list[list[float]]] = {part.name: [] for part in sets}  # of each stream
        self._beside: list[np.ndarray] = []

    def fields(self, hidden_size: int) -> dict[str, int]:
        """Fields of the model's configuration."""
        dims = sum(part.num_directions(hidden_size) for part in self.sets)
        return {"kept_dims": dims, "kept_codebook_size": self.codebook_size}

    def weigh(
        self, model: KMeansUnitsModel, stream: int, frames: np.ndarray, folder: Path, accelerator: Accelerator | None
    ) -> np.ndarray:
        """
        Find the directions of a stream, and give them to the model.

        Args:
            model ([`KMeansUnitsModel`]): Model with the fields above; changed in place.
            stream (`int`): Number of the stream.
            frames (`np.ndarray` of shape `(num_frames, hidden_size)`): Frames of the stream, normalized.
            folder (`Path`): Keeps what is found. It belongs to this fit.
            accelerator (`Accelerator`, *optional*): Of the processes, of which one computes.

        Returns:
            The frames that are to be clustered: those with what is appended, or where that has a codebook of its own,
            the same as before.
        """
        found = self._weighting(stream, frames, folder, accelerator)
        quantizer = model.quantizer
        names = ["kept_matrix", "kept_offset"] + ["base_scale", "base_offset"] * (not self.codebook_size)
        for name in names:
            getattr(quantizer, name)[stream] = torch.from_numpy(found[name]).to(quantizer.kept_matrix)
        for part in self.sets:
            self.eigenvalues[part.name].append(found[f"eigenvalues-{part.name}"].tolist())
        tensors = {name: torch.from_numpy(found[name]).float() for name in names}
        matrix, offset = tensors["kept_matrix"], tensors["kept_offset"]
        path = folder / f"kept-{stream}.npy"
        if self.codebook_size:
            self._beside.append(
                changed_frames(frames, path, lambda x: x @ matrix + offset, accelerator, matrix.shape[1])
            )
            return frames
        scale, base = tensors["base_scale"], tensors["base_offset"]
        return changed_frames(
            frames,
            path,
            lambda x: torch.cat([x * scale + base, x @ matrix + offset], dim=1),
            accelerator,
            frames.shape[1] + matrix.shape[1],
        )

    def beside(self) -> np.ndarray:
        """What is appended to all streams, `(num_frames, num_streams * kept_dims)`, for the codebook of its own."""
        return self._beside[0] if len(self._beside) == 1 else np.concatenate(self._beside, axis=1)

    def _weighting(
        self, stream: int, frames: np.ndarray, folder: Path, accelerator: Accelerator | None
    ) -> dict[str, np.ndarray]:
        # Computed once and read by all processes, so that all of them have the same to the last bit.
        path = folder / f"weighting-{stream}.safetensors"
        if accelerator is None or accelerator.is_main_process:
            remove_damaged(path, "the directions are found anew, to the same result")
            if not path.is_file():
                tensors = self._found(frames)
                with WholeFile(path) as temporary:
                    save_file(tensors, temporary)
        if accelerator is not None:
            accelerator.wait_for_everyone()
        return load_file(path)

    def _found(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        kept = []
        for part in self.sets:
            try:
                kept.append((discriminative_directions(frames, part.numbers), part.weight))
            except ValueError as error:
                raise ValueError(f"{part.name}: {error}") from error
        weighting = fit_weighting(frames, BASE_WEIGHT, kept)
        tensors = {f"eigenvalues-{part.name}": of.eigenvalues for part, (of, _) in zip(self.sets, kept, strict=True)}
        tensors |= {
            "kept_matrix": weighting.matrix,
            "kept_offset": weighting.offset,
            "base_scale": np.array(weighting.base_scale),
            "base_offset": weighting.base_offset,
        }
        return {name: np.ascontiguousarray(values) for name, values in tensors.items()}
