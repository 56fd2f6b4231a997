# SPDX-License-Identifier: Apache-2.0
"""
The command `speech-tokenizers`. It parses, calls and prints; what it calls is imported once it is called.

Exit codes: 0 all went well, 1 some files failed, 2 wrong usage (nothing was done), 130 stopped by Ctrl-C, 143 stopped
by SIGTERM.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from speech_tokenizers import __version__
from speech_tokenizers.commands.frame import one_line
from speech_tokenizers.processing.optional_packages import MissingPackageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _join_command(sys.argv[1:] if arguments is None else list(arguments))
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    args = _build_parser(chosen).parse_args(arguments)
    try:
        return args.run(args)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has left. Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, MissingPackageError) as error:
        # The one place that tells of what cannot be done; a command returns 1 for files that failed among others.
        print(f"speech-tokenizers {chosen}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"speech-tokenizers {chosen}: error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        return 128 + getattr(error, "signal_number", signal.SIGINT)


def _join_command(arguments: list[str]) -> list[str]:
    # A command of two words becomes one argument. `evaluate` alone, followed by a codec, is `evaluate reconstruction`.
    if arguments[:2] == ["evaluate", "reconstruction"]:
        return ["evaluate", *arguments[2:]]
    words = " ".join(arguments[:2])
    return [words, *arguments[2:]] if words in _COMMANDS else arguments


def _build_parser(chosen: str | None) -> argparse.ArgumentParser:
    # Only the chosen command gets its arguments: some are defined by modules that are slow to import.
    width = max(map(len, _COMMANDS)) + 2
    listed = "\n\n".join(
        f"{title}:\n" + "\n".join(f"  {name:<{width}}{summary}" for name, (summary, _) in commands.items())
        for title, commands in _GROUPS.items()
    )
    parser = argparse.ArgumentParser(
        prog="speech-tokenizers",
        usage="speech-tokenizers [-h] [--version] COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Speech to tokens and back, for speech language models.\n\n{listed}",
        epilog="`speech-tokenizers COMMAND --help` describes a command.\n"
        "Exit codes: 0 all went well, 1 some files failed, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"speech-tokenizers {__version__}")
    commands = parser.add_subparsers(
        prog="speech-tokenizers", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    for name, (summary, module_name) in _COMMANDS.items():
        command = commands.add_parser(name, description=summary, formatter_class=_DefaultsFormatter)
        if name == chosen:
            module = importlib.import_module(f"speech_tokenizers.{module_name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


class _DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    # Shows a default where there is one to show and the help does not speak of it already.

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if "default" in text or action.default is None or action.default is False or action.default == []:
            return text
        if isinstance(action.default, list | tuple):
            return f"{text} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


# Group -> command -> what it does, and the module that offers `add_arguments(parser)` and `run(args) -> int`.
_GROUPS = {
    "code speech": {
        "encode": ("turn speech into files of codes or latents", "commands.encode"),
        "decode": ("turn files of codes or latents into speech", "commands.decode"),
        "reconstruct": ("pass speech through a codec and back", "commands.reconstruct"),
        "info": ("describe a checkpoint, a file of codes or an audio file", "commands.info"),
        "demo": ("encode and decode a recording that comes with the package", "demo.command"),
    },
    "make units": {
        "units": ("turn speech into discrete units, in the formats of other tools", "commands.units"),
        "units-bpe": ("learn to merge frequent units", "commands.units_bpe"),
        "fit-units": ("cluster the frames of a speech encoder", "training.units.units_fitting"),
        "align": ("find when words are spoken", "commands.align"),
    },
    "train": {
        "train": ("train what a recipe describes: a codec, units, an encoder, a language model", "commands.train"),
        "finetune-ctc": (
            "fine-tune a speech encoder to write characters or phones",
            "training.recognition.ctc_finetuning",
        ),
        "train-ctc": ("train a recogniser on the frames of any speech encoder", "training.recognition.ctc_training"),
        "convert": ("convert a checkpoint of SpeechTokenizer or DM-Codec", "commands.convert"),
        "convert-spin": ("convert a checkpoint of Spin", "conversion.spin"),
        "card": ("write the card of a checkpoint", "evaluation.cards.model_card"),
    },
    "measure": {
        "evaluate": (
            "measure reconstruction beside other codecs; also `evaluate reconstruction`",
            "evaluation.reconstruction.command",
        ),
        "evaluate units": ("measure what discrete units keep of speech", "evaluation.units.command"),
        "evaluate retention": ("measure how much of each frequency survives", "evaluation.retention.command"),
        "benchmark": ("measure speed and memory", "evaluation.speed.command"),
        "profile": ("measure where the time of a training step goes", "training.studies.step_profile"),
    },
    "study": {
        "ablate": ("train a recipe in several variants and compare them", "training.studies.ablation"),
        "compare-units": (
            "train k-means, Spin and DC-Spin units on one encoder and compare them",
            "training.studies.unit_study",
        ),
        "compare-heads": (
            "compare heads of continuous tokens on a distribution that is known",
            "training.language_models.head_comparison",
        ),
    },
}
_COMMANDS = {name: entry for commands in _GROUPS.values() for name, entry in commands.items()}
