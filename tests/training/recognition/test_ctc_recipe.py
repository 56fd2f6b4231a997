# SPDX-License-Identifier: Apache-2.0
"""Stage II by a recipe: the command fine-tunes by CTC, what it saves begins stage III, and finished work is kept."""

import json
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForCTC, HubertModel, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.recognition.ctc_recipe import CTCRecipeArguments


@pytest.fixture
def recipe(tmp_path, audio_folder):
    """A recipe for a tiny encoder and six recordings with phones."""
    folder = tmp_path / "speech"
    shutil.copytree(audio_folder, folder)
    rows = [{"file_name": f"{number}.wav", "phones": "AH0 B | K"} for number in range(6)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_hubert(conv_dim=(8,) * 7)
    HubertModel(config).save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "encoder")
    contents = {
        "trainer": "ctc",
        "output_dir": str(tmp_path / "run"),
        "encoder": str(tmp_path / "encoder"),
        "data": {"train": str(folder), "column": "phones"},
        "finetuning": {"max_steps": 2, "batch_seconds": 1.0, "mask_time_length": 2, "mask_feature_length": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(contents), encoding="utf-8")
    return path


def test_what_is_saved_is_a_recogniser_and_begins_stage_three(recipe, tmp_path):
    assert main(["train", str(recipe)]) == 0
    recogniser = AutoModelForCTC.from_pretrained(tmp_path / "run")
    units = DCSpinModel.from_encoder(
        str(tmp_path / "run"), encoder_layer=2, primary_codebook_size=4, auxiliary_codebook_size=None
    )
    own, finetuned = units.encoder.state_dict(), recogniser.base_model.state_dict()
    assert own.keys() == finetuned.keys()
    assert all(torch.equal(value, finetuned[name]) for name, value in own.items())
    assert not units.config.do_normalize

    time_of = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", str(recipe)]) == 0
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == time_of


def test_other_settings_are_refused(recipe, capsys):
    assert main(["train", str(recipe)]) == 0
    assert main(["train", str(recipe), "finetuning.max_steps=3"]) == 2
    assert "begun with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetuning.max_stesp=3", "did you mean `finetuning.max_steps`"),
        ("unit=word", "`unit` must be 'phone' or 'character'"),
        ("data.train_filtre={}", "did you mean `data.train_filter`"),
    ],
)
def test_wrong_settings_are_errors(recipe, override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(str(recipe), [override], CTCRecipeArguments)


def test_a_recipe_does_not_learn_from_what_it_measures_on(recipe, tmp_path, capsys):
    path = tmp_path / "speech" / "metadata.jsonl"
    path.write_text(path.read_text().replace("B | K", "Z", 1))
    assert main(["train", str(recipe), "data.eval_filter={phones: AH0 Z}"]) == 0
    assert "1 of 6 recordings (first '0.wav')" in capsys.readouterr().err
    assert "Z" not in json.loads((tmp_path / "run" / "vocab.json").read_text())
    assert main(["train", str(recipe), "data.eval_filter={phones: AH0 Z}", "data.language=tr"]) == 2
    assert "`data.language` was 'en' and is 'tr'" in capsys.readouterr().err
