# SPDX-License-Identifier: Apache-2.0
"""
`speech-tokenizers compare-units`: k-means, Spin and DC-Spin units of one encoder, as it is and after stage II, with as
many units each, trained, spoken by vocoders and measured side by side.

Each training and the measuring run in processes of their own. A finished step is not done again: after an
interruption, the same command continues.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from speech_tokenizers.processing.termination import interruption
from speech_tokenizers.processing.whole_files import whole_folder
from speech_tokenizers.training.common.child_process import run_command
from speech_tokenizers.training.common.recipe_files import check_positive, check_seed, load_recipe
from speech_tokenizers.training.studies.stages import Stage, StageArguments, as_options, run_stage, training_command


# Units that swapped prediction learns, by name, with their differences from the recipe of `dc_spin`.
VARIANTS: dict[str, dict[str, Any]] = {"spin": {"model.auxiliary_codebook_size": None}, "dc_spin": {}}


@dataclass
class StudyDataArguments:
    """
    Recordings to train on and to measure on, of different speakers.

    Args:
        train, eval (`str`): Folders of recordings with metadata.
        train_filter, eval_filter (`dict`): Conditions on their rows, by a column and its values.
        labels (`str`, *optional*): File of the evaluation's phones and their times, from `align --unit label`.
        cache_dir (`str`, *optional*): Folder of decoded audio. Defaults to `audio_cache` in the output folder.
    """

    train: str
    eval: str
    train_filter: dict[str, str | list[str]] = field(default_factory=dict)
    eval_filter: dict[str, str | list[str]] = field(default_factory=dict)
    labels: str | None = None
    cache_dir: str | None = None


@dataclass
class UnitStudyArguments:
    """
    A comparison of units.

    Args:
        output_dir (`str`): Folder for `encoders`, `units`, `vocoders` and the `results`.
        encoder (`str`): Folder or Hub id of the speech encoder (stage I).
        data ([`StudyDataArguments`]): Recordings of the study.
        variants (`dict`): Settings of `dc_spin` that differ, for each kind of units by swapped prediction, by its
            name.
        quantizers (`list[str]`, *optional*): Quantizers to compare: `kmeans` or names of `variants`. Defaults to all.
        skip (`list[str]`): Units that are left out nonetheless, such as `base-spin`.
        codebook_size (`int`): Number of units of each quantizer.
        kmeans (`dict`): Options of `speech-tokenizers fit-units`, such as `layers`.
        dc_spin ([`StageArguments`]): Training of all `variants`.
        finetuning ([`StageArguments`], *optional*): Training of stage II. Without it, the encoder is only taken as it
            is.
        vocoder ([`StageArguments`], *optional*): Training of the vocoders that speak the units, one for each. Without
            it, units are not spoken.
        evaluation (`dict`): Options of `speech-tokenizers evaluate units`, such as `recognizer`.
        seed (`int`): Seed for all trainings and measures.
    """

    trainer: ClassVar[str] = "unit_study"

    output_dir: str
    encoder: str
    data: StudyDataArguments
    dc_spin: StageArguments
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(VARIANTS))
    quantizers: list[str] | None = None
    skip: list[str] = field(default_factory=list)
    codebook_size: int = 100
    kmeans: dict[str, Any] = field(default_factory=dict)
    finetuning: StageArguments | None = None
    vocoder: StageArguments | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        check_positive(self, "codebook_size")
        check_seed(self.seed)
        if "kmeans" in self.variants:
            raise ValueError("`variants` must not be called `kmeans`, which is the baseline.")
        known = ["kmeans", *self.variants]
        self.quantizers = known if self.quantizers is None else list(dict.fromkeys(self.quantizers))
        if unknown := [name for name in self.quantizers if name not in known]:
            raise ValueError(f"`quantizers` must be among {', '.join(known)}, but got {unknown[0]!r}.")
        skippable = [f"{encoder}-{quantizer}" for encoder in encoders(self) for quantizer in known]
        if unknown := [name for name in self.skip if name not in skippable]:
            raise ValueError(f"`skip` must be among {', '.join(skippable)}, but got {unknown[0]!r}.")
        if not compared_units(self):
            raise ValueError(f"`quantizers` must name at least one of {', '.join(known)}, and `skip` not all units.")
        from speech_tokenizers.training.units.dc_spin_trainer import DCSpinTrainingArguments

        for name in self.variants:
            # Its keys are checked now, not after the hours of the stages before it.
            given = {"data.train": "", "output_dir": "", "model.encoder": "", **self.dc_spin.overrides}
            overrides = [f"{key}={json.dumps(value)}" for key, value in {**given, **self.variants[name]}.items()]
            load_recipe(self.dc_spin.recipe, overrides, DCSpinTrainingArguments)


def compared_units(args: UnitStudyArguments) -> list[str]:
    """Names of each encoder with each quantizer, such as `base-kmeans`, less those that are skipped."""
    names = [f"{encoder}-{quantizer}" for encoder in encoders(args) for quantizer in args.quantizers or []]
    return [name for name in names if name not in args.skip]


def stages(args: UnitStudyArguments) -> Iterator[Stage]:
    """All trainings of a study, in order."""
    output, data = Path(args.output_dir), args.data
    shared = {
        "data.train": data.train,
        "data.train_filter": data.train_filter,
        "data.cache_dir": data.cache_dir or str(output / "audio_cache"),
    }
    for encoder, folder in encoders(args).items():
        of_encoder = [name for name in compared_units(args) if name.startswith(f"{encoder}-")]
        if encoder == "finetuned" and of_encoder:
            assert args.finetuning is not None
            settings = {"encoder": args.encoder, "output_dir": str(folder), "finetuning.seed": args.seed}
            yield Stage(
                "stage II",
                training_command(args.finetuning, shared | settings),
                Path(folder) / "trainer_state.json",  # what is written last
            )
        for name in of_encoder:
            quantizer = name.removeprefix(f"{encoder}-")
            units = units_folder(args, name)
            if quantizer == "kmeans":
                options = {
                    "output": units,
                    "codebook-size": args.codebook_size,
                    "seed": args.seed,
                    "cache-dir": shared["data.cache_dir"],
                    "filter": [f"{column}={_values(value)}" for column, value in data.train_filter.items()],
                }
                arguments = ["fit-units", str(folder), data.train, *as_options({**options, **args.kmeans})]
            else:
                settings = {
                    "output_dir": str(units.parent),
                    "model.encoder": str(folder),
                    "model.primary_codebook_size": args.codebook_size,
                    "seed": args.seed,
                }
                stage = StageArguments(args.dc_spin.recipe, {**args.dc_spin.overrides, **args.variants[quantizer]})
                arguments = training_command(stage, shared | settings)
            yield Stage(f"units {name}", arguments, units / "config.json")
            if args.vocoder is not None:
                folder_of_vocoder = output / "vocoders" / name
                settings = {
                    "output_dir": str(folder_of_vocoder),
                    "units.model": str(units),
                    "resume_from_checkpoint": "latest",
                    "seed": args.seed,
                }
                yield Stage(
                    f"vocoder {name}",
                    training_command(args.vocoder, shared | settings),
                    folder_of_vocoder / "final" / "config.json",
                )


def encoders(args: UnitStudyArguments) -> dict[str, str]:
    """Folders or Hub ids of the encoders, by name."""
    found = {"base": args.encoder}
    if args.finetuning is not None:
        found["finetuned"] = str(Path(args.output_dir) / "encoders" / "finetuned")
    return found


def units_folder(args: UnitStudyArguments, name: str) -> Path:
    """Folder of units, such as `base-kmeans`."""
    folder = Path(args.output_dir) / "units" / name
    return folder if name.partition("-")[2] == "kmeans" else folder / "final"


def _values(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def spoken_units(args: UnitStudyArguments, name: str) -> Path:
    """
    Folder of units with their vocoder, which is made if it is not there. Without vocoders, it is the folder of the
    units.
    """
    if args.vocoder is None:
        return units_folder(args, name)
    folder = Path(args.output_dir) / "spoken" / name
    if (folder / "config.json").is_file():
        return folder
    import speech_tokenizers

    model, feature_extractor = speech_tokenizers.load(str(units_folder(args, name)))
    vocoder = speech_tokenizers.UnitVocoderModel.from_pretrained(Path(args.output_dir) / "vocoders" / name / "final")
    model.attach_vocoder(vocoder)
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        feature_extractor.save_pretrained(temporary)
    return folder


def compare_units(args: UnitStudyArguments) -> int:
    """
    Train what is not trained yet, and measure.

    Returns:
        `int`: The exit code of `evaluate units`.

    Raises:
        ValueError: If the output folder belongs to another study.
        ChildProcessError: If a stage failed. Its output is above.
        KeyboardInterrupt: If a stage was told to stop.
    """
    output = Path(args.output_dir)
    # Imported here, since it takes seconds, for which the help need not wait.
    from speech_tokenizers.training.common.run_record import RunRecord, fingerprint_of, recordings_named

    inputs: dict[str, Any] = {"encoder": fingerprint_of(args.encoder)}
    inputs |= {f"data.{part}": recordings_named(args.data, part, ["text"]) for part in ("train", "eval")}
    RunRecord(output, args, inputs, allowed=("evaluation", "quantizers", "skip"), finished=("",)).keep()
    for stage in stages(args):
        run_stage(stage)
    options = {
        "systems": [f"{name}={spoken_units(args, name)}" for name in compared_units(args)],
        "data": args.data.eval,
        "filter": [f"{column}={_values(value)}" for column, value in args.data.eval_filter.items()],
        "labels": args.data.labels,
        "seed": args.seed,
        "output": output / "results",
    }
    finished = run_command(["evaluate", "units", *as_options({**options, **args.evaluation})])
    if finished.stopped_by:
        raise interruption(finished.stopped_by)
    return finished.returncode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers compare-units`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe of this installation")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from the recipe")


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers compare-units`; returns the exit code."""
    try:
        return compare_units(load_recipe(args.recipe, args.overrides, UnitStudyArguments))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise
