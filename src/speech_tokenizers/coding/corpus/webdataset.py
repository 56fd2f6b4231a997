# SPDX-License-Identifier: Apache-2.0
"""Rows as tars of WebDataset: for each recording `KEY.npy` with its codes or latents, and `KEY.json` with the rest."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any


def write_tar(shard: Path, path: Path) -> Path:
    """
    Write a shard of rows as a tar, whole or not at all. Its bytes depend on the rows alone.

    Of a row, `KEY.npy` holds the codes `(num_quantizers, num_frames)`, or the runs of de-duplicated ones, or the
    latents `(num_frames, latent_dim)` in float16; `KEY.json` all other columns. `KEY` is the shard's name and the
    number of the row, since WebDataset cuts names at their first full stop.

    Args:
        shard (`Path`): Parquet file of rows.
        path (`Path`): The tar.

    Returns:
        `Path`: The tar.

    Raises:
        OSError: If it cannot be written.
    """
    import pyarrow.parquet

    from speech_tokenizers.processing.whole_files import WholeFile

    with WholeFile(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(shard).iter_batches(100):
            for row in batch.to_pylist():
                key = f"{shard.stem}-{number:06d}"
                _add(tar, f"{key}.npy", _as_npy(row))
                _add(tar, f"{key}.json", json.dumps(row, ensure_ascii=False, default=str).encode())
                number += 1
    return path


def _as_npy(row: dict[str, Any]) -> bytes:
    # Takes the numbers out of the row.
    import numpy as np

    numbers: Any
    if "audio_latents" in row:
        numbers = np.asarray(row.pop("audio_latents"), np.float16).reshape(row["num_frames"], row["latent_dim"])
    else:
        codes = np.asarray(row.pop("audio_codes"))
        numbers = codes.astype(np.uint16 if codes.max() < 1 << 16 else np.uint32).reshape(row["num_quantizers"], -1)
    stream = io.BytesIO()
    np.save(stream, numbers, allow_pickle=False)
    return stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o644, 0
    tar.addfile(member, io.BytesIO(content))


def tar_folder_is_apart(tars: str | os.PathLike[str], rows: str | os.PathLike[str]) -> bool:
    """Whether tars lie outside of the folder of rows, whose readers take all files for Parquet."""
    return not Path(os.path.realpath(tars)).is_relative_to(os.path.realpath(rows))


__all__ = ["tar_folder_is_apart", "write_tar"]
