# SPDX-License-Identifier: Apache-2.0
"""Run as a program by a test: train units by a recipe."""

import sys

import torch

from speech_tokenizers.training.arguments import load_recipe
from speech_tokenizers.training.dc_spin_trainer import DCSpinTrainingArguments, train_dc_spin
from speech_tokenizers.training.processes import leave_together


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_dc_spin(load_recipe(sys.argv[1], sys.argv[2:], DCSpinTrainingArguments))
    leave_together()
