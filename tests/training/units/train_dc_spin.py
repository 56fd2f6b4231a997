# SPDX-License-Identifier: Apache-2.0
"""Run as a program by a test: train units by a recipe."""

import sys

import torch

from speech_tokenizers.training.common.processes import leave_together
from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.units.dc_spin_trainer import DCSpinTrainingArguments, train_dc_spin


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_dc_spin(load_recipe(sys.argv[1], sys.argv[2:], DCSpinTrainingArguments))
    leave_together()
