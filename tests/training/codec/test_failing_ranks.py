# SPDX-License-Identifier: Apache-2.0
"""Where one of several processes fails, the others do not wait for it for ever."""

from pathlib import Path

import pytest

from helpers.processes import end_of_ranks


@pytest.mark.parametrize("when", ["before", "step"])
def test_a_rank_that_fails_ends_the_others(recipe_file, when):
    first, last = end_of_ranks(Path(__file__).with_name("fail_in_one_rank.py"), when, recipe_file(max_steps=1000))
    assert last.returncode == 2, last.output
    assert "this rank fails" in last.output
    # It ends by itself, and not well.
    assert first.returncode not in (None, 0), first.output
