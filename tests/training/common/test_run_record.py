# SPDX-License-Identifier: Apache-2.0
"""What a run was begun with: what differs is refused by its name, and a move or a longer run is no difference."""

import json
import shutil
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.processing.recordings import load_recordings
from speech_tokenizers.training.common.run_record import RunRecord, fingerprint_of, inputs_changed, recordings_of


@dataclass
class Data:
    train: str
    num_workers: int = 0


@dataclass
class Settings:
    trainer: ClassVar[str] = "tiny"

    output_dir: str
    data: Data
    encoder: str = "here"
    learning_rate: float = 0.1
    max_steps: int = 10
    save_steps: int = 5
    options: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def speech(tmp_path, write_audio):
    """A folder of three recordings with texts."""
    folder = tmp_path / "speech"
    for number, name in enumerate(("a", "b", "c")):
        write_audio(folder / f"{name}.wav", seconds=0.2 + 0.1 * number)
    write_texts(folder, {"a": "one", "b": "two", "c": "three"})
    return folder


def write_texts(folder, texts):
    rows = [{"file_name": f"{name}.wav", "text": text} for name, text in texts.items()]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def record(folder, speech, *, inputs=None, finished=(), **changes) -> RunRecord:
    args = Settings(output_dir=str(folder), data=Data(str(speech)), **changes)
    if inputs is None:
        inputs = {"data.train": recordings_of(load_recordings(str(speech)), ["text"])}
    return RunRecord(folder, args, inputs, finished)


def test_a_moved_run_and_moved_recordings_go_on(speech, tmp_path, capsys):
    record(tmp_path / "run", speech).keep()
    shutil.move(tmp_path / "run", tmp_path / "moved run")
    shutil.move(speech, tmp_path / "moved speech")
    record(tmp_path / "moved run", tmp_path / "moved speech", save_steps=7).keep()
    assert "goes on" not in capsys.readouterr().err


def test_a_longer_run_goes_on_with_a_word_until_it_is_finished(speech, tmp_path, capsys):
    record(tmp_path, speech).keep()
    record(tmp_path, speech, max_steps=20).keep()
    assert "`max_steps` was 10 and is 20" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`max_steps` was 20 and is 30"):
        record(tmp_path, speech, max_steps=30, finished=("",)).keep()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.2}, "`learning_rate` was 0.1 and is 0.2"),
        ({"options": {"size": 3}}, "`options.size` was None and is 3"),
        ({"learning_rate": 0.2, "options": {"size": 3}}, "`learning_rate` was 0.1 and is 0.2; `options.size`"),
    ],
)
def test_another_setting_is_refused_by_its_name(speech, tmp_path, changes, message):
    record(tmp_path, speech).keep()
    with pytest.raises(ValueError, match=message):
        record(tmp_path, speech, **changes).keep()


def test_other_recordings_are_refused_by_their_names(speech, tmp_path, write_audio):
    folder = tmp_path / "run"
    record(folder, speech).keep()

    def refused(message):
        with pytest.raises(ValueError, match=message):
            record(folder, speech).keep()

    write_texts(speech, {"a": "one", "b": "zwei", "c": "three"})
    refused(r"`data.train`: `text` has other values for 1 \('b.wav'\)")
    write_texts(speech, {"b": "two", "a": "one", "c": "three"})
    refused("the same recordings, but in another order")
    write_texts(speech, {"a": "one", "b": "two"})
    refused(r"recordings 1 \('c.wav'\) removed")
    write_audio(speech / "d.wav", seconds=0.3, sampling_rate=8000)
    write_texts(speech, {"a": "one", "b": "two", "c": "three", "d": "four"})
    refused(r"recordings 1 \('d.wav'\) added")
    write_texts(speech, {"a": "one", "b": "two", "c": "three"})
    record(folder, speech).keep()
    write_audio(speech / "b.wav", seconds=0.3, subtype="PCM_24")
    refused(r"recordings 1 \('b.wav'\) with other audio under the same name")


def test_another_vocabulary_and_another_encoder_are_refused_by_name():
    before = {"vocabulary": ["a", "b", "c"], "encoder": "1", "gone": "2"}
    assert inputs_changed(before, {"vocabulary": ["a", "b", "d"], "encoder": "1", "later": "3"}) == {
        "vocabulary": "new 'd'; gone 'c'"
    }
    assert inputs_changed(before, {"vocabulary": ["b", "a", "c"], "encoder": "4"}) == {
        "vocabulary": "the same names, but in another order",
        "encoder": "it has other contents",
    }


def test_an_encoder_is_known_by_its_weights_wherever_it_lies(tmp_path):
    torch.manual_seed(0)
    for name in ("one", "two"):
        HubertModel(tiny_hubert(conv_dim=(8,) * 7)).save_pretrained(tmp_path / name)
        Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / name)
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    assert fingerprint_of(tmp_path / "one") == fingerprint_of(tmp_path / "moved") != fingerprint_of(tmp_path / "two")
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    (tmp_path / "moved" / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert fingerprint_of(tmp_path / "one") == fingerprint_of(tmp_path / "moved")
    (tmp_path / "moved" / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert fingerprint_of(tmp_path / "one") != fingerprint_of(tmp_path / "moved")
    assert fingerprint_of("someone/nothing-of-this-name") == "someone/nothing-of-this-name"


@pytest.mark.parametrize("name", ["recipe.yaml", "inputs.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"3"])
def test_a_damaged_record_is_named_with_what_to_do(speech, tmp_path, name, content):
    record(tmp_path, speech).keep()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged.*restore it.*delete it"):
        record(tmp_path, speech).keep()


def test_a_run_that_is_older_than_its_record_goes_on_with_a_word(speech, tmp_path, capsys):
    record(tmp_path, speech).keep()
    (tmp_path / "inputs.json").unlink()
    record(tmp_path, speech).keep()
    assert "data.train of its beginning are not known" in capsys.readouterr().err
    record(tmp_path, speech).keep()
    assert "goes on" not in capsys.readouterr().err


def test_a_model_is_known_by_its_feature_extractor_and_tokenizer_too(tmp_path):
    folder = tmp_path / "model"
    HubertModel(tiny_hubert()).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    (folder / "vocab.json").write_text('{"a": 0, "b": 1}')
    before = fingerprint_of(folder)
    (folder / "trainer_state.json").write_text("{}")
    assert fingerprint_of(folder) == before
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert inputs_changed({"encoder": before}, {"encoder": fingerprint_of(folder)}) != {}
    # What an older version wrote says nothing of these files.
    assert inputs_changed({"encoder": before.partition("+")[0]}, {"encoder": fingerprint_of(folder)}) == {}


def test_settings_that_are_gone_are_told(speech, tmp_path, capsys):
    record(tmp_path / "run", speech).keep()
    (tmp_path / "run" / "recipe.yaml").unlink()
    record(tmp_path / "run", speech, learning_rate=0.2).keep()
    assert "recipe.yaml is missing, so its settings are taken to be these" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"data.train": []}', '{"data.train": {}}', '{"data.train": {"names": ["a"]}}'])
def test_inputs_of_another_shape_are_refused_with_what_to_do(speech, tmp_path, content):
    record(tmp_path / "run", speech).keep()
    (tmp_path / "run" / "inputs.json").write_text(content)
    with pytest.raises(ValueError, match=r"inputs.json.*restore"):
        record(tmp_path / "run", speech).keep()
