# SPDX-License-Identifier: Apache-2.0
"""
The command `speech-tokenizers`. It parses, calls and prints; what it calls is imported once it is called.

Exit codes: 0 all went well, 1 some files failed, 2 wrong usage (nothing was done), 128 + its number for a signal: 130
stopped by Ctrl-C, 143 by SIGTERM.
"""

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from speech_tokenizers import __version__
from speech_tokenizers.commands.frame import environment, one_line, say
from speech_tokenizers.commands.interruption import interruptions
from speech_tokenizers.processing.optional_packages import MissingPackageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _open_closed_streams()
    if "_ARGCOMPLETE" in os.environ:
        _complete(os.environ["COMP_LINE"].split()[1:])
    arguments = _join_command(sys.argv[1:] if arguments is None else list(arguments))
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    with interruptions():
        try:
            parser = _build_parser(chosen)
            args = parser.parse_args(arguments)
            if any(not argument.strip() for argument in arguments):
                # As a path it would mean the current folder.
                parser.error("an argument is empty; was a variable not set?")
            with _loudness(args.quiet, args.verbose):
                return _run(args, chosen)
        except KeyboardInterrupt as error:
            number = getattr(error, "signal_number", signal.SIGINT)
        finally:
            _flush_streams()
        # The exception is gone here, and with it what its traceback held: a further signal disturbs no cleanup.
        say("interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}")
        return 128 + number


def _run(args: argparse.Namespace, chosen: str | None) -> int:
    try:
        code = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        return 1
    except (ValueError, OSError, MissingPackageError) as error:
        # The one place that tells of what cannot be done; a command returns 1 for files that failed among others.
        code, reason, trace = 2, one_line(error), traceback.format_exc()
    except (FloatingPointError, MemoryError, RuntimeError) as error:
        # Too little memory, a GPU that has gone: with this machine or these numbers it cannot be done.
        code, reason, trace = 1, one_line(error), traceback.format_exc()
    if args.verbose:
        say(trace.rstrip())
    say(f"speech-tokenizers {chosen}: error: {reason}")
    _leave_others(code)
    return code


def _leave_others(code: int) -> None:
    # A process that failed among several is still joined to them: what joins them may abort it while Python ends, and
    # to undo it would wait for them. Does nothing in a process that is alone.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        _flush_streams()
        os._exit(code)


def _complete(words: list[str]) -> None:
    # The shell asks, as `eval "$(register-python-argcomplete speech-tokenizers)"` taught it; ends the process.
    import argcomplete

    argcomplete.autocomplete(_build_parser(words[0] if words else None))


@contextlib.contextmanager
def _loudness(quiet: bool, verbose: bool) -> Iterator[None]:
    # Libraries read these variables when they are imported, which commands do once they run.
    variables = {}
    if quiet:
        variables = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    elif verbose:
        variables = {"TRANSFORMERS_VERBOSITY": "info"}
        logging.basicConfig(level=logging.INFO)
    with environment(**variables), warnings.catch_warnings(action="ignore") if quiet else contextlib.nullcontext():
        yield


def _open_closed_streams() -> None:
    # The next file that is opened takes the number of a closed stream, and what libraries print there goes into it.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue  # open, but not to Python, as under `pythonw`
            if (opened := os.open(os.devnull, os.O_RDWR)) != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _flush_streams() -> None:
    # Python flushes once more when it ends, and complains then, of what cannot be written.
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
        "Exit codes: 0 all went well, 1 some files failed, 2 wrong usage, 130 stopped by Ctrl-C, 143 by SIGTERM.",
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
            _add_loudness(command)
            command.set_defaults(run=module.run)
    return parser


def _add_loudness(command: argparse.ArgumentParser) -> None:
    choice = command.add_mutually_exclusive_group()
    choice.add_argument("-q", "--quiet", action="store_true", help="write to standard error only what went wrong")
    choice.add_argument(
        "-v", "--verbose", action="store_true", help="name each file, and show where in the code an error arose"
    )


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
        "app": ("show a page to try models in a browser", "app.command"),
    },
    "speak": {
        "say": ("turn text into speech, by a speech language model", "commands.say"),
        "make-voice": ("turn a recording and its text into a voice for `say`", "commands.make_voice"),
        "export-lm": ("write a speech language model as a plain one, for servers", "commands.export_lm"),
        "check-labels": ("find shifted labels, leaks and ends that are not learnt", "commands.check_labels"),
    },
    "understand": {
        "ask": ("say what is heard in recordings, by a speech language model", "commands.ask"),
    },
    "make units": {
        "units": ("turn speech into discrete units, in the formats of other tools", "commands.units"),
        "units-bpe": ("learn to merge frequent units", "commands.units_bpe"),
        "units add-f0": ("put a codebook of F0 beside fitted units", "commands.units_add_f0"),
        "fit-units": ("cluster the frames of a speech encoder", "training.units.units_fitting"),
        "align": ("find when words are spoken", "commands.align"),
        "encode-rows": (
            "turn a corpus into rows of codes or latents, for speech language models",
            "commands.encode_rows",
        ),
        "encode-corpus": (
            "turn a corpus of any size into such rows, by many processes or a cluster",
            "commands.encode_corpus",
        ),
        "verify-corpus": ("encode a sample of an encoded corpus again, and compare", "commands.verify_corpus"),
    },
    "train": {
        "train": ("train what a recipe describes: a codec, units, an encoder, a language model", "commands.train"),
        "finetune-ctc": (
            "fine-tune a speech encoder to write characters or phones",
            "training.recognition.ctc_finetuning",
        ),
        "train-ctc": ("train a recogniser on the frames of any speech encoder", "training.recognition.ctc_training"),
        "make-tts-corpus": ("let flite speak sentences of WordNet, with phone times", "commands.make_tts_corpus"),
        "convert": ("convert a checkpoint of SpeechTokenizer or DM-Codec", "commands.convert"),
        "convert-spin": ("convert a checkpoint of Spin", "conversion.spin"),
        "card": ("write the card of a checkpoint", "evaluation.cards.model_card"),
    },
    "share": {
        "push": ("put a model on the Hub, with its code, card and sound examples", "commands.push"),
        "check-repo": ("say what a stranger would miss in a model's repository", "commands.check_repo"),
    },
    "measure": {
        "evaluate": (
            "measure reconstruction beside other codecs; also `evaluate reconstruction`",
            "evaluation.reconstruction.command",
        ),
        "evaluate units": ("measure what discrete units keep of speech", "evaluation.units.command"),
        "evaluate retention": ("measure how much of each frequency survives", "evaluation.retention.command"),
        "evaluate speech-lm": (
            "measure whether a speech language model says what is written",
            "evaluation.speech_lm.command",
        ),
        "evaluate understanding": (
            "measure what a speech language model answers about recordings",
            "evaluation.understanding.command",
        ),
        "estimate": ("tell what a speech language model will cost", "evaluation.speech_lm.estimate"),
        "benchmark": ("measure speed and memory", "evaluation.speed.command"),
        "profile": ("measure where the time of a training step goes", "training.studies.step_profile"),
    },
    "study": {
        "make-manifest": (
            "write the manifest of an understanding task, with its splits checked",
            "commands.make_manifest",
        ),
        "ablate": ("train a recipe in several variants and compare them", "training.studies.ablation"),
        "compare-units": (
            "train k-means, Spin and DC-Spin units on one encoder and compare them",
            "training.studies.unit_study",
        ),
        "compare-lm-tokens": (
            "train one small language model on several kinds of tokens and compare what they say",
            "training.studies.lm_token_study",
        ),
        "study tokens": (
            "compare discrete and continuous tokens on understanding tasks",
            "training.studies.token_study.study",
        ),
        "study tone": (
            "measure what discrete units lose of lexical tone, and which units keep it",
            "training.studies.tone_study.study",
        ),
        "compare-heads": (
            "compare heads of continuous tokens on a distribution that is known",
            "training.language_models.head_comparison",
        ),
    },
}
_COMMANDS = {name: entry for commands in _GROUPS.values() for name, entry in commands.items()}
