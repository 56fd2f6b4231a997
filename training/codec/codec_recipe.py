# SPDX-License-Identifier: Apache-2.0
"""Train a codec as a recipe says."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from speech_tokenizers.training.codec.arguments import load_codec_recipe


if TYPE_CHECKING:
    from speech_tokenizers.training.codec.codec_trainer import CodecTrainer


def train_from_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> "CodecTrainer":
    """
    Train as a recipe says, save the codec or vocoder in `final` in the output folder, and return the trainer.

    A run that was told to stop (SIGINT, SIGTERM) leaves a checkpoint and no `final`.

    Args:
        path_or_name (`str`): Recipe; see [`load_recipe`].
        overrides (sequence of `str`): Settings that differ from the recipe, as `key=value` pairs.
    """
    args = load_codec_recipe(path_or_name, overrides)
    # Imported here, since it takes seconds, for which a mistake in the recipe need not wait.
    from accelerate.utils import set_seed
    from tqdm import tqdm

    from speech_tokenizers.training.codec.codec_building import (
        build_conditions,
        build_model,
        build_objectives,
        keep_origins,
    )
    from speech_tokenizers.training.codec.codec_trainer import CodecTrainer
    from speech_tokenizers.training.common.processes import process_state

    set_seed(args.seed)
    is_main = process_state().is_main_process
    model = build_model(args, partial(keep_origins, args) if is_main else None)
    trainer = CodecTrainer(model, args, objectives=build_objectives(args), conditions=build_conditions(args))
    trainer.train()
    trainer.draw_curves()
    if trainer.finished:
        final = trainer.save_model()
        if trainer.pushes is not None:
            trainer.pushes.finish(final)
    else:
        place = f"step {trainer.step} of {args.max_steps}"
        if args.max_minutes is not None:
            place += f", after {trainer.run.elapsed_seconds / 60:.1f} of {args.max_minutes:g} minutes"
        tqdm.write(f"Stopped at {place}; `resume_from_checkpoint=latest` continues.")
    return trainer


def run_recipe(path_or_name: str, overrides: Sequence[str]) -> str:
    """
    Train by a recipe; returns what the command `train` prints.

    Raises:
        KeyboardInterrupt: If the run was told to stop. It has saved a checkpoint.
    """
    trainer = train_from_recipe(path_or_name, overrides)
    if trainer.stopped_by and not trainer.finished:
        from speech_tokenizers.training.common.processes import stop_together

        stop_together(trainer.stopped_by)
    return f"the model: {trainer.output_dir / 'final'}"
