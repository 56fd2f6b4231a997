# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers train`: train as a recipe says, by the trainer that it names."""

import argparse
import importlib
import os


# What a recipe may give as `trainer`, and the module that trains by it. The module offers
# `run_recipe(path_or_name, overrides)`, which returns what is printed in the end.
TRAINERS = {
    "codec": "training.codec.codec_recipe",
    "hubert": "training.units.hubert_pretraining",
    "ctc": "training.recognition.ctc_recipe",
    "dc_spin": "training.units.dc_spin_trainer",
    "latent_lm": "training.language_models.latent_lm",
    "speech_lm": "training.language_models.speech_lm",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    from speech_tokenizers.training.common.recipe_files import recipe_names

    parser.add_argument(
        "recipe", metavar="RECIPE", help=f"a YAML file, or of this installation: {', '.join(recipe_names())}"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from the recipe's")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.training.common.recipe_files import check_names, recipe_errors, trainer_name

    # Imported only where it is needed: it takes seconds, for which a mistake in a recipe need not wait.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # First of all: others would wait for a process that fails before it has joined them.
        from speech_tokenizers.training.common.processes import process_state

        process_state()
    name = trainer_name(args.recipe, args.overrides)
    check_names([name], TRAINERS, "The recipe's trainer")
    with recipe_errors():
        trainer = importlib.import_module(f"speech_tokenizers.{TRAINERS[name]}")
        result = trainer.run_recipe(args.recipe, args.overrides)

    from speech_tokenizers.training.common.processes import leave_together, process_state

    if process_state().is_main_process:
        print(result)
    leave_together()
    return 0
