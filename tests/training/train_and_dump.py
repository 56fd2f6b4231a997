# SPDX-License-Identifier: Apache-2.0
"""Run as a program by a test: train by a recipe, then save what this process holds."""

import sys

import torch

from speech_tokenizers.training.codec_trainer import train_from_recipe


if __name__ == "__main__":
    recipe, output = sys.argv[1:]
    torch.set_num_threads(1)
    trainer = train_from_recipe(recipe)
    state = {"codec": trainer.unwrapped_model.state_dict(), "world_size": trainer.accelerator.num_processes}
    torch.save(state, f"{output}.{trainer.accelerator.process_index}")
