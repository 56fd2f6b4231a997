# SPDX-License-Identifier: Apache-2.0
"""Train a speech language model by a recipe in a process of its own: FILE [key=value ...]."""

import sys

from speech_tokenizers.training.language_models.speech_lm import run_recipe


if __name__ == "__main__":
    print(run_recipe(sys.argv[1], sys.argv[2:]))
