# SPDX-License-Identifier: Apache-2.0

import pytest

from speech_tokenizers.cli import main
from speech_tokenizers.coding.command_options import choose_device
from speech_tokenizers.evaluation.clips import read_clips
from speech_tokenizers.evaluation.units.comparison import read_spoken_clips


@pytest.mark.parametrize("command", [("evaluate",), ("evaluate", "retention"), ("evaluate", "units")])
@pytest.mark.parametrize("limit", ["0", "-3", "2.5", "all"])
def test_a_limit_that_leaves_no_clip_is_refused(tmp_path, capsys, command, limit):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--data", str(tmp_path), "-o", str(tmp_path / "out"), f"--limit={limit}"])
    assert ended.value.code == 2
    assert f"--limit: must be a whole number of at least 1, but is '{limit}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [0, -1])
def test_functions_that_read_clips_refuse_such_a_limit_too(tmp_path, limit):
    with pytest.raises(ValueError, match=f"`limit` must be at least 1, but got {limit}"):
        read_clips(tmp_path, None, None, limit)
    with pytest.raises(ValueError, match=f"`limit` must be at least 1, but got {limit}"):
        read_spoken_clips(str(tmp_path), {}, limit=limit)


def test_a_device_that_holds_no_numbers_is_refused():
    assert choose_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="--device meta: it holds shapes without numbers"):
        choose_device("meta")
