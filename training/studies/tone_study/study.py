# SPDX-License-Identifier: Apache-2.0
"""
`speech-tokenizers study tone`: what discrete units lose of tone, and which units keep it.

The question is that of https://huggingface.co/papers/2410.19935. Each fold of each arm is measured once; after an
interruption, the same command continues.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.studies.tone_study.arguments import ToneStudyArguments


def study_tone(args: ToneStudyArguments) -> str:
    """
    Measure what was not measured yet, and write the report of all that was.

    Args:
        args ([`ToneStudyArguments`]): The study.

    Returns:
        `str`: The report in Markdown. `output_dir` gets `results.html`, `.md` and `.json`, and pictures.

    Raises:
        ValueError: If the manifest is wrong, a fold would leak, a model is not to be found, or too many clips cannot
            be read.
    """
    # Imported here, since it takes seconds, for which the help need not wait.
    from speech_tokenizers.training.studies.tone_study.cells import ToneCells, forget_models
    from speech_tokenizers.training.studies.tone_study.comparison import study_results
    from speech_tokenizers.training.studies.tone_study.folds import NEW_SPEAKER
    from speech_tokenizers.training.studies.tone_study.report import study_report
    from speech_tokenizers.training.studies.tone_study.syllables import prepare_syllables, read_syllables

    output = Path(args.output_dir)
    syllables = read_syllables(args.manifest, args.targets, args.folder)
    prepared = prepare_syllables(syllables, args.trim, output / "clips", num_workers=args.num_workers)
    cells = ToneCells(args, prepared)
    if NEW_SPEAKER not in cells.settings:
        print("there is one speaker, so that setting A (a new speaker) cannot be measured", file=sys.stderr)
    if cells.jobs():  # a fold that leaks is refused here, before anything is encoded
        cells.models.encode_all()
        forget_models()
        cells.run()
    results: dict[str, Any] = {
        "views": study_results(cells),
        "set_aside": [*prepared.set_aside, *cells.models.set_aside()],
        "unvoiced": prepared.unvoiced,
        "are_cut": any(syllable.span is not None for syllable in prepared.syllables),
        "never_learnt": cells.never_learnt(),
    }
    report = study_report(args, results)
    written = report.write(output, "results")
    print(f"written: {', '.join(str(path) for path in written)}", file=sys.stderr)
    return report.markdown()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers study tone`."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a YAML file, or the name of a recipe of this installation, such as tone_study_16khz_cpu",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="settings that differ from the recipe, such as manifest=SYLLABLES.jsonl or seeds=[0]",
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers study tone`; returns the exit code."""
    try:
        print(study_tone(load_recipe(args.recipe, args.overrides, ToneStudyArguments)))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise
    return 0
