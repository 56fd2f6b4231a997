# SPDX-License-Identifier: Apache-2.0
"""One small corpus in all the forms that corpora have."""

import io
import json
import tarfile

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile


@pytest.fixture
def corpus(tmp_path):
    """Folder of eight recordings with metadata, one of which is no audio."""
    folder = tmp_path / "speech"
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w") as file:
        for number in range(8):
            samples = np.random.default_rng(number).normal(0, 0.1, 3000 + 700 * (number * 5 % 8))
            soundfile.write(folder / f"{number}.wav", samples, 16000)
            words = [{"word": str(number), "start": 0.0, "end": 0.1}]
            line = {"file_name": f"{number}.wav", "text": str(number), "words": words, "take": number}
            print(json.dumps(line | {"split": "eval" if number > 5 else "train"}), file=file)
    (folder / "4.wav").write_bytes(b"no audio")
    return folder


@pytest.fixture
def as_parquet(corpus, tmp_path):
    """Folder of two Parquet files with the recordings of `corpus`, in row groups of three."""
    folder = tmp_path / "parquet"
    folder.mkdir()
    audio = {"audio": datasets.Audio(16000), "text": datasets.Value("string"), "take": datasets.Value("int64")}
    schema = datasets.Features(audio).arrow_schema
    for number, names in enumerate((range(5), range(5, 8))):
        rows = [
            {"audio": {"bytes": (corpus / f"{n}.wav").read_bytes(), "path": f"{n}.wav"}, "text": str(n), "take": n}
            for n in names
        ]
        table = pyarrow.Table.from_pylist(rows, schema=schema)
        pyarrow.parquet.write_table(table, folder / f"{number}.parquet", row_group_size=3)
    return folder


@pytest.fixture
def as_tars(corpus, tmp_path):
    """Folder of two tars of WebDataset with the recordings of `corpus`."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number, names in enumerate((range(5), range(5, 8))):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for n in names:
                add(tar, f"{n}.wav", (corpus / f"{n}.wav").read_bytes())
                add(tar, f"{n}.json", json.dumps({"text": str(n), "take": n}).encode())
    return folder


def add(tar, name, content):
    """Put a member into an open tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
