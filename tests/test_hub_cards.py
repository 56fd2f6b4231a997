# SPDX-License-Identifier: Apache-2.0
"""A model that is saved with its code takes its card along, as long as the numbers in it are true."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from speech_tokenizers.coding.loading import load
from speech_tokenizers.modeling.hub_export import save_pretrained_with_code


def test_the_card_goes_along_with_its_numbers_and_the_code_that_loads_the_repository(tmp_path):
    model, feature_extractor = load("rvq-codec-16khz-4kbps")
    save_pretrained_with_code(model, feature_extractor, tmp_path / "shared")
    text = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    original = Path(model.name_or_path, "README.md").read_text(encoding="utf-8")
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "audio-to-audio")
    assert card.data.eval_results == ModelCard(original).data.eval_results
    assert original[original.index("<details><summary>Facts") :] in text
    assert 'AutoModel.from_pretrained("USER/shared", trust_remote_code=True)' in text
    assert "from speech_tokenizers import" not in text
    for picture in ("loss_curves.png", "from_random_weights.png"):
        assert (tmp_path / "shared" / picture).read_bytes() == Path(model.name_or_path, picture).read_bytes()


def test_numbers_of_other_weights_do_not_go_along(tmp_path):
    model, feature_extractor = load("rvq-codec-16khz-4kbps")
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    save_pretrained_with_code(model, feature_extractor, tmp_path / "tuned", licence="mit", repo_id="me/tuned")
    card = ModelCard.load(tmp_path / "tuned" / "README.md")
    assert (card.data.license, card.data.pipeline_tag, card.data.eval_results) == ("mit", "audio-to-audio", None)
    assert "Nothing has been measured of these weights." in card.text
    assert "`rvq-codec-16khz-4kbps`" in card.text
    assert 'AutoModel.from_pretrained("me/tuned", trust_remote_code=True)' in card.text


def test_a_card_can_be_refused_or_given_and_a_short_one_replaces_nothing(make_rvq_codec, tmp_path):
    codec, feature_extractor = make_rvq_codec()
    save_pretrained_with_code(codec, feature_extractor, tmp_path / "none", card=False)
    assert not (tmp_path / "none" / "README.md").exists()
    (tmp_path / "none" / "README.md").write_text("Mine.")
    save_pretrained_with_code(codec, feature_extractor, tmp_path / "none")
    assert (tmp_path / "none" / "README.md").read_text() == "Mine."
    save_pretrained_with_code(codec, feature_extractor, tmp_path / "given", card=tmp_path / "none" / "README.md")
    assert (tmp_path / "given" / "README.md").read_text().startswith("Mine.\n\n## Use\n")
    save_pretrained_with_code(codec, None, tmp_path / "alone")
    text = (tmp_path / "alone" / "README.md").read_text()
    assert "No licence is stated" in text
    assert "feature_extractor" not in text
    with pytest.raises(FileNotFoundError):
        save_pretrained_with_code(codec, None, tmp_path / "x", card=tmp_path / "missing.md")


def test_the_code_of_a_card_runs(make_rvq_codec, tmp_path, monkeypatch):
    codec, feature_extractor = make_rvq_codec()
    monkeypatch.chdir(tmp_path)
    save_pretrained_with_code(codec, feature_extractor, "USER/tiny")
    text = Path("USER/tiny/README.md").read_text()
    names = {"speech": np.zeros(777, np.float32)}
    exec(re.search(r"(?s)```python\n(.*?)```", text)[1], names)
    assert names["decoded"].shape == (1, 1, 777)
