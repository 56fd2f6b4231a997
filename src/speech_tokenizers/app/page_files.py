# SPDX-License-Identifier: Apache-2.0
"""Sounds and pictures that a page shows, in a folder that is removed with the page."""

import contextlib
import secrets
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from speech_tokenizers.processing.audio_files import AudioWriter


# Nobody looks at a result any longer than that.
_KEPT_SECONDS = 3600


class PageFiles:
    """
    A temporary folder, from which a page fetches files by names that cannot be guessed. It is a context manager, whose
    end removes the folder. Files older than an hour are removed whenever one is added.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="speech-tokenizers-app-", ignore_cleanup_errors=True)
        self._lock = threading.Lock()
        self.folder = Path(self._folder.name)
        # What the browser sends, and what is shown, lie apart.
        self.uploads = self.folder / "uploads"
        self.shown = self.folder / "shown"
        self.uploads.mkdir()
        self.shown.mkdir()

    def __enter__(self) -> "PageFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def add(self, content: bytes, suffix: str) -> Path:
        """Store a file, whose name ends in `suffix`, and return its path."""
        path = self._new_path(suffix)
        path.write_bytes(content)
        return path

    def add_audio(self, waveform: np.ndarray, sampling_rate: int) -> Path:
        """Store a waveform `(num_samples,)` as WAV of 16 bits, and return its path."""
        path = self._new_path(".wav")
        with AudioWriter(path, sampling_rate) as writer:
            writer.write(np.clip(waveform, -1, 1))
        return path

    def _new_path(self, suffix: str) -> Path:
        with self._lock:
            oldest = time.time() - _KEPT_SECONDS
            for path in (path for folder in (self.shown, self.uploads) for path in folder.rglob("*")):
                # Another page of this process may be faster.
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file() and path.stat().st_mtime < oldest:
                        path.unlink()
        return self.shown / f"{secrets.token_hex(16)}{suffix}"
