# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers train`: train as a recipe says."""

import argparse
import importlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    from speech_tokenizers.training.common.recipe_files import recipe_names

    parser.add_argument(
        "recipe", metavar="RECIPE", help=f"a YAML file, or of this installation: {', '.join(recipe_names())}"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from the recipe's")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.training.codec.arguments import load_codec_recipe
    from speech_tokenizers.training.common.recipe_files import recipe_errors, recipe_trainer

    other = recipe_trainer(args.recipe)
    if other is not None:
        return importlib.import_module(other).run(args)
    with recipe_errors():
        load_codec_recipe(args.recipe, args.overrides)  # before the imports that take seconds
        from speech_tokenizers.training.codec.codec_recipe import train_from_recipe
        from speech_tokenizers.training.common.processes import leave_together

        trainer = train_from_recipe(args.recipe, args.overrides)
    leave_together()
    return int(not trainer.finished)
