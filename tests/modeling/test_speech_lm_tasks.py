# SPDX-License-Identifier: Apache-2.0
"""Tasks are known by their names, and a mistake in one is told."""

import pytest

from helpers.tiny_speaking_lm import tiny_codec, tiny_lm
from speech_tokenizers.modeling.configuration_speech_lm import SpeechLMConfig
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.speech_lm_tasks import (
    TASKS,
    Task,
    defined_tasks,
    find_task,
    register_task,
    task_definitions,
)
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


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


ACCENT = {"instruction": "Name the accent", "target": "accent", "is_closed": True}


def test_definitions_are_plain_values_and_tasks():
    tasks = defined_tasks({"accent": ACCENT, "asr": {"instruction": "Transcribe", "target": "text",
                                                     "metrics": ["wer", "cer"]}})  # fmt: skip
    assert tasks["accent"] == Task("accent", "Name the accent", "audio_codes", "accent", is_closed=True)
    assert tasks["asr"] == TASKS["asr"]
    full = {"accent": {**ACCENT, "source": "audio_codes", "metrics": []}}
    assert task_definitions(tasks) == full  # what the package has needs no definition
    assert defined_tasks(full) == {"accent": tasks["accent"]}


def test_two_models_may_have_tasks_of_one_name(tmp_path):
    """Each keeps its own through its files, and none is known to all."""
    asked = {}
    for number, instruction in enumerate(("Name the accent", "Name the land")):
        fields = {"accent": {**ACCENT, "instruction": instruction}}
        codec = tiny_codec()
        extractor = RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate)
        made = SpeechLMProcessor.from_tokenizer(build_speech_vocabulary(), codec, extractor, new_tasks=fields)
        lm = tiny_lm(vocab_size=made.audio_offset)
        model = SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, made, tasks=["accent"])
        model.save_pretrained(tmp_path / str(number))
        made.save_pretrained(tmp_path / str(number))
        processor = SpeechLMProcessor.from_pretrained(tmp_path / str(number))
        config = SpeechLMConfig.from_pretrained(tmp_path / str(number))
        assert config.find_task("accent") == processor.find_task("accent")
        asked[instruction] = processor, model
    assert "accent" not in TASKS
    for instruction, (processor, _) in asked.items():
        assert instruction in processor.task_prompt("accent")
    (first, _), (_, second) = asked.values()
    with pytest.raises(ValueError, match="The model has `new_tasks` others, but the processor its own"):
        first.check_model(second)


def test_a_model_is_loaded_whose_task_got_another_meaning_since(tmp_path, monkeypatch):
    codec = tiny_codec()
    extractor = RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate)
    made = SpeechLMProcessor.from_tokenizer(build_speech_vocabulary(), codec, extractor, new_tasks={"accent": ACCENT})
    lm = tiny_lm(vocab_size=made.audio_offset)
    model = SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, made, tasks=["accent", "asr"])
    model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    monkeypatch.setitem(TASKS, "accent", Task("accent", "Name the land", "audio_codes", "accent"))
    processor = SpeechLMProcessor.from_pretrained(tmp_path)
    config = SpeechLMForConditionalGeneration.from_pretrained(tmp_path).config
    assert config.new_tasks == processor.new_tasks == made.new_tasks
    for known in (processor, config):
        assert known.find_task("asr") == TASKS["asr"]
        with pytest.raises(ValueError, match="'accent' has instruction='Name the accent', but .* 'Name the land'"):
            known.find_task("accent")


def test_a_definition_never_changes_what_a_name_means(monkeypatch):
    write = {"asr": {"instruction": "Write", "target": "text"}}
    told = "'asr' has instruction='Write', but .* 'Transcribe'; give one of them"
    with pytest.raises(ValueError, match=told):
        SpeechLMConfig(new_tasks=write).find_task("asr")
    codec = tiny_codec()
    extractor = RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate)
    with pytest.raises(ValueError, match=told):
        SpeechLMProcessor.from_tokenizer(build_speech_vocabulary(), codec, extractor, new_tasks=write)
    config = SpeechLMConfig(new_tasks={"accent": ACCENT})
    monkeypatch.setitem(TASKS, "accent", Task("accent", "Name the land", "audio_codes", "accent"))
    with pytest.raises(ValueError, match="'accent' has instruction='Name the accent', but"):
        config.find_task("accent")
    for wrong in ({"instruction": "Name"}, {**ACCENT, "colour": 1}, "Name"):
        with pytest.raises(ValueError, match="a definition has `instruction` and `target`, and may have `source`"):
            defined_tasks({"mood": wrong})
