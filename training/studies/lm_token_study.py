# SPDX-License-Identifier: Apache-2.0
"""
`speech-tokenizers compare-lm-tokens`: the same small language model, trained on the same sentences for as many steps,
over several kinds of speech tokens and layouts, and what it then says.

Each training and each measuring runs in a process of its own. A finished step is not done again: after an
interruption, the same command continues.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from speech_tokenizers.evaluation.recognition import match_texts, text_normalizer
from speech_tokenizers.modeling.speech_lm_unit_coding import unit_coding_of
from speech_tokenizers.training.common.recipe_files import check_positive, check_seed, load_recipe
from speech_tokenizers.training.studies.lm_token_report import token_report
from speech_tokenizers.training.studies.stages import Stage, StageArguments, as_options, run_stage, training_command


@dataclass
class TokenRows:
    """
    Rows of one codec, which `encode-rows` wrote of the same recordings as the others'.

    Args:
        codec (`str`): Name, folder or Hub id of the codec.
        train (`str`): Folder of the rows to learn from.
        eval (`str`): Folder of the rows whose losses are measured.
        test (`str`): Folder of the rows whose texts are spoken.
    """

    codec: str
    train: str
    eval: str
    test: str


@dataclass
class TokenArm:
    """
    A kind of tokens in a layout.

    Args:
        rows (`str`): Name of its rows in `rows`.
        overrides (`dict`): Settings of the training that differ, such as `layout`, by dotted keys.
        evaluation (`dict`): Options of `evaluate speech-lm` that differ, such as `temperature`.
        speaks (`bool`): Whether texts are spoken and heard. Units without a vocoder cannot be heard.
    """

    rows: str
    overrides: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    speaks: bool = True


@dataclass
class LMTokenStudyArguments:
    """
    A comparison of tokens for language models.

    Args:
        output_dir (`str`): Folder for the trainings, what they say, and the report `results`: a page, Markdown, JSON
            and a picture.
        rows (`dict` of [`TokenRows`]): Rows of each codec, by a name.
        arms (`dict` of [`TokenArm`]): What is compared, by its name.
        training ([`StageArguments`]): Training of all arms.
        pronunciations (`str`, *optional*): Lexicon of the texts.
        batch_seconds (`float`): Speech of a step, in seconds, the same for all arms; their numbers of positions
            differ.
        evaluation (`dict`): Options of `speech-tokenizers evaluate speech-lm`, such as `recognizer`.
        reference (`str`, *optional*): Name of the arm that the others' word error rates are compared with, sentence by
            sentence. Defaults to none.
        chosen (`list[str]`, *optional*): Names of the arms to train now. Defaults to all; arms that were trained
            before stay in the table.
        seed (`int`): Seed of all trainings.
    """

    trainer: ClassVar[str] = "lm_token_study"

    output_dir: str
    rows: dict[str, Any]
    arms: dict[str, Any]
    training: StageArguments
    pronunciations: str | None = None
    batch_seconds: float = 20.0
    evaluation: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None
    chosen: list[str] | None = None
    seed: int = 0

    def __post_init__(self):
        check_positive(self, "batch_seconds")
        check_seed(self.seed)
        try:
            self.rows = {
                name: given if isinstance(given, TokenRows) else TokenRows(**given)
                for name, given in self.rows.items()
            }
            self.arms = {
                name: given if isinstance(given, TokenArm) else TokenArm(**given) for name, given in self.arms.items()
            }
        except TypeError as error:
            raise ValueError(f"`rows` need codec, train, eval and test, and `arms` need rows: {error}.") from None
        if not self.arms:
            raise ValueError("`arms` must name at least one.")
        for name, arm in self.arms.items():
            if arm.rows not in self.rows:
                raise ValueError(f"`arms.{name}.rows` must be among {', '.join(self.rows)}, but is {arm.rows!r}.")
        for setting, names in (
            ("chosen", self.chosen or []),
            ("reference", [self.reference or next(iter(self.arms))]),
        ):
            if unknown := [name for name in names if name not in self.arms]:
                raise ValueError(f"`{setting}` must be among {', '.join(self.arms)}, but got {unknown[0]!r}.")


def arm_folder(args: LMTokenStudyArguments, name: str) -> Path:
    """Folder of an arm: `training/` and `speech/`."""
    return Path(args.output_dir) / name


def stages(args: LMTokenStudyArguments) -> Iterator[Stage]:
    """Training and measuring of each arm, arm by arm, so that a study that is cut short has whole rows."""
    for name in args.chosen or args.arms:
        arm, folder = args.arms[name], arm_folder(args, name)
        rows = args.rows[arm.rows]
        settings = {
            "output_dir": str(folder / "training"),
            "codec": rows.codec,
            "data.train": rows.train,
            "data.eval": rows.eval,
            "data.pronunciations": args.pronunciations,
            "batch_seconds": args.batch_seconds,
            "seed": args.seed,
        }
        overrides = {**args.training.overrides, **arm.overrides}
        command = training_command(StageArguments(args.training.recipe, overrides), settings)
        yield Stage(f"training {name}", command, folder / "training" / "results.json")
        if not arm.speaks:
            continue
        options = {
            "rows": rows.test,
            "output": folder / "speech",
            "seed": args.seed,
            "metrics": [],
            **args.evaluation,
            **arm.evaluation,
        }
        given = ["evaluate", "speech-lm", str(folder / "training" / "final"), *_options(options)]
        yield Stage(f"speech {name}", given, folder / "speech" / "results.json")


def _options(options: Mapping[str, Any]) -> list[str]:
    # An empty list is a choice of none, which a command has to be told.
    line = as_options(options)
    return [*line, *(f"--{name}" for name, value in options.items() if value == [])]


def compare_lm_tokens(args: LMTokenStudyArguments) -> str:
    """
    Train what is not trained yet, measure, and write the report.

    Returns:
        `str`: The report of all arms that are finished, in Markdown.

    Raises:
        ValueError: If the output folder belongs to another study.
        ChildProcessError: If a step failed. Its output is above.
        KeyboardInterrupt: If a step was told to stop.
    """
    # Imported here, since it takes seconds, for which the help need not wait.
    from speech_tokenizers.training.common.run_record import RunRecord
    from speech_tokenizers.training.language_models.speech_lm_items import rows_fingerprint

    output = Path(args.output_dir)
    inputs = {
        f"rows.{name}.{part}": rows_fingerprint(getattr(rows, part))
        for name, rows in args.rows.items()
        for part in ("train", "eval", "test")
    }
    # Each arm has a record of its own; further ones may join.
    allowed = ("arms", "rows", "chosen", "evaluation", "reference")
    RunRecord(output, args, inputs, allowed=allowed, finished=("",)).keep()
    for stage in stages(args):
        run_stage(stage)
    found = {name: arm_results(args, name) for name in args.arms}
    report = token_report({name: result for name, result in found.items() if result is not None}, args.reference)
    report.write(output, "results")
    return report.markdown()


def arm_results(args: LMTokenStudyArguments, name: str) -> dict[str, Any] | None:
    """What the report says of an arm, as plain values; `None` if it is not finished."""
    arm, folder = args.arms[name], arm_folder(args, name)
    parts = ("training", "speech") if arm.speaks else ("training",)
    files = [folder / part / "results.json" for part in parts]
    if not all(file.is_file() for file in files):
        return None
    trained, *spoken = (json.loads(file.read_text("utf-8")) for file in files)
    config = json.loads((folder / "training" / "final" / "config.json").read_text("utf-8"))
    return {
        "layout": config["layout"],
        "codec": args.rows[arm.rows].codec,
        "nominal_bits_per_second": nominal_bits_per_second(config, trained.get("symbols_per_second")),
        "parameters": trained["parameters"],
        "positions_per_second": trained["positions_per_second"],
        **{key: trained.get(key) for key in _HELD_OUT},
        **(
            _speech_results(spoken[0], str({**args.evaluation, **arm.evaluation}.get("language", "en")))
            if spoken
            else {}
        ),
    }


_HELD_OUT = ("held_out_audio_loss", "held_out_audio_bits_per_second", "held_out_text_bits_per_second")


def _speech_results(spoken: Mapping[str, Any], language: str) -> dict[str, Any]:
    # Of the last system, which is the model, and of its codec.
    model = spoken["systems"][-1]
    ceiling = next((system for system in spoken["systems"] if system["system"].startswith("codec (")), None)
    rates = [score for score in model["scores"] if score.startswith("wer[")]
    return {
        "speech_seconds": spoken["seconds"],
        "num_sentences": spoken["num_sentences"],
        "wer": {rate: model["scores"][rate] for rate in rates},
        "wer_of_codec": {rate: ceiling["scores"].get(rate) for rate in rates} if ceiling else {},
        "word_counts": {rate: _word_counts(spoken, model["system"], rate, language) for rate in rates},
        "ended": model["scores"].get("ended"),
        "real_time_factor": model["scores"].get("real_time_factor_cpu"),
        "first_audio_seconds": model["scores"].get("first_audio_cpu"),
        "not_spoken": model.get("not_spoken", {}),
    }


def _word_counts(spoken: Mapping[str, Any], system: str, rate: str, language: str) -> dict[str, list[float]]:
    # Errors, in percent of a word, and words of each sentence that was spoken.
    normalize, recognizer = text_normalizer(language), rate.removeprefix("wer[").removesuffix("]")
    counts = {}
    for sentence in spoken["sentences"]:
        if heard := sentence["systems"][system].get("heard"):
            match = match_texts(normalize(heard[recognizer]), normalize(sentence["text"]))
            counts[sentence["id"]] = [100.0 * match.errors, float(match.reference_length)]
    return counts


def nominal_bits_per_second(config: Mapping[str, Any], symbols_per_second: float | None = None) -> float | None:
    """
    Bits that a second of speech takes if all codes are alike; `None` for latents, which have no such number.

    Args:
        config (mapping): Configuration of the model.
        symbols_per_second (`float`, *optional*): Frames or runs of a second. Defaults to the frame rate.
    """
    if config["layout"] == "continuous":
        return None
    sizes = config.get("codebook_sizes") or [config["codebook_size"]] * config["num_codebooks"]
    if config.get("unit_coding", "frames") != "frames":
        sizes = unit_coding_of(SimpleNamespace(**config)).sizes
    return (symbols_per_second or config["frame_rate"]) * sum(map(math.log2, sizes))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers compare-lm-tokens`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe of this installation")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from the recipe")


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers compare-lm-tokens`; returns the exit code."""
    try:
        print(compare_lm_tokens(load_recipe(args.recipe, args.overrides, LMTokenStudyArguments)))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise
    return 0
