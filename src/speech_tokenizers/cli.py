# SPDX-License-Identifier: Apache-2.0
r"""
The command `speech-tokenizers`. It parses, calls and prints; what it calls is imported once it is called.

Exit codes: 0 all went well, 1 some files failed, 2 wrong usage (nothing was done).
"""

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from speech_tokenizers import __version__


class UsageError(ValueError):
    """What the user asked for cannot be started."""


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
    for name, (summary, add_arguments) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            add_arguments(command)
    return parser


def _add_encode_arguments(parser: argparse.ArgumentParser) -> None:
    _add_input_arguments(
        parser, "AUDIO", "audio files, folders of them, or globs", "a folder, or for one file a `.safetensors`"
    )
    _add_model_argument(parser)
    _add_num_quantizers_argument(parser)
    _add_latents_argument(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of latents in files; default: float32"
    )
    parser.set_defaults(run=_run_encode)


def _add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    _add_input_arguments(
        parser,
        "CODES",
        "files of codes or latents, folders of them, or globs",
        "a folder, or for one file an audio file",
    )
    _add_model_argument(parser, "the codec to use instead of the one that the codes name")
    _add_format_argument(parser)
    parser.set_defaults(run=_run_decode)


def _add_reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    _add_input_arguments(
        parser, "AUDIO", "audio files, folders of them, or globs", "a folder, or for one file an audio file"
    )
    _add_model_argument(parser)
    _add_num_quantizers_argument(parser)
    _add_latents_argument(parser)
    _add_format_argument(parser)
    parser.set_defaults(run=_run_reconstruct)


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    from speech_tokenizers.training.codec.arguments import recipe_names

    parser.add_argument(
        "recipe", metavar="RECIPE", help=f"a YAML file, or of this installation: {', '.join(recipe_names())}"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from the recipe's")
    parser.set_defaults(run=_run_train)


def _add_info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject",
        metavar="MODEL|CODES|AUDIO",
        nargs="?",
        help="a checkpoint, a file of codes or latents, or an audio file; without it, the checkpoints of this "
        "installation",
    )
    parser.set_defaults(run=_run_info)


def _add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="weights of a SpeechTokenizer or DM-Codec, or what its trainer saved (.pt or .safetensors)",
    )
    parser.add_argument("--config", type=Path, help="its config.json; by default the one beside the checkpoint")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="the folder to write")
    parser.add_argument(
        "--projection",
        choices=("semantic", "contextual", "shared"),
        default="semantic",
        help="what its projection was trained for: features of a speech model (SpeechTokenizer, the default), of a "
        "language model, or both (DM-Codec)",
    )
    parser.add_argument(
        "--with-code", action="store_true", help="write the code too, for use without this package installed"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model in the folder")
    parser.set_defaults(run=_run_convert)


def _of_module(name: str) -> Callable[[argparse.ArgumentParser], None]:
    # A command whose module offers `add_arguments(parser)` and `run(args) -> int`.
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        module = importlib.import_module(name)
        module.add_arguments(parser)
        parser.set_defaults(run=module.run)

    return add_arguments


def _add_input_arguments(parser: argparse.ArgumentParser, metavar: str, inputs: str, output: str) -> None:
    parser.add_argument("inputs", metavar=metavar, nargs="+", help=f"{inputs} (quote them, `**` crosses folders)")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, type=Path, help=f"{output}; folders keep their layout"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--device", default=None, help="such as cpu or cuda:0; by default a GPU if there is one")


def _add_model_argument(parser: argparse.ArgumentParser, text: str = "checkpoint name, folder or Hub id") -> None:
    parser.add_argument("--model", metavar="NAME", default=None, help=text)


def _add_num_quantizers_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-quantizers", metavar="K", type=int, default=None, help="use the first K codebooks, for a lower bit rate"
    )


def _add_latents_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--latents",
        action="store_true",
        help="a codec's frames before quantization instead of codes; continuous tokens are latents in any case",
    )


def _add_format_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("wav", "flac", "ogg"), default="wav", help="of audio in an output folder")


def _run_encode(args: argparse.Namespace) -> int:
    from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES
    from speech_tokenizers.processing.code_files import CODE_FILE_SUFFIX

    jobs = _plan(args, AUDIO_SUFFIXES, (CODE_FILE_SUFFIX,))
    model = _load_model(args.model, args.device)
    _check_kind(model, args)
    from speech_tokenizers.coding.file_coding import encode_file
    from speech_tokenizers.coding.loading import DEFAULT_CHECKPOINT, list_checkpoints

    name = args.model or DEFAULT_CHECKPOINT
    if name not in list_checkpoints() and os.path.isdir(name):
        name = os.path.abspath(name)

    def encode(source: Path, target: Path, on_progress: Callable[[float], object]) -> None:
        encode_file(model, source, target, args.num_quantizers, name, on_progress, args.latents, args.dtype)

    return _work(jobs, encode, "encode", _audio_seconds)


def _run_decode(args: argparse.Namespace) -> int:
    from speech_tokenizers.processing.code_files import CODE_FILE_SUFFIX, CodeFileError
    from speech_tokenizers.processing.latent_files import load_encoded

    jobs = _plan(args, (CODE_FILE_SUFFIX,), (".wav", ".flac", ".ogg", ".opus"), f".{args.format}")
    models: dict[str, Any] = {}
    if args.model is not None:
        models[args.model] = _load_model(args.model, args.device)

    def decode(source: Path, target: Path, on_progress: Callable[[float], object]) -> None:
        from speech_tokenizers.coding.file_coding import decode_file

        name = args.model or load_encoded(source).model_name
        if name not in models:
            try:
                models[name] = _load_model(name, args.device)
            except UsageError as error:
                raise CodeFileError(source, f"its codec cannot be loaded ({error}) Name one with --model.") from error
        decode_file(models[name], source, target, on_progress)

    return _work(jobs, decode, "decode", lambda source: load_encoded(source).seconds)


def _run_reconstruct(args: argparse.Namespace) -> int:
    from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES

    jobs = _plan(args, AUDIO_SUFFIXES, (".wav", ".flac", ".ogg", ".opus"), f".{args.format}")
    model = _load_model(args.model, args.device)
    _check_kind(model, args)

    def reconstruct(source: Path, target: Path, on_progress: Callable[[float], object]) -> None:
        from speech_tokenizers.coding.file_coding import reconstruct_file

        reconstruct_file(
            model, source, target, args.num_quantizers, lambda seconds: on_progress(seconds / 2), args.latents
        )

    return _work(jobs, reconstruct, "reconstruct", _audio_seconds)


def _run_train(args: argparse.Namespace) -> int:
    from huggingface_hub.errors import StrictDataclassError  # what a contradictory configuration raises

    from speech_tokenizers.training.codec.arguments import load_recipe, recipe_trainer

    try:
        other = recipe_trainer(args.recipe)
        if other is not None:
            return importlib.import_module(other).run(args)
        load_recipe(args.recipe, args.overrides)  # before the imports that take seconds
        from speech_tokenizers.training.codec.codec_trainer import train_from_recipe
        from speech_tokenizers.training.common.processes import leave_together

        trainer = train_from_recipe(args.recipe, args.overrides)
    except (ValueError, TypeError, OSError, ImportError, StrictDataclassError) as error:
        raise UsageError(_one_line(error)) from error
    except FloatingPointError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1
    leave_together()
    return int(not trainer.finished)


def _run_info(args: argparse.Namespace) -> int:
    from speech_tokenizers.coding.loading import DEFAULT_CHECKPOINT, list_checkpoints

    if args.subject is None:
        print(f"speech-tokenizers {__version__}")
        names = list_checkpoints()
        print("checkpoints:" if names else "checkpoints: none")
        for name in names:
            print(f"  {name}{' (default)' if name == DEFAULT_CHECKPOINT else ''}")
        return 0
    if args.subject not in list_checkpoints() and os.path.isfile(args.subject):
        is_codes = args.subject.endswith(".safetensors")
        facts = _code_facts(args.subject) if is_codes else _audio_facts(args.subject)
    else:
        facts = _model_facts(args.subject)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _run_convert(args: argparse.Namespace) -> int:
    from transformers.utils import logging

    from speech_tokenizers.conversion.speechtokenizer import convert_checkpoint

    logging.disable_progress_bar()
    try:
        model, ignored_fields = convert_checkpoint(
            args.checkpoint, args.output, args.config, args.projection, args.with_code, args.overwrite
        )
    except (ValueError, OSError) as error:
        raise UsageError(_one_line(error)) from error
    if ignored_fields:
        print(f"ignored fields of the config, which do not shape the network: {', '.join(ignored_fields)}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.output}: {type(model).__name__}, {parameters / 1e6:.2f} million parameters, equal to the original's")
    return 0


def _code_facts(path: str) -> dict[str, object]:
    from speech_tokenizers.processing.code_files import AudioCodes, CodeFileError
    from speech_tokenizers.processing.latent_files import load_encoded

    try:
        encoded = load_encoded(path)
    except CodeFileError as error:
        raise UsageError(str(error)) from error
    if isinstance(encoded, AudioCodes):
        kind = {"codebooks": f"{encoded.num_quantizers} of {encoded.codebook_size} entries"}
    else:
        kind = {"latents": f"{encoded.hidden_size} numbers a frame, {encoded.dtype}"}
    return {
        "codec": encoded.model_name,
        **kind,
        "frames": f"{encoded.num_frames} of {encoded.hop_length} samples",
        "duration": f"{encoded.seconds:.3f} s ({encoded.num_samples} samples at {encoded.sampling_rate} Hz)",
        "bit rate": f"{encoded.bits_per_second / 1000:.3f} kbit/s",
    }


def _audio_facts(path: str) -> dict[str, object]:
    from speech_tokenizers.processing.audio_files import AudioFileError, AudioReader

    try:
        with AudioReader(path, 16000) as reader:
            return {
                "sampling rate": f"{reader.file_sampling_rate} Hz",
                "channels": reader.num_channels,
                "duration": f"{reader.seconds:.3f} s",
            }
    except AudioFileError as error:
        raise UsageError(str(error)) from error


def _model_facts(name: str) -> dict[str, object]:
    from speech_tokenizers.coding.file_coding import is_continuous

    model = _load_model(name, "cpu")
    kilobits = model.bits_per_second / 1000
    facts: dict[str, object] = {
        "model": type(model).__name__,
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} million",
        "sampling rate": f"{model.sampling_rate} Hz",
        "frame rate": f"{model.frame_rate:g} Hz ({model.hop_length} samples a frame)",
    }
    if is_continuous(model):
        facts["latents"] = f"{model.config.hidden_size} numbers a frame"
        facts["bit rate"] = f"{kilobits:g} kbit/s in half precision"
    else:
        num_quantizers = model.config.num_quantizers
        facts["codebooks"] = f"{num_quantizers} of {model.config.codebook_size} entries"
        facts["bit rate"] = f"{kilobits:g} kbit/s, or {kilobits / num_quantizers:g} a codebook"
    facts["streaming"] = "frame by frame" if getattr(model, "is_streamable", False) else "in windows with look-ahead"
    if hasattr(model, "vocoder"):
        facts["vocoder"] = "attached" if model.vocoder is not None else "none"
    return facts


def _plan(
    args: argparse.Namespace, suffixes: Sequence[str], output_suffixes: Sequence[str], suffix: str | None = None
) -> list[tuple[Path, Path]]:
    # Inputs paired with outputs; whatever can go wrong is found before the first file is touched.
    from speech_tokenizers.processing.audio_files import AudioFileError, find_files

    try:
        found = find_files(args.inputs, suffixes)
    except AudioFileError as error:
        raise UsageError(str(error)) from error
    output: Path = args.output
    if output.suffix.lower() in output_suffixes and not output.is_dir():
        if len(found) > 1:
            raise UsageError(f"--output names the file {output}, but there are {len(found)} inputs; name a folder.")
        jobs = [(found[0][0], output)]
        folder = output.parent
    else:
        jobs = [(source, output / relative.with_suffix(suffix or output_suffixes[0])) for source, relative in found]
        folder = output

    sources: dict[Path, Path] = {}
    for source, target in jobs:
        other = sources.setdefault(target, source)
        if other != source:
            raise UsageError(f"{other} and {source} would both be written to {target}; treat them in two runs.")
    inputs = {source.resolve() for source, _ in jobs}
    for _, target in jobs:
        if target.resolve() in inputs:
            raise UsageError(f"{target} is an input as well as an output; choose another output folder.")
    existing = [target for _, target in jobs if target.exists()]
    if existing and not args.overwrite:
        raise UsageError(
            f"{len(existing)} of {len(jobs)} outputs exist, such as {existing[0]}; pass --overwrite to replace them."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); choose another output folder.") from error
    return jobs


def _load_model(name: str | None, device: str | None) -> Any:
    import torch
    from transformers.utils import logging

    from speech_tokenizers.coding.loading import load

    logging.disable_progress_bar()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = load(name)[0].to(device)
    except (ValueError, OSError) as error:
        raise UsageError(f"the model cannot be loaded: {_one_line(error)}") from error
    except (RuntimeError, AssertionError) as error:
        # torch's words for a device that is misspelt or absent.
        raise UsageError(f"--device {device}: {_one_line(error)}") from error
    if not all(hasattr(model, name) for name in ("encode", "decode", "hop_length")):
        raise UsageError(f"{name} is a {type(model).__name__}; only codecs and units can be run here.")
    return model


def _check_kind(model: Any, args: argparse.Namespace) -> None:
    # Whether --num-quantizers and --latents suit the model.
    from speech_tokenizers.coding.file_coding import decodes_latents, is_continuous

    if args.latents and not decodes_latents(model):
        raise UsageError(f"--latents: a {type(model).__name__} decodes no latents; leave it out.")
    count = args.num_quantizers
    if count is None:
        return
    if is_continuous(model) or args.latents:
        raise UsageError("--num-quantizers chooses among codebooks, of which latents have none; leave it out.")
    if not 1 <= count <= model.config.num_quantizers:
        raise UsageError(f"--num-quantizers must lie between 1 and {model.config.num_quantizers}, but is {count}.")


def _work(
    jobs: Sequence[tuple[Path, Path]],
    treat: Callable[[Path, Path, Callable[[float], object]], None],
    verb: str,
    seconds_of: Callable[[Path], float],
) -> int:
    # One progress bar: files, or for a single file its seconds. A file that fails is reported and does not stop the
    # others.
    from tqdm import tqdm

    failures = []
    single = len(jobs) == 1
    with _progress_bar(tqdm, jobs, verb, seconds_of) as bar:
        for source, target in jobs:
            try:
                treat(source, target, bar.update if single else _ignore)
            except (ValueError, OSError) as error:
                reason = _one_line(error)
                failures.append(reason if str(source) in reason else f"{source}: {reason}")
                tqdm.write(f"failed: {failures[-1]}", file=sys.stderr)
            if not single:
                bar.update(1)
    print(f"{len(jobs) - len(failures)} of {len(jobs)} files: {verb} done", file=sys.stderr)
    if failures and not single:
        print(f"{len(failures)} failed:\n  " + "\n  ".join(failures), file=sys.stderr)
    return 1 if failures else 0


@contextlib.contextmanager
def _progress_bar(
    tqdm: Any, jobs: Sequence[tuple[Path, Path]], verb: str, seconds_of: Callable[[Path], float]
) -> Iterator[Any]:
    if len(jobs) > 1:
        bar = tqdm(total=len(jobs), desc=verb, unit="file", disable=None)
    else:
        try:
            total = seconds_of(jobs[0][0])
        except (ValueError, OSError):
            total = None  # the file is broken, as will be reported when it is its turn
        bar = tqdm(
            total=total,
            desc=verb,
            disable=None,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s, {elapsed}",
        )
    with bar:
        yield bar


def _audio_seconds(path: Path) -> float:
    from speech_tokenizers.processing.audio_files import AudioReader

    with AudioReader(path, 16000) as reader:
        return reader.seconds


def _ignore(seconds: float) -> None:
    pass


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "encode": ("speech to files of codes", _add_encode_arguments),
    "decode": ("files of codes to speech", _add_decode_arguments),
    "reconstruct": ("speech through the codec and back", _add_reconstruct_arguments),
    "info": ("describe a checkpoint, a file of codes or an audio file", _add_info_arguments),
    "convert": ("turn a checkpoint of SpeechTokenizer or DM-Codec into one of this package", _add_convert_arguments),
    "convert-spin": ("turn a checkpoint of Spin into units", _of_module("speech_tokenizers.conversion.spin")),
    "train": ("train a codec, a speech encoder or units by a recipe", _add_train_arguments),
    "align": ("find when words are spoken", _of_module("speech_tokenizers.commands.align")),
    "units": (
        "speech to discrete units, in the formats of other tools",
        _of_module("speech_tokenizers.coding.recording_coding"),
    ),
    "units-bpe": ("learn to merge frequent units", _of_module("speech_tokenizers.commands.units_bpe")),
    "fit-units": (
        "cluster the frames of a speech encoder",
        _of_module("speech_tokenizers.training.units.units_fitting"),
    ),
    "pretrain-hubert": (
        "pre-train a HuBERT by a recipe",
        _of_module("speech_tokenizers.training.units.hubert_pretraining"),
    ),
    "train-latent-lm": (
        "train a language model on continuous tokens with several heads, and compare them",
        _of_module("speech_tokenizers.training.language_models.latent_lm"),
    ),
    "compare-heads": (
        "compare heads of continuous tokens on a distribution that is known",
        _of_module("speech_tokenizers.training.language_models.head_comparison"),
    ),
    "train-dc-spin": (
        "train units that a change of speaker leaves as they are, by a recipe",
        _of_module("speech_tokenizers.training.units.dc_spin_trainer"),
    ),
    "finetune-ctc": (
        "fine-tune a speech encoder to write characters or phones",
        _of_module("speech_tokenizers.training.recognition.ctc_finetuning"),
    ),
    "evaluate": (
        "measure reconstruction beside other codecs; also `evaluate reconstruction`",
        _of_module("speech_tokenizers.evaluation.reconstruction.command"),
    ),
    "evaluate units": (
        "measure what discrete units keep of speech, of unit models and codecs",
        _of_module("speech_tokenizers.evaluation.units.command"),
    ),
    "evaluate retention": (
        "measure how much of each frequency survives codecs and continuous tokens",
        _of_module("speech_tokenizers.evaluation.retention.command"),
    ),
    "ablate": (
        "train a recipe in several variants and compare them",
        _of_module("speech_tokenizers.training.studies.ablation"),
    ),
    "compare-units": (
        "train k-means, Spin and DC-Spin units on one encoder and compare them",
        _of_module("speech_tokenizers.training.studies.unit_study"),
    ),
    "benchmark": ("measure speed and memory", _of_module("speech_tokenizers.evaluation.speed.command")),
    "card": ("write the card of a checkpoint", _of_module("speech_tokenizers.evaluation.cards.model_card")),
    "demo": (
        "encode and decode a recording that comes with the package",
        _of_module("speech_tokenizers.demo.command"),
    ),
}
