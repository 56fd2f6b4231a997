# SPDX-License-Identifier: Apache-2.0
"""Public corpora as they unpack, in trees of a few empty files."""

import json

import pytest

from speech_tokenizers.processing.corpus_layouts import LAYOUTS, read_layout


def put(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def rows_of(name, folder):
    return {fields["file_name"]: fields for _, fields in read_layout(name, folder)}


def test_librispeech(tmp_path):
    put(
        tmp_path / "train-clean-100/103/1240/103-1240.trans.txt", "103-1240-0000 CHAPTER ONE\n103-1240-0001 THAT HAD\n"
    )
    put(tmp_path / "test-other/367/1/367-1.trans.txt", "367-1-0000 LOBSTERS\n")
    rows = rows_of("librispeech", tmp_path)
    assert rows["train-clean-100/103/1240/103-1240-0001.flac"] == {
        "file_name": "train-clean-100/103/1240/103-1240-0001.flac",
        "text": "THAT HAD",
        "split": "train",
        "speaker": "103",
    }
    assert rows["test-other/367/1/367-1-0000.flac"]["split"] == "test"
    place, _ = read_layout("librispeech", tmp_path)[0]
    assert place.endswith("367-1.trans.txt, line 1")
    with pytest.raises(ValueError, match="lies in the part '103', but train-"):
        read_layout("librispeech", tmp_path / "train-clean-100")


def test_speech_commands(tmp_path):
    for name in ("yes/0a_nohash_0.wav", "yes/0a_nohash_1.wav", "no/0b_nohash_0.wav", "no/0c_nohash_0.wav"):
        put(tmp_path / name)
    put(tmp_path / "_background_noise_/pink_noise.wav")
    put(tmp_path / "validation_list.txt", "no/0b_nohash_0.wav\n")
    put(tmp_path / "testing_list.txt", "no/0c_nohash_0.wav\n")
    rows = rows_of("speech-commands", tmp_path)
    assert {name: (row["keyword"], row["split"], row["speaker"]) for name, row in rows.items()} == {
        "yes/0a_nohash_0.wav": ("yes", "train", "0a"),
        "yes/0a_nohash_1.wav": ("yes", "train", "0a"),
        "no/0b_nohash_0.wav": ("no", "dev", "0b"),
        "no/0c_nohash_0.wav": ("no", "test", "0c"),
    }
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match="testing_list"):
        read_layout("speech-commands", tmp_path)


def test_ravdess(tmp_path):
    put(tmp_path / "Actor_12/03-01-05-02-02-01-12.wav")
    put(tmp_path / "Actor_01/03-01-01-01-01-01-01.wav")
    put(tmp_path / "Actor_01/03-02-01-01-01-01-01.wav")  # sung
    rows = rows_of("ravdess", tmp_path)
    assert rows["Actor_12/03-01-05-02-02-01-12.wav"] == {
        "file_name": "Actor_12/03-01-05-02-02-01-12.wav",
        "emotion": "angry",
        "intensity": "strong",
        "speaker": "ravdess-12",
    }
    assert len(rows) == 2


def slurp_entry(file):
    return {
        "slurp_id": 4489,
        "sentence": "wake me at half past eight",
        "scenario": "alarm",
        "action": "set",
        "tokens": [{"surface": word, "id": n} for n, word in enumerate(["wake", "me", "at", "half", "past", "eight"])],
        "entities": [{"span": [3, 4, 5], "type": "time"}],
        "recordings": [{"file": file, "wer": 0}, {"file": file.replace(".flac", "-headset.flac"), "wer": 0}],
    }


def test_slurp(tmp_path):
    for name in ("train", "devel", "test"):
        put(tmp_path / f"dataset/slurp/{name}.jsonl", json.dumps(slurp_entry(f"audio-{name}.flac")) + "\n")
        put(tmp_path / f"audio/slurp_real/audio-{name}.flac")
    speakers = {"4489": {"recordings": {"audio-train.flac": {"usrid": "FE-1"}, "audio-test.flac": {"usrid": "FO-2"}}}}
    put(tmp_path / "dataset/slurp/metadata.json", json.dumps(speakers, indent=2))
    rows = rows_of("slurp", tmp_path)
    row = rows["audio/slurp_real/audio-train.flac"]
    assert (row["slots"], row["intent"], row["split"]) == ({"time": "half past eight"}, "alarm_set", "train")
    assert (row["speaker"], row["microphone"], row["text"]) == ("FE-1", "far", "wake me at half past eight")
    assert rows["audio/slurp_real/audio-devel.flac"]["split"] == "dev"
    assert rows["slurp_real/audio-test-headset.flac"]["microphone"] == "headset"  # which is not there
    put(tmp_path / "dataset/slurp/train.jsonl", '{"sentence": "hello"}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 1: is no entry of SLURP \(no 'scenario'\)"):
        read_layout("slurp", tmp_path)


def test_covost(tmp_path):
    head = "path\tsentence\ttranslation\tclient_id\n"
    put(tmp_path / "covost_v2.fr_en.train.tsv", head + 'a.mp3\tDit "oui.\tSays "yes.\tx1\n')
    put(tmp_path / "covost_v2.fr_en.test.tsv", head + "b\tNon.\tNo.\tx2\n")
    put(tmp_path / "clips/a.mp3")
    rows = rows_of("covost", tmp_path)
    assert rows["clips/a.mp3"] == {
        "file_name": "clips/a.mp3",
        "text": 'Dit "oui.',
        "translation": 'Says "yes.',
        "split": "train",
        "speaker": "x1",
    }
    assert rows["clips/b.mp3"]["split"] == "test"
    put(tmp_path / "covost_v2.fr_en.dev.tsv", head + "c.mp3\tOui.\n")
    with pytest.raises(ValueError, match=r"dev\.tsv, line 2: has 2 cells, but there are 4 columns"):
        read_layout("covost", tmp_path)
    put(tmp_path / "covost_v2.fr_en.dev.tsv", "path\tsentence\n")
    with pytest.raises(ValueError, match=r"dev\.tsv, line 1: has no column `translation`"):
        read_layout("covost", tmp_path)


def test_iemocap(tmp_path):
    lines = [
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]",
        "",
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]",
        "C-E2:\tNeutral;\t()",
        "[10.01 - 11.3925]\tSes01F_impro01_M001\texc\t[3.5, 2.5, 2.5]",
        "[12.01 - 13.3925]\tSes01F_impro01_M002\txxx\t[3.5, 2.5, 2.5]",
        "[14.01 - 15.3925]\tSes01F_impro01_M003\tfru\t[3.5, 2.5, 2.5]",
    ]
    put(tmp_path / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt", "\n".join(lines))
    rows = rows_of("iemocap", tmp_path)
    first = "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    assert rows[first] == {
        "file_name": first,
        "emotion": "neutral",
        "emotion4": "neutral",
        "speaker": "Ses01F",
        "scene": "Ses01",
    }
    assert [(row["emotion"], row["emotion4"], row["speaker"]) for row in rows.values()] == [
        ("neutral", "neutral", "Ses01F"),
        ("excited", "happy", "Ses01M"),
        ("frustrated", None, "Ses01M"),
    ]


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"speech-commands"}))
def test_an_empty_folder(name, tmp_path):
    with pytest.raises(ValueError, match=f"holds no recording of the layout '{name}': .* expected"):
        read_layout(name, tmp_path)


def test_an_unknown_layout(tmp_path):
    with pytest.raises(ValueError, match="there is no layout 'timit'; choose one of librispeech"):
        read_layout("timit", tmp_path)
