# SPDX-License-Identifier: Apache-2.0
"""Texts that a codec's CTC head cannot write are set aside by name."""

import json
from types import SimpleNamespace

import pytest
import soundfile

from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.codec.latent_arguments import RecognitionArguments
from speech_tokenizers.training.codec.latent_objectives import RecognitionObjective


MODEL = SimpleNamespace(
    sampling_rate=16000, hop_length=320, config=SimpleNamespace(ctc_labels=["<pad>", "<unk>", "|", "a", "b"])
)


@pytest.fixture
def prepare(tmp_path, recordings):
    """Function: prepare the objective for recordings with texts; returns it and what was set aside, by name."""

    def prepared(*texts: str | None, words: dict[int, list[str]] | None = None):
        folder = tmp_path / "speech"
        folder.mkdir()
        for index in range(len(texts)):
            soundfile.write(folder / f"{index}.wav", recordings[index], 16000)
        rows = [{"file_name": f"{index}.wav", "text": text} for index, text in enumerate(texts)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        times = [
            {"file_name": f"{index}.wav", "words": [{"word": w, "start": 0.01, "end": 0.1} for w in said]}
            for index, said in (words or {}).items()
        ]
        (tmp_path / "times.jsonl").write_text("\n".join(map(json.dumps, times)), encoding="utf-8")
        decoded = decode_all(load_recordings(str(folder)), 16000, tmp_path / "cache", False)
        objective = RecognitionObjective(
            RecognitionArguments(word_times=str(tmp_path / "times.jsonl") if words else None)
        )
        objective.prepare(decoded, MODEL, SimpleNamespace(device="cpu", is_main_process=True), tmp_path)
        path = tmp_path / "rejected.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return objective, {row["name"]: row["reason"] for row in map(json.loads, lines)}

    return prepared


def test_texts_with_letters_that_the_head_does_not_have_are_named(prepare, capsys):
    objective, reasons = prepare("ab", "äb", "a 2", None, words=None)
    assert reasons.keys() == {"1.wav", "2.wav"}
    assert "no label for ('ä')" in reasons["1.wav"]
    assert "digits" in reasons["2.wav"]
    assert "texts of 2 recordings were set aside" in capsys.readouterr().err
    assert (objective.targets(0, 0, 16000)["latent_ctc_labels"] >= 0).sum() == 2
    assert (objective.targets(1, 0, 16000)["latent_ctc_labels"] == -100).all()


def test_a_word_with_times_that_cannot_be_written_leaves_the_others(prepare):
    _, reasons = prepare("ab", "b", words={0: ["ab", "—", "b2"], 1: ["b", "..."]})
    assert reasons.keys() == {"0.wav"}
    assert "b2" in reasons["0.wav"]


@pytest.mark.parametrize("texts", [("ö", "2"), (None, None)])
def test_a_training_without_a_single_text_is_refused(texts, prepare):
    with pytest.raises(ValueError, match="No text is left to learn from"):
        prepare(*texts)
