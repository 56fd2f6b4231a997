# SPDX-License-Identifier: Apache-2.0
"""From what a user asks for to a plan that can be run, or continued."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech_tokenizers.coding.corpus.plan import CorpusPlan, continue_plan, plan_folder, write_plan
from speech_tokenizers.coding.corpus.step import CorpusStep, loaded_model, worker_device


@dataclass(frozen=True)
class CorpusRequest:
    """
    A corpus, a model, and a folder of rows.

    Args:
        data (`str`): The corpus; see [`find_corpus`].
        output (`str`): Folder of the rows.
        model (`str`): Name, folder or Hub id of the model.
        codec_name (`str`, *optional*): Name by which rows call the model. Defaults to `model`.
        num_quantizers (`int`, *optional*): Number of first codebooks to keep. Defaults to all.
        kind (`str`, *optional*): `"codes"` or `"latents"`. Defaults to the model's own.
        deduplicate (`bool`, *optional*, defaults to `False`): Whether runs of equal frames become one code with a
            duration.
        text_column, times (`str`, *optional*): See [`RowFields`].
        filter_by (`dict`), file_list, split, config, audio_column (`str`, *optional*): See [`find_corpus`].
        rows_per_shard (`int`, *optional*, defaults to 1000): Number of recordings in a shard.
    """

    data: str
    output: str
    model: str
    codec_name: str | None = None
    num_quantizers: int | None = None
    kind: str | None = None
    deduplicate: bool = False
    text_column: str | None = None
    times: str | os.PathLike[str] | None = None
    filter_by: dict[str, Any] = field(default_factory=dict)
    file_list: str | None = None
    split: str | None = None
    config: str | None = None
    audio_column: str = "audio"
    rows_per_shard: int = 1000


@contextlib.contextmanager
def prepared_corpus(
    request: CorpusRequest, step: CorpusStep, overwrite: bool = False, retry_set_aside: bool = False
) -> Iterator[tuple[CorpusPlan, Sequence[str]]]:
    """
    Make a plan, or find the one that is there and is the same. No other process prepares or runs it within the block.

    Args:
        request ([`CorpusRequest`]): What is asked for.
        step ([`CorpusStep`]): What will run it; its plan is that of [`plan_folder`].
        overwrite (`bool`, *optional*, defaults to `False`): Whether to remove the rows that are there.
        retry_set_aside (`bool`, *optional*, defaults to `False`): Whether to make shards anew that lack recordings.

    Returns:
        A context of `tuple`: The plan, and what a user should know of its columns.

    Raises:
        CorpusPlanError, SpeechRowsError: If there are rows that were made otherwise.
        ValueError: If the corpus or the model is not what the rows need.
        OSError: If the folder cannot be written, or another process writes it.
    """
    from speech_tokenizers.coding.corpus.sources import find_corpus
    from speech_tokenizers.coding.row_coding import RowCoding, RowFields
    from speech_tokenizers.processing.speech_rows import SpeechRowsWriter

    source = find_corpus(
        request.data, request.filter_by, request.file_list, request.split, request.audio_column, request.config
    )
    fields = RowFields(source.recordings, request.text_column, request.times)
    model, feature_extractor = loaded_model(request.model, worker_device(step.device))
    coding = RowCoding(
        model,
        feature_extractor,
        request.codec_name or request.model,
        fields,
        request.num_quantizers,
        step.batch_seconds,
        request.kind,
        request.deduplicate,
    )
    folder = plan_folder(request.output)
    with SpeechRowsWriter(
        os.path.abspath(request.output), coding.facts, request.rows_per_shard, fields.others, overwrite
    ) as writer:
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
            for tar in Path(step.webdataset).glob("rows-*.tar") if step.webdataset is not None else ():
                tar.unlink()
        new = write_plan(folder.with_name(f".{folder.name}.new"), source, fields, writer.shards, _options(step))
        plan = continue_plan(folder, new)
        writer.check_number_of_shards(plan.num_tasks)
        for number in range(plan.num_tasks) if retry_set_aside else ():
            if (said := plan.done(number)) is not None and said["set_aside"]:
                plan.done_path(number).unlink()
                (plan.shards.folder / f"{_shard_name(number)}").unlink(missing_ok=True)
        if plan.undone():
            writer.unfinish()
        yield plan, fields.told


def num_shards_there(plan: CorpusPlan, numbers: Sequence[int]) -> int:
    """How many of these tasks have a shard already, which only has to be compared with its recordings."""
    return sum((plan.shards.folder / _shard_name(number)).exists() for number in numbers)


def _options(step: CorpusStep) -> dict[str, Any]:
    webdataset = None if step.webdataset is None else os.path.abspath(step.webdataset)
    return {"webdataset": webdataset, "batch_seconds": step.batch_seconds}


def _shard_name(number: int) -> str:
    from speech_tokenizers.processing.speech_row_format import shard_name

    return shard_name(number)


@dataclass(frozen=True)
class StoredRows:
    """
    What a complete folder takes on the disk.

    Args:
        num_rows (`int`): Number of rows.
        num_set_aside (`int`): Number of recordings that were set aside.
        seconds (`float`): Length of the recordings, in seconds.
        num_bytes (`int`): Bytes of all shards.
        bits_per_code (`float`, *optional*): Bits that a code (or a number of a latent) takes in the files.
        packed_bits_per_code (`float`, *optional*): What it would take without compression: Parquet's dictionary stores
            each code in as many bits as the codes that occur in a shard need.
    """

    num_rows: int
    num_set_aside: int
    seconds: float
    num_bytes: int
    bits_per_code: float | None
    packed_bits_per_code: float | None


def stored_rows(folder: str | os.PathLike[str]) -> StoredRows:
    """
    Measure a complete folder of rows.

    Raises:
        OSError, KeyError: If it is not complete.
    """
    import json

    import pyarrow.parquet

    from speech_tokenizers.processing.speech_row_format import facts_in
    from speech_tokenizers.processing.speech_rows import INFO_NAME

    info = json.loads((Path(folder) / INFO_NAME).read_text(encoding="utf-8"))
    column = facts_in(info).column
    num_codes = packed = compressed = num_bytes = 0
    for name in info["shards"]:
        path = Path(folder) / name
        num_bytes += path.stat().st_size
        footer = pyarrow.parquet.read_metadata(path)
        for group in range(footer.num_row_groups):
            for index in range(footer.num_columns):
                chunk = footer.row_group(group).column(index)
                if chunk.path_in_schema.split(".")[0] == column:
                    num_codes += chunk.num_values
                    packed += chunk.total_uncompressed_size
                    compressed += chunk.total_compressed_size
    return StoredRows(
        info["num_rows"],
        info["num_set_aside"],
        info["seconds"],
        num_bytes,
        8 * compressed / num_codes if num_codes else None,
        8 * packed / num_codes if num_codes else None,
    )


__all__ = ["CorpusRequest", "StoredRows", "num_shards_there", "prepared_corpus", "stored_rows"]
