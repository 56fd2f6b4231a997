# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints that are complete or absent, and the moving average of a model's weights."""

import json
import os
import pickle
import random
import re
import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from speech_tokenizers.training.common.checkpoint_faults import checkpoint_fault, newest_sound, write_checksums
from speech_tokenizers.training.common.processes import decided_by_main


CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """
    Complete checkpoints in `output_dir`, oldest first. An interrupted save leaves none: its folder starts with a dot.
    """
    found = [folder for folder in output_dir.glob("checkpoint-*") if CHECKPOINT_NAME.fullmatch(folder.name)]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def write_checkpoint(
    folder: Path, write: Callable[[Path], None], is_main_process: bool, wait: Callable[[], None]
) -> None:
    """
    Let `write` fill a temporary folder, and rename that to `folder` when all of it is on the disk.

    Args:
        folder (`Path`): Final place of the checkpoint.
        write (callable): Function that every process calls with the temporary folder.
        is_main_process (`bool`): Whether this process creates and renames folders.
        wait (callable): Function that waits for all processes.
    """
    temporary = folder.with_name(f".{folder.name}.incomplete")
    if is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    wait()
    write(temporary)
    wait()
    if is_main_process:
        write_checksums(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    wait()


def remove_old_checkpoints(output_dir: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints (`None` keeps all), and what interrupted saves left behind."""
    for leftover in output_dir.glob(".checkpoint-*.incomplete"):
        shutil.rmtree(leftover, ignore_errors=True)
    if keep is not None:
        for folder in list_checkpoints(output_dir)[: -max(keep, 1)]:
            # Renamed first, so that a crash while deleting does not leave half a checkpoint under a complete one's
            # name.
            doomed = folder.with_name(f".{folder.name}.incomplete")
            os.replace(folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


class WeightAverage:
    """
    Exponential moving average of a model's parameters and floating-point buffers, codebooks included.

    The decay starts low, min(decay, (1 + n) / (10 + n)) at update n, so that the first weights are soon forgotten.

    Args:
        model (`nn.Module`): Model whose weights are averaged.
        decay (`float`, *optional*): Decay at each update. Without it no average is kept, and the model's own weights
            take its place.
    """

    def __init__(self, model: nn.Module, decay: float | None):
        self.decay = decay
        self.num_updates = 0
        self.averages = {name: tensor.clone() for name, tensor in _weights(model).items()} if self.is_kept else {}

    @property
    def is_kept(self) -> bool:
        """Whether there is an average."""
        return self.decay is not None

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """
        Move the averages towards the model's weights. The first update copies them, since codebooks start with the
        data.
        """
        if self.decay is None:
            return
        decay = 0.0 if self.num_updates == 0 else min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.averages.values()), list(_weights(model).values()), 1 - decay)
        self.num_updates += 1

    def restart(self) -> None:
        """Forget the weights so far. The next update copies the model's weights."""
        self.num_updates = 0

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within this context the model has the averaged weights, if there are any; afterwards its own again."""
        if self.num_updates == 0:
            yield
            return
        weights = _weights(model)
        own = {name: tensor.clone() for name, tensor in weights.items()}
        _copy(self.averages, weights)
        try:
            yield
        finally:
            _copy(own, weights)

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        _copy(state["averages"], self.averages)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


@torch.no_grad()
def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def save_states(folder: Path, parts: Mapping[str, Any]) -> None:
    """Save modules as safetensors, and whatever else has a `state_dict`, under their names in `folder`."""
    modules, objects = _modules_and_others(parts)
    for name, module in modules.items():
        state = {key: tensor.detach().contiguous() for key, tensor in module.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    torch.save({name: value.state_dict() for name, value in objects.items()}, folder / "optimization.pt")


def load_plain(path: Path) -> Any:
    """
    Tensors and plain values that `torch.save` wrote.

    Raises:
        ValueError: If the file is damaged, or holds anything else, which might run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged, or no file of tensors ({reason}); put a copy back.") from error


def initial_rates(folder: Path) -> set[float]:
    """
    The learning rates that the optimizers of a checkpoint began with; none if it has no sound state of them.

    Args:
        folder (`Path`): A checkpoint of a codec's run, or of a `Trainer`.
    """
    rates = set()
    for path in (folder / "optimization.pt", folder / "optimizer.pt"):
        with suppress(ValueError, OSError):
            state = load_plain(path)
            for part in (state, *state.values()):
                groups = part.get("param_groups", ()) if isinstance(part, dict) else ()
                rates |= {float(group.get("initial_lr", group["lr"])) for group in groups}
    return rates


def load_states(folder: Path, parts: Mapping[str, Any]) -> None:
    """
    Load what `save_states` saved.

    Raises:
        ValueError: If the checkpoint lacks one of the parts, or a module has other sizes now.
    """
    modules, objects = _modules_and_others(parts)
    states = load_plain(folder / "optimization.pt")
    missing = [name for name in modules if not (folder / f"{name}.safetensors").is_file()]
    missing += [name for name in objects if name not in states]
    if missing:
        raise ValueError(f"`{folder}` has no {', '.join(missing)}; resume with the recipe that it was trained with.")
    for name, module in modules.items():
        try:
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        except RuntimeError as error:
            raise ValueError(
                f"The {name} of `{folder}` is of another recipe than this one's; choose another `output_dir`, or begin"
                f" anew with `resume_from_checkpoint=null` ({' '.join(str(error).split())[:300]})."
            ) from error
    for name, value in objects.items():
        value.load_state_dict(states[name])


def _modules_and_others(parts: Mapping[str, Any]) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    return modules, {name: part for name, part in parts.items() if name not in modules}


def random_state() -> dict[str, Any]:
    """States of the global generators of Python, NumPy and PyTorch."""
    numpy_state = np.random.get_state(legacy=True)
    assert isinstance(numpy_state, tuple)
    return {
        "python": random.getstate(),
        "numpy": (numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


# What a run keeps of its beginning; see [`RunRecord`].
RECORD_NAMES = ("recipe.yaml", "settings.yaml", "inputs.json")


def copy_record(output_dir: Path, checkpoint: Path) -> None:
    """
    Copy what a run was begun with into one of its checkpoints, whose optimizer knows it too.

    Args:
        output_dir (`Path`): Folder of the checkpoints. It, or one of the two above, has the record.
        checkpoint (`Path`): Folder of the checkpoint.
    """
    for folder in (output_dir, *output_dir.absolute().parents[:2]):
        if (folder / "inputs.json").is_file():
            for name in RECORD_NAMES:
                if (folder / name).is_file():
                    shutil.copy(folder / name, checkpoint / name)
            return


class Checkpoints:
    """
    Checkpoints of a run, each in a folder `checkpoint-<step>` that exists only when it is complete.

    Args:
        accelerator (`Accelerator`): Accelerator of the run.
        args (dataclass): Recipe with `output_dir`, `save_total_limit`, `seed` and `global_batch_size`. The last two
            decide the order of the data.
        parts (mapping): Modules and other objects with a `state_dict`, by the names that checkpoints give them. A part
            that is `None` is left out.
    """

    def __init__(self, accelerator: Accelerator, args: Any, parts: Mapping[str, Any]):
        self.accelerator = accelerator
        self.output_dir, self.save_total_limit = Path(args.output_dir), args.save_total_limit
        self.order_of_data = {"seed": args.seed, "global_batch_size": args.global_batch_size}
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def save(
        self,
        step: int,
        shared: Mapping[str, Any],
        own: Mapping[str, Any],
        beside: Callable[[Path], None] | None = None,
    ) -> Path:
        """
        Save the parts and the random generators, and delete the oldest checkpoints beyond `save_total_limit`.

        Args:
            step (`int`): Number of steps taken.
            shared (mapping): Plain values that are the same on all processes, for `trainer_state.json`.
            own (mapping): State of this process besides its random generators.
            beside (callable, *optional*): Function that the main process calls with the folder, to save in it what is
                not needed to go on.

        Returns:
            Folder of the checkpoint.
        """
        folder = self.output_dir / f"checkpoint-{step:08d}"
        is_main_process = self.accelerator.is_main_process

        def write(temporary: Path) -> None:
            if is_main_process:
                save_states(temporary, self.parts)
                state = json.dumps({**self.order_of_data, **shared}, indent=2)
                (temporary / "trainer_state.json").write_text(state, encoding="utf-8")
                copy_record(self.output_dir, temporary)
                if beside is not None:
                    beside(temporary)
            torch.save({"random": random_state(), **own}, self._process_file(temporary))

        write_checkpoint(folder, write, is_main_process, self.accelerator.wait_for_everyone)
        if is_main_process:
            remove_old_checkpoints(self.output_dir, self.save_total_limit)
        return folder

    def folder_of_run(self, checkpoint: str | bool | None) -> Path:
        """Folder of the run that a checkpoint is of; see `find`."""
        return self.output_dir if checkpoint in (None, False, True, "latest") else Path(str(checkpoint)).parent

    def find(
        self, checkpoint: str | bool | None, left_out: Callable[[dict[str, Any]], Collection[str]] = lambda _: ()
    ) -> tuple[Path, dict[str, Any]] | None:
        """
        The checkpoint that the run continues from.

        Args:
            checkpoint (`str` or `bool`, *optional*): Folder of a checkpoint; `True` or `"latest"` for the newest
                sound one. Without it the run begins anew.
            left_out (callable, *optional*): Function of a `trainer_state.json` that names the parts which such a
                checkpoint need not have.

        Returns:
            Folder of the checkpoint and its `trainer_state.json`; `None` where the run begins anew, or there is no
            newest one.

        Raises:
            ValueError: If the folder is no complete checkpoint or a damaged one, all are damaged, or it was trained
                with another order of the data.
        """
        if not checkpoint:
            return None

        def fault(folder: Path) -> str | None:
            found = checkpoint_fault(folder, ["trainer_state.json", "optimization.pt", "process_0.pt"])
            if found is not None:
                return found
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            if missing := {"step", "training_seconds", *self.order_of_data} - set(state):
                return f"trainer_state.json lacks {sorted(missing)[0]}"
            needed = [name for name in _modules_and_others(self.parts)[0] if name not in left_out(state)]
            missing_files = [
                f"{name}.safetensors" for name in needed if not (folder / f"{name}.safetensors").is_file()
            ]
            return f"{missing_files[0]} is missing" if missing_files else None

        def decide() -> Path | None:
            if checkpoint is True or checkpoint == "latest":
                return newest_sound(list_checkpoints(self.output_dir), fault)
            named = Path(checkpoint)
            if not (named / "trainer_state.json").is_file():
                raise ValueError(f"`resume_from_checkpoint` is {str(named)!r}, which is no complete checkpoint.")
            if (found := fault(named)) is not None:
                raise ValueError(
                    f"`resume_from_checkpoint` is {str(named)!r}, whose {found}; name another checkpoint, or `latest`"
                    " for the newest sound one."
                )
            return named

        folder = decided_by_main(decide)
        if folder is None:
            return None
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        for name, value in self.order_of_data.items():
            if state[name] != value:
                raise ValueError(
                    f"`{name}` is {value}, but the checkpoint was trained with {state[name]}, which decides the order"
                    " of the data; keep it, or start anew from its weights with `model.pretrained`."
                )
        return folder, state

    def load(self, folder: Path, left_out: Collection[str] = ()) -> dict[str, Any] | None:
        """
        Load the parts and the random generators.

        Args:
            folder (`Path`): Folder of the checkpoint.
            left_out (collection of `str`, *optional*): Names of parts that stay as they are.

        Returns:
            State of this process. `None` on a process that the run did not begin with, which needs none.

        Raises:
            ValueError: If the checkpoint lacks one of the parts, or a module has other sizes now.
        """
        load_states(folder, {name: part for name, part in self.parts.items() if name not in left_out})
        process_file = self._process_file(folder)
        if not process_file.is_file():
            return None
        own = load_plain(process_file)
        set_random_state(own["random"])
        return own

    def _process_file(self, folder: Path) -> Path:
        return folder / f"process_{self.accelerator.process_index}.pt"


class StopRequest:
    """
    A request that the run ends.

    Attributes:
        signal_number (`int`): Number of the signal that made it; 0 while there is none.
    """

    signal_number = 0


@contextmanager
def stopping_on_signals() -> Iterator[StopRequest]:
    """
    Within this context SIGTERM and the first Ctrl-C set the request and do not end the process, so that a checkpoint
    can be saved.
    """
    request = StopRequest()
    previous: dict[int, Any] = {}

    def note(number, frame):
        request.signal_number = number
        signal.signal(number, previous[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.getsignal(number)
            signal.signal(number, note)
    except ValueError:  # signals can only be caught in the main thread
        previous = {}
    try:
        yield request
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)
