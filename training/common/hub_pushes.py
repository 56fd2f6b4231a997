# SPDX-License-Identifier: Apache-2.0
"""Pushing during training, with the settings and the habits of transformers' `Trainer`."""

import os
import shutil
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from tqdm import tqdm
from transformers import TrainerCallback

from speech_tokenizers.training.common.processes import process_state


STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")


@dataclass(kw_only=True)
class HubSettings:
    """
    Whether and how a training puts its model on the Hub; names and meanings are those of `TrainingArguments`.

    Args:
        push_to_hub (`bool`): Whether the model is pushed at all.
        hub_model_id (`str`, *optional*): Repository, `namespace/name`; created if absent. Defaults to the name of the
            output folder, in your own namespace.
        hub_strategy (`str`): `"end"` pushes the finished model; `"every_save"` also the model at each save, in the
            background; `"checkpoint"` beside it the checkpoint as `last-checkpoint`; `"all_checkpoints"` each
            checkpoint under its name.
        hub_token (`str`, *optional*): Access token, which is written nowhere. Defaults to the one that `hf auth login`
            stored.
        hub_private_repo (`bool`, *optional*): Whether only you may see a repository that is created.
        hub_revision (`str`, *optional*): Branch; created if absent. Defaults to the main branch.
        hub_always_push (`bool`): Whether a save is pushed although the push before it has not ended.
        hub_licence (`str`, *optional*): The Hub's name of the weights' licence, for the card.
        hub_with_code (`bool`): Whether the model's code goes along.
    """

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_strategy: str = "every_save"
    hub_token: str | None = None
    hub_private_repo: bool | None = None
    hub_revision: str | None = None
    hub_always_push: bool = False
    hub_licence: str | None = None
    hub_with_code: bool = True

    def __post_init__(self):
        if self.hub_strategy not in STRATEGIES:
            raise ValueError(f"`hub_strategy` must be one of {', '.join(STRATEGIES)}, but got {self.hub_strategy!r}.")
        if (parent := getattr(super(), "__post_init__", None)) is not None:
            parent()

    @classmethod
    def of(cls, args: Any, **differing: Any) -> "HubSettings":
        """
        The settings that a training has among others, or that `TrainingArguments` have.

        Args:
            args: The settings of the training.
            differing: Settings that shall differ; those that are `None` do not.
        """
        names = [field.name for field in fields(HubSettings) if hasattr(args, field.name)]
        given = {name: getattr(args, name) for name in names}
        given |= {name: value for name, value in differing.items() if value is not None}
        # transformers has an enumeration of strategies.
        return HubSettings(
            **(given | {"hub_strategy": getattr(given["hub_strategy"], "value", given["hub_strategy"])})
        )


class HubPushes:
    """
    The pushes of one training. What fails at a save or in `finish` is told, and stops no training.

    Args:
        args ([`HubSettings`]): Settings.
        folder (`str` or `Path`): Folder of the training.
        run_folder (`Path`, *optional*): Folder of the training's log and recipe, for the card. Defaults to `folder`.

    Attributes:
        repo_id (`str`, *optional*): Repository; `None` in processes that do not push.

    Raises:
        UploadError: If the repository can be neither found nor created: nothing was trained yet.
    """

    def __init__(self, args: HubSettings, folder: str | os.PathLike, run_folder: Path | None = None):
        self.args, self.folder = args, Path(folder)
        self.run_folder = run_folder or self.folder
        self.repo_id: str | None = None
        self._running: Future | None = None
        if not (args.push_to_hub and process_state().is_main_process):
            return
        from huggingface_hub import HfApi

        from speech_tokenizers.sharing.uploading import prepare_repository

        self._api = HfApi(token=args.hub_token)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        name = args.hub_model_id or self.folder.resolve().name
        self.repo_id = prepare_repository(self._api, name, private=args.hub_private_repo, revision=args.hub_revision)

    @property
    def is_due(self) -> bool:
        """Whether a save is pushed at this moment."""
        if self.repo_id is None or self.args.hub_strategy == "end":
            return False
        return self._running is None or self._running.done() or self.args.hub_always_push

    def at_save(self, model: Any, preprocessor: Any, step: int, checkpoint: Path) -> None:
        """
        Push a model in the background, as the strategy says.

        Args:
            model (`PreTrainedModel`): The model, with the weights that are meant. It may change once this returns.
            preprocessor: Its feature extractor or processor; `None` if it has none.
            step (`int`): Steps so far.
            checkpoint (`Path`): The checkpoint that was saved.
        """
        if not self.is_due:
            return
        strategy = self.args.hub_strategy
        title = f"Training in progress, step {step}"
        place = None
        try:
            place = self._new_place()
            self._stage(model, preprocessor, place / "model")
            uploads: list[tuple[Path, str | None]] = [(place / "model", None)]
            if strategy in ("checkpoint", "all_checkpoints"):
                # Linked, since old checkpoints are removed while this one is on its way.
                shutil.copytree(checkpoint, place / "checkpoint", copy_function=_link_or_copy)
                uploads.append(
                    (place / "checkpoint", "last-checkpoint" if strategy == "checkpoint" else checkpoint.name)
                )
        except Exception as error:  # noqa: BLE001 - whatever it is, the training is worth more
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
            self._tell(f"step {step} was not pushed", error)
            return
        self._running = self._thread.submit(self._upload_saved, place, uploads, title, f"step {step} was not pushed")

    def finish(self, final: Path) -> str | None:
        """
        Push the finished model, once the push before it has ended.

        Args:
            final (`Path`): Folder of the model with what prepares its input.

        Returns:
            `str`: A sentence on where it is, or on why it is not there; `None` where nothing is pushed.
        """
        if self.repo_id is None:
            return None
        from speech_tokenizers.sharing.staging import load_shared

        try:
            shared = load_shared(str(final))
            shared.model.name_or_path = ""  # it has no other origin than this training
            self.push(shared.model, shared.preprocessor).result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the training is worth more
            command = f"speech-tokenizers push {final} {self.repo_id}"
            reason = _reason(error).rstrip(".")
            sentence = f"The finished model was not pushed: {reason}. It is in {final}; `{command}` pushes it."
        else:
            sentence = f"pushed: {self._api.endpoint}/{self.repo_id}"
        self._thread.shutdown()
        tqdm.write(sentence, file=sys.stderr)
        return sentence

    def push(self, model: Any, preprocessor: Any, title: str = "End of training") -> Future:
        """
        Push a model, whatever the strategy is, once the push before it has ended.

        Args:
            model (`PreTrainedModel`): The model. It may change once this returns.
            preprocessor: Its feature extractor or processor; `None` if it has none.
            title (`str`, *optional*, defaults to `"End of training"`): Title of the commit.

        Returns:
            `Future`: Of the `CommitInfo`; its `result()` raises `UploadError` if the Hub refuses.

        Raises:
            ValueError: If the code or the card cannot be made, or the repository would have errors.
        """
        self.wait()
        place = self._new_place()
        try:
            self._stage(model, preprocessor, place / "model")
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        self._running = self._thread.submit(self._upload, place, [(place / "model", None)], title)
        return self._running

    def wait(self) -> None:
        """Wait until the push before has ended, well or not."""
        if self._running is not None:
            wait([self._running])

    def _new_place(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".push-", dir=self.folder))

    def _stage(self, model: Any, preprocessor: Any, folder: Path) -> None:
        from speech_tokenizers.modeling.hub_export import use_section, with_use
        from speech_tokenizers.sharing.findings import errors_of
        from speech_tokenizers.sharing.repository_check import check_repository
        from speech_tokenizers.sharing.repository_files import FolderFiles
        from speech_tokenizers.sharing.staging import Shared, codec_named, plain_use_section, stage
        from speech_tokenizers.sharing.training_card import training_card

        repo_id = str(self.repo_id)
        shared, with_code = Shared(model, preprocessor, None), self.args.hub_with_code
        with codec_named(shared):
            stage(shared, folder, repo_id, with_code=with_code, licence=self.args.hub_licence)
            text = training_card(model, folder, repo_id, self.run_folder, self.args.hub_licence)
            use = use_section(model, preprocessor, repo_id) if with_code else plain_use_section(shared, repo_id)
        (folder / "README.md").write_text(with_use(text, use), encoding="utf-8")
        if errors := errors_of(check_repository(FolderFiles(folder, repo_id))):
            raise ValueError("; ".join(map(str, errors)))

    def _upload_saved(self, place: Path, uploads: list[tuple[Path, str | None]], title: str, told: str) -> None:
        try:
            self._upload(place, uploads, title)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training is worth more
            self._tell(told, error)

    def _upload(self, place: Path, uploads: list[tuple[Path, str | None]], title: str) -> CommitInfo:
        from speech_tokenizers.sharing.uploading import upload

        try:
            for folder, path_in_repo in uploads:
                options: dict[str, Any] = {"revision": self.args.hub_revision}
                if path_in_repo is not None:
                    # Nothing of an older checkpoint stays under this name.
                    options |= {"path_in_repo": path_in_repo, "delete_patterns": "*"}
                message = title if path_in_repo is None else f"{title}, checkpoint"
                commit = upload(self._api, folder, str(self.repo_id), message, **options)
            return commit
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _tell(self, what: str, error: Exception) -> None:
        tqdm.write(f"warning: {what}: {_reason(error)} The training goes on.", file=sys.stderr)


class PushCallback(TrainerCallback):
    """
    Lets a `transformers.Trainer` push at its saves.

    Args:
        pushes ([`HubPushes`]): The pushes.
        trainer (`transformers.Trainer`): The trainer.
        preprocessor: The model's feature extractor or processor.
    """

    def __init__(self, pushes: HubPushes, trainer: Any, preprocessor: Any):
        self.pushes, self.trainer, self.preprocessor = pushes, trainer, preprocessor

    def on_save(self, args, state, control, **kwargs):
        """Called by the `Trainer`."""
        if state.is_world_process_zero:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.pushes.at_save(model, self.preprocessor, state.global_step, checkpoint)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
    return target


__all__ = ["STRATEGIES", "HubPushes", "HubSettings", "PushCallback"]
