# SPDX-License-Identifier: Apache-2.0
"""Rows of latents come back as they were written, are never taken for rows of codes, and change nothing of these."""

import dataclasses
import json

import datasets
import numpy as np
import pytest

from speech_tokenizers.processing.speech_row_format import RowsFacts, SpeechRowsError, read_shard_metadata
from speech_tokenizers.processing.speech_rows import (
    SpeechRowsWriter,
    read_rows_facts,
    read_speech_rows,
    row_audio_codes,
    row_audio_latents,
)


CODES = RowsFacts("tiny", "0123", "4567", 2, 1024, 50.0, 16000)
LATENTS = RowsFacts("tiny", "0123", "4567", None, None, 50.0, 16000, "latents", 3)


def row(number: int, facts: RowsFacts = LATENTS) -> dict:
    generator = np.random.default_rng(number)
    tokens = generator.normal(0, 3, (4 + number, 3)).astype(np.float32)
    if facts.kind == "codes":
        tokens = generator.integers(1024, size=(2, 4 + number))
    return {"id": f"r{number}", "text": "a", facts.column: tokens, "seconds": (4 + number) / 50}


def write(folder, facts=LATENTS, **options):
    rows = [row(number, facts) for number in range(3)]
    with SpeechRowsWriter(folder, facts, 2, **options) as writer:
        writer.write(0, rows[:2], ["r0", "r1"])
        writer.write(1, rows[2:], ["r2"])
        writer.finish(2)
    return rows


def test_latents_come_back_rounded_to_float16(tmp_path):
    written = write(tmp_path)
    read = read_speech_rows(tmp_path, "0123", kind="latents")
    assert read.features["audio_latents"] == datasets.List(datasets.Value("float16"))
    for one, other in zip(read, written, strict=True):
        latents, exact = row_audio_latents(one), other["audio_latents"]
        assert np.array_equal(latents, exact.astype(np.float16))
        assert (np.abs(latents - exact) <= 2.0**-11 * np.abs(exact)).all()
        assert (one["latent_dim"], one["num_frames"]) == (3, len(exact))
    assert read_rows_facts(tmp_path) == LATENTS
    assert len(datasets.load_dataset("parquet", data_dir=str(tmp_path), split="train")) == 3


def test_two_runs_write_the_same_bytes(tmp_path):
    for name in "ab":
        write(tmp_path / name)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert first == second


def test_rows_of_codes_say_what_they_said_before_there_were_rows_of_latents(tmp_path):
    write(tmp_path, CODES)
    facts = {"codec", "codec_fingerprint", "encoder_fingerprint", "num_quantizers", "codebook_size"}
    facts |= {"format", "format_version", "frame_rate", "sampling_rate", "rows_per_shard", "num_rows", "seconds"}
    said = read_shard_metadata(tmp_path / "rows-00000.parquet")
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert said.keys() == facts | {"inputs", "set_aside"}
    assert info.keys() == facts | {"num_set_aside", "shards"}
    assert said["format_version"] == info["format_version"] == 1
    assert read_rows_facts(tmp_path) == CODES


def test_rows_of_the_other_kind_are_refused_with_the_command_that_gives_the_needed_ones(tmp_path):
    write(tmp_path / "codes", CODES)
    write(tmp_path / "latents")
    with pytest.raises(SpeechRowsError, match="holds codes, but latents are needed; .* --model tiny --kind latents"):
        read_speech_rows(tmp_path / "codes", kind="latents")
    with pytest.raises(SpeechRowsError, match="holds latents, but codes are needed; .*by a codec with codebooks"):
        read_speech_rows(tmp_path / "latents", kind="codes")
    with pytest.raises(ValueError, match="`row` 'r0' holds codes, but latents are needed"):
        row_audio_latents(read_speech_rows(tmp_path / "codes")[0])
    with pytest.raises(ValueError, match="`row` 'r0' holds latents, but codes are needed"):
        row_audio_codes(read_speech_rows(tmp_path / "latents")[0])
    shards = [tmp_path / kind / "rows-00000.parquet" for kind in ("codes", "latents")]
    with pytest.raises(SpeechRowsError, match="was made with kind=latents instead of kind=codes"):
        read_speech_rows(shards)


def test_rows_of_another_codec_are_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(SpeechRowsError, match=r"holds latents of 'tiny' \(fingerprint 0123\).* --kind latents"):
        read_speech_rows(tmp_path, "89ab")


def test_rows_of_one_kind_are_not_continued_by_the_other(tmp_path):
    write(tmp_path)
    with pytest.raises(SpeechRowsError, match="was made with kind=latents instead of kind=codes; choose another"):
        write(tmp_path, CODES)
    with pytest.raises(SpeechRowsError, match="was made with latent_dim=3 instead of latent_dim=4"):
        write(tmp_path, dataclasses.replace(LATENTS, latent_dim=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 3}, "`audio_latents` of 'r0' has 12 numbers, but 3 frames of 3 were expected"),
        ({"latent_dim": 6}, "`audio_latents` of 'r0' has 12 numbers, but 4 frames of 6 were expected"),
        ({"audio_latents": [[1.0] * 3] * 4}, "`audio_latents` of 'r0' has 12 numbers"),
        ({"audio_latents": [float("inf")] * 12}, "`audio_latents` of 'r0' are not all finite"),
    ],
)
def test_a_damaged_row_is_refused(tmp_path, change, message):
    write(tmp_path)
    read = read_speech_rows(tmp_path)[0]
    with pytest.raises(ValueError, match=message):
        row_audio_latents(read | change)
    del read["latent_dim"]
    with pytest.raises(ValueError, match="`row` lacks 'latent_dim'; read these columns too"):
        row_audio_latents(read)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros((4, 2)), r"must have shape \(num_frames, 3\), but got \(4, 2\)"),
        (np.zeros((0, 3)), r"must have shape \(num_frames, 3\), but got \(0, 3\)"),
        (np.zeros(12), r"must have shape \(num_frames, 3\), but got \(12,\)"),
        (np.full((4, 3), 65505.0), "'r0' has a latent of 65505, but the float16 of rows ends at 65504"),
        (np.full((4, 3), np.nan), "'r0' has a latent of nan"),
    ],
)
def test_latents_that_rows_cannot_hold_are_not_written(tmp_path, latents, message):
    with SpeechRowsWriter(tmp_path, LATENTS) as writer, pytest.raises(ValueError, match=message):
        writer.write(0, [row(0) | {"audio_latents": latents}], ["a"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "units"}, "holds 'units', of which this package knows nothing"),
        ({"format_version": 1}, "has version 1 of the format, but this package reads 2 for rows of latents"),
        ({"latent_dim": None}, "is not what `encode-rows` writes"),
        ({"num_quantizers": 2}, "is not what `encode-rows` writes"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, change, message):
    write(tmp_path)
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | change))
    with pytest.raises(SpeechRowsError, match=message):
        read_speech_rows(tmp_path)
