# SPDX-License-Identifier: Apache-2.0
"""An output that cannot be written is known before the work, in the commands that write one thing."""

import pytest

from speech_tokenizers.processing.unit_exports import save_km
from speech_tokenizers.processing.whole_files import check_folder_is_writable


@pytest.mark.parametrize(
    ("work", "arguments"),
    [
        (
            "speech_tokenizers.processing.unit_bpe.train_unit_bpe",
            ["units-bpe", "units.km", "--codebook-size", 3, "--vocab-size", 6],
        ),
        ("speech_tokenizers.coding.loading.load", ["demo"]),
        ("speech_tokenizers.conversion.speechtokenizer.convert_checkpoint", ["convert", "weights.pt"]),
        ("speech_tokenizers.training.language_models.head_comparison.compare_heads", ["compare-heads"]),
    ],
)
def test_a_place_below_a_file_is_refused_before_the_work(run, monkeypatch, tmp_path, work, arguments):
    def fail(*_, **__):
        raise AssertionError("this could have been known before")

    monkeypatch.setattr(work, fail)
    monkeypatch.chdir(tmp_path)
    save_km("units.km", [[0, 1, 2]])
    (tmp_path / "file").touch()
    code, errors = run(*arguments, "-o", "file/out")
    assert code == 2
    assert "file" in errors[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "units.km"]


def test_a_folder_is_tried_without_being_made(tmp_path):
    check_folder_is_writable(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        check_folder_is_writable(tmp_path / "file" / "folder")
