# SPDX-License-Identifier: Apache-2.0
"""A speech language model that has learnt by heart what a few clips are, small enough for a test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from helpers.tiny_speaking_lm import tiny_speech_lm
from speech_tokenizers.modeling.speech_lm_sequences import pad_sequences
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


def listening_lm(
    rows: Sequence[tuple[str, Mapping[str, Any]]], layout: str = "flat", steps: int = 50, **fields: Any
) -> tuple[Any, Any]:
    """A tiny model that was trained on pairs of a task and a row, and its processor; `fields` are of its config."""
    model, processor = tiny_speech_lm(layout=layout, fields=fields)
    sequences = [processor.row_inputs(row, task) for task, row in rows]
    batch = pad_sequences(sequences, processor.pad_token_id, "right")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval(), processor


def save_with_codec(model: Any, processor: Any, folder: Path) -> Path:
    """A folder that `load_speech_lm` reads."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model.codec.save_pretrained(folder / "codec")
    RVQCodecFeatureExtractor(sampling_rate=model.codec.sampling_rate).save_pretrained(folder / "codec")
    return folder
