# SPDX-License-Identifier: Apache-2.0
"""A corpus that flite speaks: its sentences, its times, its lexicon; with a stand-in for flite and for WordNet."""

import json
import random
import shutil
import sys

import pytest
import soundfile

from speech_tokenizers.cli import main
from speech_tokenizers.modeling.pronunciations import PronunciationLexicon
from speech_tokenizers.training.language_models.flite_corpus import (
    FliteVoice,
    Sentence,
    parse_times,
    speak_sentences,
    write_metadata,
)
from speech_tokenizers.training.language_models.flite_lexicon import add_words, agreement, learn_in_sentences
from speech_tokenizers.training.language_models.wordnet_sentences import (
    PARTS_OF_SPEECH,
    choose_sentences,
    clean_sentence,
    read_examples,
    read_words,
    sentence_words,
)


# Speaks each letter as a phone of 0.1 s; `a` as `ey` where it stands alone.
FLITE = """#!{python}
import sys, wave
options = sys.argv[1:]
if options == ["-lv"]:
    print("Voices available: slt kal ")
    sys.exit()
value = lambda name: options[options.index(name) + 1]
def phones(text):
    words = text.lower().replace(",", " , ").split()
    said = [["pau"] if w == "," else ["ax"] if w == "a" and len(words) > 1 else ["ey"] if w == "a" else list(w)
            for w in words]
    return ["pau", *sum(said, []), "pau"]
if "-ps" in options:
    for text in open(value("-f")).read().split("\\n\\n"):
        if text.strip():
            print(" ".join(phones(text)))
    sys.exit()
text = value("-t")
with open({log!r}, "a") as log:
    log.write(text + "\\n")
if "broken" in text:
    sys.exit("no such thing")
labels = phones(text)
print(" ".join(f"{{label}}:{{(n + 1) / 10:.3f}}" for n, label in enumerate(labels)))
if "twice" in text:
    print("pau:0.1")
with wave.open(value("-o"), "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000 if value("-voice") == "kal" else 16000)
    file.writeframes(bytes(2 * 1600 * len(labels) * (10 if "long" in text else 1)))
"""


@pytest.fixture
def flite(tmp_path, monkeypatch):
    """File to which the stand-in for flite, first on the path, writes what it spoke."""
    programs, log = tmp_path / "bin", tmp_path / "spoken.txt"
    programs.mkdir()
    (programs / "flite").write_text(FLITE.format(python=sys.executable, log=str(log)))
    (programs / "flite").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    log.touch()
    return log


@pytest.fixture
def wordnet(tmp_path):
    """Folder of a small WordNet with twelve examples that suit, and some that do not."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for part in PARTS_OF_SPEECH:
        for name in (f"data.{part}", f"index.{part}", f"{part}.exc"):
            (folder / name).write_text("  1 This software and database is provided\n")
    examples = [
        f"the {animal} {verb} a bone" for animal in ("cat", "dog", "owl") for verb in ("ate", "saw", "hid", "had")
    ]
    examples += ["too short", "in 1984 they came home", "the US army came", "St Mark went away", "The cat ate a bone."]
    lines = [f'0000 02 n 01 x 0 000 | said of they; "{example}"  \n' for example in examples]
    (folder / "data.noun").write_text("  1 licence\n" + "".join(lines))
    (folder / "index.noun").write_text("wild_cherry n 1 1 @ 1 0 05\nfly n 1 2 @ ~ 1 1 05\ngnu n 1 1 @ 1 0 05\n")
    (folder / "index.verb").write_text("stop v 1 1 @ 1 0 05\nmake v 1 0 1 0 05\ntidy v 1 0 1 0 05\n")
    (folder / "verb.exc").write_text("stopped stop\nstopping stop\nmade make\n")
    return folder


@pytest.mark.parametrize(
    "example",
    [
        "three words only",
        "he came in 1984 again",
        "the US army went home",
        "he saw St Mark there",
        "he met John Q Public",
        "he said: now go home",
        "he left. She came home",
        "wait -- we come home",
        "caf\u00e9 au lait for two",
        "one two three four five six seven eight nine ten eleven twelve thirteen",
    ],
)
def test_a_text_that_a_voice_would_expand_is_no_sentence(example):
    assert clean_sentence(example) is None


def test_a_sentence_loses_its_full_stop_and_nothing_else():
    assert clean_sentence("Don't  go, my well-known friend.") == "Don't go, my well-known friend"
    assert clean_sentence("did he come home?") == "did he come home?"


def test_no_part_holds_a_sentence_of_another_one_even_within_a_longer_one():
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["one", "two", "three"], k=draw.randint(4, 6))) for _ in range(600)]
    chosen = choose_sentences(texts, {"test": 6, "dev": 4, "train": 30})
    padded = {part: [f" {' '.join(sentence_words(text))} " for text in chosen[part]] for part in chosen}
    for part, others in (("test", ("dev", "train")), ("dev", ("test", "train"))):
        for text in padded[part]:
            for other in (other for name in others for other in padded[name]):
                assert text not in other
                assert other not in text


def test_a_greater_training_part_begins_with_the_smaller_one_whatever_the_order_of_examples(wordnet):
    examples = read_examples(wordnet)
    small = choose_sentences(examples, {"test": 2, "train": 4})
    great = choose_sentences(examples[::-1], {"test": 2, "train": 8})
    assert [text.lower() for text in great["test"]] == [text.lower() for text in small["test"]]
    assert [text.lower() for text in great["train"][:4]] == [text.lower() for text in small["train"]]
    with pytest.raises(ValueError, match="12 suit, and the part 'train' gets only 10 of 11"):
        choose_sentences(examples, {"test": 2, "train": 11})


def test_words_come_with_their_forms(wordnet):
    words = read_words(wordnet)
    assert {"wild", "cherry", "flies"} <= set(words)
    assert {"stopped", "stops", "makes", "making", "made", "tidied", "they've"} <= set(words)
    assert {"they", "bone"} <= set(words), "words of definitions and examples"
    assert not {"gnus", "maked", "stoped", "tidyed", "flys"} & set(words)
    assert words == sorted(set(words))


def test_a_missing_program_or_data_names_its_package(tmp_path, monkeypatch, wordnet, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["make-tts-corpus", "--wordnet", str(wordnet), "-o", str(tmp_path / "out")]) == 2
    assert "apt-get install flite" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="apt-get install wordnet-base"):
        read_examples(tmp_path)


def test_an_unknown_voice_is_told_of_the_known_ones(flite):
    with pytest.raises(ValueError, match="flite has the voices slt kal"):
        FliteVoice("nobody")


@pytest.mark.parametrize("line", ["pau", "pau:x", ":0.1", "pau:0.2 dh:0.1", "error: no voice"])
def test_a_line_that_holds_no_times_is_refused(line):
    with pytest.raises(ValueError, match="a phone and its end were expected"):
        parse_times(line)


def test_what_fails_is_set_aside_with_its_reason_and_the_rest_is_spoken(flite, tmp_path):
    texts = ["the cat", "broken thing", "said twice", "long thing", "a dog"]
    folder = tmp_path / "corpus"
    sentences = [Sentence(text, "train") for text in texts]
    assert speak_sentences(sentences, FliteVoice(), folder, jobs=2, quiet=True) == 3
    rejected = [json.loads(line) for line in (folder / "metadata.jsonl.rejected.jsonl").read_text().splitlines()]
    reasons = {row["name"]: row["reason"] for row in rejected}
    assert "no such thing" in reasons["broken thing"]
    assert "2 utterances" in reasons["said twice"]
    assert "its audio has" in reasons["long thing"]
    assert len(list(folder.rglob("*.flac"))) == 2
    assert speak_sentences(sentences[:1], FliteVoice("kal"), tmp_path / "kal", quiet=True) == 1, "8 kHz"
    with pytest.raises(ValueError, match="of the voice 'slt', not of 'kal'"):
        speak_sentences(sentences, FliteVoice("kal"), folder, quiet=True)


def test_a_second_call_speaks_only_what_is_missing(flite, tmp_path):
    folder = tmp_path / "corpus"
    sentences = [Sentence(text, "train") for text in ("the cat", "a dog", "the owl")]
    speak_sentences(sentences[:2], FliteVoice(), folder, quiet=True)
    (folder / sentences[0].file_name).unlink()
    with open(folder / ".spoken.jsonl", "a") as journal:
        journal.write('{"file_name": "train/')  # as a power cut leaves it
    flite.write_text("")
    speak_sentences(sentences, FliteVoice(), folder, quiet=True)
    assert sorted(flite.read_text().splitlines()) == ["the cat", "the owl"]
    lexicon = PronunciationLexicon({"the": "t h e", "cat": "c a t", "a": "ax", "dog": "d o g", "owl": "o w l"})
    rows, failed = write_metadata(sentences, lexicon, folder)
    assert [row["text"] for row in rows] == ["the cat", "a dog", "the owl"]
    assert not failed
    assert rows[0]["words"] == [{"word": "the", "start": 0.1, "end": 0.4}, {"word": "cat", "start": 0.4, "end": 0.7}]


def test_what_flite_reads_as_another_text_gets_no_line(flite, tmp_path):
    sentences = [Sentence("the cat", "train"), Sentence("a dog", "train")]
    speak_sentences(sentences, FliteVoice(), tmp_path / "corpus", quiet=True)
    lexicon = PronunciationLexicon({"the": "t h e", "cat": "c a t", "a": "ax", "dog": "x y z z y"})
    rows, failed = write_metadata(sentences, lexicon, tmp_path / "corpus")
    assert ([row["text"] for row in rows], failed) == (["the cat"], 1)
    assert '"a dog"' in (tmp_path / "corpus" / "metadata.jsonl.rejected.jsonl").read_text()


def test_a_lexicon_learns_from_sentences_what_flite_says_there(flite):
    lexicon = PronunciationLexicon()
    assert add_words(lexicon, ["a", "cat", "the", "a"], FliteVoice(), quiet=True) == 3
    assert lexicon.pronounce("a cat") == ["pau", "ey", "c", "a", "t", "pau"]
    spoken = [(text, FliteVoice().pronounce([text])[0]) for text in ("a cat", "the cat, a cat", "a cat the cat")]
    assert agreement(lexicon, spoken)[:3] == (3, 0, 0)
    assert learn_in_sentences(lexicon, spoken) == 2
    assert agreement(lexicon, spoken)[:3] == (3, 3, 3)
    assert lexicon.pronounce("a")[1:-1] == ["ey"], "alone it is said as before"
    assert agreement(lexicon, [("a cat", ["pau", "ax", "pau", "c", "a", "t", "pau"])])[:3] == (1, 0, 1)


def test_the_command_makes_a_corpus_and_keeps_it(flite, wordnet, tmp_path, capsys):
    folder = tmp_path / "corpus"
    command = ["make-tts-corpus", "--wordnet", str(wordnet), "--sentences", "5", "--held-out", "2", "--dev", "1"]
    command += ["-o", str(folder), "--quiet"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "8 sentences" in printed
    assert "own phones for 3 of 3 held-out sentences" in printed
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["test"] * 2 + ["dev"] + ["train"] * 5
    lexicon = PronunciationLexicon.from_file(folder / "pronunciations.txt.gz")
    for row in rows:
        audio, sampling_rate = soundfile.read(folder / row["file_name"])
        assert sampling_rate == 16000
        assert len(audio) / 16000 == pytest.approx(row["phones"][-1]["end"])
        assert lexicon.pronounce(row["text"]) == [phone["label"] for phone in row["phones"]]
        assert [word["word"] for word in row["words"]] == row["text"].split()
        assert (row["speaker"], row["language"]) == ("slt", "en")
    before = (folder / "metadata.jsonl").read_bytes()
    flite.write_text("")
    assert main(command) == 0
    assert (folder / "metadata.jsonl").read_bytes() == before
    assert not flite.read_text()


def test_impossible_numbers_are_wrong_usage(flite, wordnet, tmp_path):
    command = ["make-tts-corpus", "--wordnet", str(wordnet), "-o", str(tmp_path / "corpus")]
    assert main([*command, "--jobs", "0"]) == 2
    assert main([*command, "--sentences", "100"]) == 2
    assert not (tmp_path / "corpus").exists()


@pytest.mark.skipif(shutil.which("flite") is None, reason="needs the program flite")
def test_the_real_flite_says_the_same_phones_with_and_without_speech(tmp_path):
    voice = FliteVoice("slt")
    texts = ["the owl and the cat", "he came, she left"]
    spoken = [[phone["label"] for phone in voice.speak(text, tmp_path / "x.wav")] for text in texts]
    assert voice.pronounce(texts) == spoken
    assert spoken[0][:3] == ["pau", "dh", "iy"]
