# SPDX-License-Identifier: Apache-2.0
"""
Run as a program by a test: train by a recipe, then save what this process holds. Further arguments, if there are any,
are the seconds that a step of each rank takes by its trainer's clock.
"""

import itertools
import os
import sys
from types import SimpleNamespace

import torch

from speech_tokenizers.training.codec import codec_trainer
from speech_tokenizers.training.codec.codec_recipe import train_from_recipe
from speech_tokenizers.training.common.processes import leave_together


if __name__ == "__main__":
    recipe, output, *seconds = sys.argv[1:]
    if seconds:
        step = float(seconds[int(os.environ["RANK"])])
        codec_trainer.time = SimpleNamespace(perf_counter=itertools.count(0.0, step).__next__)
    torch.set_num_threads(1)
    trainer = train_from_recipe(recipe)
    state = {"codec": trainer.unwrapped_model.state_dict(), "world_size": trainer.accelerator.num_processes}
    state |= {"step": trainer.step, "elapsed_seconds": trainer.run.elapsed_seconds}
    state["learning_rate"] = trainer.optimizer.param_groups[0]["lr"]
    torch.save(state, f"{output}.{trainer.accelerator.process_index}")
    leave_together()
