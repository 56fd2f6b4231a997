# SPDX-License-Identifier: Apache-2.0
"""
Run as a program by a test: the command `train`, in which the last rank fails. The first argument says when: `before`
it has joined the others, or at its second `step`.
"""

import os
import sys

from speech_tokenizers.cli import main
from speech_tokenizers.training.codec import codec_recipe, codec_trainer


def fail(*args, **kwargs):
    raise ValueError("this rank fails")


if __name__ == "__main__":
    when, recipe, *overrides = sys.argv[1:]
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        if when == "before":
            codec_recipe.load_codec_recipe = fail
        else:
            step = codec_trainer.CodecTrainer._step_over
            codec_trainer.CodecTrainer._step_over = lambda self, batches: (
                fail() if self.step == 1 else step(self, batches)
            )
    sys.exit(main(["train", recipe, *overrides]))
