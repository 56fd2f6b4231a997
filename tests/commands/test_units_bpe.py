# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers units-bpe` learns from the files that `speech-tokenizers units` writes."""

import numpy as np
import pytest

from speech_tokenizers.cli import main
from speech_tokenizers.processing.unit_bpe import UnitBPE, train_unit_bpe
from speech_tokenizers.processing.unit_exports import UnitLine, save_km, save_unit_lines
from speech_tokenizers.processing.unit_sequences import deduplicate


@pytest.fixture
def sequences():
    """Frames of three units, with runs."""
    generator = np.random.default_rng(0)
    return [np.repeat(generator.integers(0, 3, 40), generator.integers(1, 4, 40)) for _ in range(5)]


def train(folder, *inputs, vocab_size=12):
    arguments = [*inputs, "-o", folder / "bpe", "--codebook-size", 3, "--vocab-size", vocab_size]
    return main(["units-bpe", *list(map(str, arguments))])


@pytest.mark.parametrize("kind", ["km", "km and durations", "jsonl", "jsonl with durations"])
def test_every_kind_of_file_gives_the_same_merges(tmp_path, capsys, sequences, kind):
    runs = [deduplicate(frames) for frames in sequences]
    path = tmp_path / ("units.km" if "km" in kind else "units.jsonl")
    if kind == "km":
        save_km(path, sequences)
    elif kind == "km and durations":
        save_km(path, [units for units, _ in runs])
        save_km(tmp_path / "units.durations", [durations for _, durations in runs])
    else:
        pairs = runs if "with durations" in kind else [(frames, None) for frames in sequences]
        save_unit_lines(path, [UnitLine(str(index), *pair) for index, pair in enumerate(pairs)])
    assert train(tmp_path, path) == 0
    expected = train_unit_bpe(sequences, 3, 12)
    assert UnitBPE.from_pretrained(tmp_path / "bpe").tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    printed = capsys.readouterr().out
    assert "12 ids for 3 units, from 5 recordings" in printed
    assert f"frames_per_unit               {expected.compression(sequences, 50)['frames_per_unit']:.4g}" in printed


def test_wrong_usage_is_one_line(tmp_path, capsys, sequences):
    save_km(tmp_path / "units.km", sequences)

    def error(*arguments, **kwargs):
        assert train(tmp_path, *arguments, **kwargs) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("speech-tokenizers units-bpe: error: ")
        return line

    assert "no such file" in error(tmp_path / "missing.km")
    assert "`vocab_size` must be at least 5" in error(tmp_path / "units.km", vocab_size=4)
    save_unit_lines(tmp_path / "two.jsonl", [UnitLine("a", np.zeros((2, 3), dtype=int))])
    assert "merge one codebook at a time" in error(tmp_path / "two.jsonl")
    assert not (tmp_path / "bpe").exists()
    assert train(tmp_path, tmp_path / "units.km") == 0
    assert "pass --overwrite" in error(tmp_path / "units.km")
    save_km(tmp_path / "units.durations", [[1]])
    (tmp_path / "bpe" / "tokenizer.json").unlink()
    assert "has 1 lines, but" in error(tmp_path / "units.km")
