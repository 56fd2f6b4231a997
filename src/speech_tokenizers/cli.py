# SPDX-License-Identifier: Apache-2.0
r"""
The command `speech-tokenizers`. It parses, calls and prints; what it calls is imported once it is called.

Exit codes: 0 all went well, 1 some files failed, 2 wrong usage (nothing was done).
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from speech_tokenizers import __version__
from speech_tokenizers.commands.frame import UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _join_command(sys.argv[1:] if arguments is None else list(arguments))
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    args = _build_parser(chosen).parse_args(arguments)
    try:
        return args.run(args)
    except UsageError as error:
        print(f"speech-tokenizers {chosen}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output, such as `head`, has left. Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _join_command(arguments: list[str]) -> list[str]:
    # A command of two words becomes one argument. `evaluate` alone, followed by a codec, is `evaluate reconstruction`.
    if arguments[:2] == ["evaluate", "reconstruction"]:
        return ["evaluate", *arguments[2:]]
    words = " ".join(arguments[:2])
    return [words, *arguments[2:]] if words in _COMMANDS else arguments


def _build_parser(chosen: str | None) -> argparse.ArgumentParser:
    # Only the chosen command gets its arguments: some are defined by modules that are slow to import.
    parser = argparse.ArgumentParser(
        prog="speech-tokenizers",
        description="Neural speech codecs: speech to discrete codes and back.",
        epilog="`speech-tokenizers COMMAND --help` describes a command. "
        "Exit codes: 0 all went well, 1 some files failed, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"speech-tokenizers {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (summary, module_name) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            module = importlib.import_module(f"speech_tokenizers.{module_name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


# Name -> what it does, and the module that offers `add_arguments(parser)` and `run(args) -> int`.
_COMMANDS = {
    "encode": ("speech to files of codes", "commands.encode"),
    "decode": ("files of codes to speech", "commands.decode"),
    "reconstruct": ("speech through the codec and back", "commands.reconstruct"),
    "info": ("describe a checkpoint, a file of codes or an audio file", "commands.info"),
    "convert": ("turn a checkpoint of SpeechTokenizer or DM-Codec into one of this package", "commands.convert"),
    "convert-spin": ("turn a checkpoint of Spin into units", "conversion.spin"),
    "train": ("train a codec, units, a speech encoder or a language model by a recipe", "commands.train"),
    "align": ("find when words are spoken", "commands.align"),
    "units": ("speech to discrete units, in the formats of other tools", "commands.units"),
    "units-bpe": ("learn to merge frequent units", "commands.units_bpe"),
    "fit-units": ("cluster the frames of a speech encoder", "training.units.units_fitting"),
    "compare-heads": (
        "compare heads of continuous tokens on a distribution that is known",
        "training.language_models.head_comparison",
    ),
    "finetune-ctc": (
        "fine-tune a speech encoder to write characters or phones",
        "training.recognition.ctc_finetuning",
    ),
    "evaluate": (
        "measure reconstruction beside other codecs; also `evaluate reconstruction`",
        "evaluation.reconstruction.command",
    ),
    "evaluate units": (
        "measure what discrete units keep of speech, of unit models and codecs",
        "evaluation.units.command",
    ),
    "evaluate retention": (
        "measure how much of each frequency survives codecs and continuous tokens",
        "evaluation.retention.command",
    ),
    "train-ctc": ("train a recogniser on the frames of any speech encoder", "training.recognition.ctc_training"),
    "profile": ("measure where the time of a training step goes", "training.studies.step_profile"),
    "ablate": ("train a recipe in several variants and compare them", "training.studies.ablation"),
    "compare-units": (
        "train k-means, Spin and DC-Spin units on one encoder and compare them",
        "training.studies.unit_study",
    ),
    "benchmark": ("measure speed and memory", "evaluation.speed.command"),
    "card": ("write the card of a checkpoint", "evaluation.cards.model_card"),
    "demo": ("encode and decode a recording that comes with the package", "demo.command"),
}
