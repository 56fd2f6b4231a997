# SPDX-License-Identifier: Apache-2.0
"""
Fine-tune a speech encoder by CTC by a recipe, such as stage II of DC-Spin; what it does is [`finetune_ctc`].

After an interruption, the same command continues at the newest checkpoint.
"""

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from speech_tokenizers.processing.phonemization import EspeakPhonemizer
from speech_tokenizers.training.common.recipe_files import check_names, convert, load_recipe
from speech_tokenizers.training.common.recipe_trainer import claim_output
from speech_tokenizers.training.common.run_record import fingerprint_of, recordings_of
from speech_tokenizers.training.recognition.ctc_finetuning import CTCFinetuningArguments, finetune_ctc
from speech_tokenizers.training.recognition.ctc_recordings import load_to_learn_and_measure
from speech_tokenizers.training.recognition.ctc_targets import COLUMNS, column_of


@dataclass
class CTCDataArguments:
    """
    Where the recordings are and what is said in them; see [`load_recordings`].

    Args:
        train (`str`): A folder, a file of metadata, Parquet, or a dataset's id on the Hub.
        train_filter, eval_filter (`dict`): Rows to learn from, and of the same data to measure on; these are
            not learnt from. An empty `eval_filter` measures nothing.
        column (`str`, *optional*): Holds the text, or the phones; see [`finetune_ctc`].
        phonemize (`str`, *optional*): Make phones of the text by espeak-ng, in this language, such as `en-us`.
        language (`str`): Language of the texts, as a code, such as `tr`.
        cache_dir (`str`, *optional*): Where decoded audio is kept. Defaults to `audio_cache` in the output folder.
    """

    train: str
    train_filter: dict[str, str | list[str]] = field(default_factory=dict)
    eval_filter: dict[str, str | list[str]] = field(default_factory=dict)
    column: str | None = None
    phonemize: str | None = None
    language: str = "en"
    cache_dir: str | None = None


@dataclass
class CTCRecipeArguments:
    """
    A fine-tuning.

    Args:
        output_dir (`str`): Gets the recogniser, which serves as an encoder again.
        encoder (`str`): Folder or Hub id of an encoder or a CTC model of it.
        data ([`CTCDataArguments`]): The recordings.
        finetuning (`dict`): Fields of the [`CTCFinetuningArguments`], those of `TrainingArguments` included.
        unit (`str`): `"phone"` or `"character"`.
    """

    trainer: ClassVar[str] = "ctc"

    output_dir: str
    encoder: str
    data: CTCDataArguments
    finetuning: dict[str, Any] = field(default_factory=dict)
    unit: str = "phone"

    def __post_init__(self):
        if self.unit not in ("phone", "character"):
            raise ValueError(f"`unit` must be 'phone' or 'character', but got {self.unit!r}.")
        known = set(CTCFinetuningArguments.__dataclass_fields__) - {"output_dir", "cache_dir"}
        check_names(self.finetuning, known, "The recipe's key", "finetuning.")
        hints = typing.get_type_hints(CTCFinetuningArguments)
        for name, value in self.finetuning.items():
            hint = hints[name]
            kinds = set(typing.get_args(hint) or [hint])
            if kinds <= {int, float, bool, str, type(None)}:
                # The widest of its kinds, which takes what the others take.
                widest = next(kind for kind in (str, float, int, bool) if kind in kinds)
                convert(value, widest | None if type(None) in kinds else widest, f"finetuning.{name}")


def finetune_by_recipe(args: CTCRecipeArguments) -> Path:
    """
    Fine-tune, from the newest checkpoint in `args.output_dir` or from the beginning.

    Returns:
        `Path`: The folder of the recogniser.

    Raises:
        ValueError: If the output folder belongs to another recipe; see also [`finetune_ctc`].
    """
    data = args.data
    settings = {"logging_steps": 10, "save_total_limit": 2, "report_to": "none", **args.finetuning}
    try:
        training_args = CTCFinetuningArguments(output_dir=args.output_dir, cache_dir=data.cache_dir, **settings)
    except ValueError as error:
        raise ValueError(f"In `finetuning`: {error}") from error
    column = column_of(args.unit, data.column, data.phonemize is not None)
    recordings, eval_recordings = load_to_learn_and_measure(
        data.train, data.train_filter, data.eval_filter, column, training_args.process_index == 0
    )
    inputs = {
        "encoder": fingerprint_of(args.encoder),
        "data.train": recordings_of(recordings, [data.column or COLUMNS[args.unit], COLUMNS["character"]]),
    }
    # What is written last.
    is_finished = (Path(args.output_dir) / "trainer_state.json").is_file()
    output = claim_output(args, inputs, ("",) if is_finished else ())
    if is_finished:
        return output
    finetune_ctc(
        args.encoder,
        recordings,
        eval_recordings,
        args.unit,
        training_args,
        column,
        None if data.phonemize is None else EspeakPhonemizer(data.phonemize),
        resume=True,
        language=data.language,
    )
    return output


def run_recipe(path_or_name: str, overrides: Sequence[str]) -> str:
    """Fine-tune by a recipe; returns what the command `train` prints."""
    return f"the recogniser: {finetune_by_recipe(load_recipe(path_or_name, overrides, CTCRecipeArguments))}"
