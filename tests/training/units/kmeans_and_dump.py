# SPDX-License-Identifier: Apache-2.0
"""Run as a program by a test: fit k-means on a file of frames in the processes there are, then save what was found."""

import sys

import numpy as np
import torch
from accelerate import Accelerator

from speech_tokenizers.training.common.processes import leave_together
from speech_tokenizers.training.units.kmeans import fit_kmeans, mean_squared_distance


if __name__ == "__main__":
    path, output, max_epochs, checkpoint = sys.argv[1:]
    torch.set_num_threads(1)
    accelerator = Accelerator()
    frames = np.load(path, mmap_mode="r")
    result = fit_kmeans(
        frames,
        12,
        seed=5,
        batch_size=1300,  # two blocks and a half
        max_epochs=float(max_epochs),
        max_no_improvement=None,
        num_init=3,
        reassignment_ratio=0.05,
        accelerator=accelerator,
        checkpoint=checkpoint or None,
        checkpoint_steps=3,
    )
    distance = mean_squared_distance(frames, result.centroids, accelerator)
    state = {**vars(result), "distance": distance, "world_size": accelerator.num_processes}
    torch.save(state, f"{output}.{accelerator.process_index}")
    leave_together()
