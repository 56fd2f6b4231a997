# SPDX-License-Identifier: Apache-2.0
"""`transformers.Trainer` whose pushes can be loaded by everybody: with the model's code, and with its card."""

import json
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo
from transformers import Trainer, TrainerState, TrainingArguments

from speech_tokenizers.training.common.hub_pushes import HubPushes, HubSettings


# Settings that decide what is learnt, for the card.
_TOLD = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "seed"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16"),
)


class HubTrainer(Trainer):
    """
    `transformers.Trainer` for models of this package. With `push_to_hub=True` its pushes carry the model's code and a
    card with the losses; without it, it is `transformers.Trainer`.

    When it pushes, and under what name, is what `TrainingArguments` say (`hub_model_id`, `hub_strategy`, ...). A push
    at a save that fails is told, and stops no training. The settings of the training and its data stay at home: no
    `training_args.bin` is pushed. A model that is spread over processes (FSDP, DeepSpeed ZeRO-3) cannot be pushed.

    Args:
        args: Those of `transformers.Trainer`.
        hub_licence (`str`, *optional*): The Hub's name of the weights' licence, for the card.
        hub_with_code (`bool`, *optional*, defaults to `True`): Whether the model's code goes along.
        kwargs: Those of `transformers.Trainer`.
    """

    def __init__(self, *args: Any, hub_licence: str | None = None, hub_with_code: bool = True, **kwargs: Any):
        self._told_on_hub = {"hub_licence": hub_licence, "hub_with_code": hub_with_code}
        self._pushes: HubPushes | None = None
        self._run_folder = tempfile.TemporaryDirectory(prefix="run-")
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Find or create the repository.

        Args:
            token (`str`), private (`bool`), *optional*: Default to `args.hub_token` and `args.hub_private_repo`.

        Raises:
            ValueError: If it can be neither found nor created, or a speech language model has no processor.
        """
        self._pushes = self._new_pushes(hub_token=token, hub_private_repo=private)
        if self._pushes.repo_id is not None:
            self.hub_model_id = self._pushes.repo_id

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        license: str | None = None,
    ) -> "CommitInfo | Future[CommitInfo] | None":
        """
        Push the model with its code and its card, and what prepares its input.

        Args:
            commit_message (`str`, *optional*): Title of the commit.
            blocking (`bool`, *optional*, defaults to `True`): Whether to wait until the push has ended.
            token (`str`), revision (`str`), private (`bool`), *optional*: Default to the settings in `args`.
            license (`str`, *optional*): Licence for the card. Defaults to `hub_licence`.

        Returns:
            `CommitInfo`, or its `Future` if `blocking` is false; `None` in processes that do not push.

        Raises:
            ValueError: If the Hub refuses, or the repository would have errors.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        differing = {"hub_token": token, "hub_revision": revision, "hub_private_repo": private, "hub_licence": license}
        pushed = None
        if self.is_world_process_zero():
            self._finish_current_push()
            if self._pushes is None or any(value is not None for value in differing.values()):
                self._pushes = self._new_pushes(**differing)
                self.hub_model_id = str(self._pushes.repo_id)
            pushed = self._pushes.push(
                self._model_to_push(), self.processing_class, commit_message or "End of training"
            )
        self.accelerator.wait_for_everyone()
        return pushed.result() if pushed is not None and blocking else pushed

    def _new_pushes(self, **differing: Any) -> HubPushes:
        if hasattr(self.model, "generate_speech") and self.processing_class is None:
            raise ValueError(
                "`processing_class` is None, but a speech language model is pushed with its processor; give it as"
                " `processing_class=processor`."
            )
        given = {name: value for name, value in differing.items() if value is not None}
        settings = HubSettings.of(self.args, push_to_hub=True, **(self._told_on_hub | given))
        return HubPushes(settings, self.args.output_dir, Path(self._run_folder.name))

    def _model_to_push(self) -> Any:
        _write_run(Path(self._run_folder.name), self.args, self.state)
        return self.accelerator.unwrap_model(self.model)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Called by the `Trainer` at each save.
        if self._pushes is not None and self._pushes.is_due:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            model = self._model_to_push()
            self._pushes.at_save(model, self.processing_class, self.state.global_step, Path(checkpoint_folder))

    def _finish_current_push(self) -> None:
        # Called by the `Trainer` once it has trained.
        if self._pushes is not None:
            self._pushes.wait()


def _write_run(folder: Path, args: TrainingArguments, state: TrainerState) -> None:
    # What the card tells of the training, as the recipes' trainings leave it.
    entries: dict[int, dict[str, Any]] = {}
    for entry in state.log_history:
        measures = {name: float(value) for name, value in entry.items() if _is_measure(name, value)}
        if measures:
            entries.setdefault(entry["step"], {"step": entry["step"]}).update(measures)
    if entries:
        lines = "".join(json.dumps(entry) + "\n" for entry in entries.values())
        (folder / "training_log.jsonl").write_text(lines, encoding="utf-8")
    values = args.to_dict()
    length = ("max_steps",) if args.max_steps > 0 else ("num_train_epochs",)
    told = {"training_arguments": {name: values[name] for name in (*length, *_TOLD)}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")


def _is_measure(name: str, value: Any) -> bool:
    # Not how fast it was, which the card's readers cannot compare.
    is_speed = name.endswith(("_runtime", "_per_second")) or name in ("step", "epoch", "total_flos", "train_loss")
    return isinstance(value, int | float) and not is_speed


__all__ = ["HubTrainer"]
