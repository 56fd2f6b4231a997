# SPDX-License-Identifier: Apache-2.0
"""A dataset of a Hub is encoded piece by piece: what is not asked for is not transferred."""

import io

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from helpers.fake_hub import FakeHub
from helpers.online import run_online
from speech_tokenizers.processing.speech_rows import read_speech_rows


@pytest.fixture
def dataset():
    """Two Parquet files of six recordings with texts, and a column of another split."""
    features = datasets.Features({"audio": datasets.Audio(16000), "text": datasets.Value("string")})
    files = {}
    for number in range(2):
        rows = []
        for take in range(3 * number, 3 * number + 3):
            stream = io.BytesIO()
            soundfile.write(stream, np.random.default_rng(take).normal(0, 0.1, 80000), 16000, format="WAV")
            rows.append({"audio": {"bytes": stream.getvalue(), "path": f"{take}.wav"}, "text": f"number {take}"})
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=features.arrow_schema), sink)
        files[f"data/train-{number:05d}-of-00002.parquet"] = sink.getvalue()
    files["data/test-00000-of-00001.parquet"] = files["data/train-00000-of-00002.parquet"]
    return files


def test_a_dataset_of_the_hub_gives_the_rows_of_its_files(dataset, tiny_checkpoint, tmp_path):
    local = tmp_path / "local"
    local.mkdir()
    for name, content in dataset.items():
        if "train" in name:
            (local / name.rpartition("/")[-1]).write_bytes(content)
    fixed = ["--model", tiny_checkpoint, "--device", "cpu", "--rows-per-shard", 2]
    with FakeHub() as hub:
        hub.repositories["datasets/someone/speech"] = {"main": [dataset]}
        for code, _, errors in run_online(
            hub,
            tmp_path,
            [
                ["encode-corpus", "someone/speech", "-o", "rows", *fixed],
                ["encode-corpus", local, "-o", "expected", *fixed],
                ["verify-corpus", "rows", "--device", "cpu"],
            ],
        ):
            assert code == 0, errors
        assert not any("test-00000" in path and "resolve" in path for _, path in hub.requests)
    rows = read_speech_rows(tmp_path / "rows")
    assert rows["text"][:] == [f"number {take}" for take in range(6)]
    assert rows["audio_codes"][:] == read_speech_rows(tmp_path / "expected")["audio_codes"][:]
    # The dataset was not downloaded: neither its files nor a copy of them are in the cache.
    cached = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert cached < 100_000 < sum(map(len, dataset.values()))
