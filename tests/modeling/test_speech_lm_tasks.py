# SPDX-License-Identifier: Apache-2.0
"""Tasks are known by their names, and a mistake in one is told."""

import pytest

from speech_tokenizers.modeling.speech_lm_tasks import TASKS, Task, find_task, register_task


def test_a_task_says_what_it_answers_and_needs():
    assert {name: (task.output, task.columns) for name, task in TASKS.items() if name != "keyword"} == {
        "tts": ("speech", ("text", "audio_codes")),
        "asr": ("text", ("audio_codes", "text")),
        "continuation": ("speech", ("audio_codes",)),
    }


def test_a_registered_task_is_found_and_not_replaced_by_accident(monkeypatch):
    monkeypatch.setattr("speech_tokenizers.modeling.speech_lm_tasks.TASKS", dict(TASKS))
    task = Task("keyword", "Name the keyword", source="audio_codes", target="keyword")
    assert register_task(task) is task
    assert find_task("keyword") is register_task(task) is find_task(task)
    other = Task("keyword", "Name the word", source="audio_codes", target="keyword")
    with pytest.raises(ValueError, match="task 'keyword' already"):
        register_task(other)
    assert register_task(other, replace=True) is find_task("keyword")


def test_a_mistake_is_told():
    with pytest.raises(ValueError, match="no task 'ttss'; choose one of tts, asr, continuation"):
        find_task("ttss")
    with pytest.raises(ValueError, match="`instruction` of a task"):
        Task("x", " ", source="text", target="audio_codes")
    with pytest.raises(ValueError, match="reads `text` and answers it"):
        Task("copy", "Copy", source="text", target="text")
