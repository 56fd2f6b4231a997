# SPDX-License-Identifier: Apache-2.0
"""Teachers' features of all recordings, computed once and kept on disk."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from speech_tokenizers.processing.whole_files import WholeFile, write_whole
from speech_tokenizers.training.codec.teachers import Teacher, TimedFeatures, Utterance


FORMAT_VERSION = 1
RECORDINGS_PER_SHARD = 128


class TeacherCacheError(ValueError):
    """A cache that does not fit what is asked of it."""


class TeacherCache:
    """
    Features of recordings by key, in half precision, in shards of safetensors.

    A folder belongs to one teacher, which `teacher.json` describes. A shard is written whole or not at all, so that an
    interrupted run continues where it was.

    Args:
        folder (`Path`): Folder of the shards, created if absent.
        description (`dict`): Description of what the features depend on besides the recording; see [`Teacher`].

    Raises:
        TeacherCacheError: If the folder belongs to another teacher, or a shard is damaged.
    """

    def __init__(self, folder: Path, description: dict[str, Any]):
        self.folder = folder
        self.description = {"format": FORMAT_VERSION, **description}
        self._places: dict[str, tuple[Path, int, int]] = {}
        path = folder / "teacher.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            differing = [
                f"{name}: {found.get(name)!r} there, {self.description.get(name)!r} here"
                for name in sorted(found.keys() | self.description.keys())
                if found.get(name) != self.description.get(name)
            ]
            if differing:
                raise TeacherCacheError(
                    f"`{folder}` holds features of another teacher ({'; '.join(differing)}); name another"
                    " `distillation.cache_dir`, or remove the folder."
                )
        else:
            write_whole(path, json.dumps(self.description, indent=2))
        self.refresh()

    def refresh(self) -> None:
        """See shards that other processes have written."""
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as shard:
                    index = json.loads(shard.metadata()["index"])
            except (SafetensorError, KeyError, TypeError) as error:
                raise TeacherCacheError(f"`{path}` is damaged ({error}); remove it and start again.") from error
            self._places |= {key: (path, start, end) for key, (start, end) in index.items()}

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> TimedFeatures:
        return self.read(key)

    def read(self, key: str, first_second: float = 0.0, last_second: float = float("inf")) -> TimedFeatures:
        """
        Args:
            key (`str`): Key of the recording; see [`Teacher.key`].
            first_second, last_second (`float`): Ends of the span in seconds. Rows that lie before or after it are left
                out, but for one on each side.

        Raises:
            TeacherCacheError: If the recording is not in the cache.
        """
        if key not in self._places:
            raise TeacherCacheError(
                f"`{self.folder}` has no features of recording {key}: the audio or its text has changed since they"
                " were computed."
            )
        path, start, end = self._places[key]
        # Opened for each reading: what stays mapped would count as this process's memory, in the end all of it.
        with safe_open(path, framework="pt") as shard:
            times = shard.get_slice("times")[start:end]
            low = max(0, int(torch.searchsorted(times[:, 0].contiguous(), first_second)) - 1)
            high = min(len(times), int(torch.searchsorted(times[:, 0].contiguous(), last_second, right=True)) + 1)
            return TimedFeatures(shard.get_slice("features")[start + low : start + high], times[low:high])

    def mean(self, keys: Iterable[str]) -> torch.Tensor:
        """Mean vector of some recordings, `(dim,)`, in float32."""
        sums, count = torch.zeros((), dtype=torch.float64), 0
        for key in keys:
            features = self[key].features
            sums, count = sums + features.double().sum(dim=0), count + len(features)
        return (sums / max(count, 1)).float()

    def write(self, features: dict[str, TimedFeatures]) -> None:
        """Add a shard."""
        index, position = {}, 0
        for key, timed in features.items():
            index[key] = (position, position + len(timed.features))
            position += len(timed.features)
        tensors = {
            "features": torch.cat([timed.features.cpu().half() for timed in features.values()]),
            "times": torch.cat([timed.times.cpu().float() for timed in features.values()]),
        }
        if not torch.isfinite(tensors["features"]).all():
            raise TeacherCacheError("The teacher's features are not finite in half precision.")
        name = hashlib.sha256(" ".join(features).encode()).hexdigest()[:16]
        path = self.folder / f"{name}.safetensors"
        with WholeFile(path) as temporary:
            save_file(tensors, temporary, {"index": json.dumps(index)})
        self._places |= {key: (path, start, end) for key, (start, end) in index.items()}


def fill_cache(
    cache: TeacherCache,
    keys: list[str],
    utterance_of: Callable[[int], Utterance],
    teacher: Teacher,
    accelerator: Accelerator,
    what: str,
) -> None:
    """
    Compute what the cache lacks, shared among processes. Where it lacks nothing, the teacher's model is not loaded.

    Args:
        cache ([`TeacherCache`]): Cache to fill.
        keys (`list` of `str`): Keys of all recordings.
        utterance_of (callable): Function that gives the utterance of a recording's index.
        teacher ([`Teacher`]): Teacher that computes the features.
        accelerator (`Accelerator`): Accelerator of the run. It tells which recordings are this process's.
        what (`str`): Words for the progress bar.
    """
    missing = {key: index for index, key in enumerate(keys) if key not in cache}
    if missing:
        teacher.to(accelerator.device)
        mine = list(missing.items())[accelerator.process_index :: accelerator.num_processes]
        with tqdm(total=len(mine), desc=what, unit="file", disable=not accelerator.is_main_process) as progress:
            for block in _blocks(mine, RECORDINGS_PER_SHARD):
                features = {}
                for key, index in block:
                    features[key] = teacher.features(utterance_of(index))
                    progress.update()
                cache.write(features)
    accelerator.wait_for_everyone()
    cache.refresh()


def _blocks(items: list, size: int) -> Iterator[list]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
