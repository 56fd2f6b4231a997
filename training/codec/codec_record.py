# SPDX-License-Identifier: Apache-2.0
"""What the run of a codec was begun with, and whether it may go on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speech_tokenizers.training.codec.arguments import CodecTrainingArguments
from speech_tokenizers.training.common.checkpoint_faults import set_aside
from speech_tokenizers.training.common.checkpoints import list_checkpoints
from speech_tokenizers.training.common.run_record import RunRecord, fingerprint_of


# Settings that name models and files which a codec learns from.
_SOURCES = (
    "model.pretrained",
    *("distillation.speech_teacher.model", "distillation.language_teacher.model"),
    *("distillation.language_teacher.word_times", "distillation.language_teacher.aligner"),
    "distillation.language_teacher.recognizer",
    *("speech_features.model", "units.model", "recognition.recognizer", "recognition.word_times", "joint.pretrained"),
)
# Settings that name columns of the recordings which a codec learns from.
_COLUMNS = (
    *("distillation.language_teacher.text_column", "distillation.language_teacher.words_column"),
    *("units.speaker_column", "units.speaker_embedding_column", "recognition.column"),
)


def keep_codec_run(trainer: Any, checkpoint: str | bool | None, early: bool = False) -> None:
    """
    Check that a run may go on with its settings and data, or may begin in its folder, and write down what it is for.

    Args:
        trainer ([`CodecTrainer`]): Trainer of the run.
        checkpoint (`str` or `bool`, *optional*): Where it goes on; see [`CodecTrainer.train`].
        early (`bool`, *optional*, defaults to `False`): Whether nothing was prepared yet, so that hours of work are
            spared where the run may not go on. Then nothing is written.

    Raises:
        ValueError: If it may not.
    """
    args, output_dir = trainer.args, trainer.output_dir
    older = list_checkpoints(output_dir)
    if not checkpoint or (checkpoint in (True, "latest") and not older):
        if early:
            return
        _make_room(trainer, older)
    # Discriminators that have not learnt anything yet may be exchanged for others.
    exchangeable = () if not early and trainer.adversary.acts else ("adversarial", "discriminator_optimizer")
    record = RunRecord(
        trainer.checkpoints.folder_of_run(checkpoint),
        args,
        trainer.data.inputs(columns(args)) | sources(args),
        allowed=(*args.allow_changes, *exchangeable),
        measured=("data.eval",),
    )
    if early:
        record.check()
        return
    record.keep(output_dir, f"recipe-until-{trainer.step:08d}.yaml", f"from step {trainer.step}")


def _make_room(trainer: Any, older: Sequence[Path]) -> None:
    # A run that begins anew goes on from nothing of an earlier one, whose checkpoints it would count among its own:
    # the newest of all are kept, and the newest is gone on from.
    if trainer.accelerator.is_main_process:
        for name in ("recipe.yaml", "inputs.json"):
            (trainer.output_dir / name).unlink(missing_ok=True)
        if older:
            names = ", ".join(set_aside(folder, "earlier").name for folder in older)
            tqdm.write(f"warning: {trainer.output_dir} holds an earlier run; its checkpoints are now {names}.")
    trainer.accelerator.wait_for_everyone()


def sources(args: CodecTrainingArguments) -> dict[str, str]:
    """Fingerprints of the models and files that a recipe names, by the settings."""
    named = {key: _value(args, key) for key in _SOURCES}
    return {key: fingerprint_of(value) for key, value in named.items() if value is not None}


def columns(args: CodecTrainingArguments) -> list[str]:
    """Columns of the recordings that a recipe learns from."""
    found = [_value(args, key) for key in _COLUMNS]
    if args.recognition is not None and args.recognition.column is None:
        found.append({"character": "text", "phone": "phones"}[args.recognition.unit])
    return [column for column in found if column is not None]


def _value(args: Any, key: str) -> Any:
    for name in key.split("."):
        args = getattr(args, name, None)
    return args
