# SPDX-License-Identifier: Apache-2.0
"""Tasks are known by their names, and a mistake in one is told."""

import pytest

from speech_tokenizers.modeling.speech_lm_tasks import TASKS, Task, find_task, register_task


def test_a_task_says_what_it_answers_and_needs():
    found = {name: (task.output, task.columns, task.metrics, task.is_closed) for name, task in TASKS.items()}
    labels = ("accuracy", "macro_f1")
    assert found == {
        "tts": ("speech", ("text", "audio_codes"), (), False),
        "asr": ("text", ("audio_codes", "text"), ("wer", "cer"), False),
        "continuation": ("speech", ("audio_codes",), (), False),
        "phones": ("text", ("audio_codes", "pronunciation"), ("per",), False),
        "keyword": ("text", ("audio_codes", "keyword"), labels, True),
        "slots": ("text", ("audio_codes", "slots"), ("slots_right", "slot_f1"), False),
        "emotion": ("text", ("audio_codes", "emotion"), labels, True),
        "translate": ("text", ("audio_codes", "translation"), ("bleu", "chrf"), False),
    }
    assert len({task.instruction for task in TASKS.values()}) == len(TASKS)  # each can be told from the others


def test_a_registered_task_is_found_and_not_replaced_by_accident(monkeypatch):
    monkeypatch.setattr("speech_tokenizers.modeling.speech_lm_tasks.TASKS", dict(TASKS))
    task = Task(
        "accent", "Name the accent", source="audio_codes", target="accent", metrics=["accuracy"], is_closed=True
    )
    assert task.metrics == ("accuracy",)
    assert register_task(task) is task
    assert find_task("accent") is register_task(task) is find_task(task)
    other = Task("accent", "Name the land", source="audio_codes", target="accent")
    with pytest.raises(ValueError, match="task 'accent' already"):
        register_task(other)
    assert register_task(other, replace=True) is find_task("accent")


def test_a_mistake_is_told():
    with pytest.raises(ValueError, match="no task 'ttss'; choose one of tts, asr, continuation"):
        find_task("ttss")
    with pytest.raises(ValueError, match="`instruction` of a task"):
        Task("x", " ", source="text", target="audio_codes")
    with pytest.raises(ValueError, match="reads `text` and answers it"):
        Task("copy", "Copy", source="text", target="text")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": "wer"}, "`metrics` of a task must be a tuple of names, but is 'wer'"),
        ({"metrics": ("wer", "")}, "must be a tuple of names"),
        ({"metrics": ("wer", "wer")}, "names one twice: wer, wer"),
        ({"is_closed": "yes"}, "must be True or False, but is 'yes'"),
        ({"source": "text", "target": "audio_codes", "metrics": ("wer",)}, "answers by speech"),
        ({"source": "text", "target": "audio_codes", "is_closed": True}, "answers by speech"),
    ],
)
def test_metrics_and_labels_belong_to_answers_of_text(changes, message):
    with pytest.raises(ValueError, match=message):
        Task(**{"name": "x", "instruction": "Do", "source": "audio_codes", "target": "text", **changes})
