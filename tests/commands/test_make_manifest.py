# SPDX-License-Identifier: Apache-2.0
"""`make-manifest`: answers, splits and speakers of tables and corpora, and what is refused."""

import json

import pytest

from speech_tokenizers.commands import make_manifest
from speech_tokenizers.processing.corpus_layouts import LAYOUTS
from speech_tokenizers.processing.task_manifests import read_manifest


ORDERS = [
    {"slots": json.dumps({"size": "large", "drink": "latte", "milk": ""}), "phones": "HH AH0 L | W ER1", "who": "a"},
    {"slots": json.dumps({"drink": "mocha"}), "phones": "AA2", "who": "b"},
    {"slots": json.dumps({"size": "small"}), "phones": "Z", "who": "c"},
    {"slots": None, "phones": "|", "who": "d"},
]


@pytest.fixture
def table(tmp_path):
    """Function: write `data/metadata.jsonl` with four recordings and changes of each; returns its path."""

    def write(**changes):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        rows = []
        for number, row in enumerate(ORDERS):
            (folder / f"{number}.wav").touch()
            split = ("train", "dev", "test", "train")[number]
            row = {"file_name": f"{number}.wav", "split": split, **row}
            rows.append({**row, **{name: values[number] for name, values in changes.items()}})
        path = folder / "metadata.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def make(run, table, tmp_path):
    """Function: run the command on a table; returns its exit code, its words, and the targets by name."""

    def call(*options, output="out/manifest.jsonl", metadata=None):
        path = tmp_path / output
        code, words = run("make-manifest", metadata or table(), "-o", path, *options)
        clips = read_manifest(path, group=()).clips if code == 0 else ()
        return code, "\n".join(words), {clip.name: clip.target for clip in clips}

    return call


def test_slots_become_text(make, tmp_path):
    code, words, targets = make("--target", "slots", "--speaker", "who")
    assert code == 0
    assert targets == {"0.wav": "drink: latte; size: large", "1.wav": "drink: mocha", "2.wav": "size: small"}
    assert "1 of 4 rows have no slots and are left out" in words
    manifest = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert [(clip.split, clip.groups) for clip in manifest.clips] == [
        ("train", {"speaker": "a"}),
        ("dev", {"speaker": "b"}),
        ("test", {"speaker": "c"}),
    ]
    assert manifest.clips[0].path == str(tmp_path / "data" / "0.wav")
    assert manifest.clips[0].fields["phones"] == "HH AH0 L | W ER1"


def test_one_slot(make, table):
    metadata = table(split=["train", "test", "dev", "dev"])
    code, words, targets = make("--target", "slots.drink", "--speaker", "who", metadata=metadata)
    assert (code, targets) == (0, {"0.wav": "latte", "1.wav": "mocha"})
    assert "2 of 4 rows have no slots.drink and are left out" in words


def test_phones_without_stress(make):
    code, words, targets = make("--target", "phones", "--strip-stress", "--group")
    assert (code, targets) == (0, {"0.wav": "HH AH L W ER", "1.wav": "AA", "2.wav": "Z"})
    assert "1 of 4 rows have no phones" in words


def test_lists_make_the_splits(make, tmp_path):
    for split, names in (("train", "2.wav\n3.wav\n"), ("test", "0.wav\n")):
        (tmp_path / f"{split}.txt").write_text(names)
    lists = [f"{split}={tmp_path / split}.txt" for split in ("train", "test")]
    code, words, _ = make("--target", "who", "--speaker", "who", "--lists", *lists)
    assert code == 0
    assert "1 of 4 rows are in no list and left out" in words
    splits = {clip.name: clip.split for clip in read_manifest(tmp_path / "out" / "manifest.jsonl").clips}
    assert splits == {"0.wav": "test", "2.wav": "train", "3.wav": "train"}
    (tmp_path / "test.txt").write_text("0.wav\n2.wav\n")
    assert "'2.wav' is in the lists of train and test" in make("--target", "who", "--lists", *lists, "--overwrite")[1]
    (tmp_path / "test.txt").write_text("9.wav\n")
    assert (
        "1 of 1 names are not in the rows, first '9.wav'"
        in make("--target", "who", "--lists", *lists, "--overwrite")[1]
    )
    assert "--lists takes train=FILE" in make("--target", "who", "--lists", "a.txt", "--overwrite")[1]


def test_splits_by_speakers(make, table, tmp_path):
    options = ("--target", "phones", "--speaker", "who", "--split-by", "who")
    code, words, _ = make(*options)
    assert code == 0
    assert "splits are made here, by who: d test; c dev; others train" in words
    assert [clip.split for clip in read_manifest(tmp_path / "out" / "manifest.jsonl").clips] == [
        *("train", "train", "dev", "test"),
    ]
    assert (
        "three splits need three values, but there are 2"
        in make(*options, "--overwrite", metadata=table(who=["a", "a", "b", "b"]))[1]
    )
    assert "`who` is not given" in make(*options, "--overwrite", metadata=table(who=["a", None, "b", "c"]))[1]


def test_other_names_of_splits(make, table, tmp_path):
    metadata = table(split=["training", "Validation", "test", "test"])
    assert make("--target", "phones", "--group", metadata=metadata)[0] == 0
    clips = read_manifest(tmp_path / "out" / "manifest.jsonl", group=()).clips
    assert [clip.split for clip in clips] == ["train", "dev", "test", "test"]
    metadata = table(split=["train", "eval", "test", "test"])
    code, words, _ = make("--target", "phones", "--group", "--overwrite", metadata=metadata)
    assert code == 2
    assert "line 2: `split` is 'eval'" in words
    assert "(dev or test was probably meant)" in words


def test_filters_and_folders(make, table, tmp_path):
    metadata = table().rename(tmp_path / "elsewhere.jsonl")
    code, _, targets = make(
        *("--target", "who", "--folder", tmp_path / "data", "--filter", "who=a,c", "--group"), metadata=metadata
    )
    assert (code, targets) == (0, {"0.wav": "a", "2.wav": "c"})
    assert "keeps no row" in make("--target", "who", "--filter", "who=x", "--overwrite")[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "phones"], "must have one of the columns `speaker`"),
        (["--group"], "--target names the column of the answers; there are file_name, split, slots, phones, who"),
        (["--target", "phone", "--group"], "there is no column 'phone'; .* ('phones' was probably meant)"),
        (["--target", "slots.colour", "--group"], "--target slots.colour: none of the 4 rows has it"),
        (["--target", "phones.x", "--group"], "line 1: `phones` is no object of JSON"),
        (["--target", "who", "--speaker", "whom"], "--speaker: there is no column 'whom'"),
        (["--target", "who", "--speaker", "who", "--closed"], "the label 'b' of the split 'dev' does not occur"),
        (["--target", "who", "--split-column", "part"], "--split-column: there is no column 'part'"),
        (["--target", "who", "--split-by", "part"], "--split-by: there is no column 'part'"),
        (["--target", "who", "--group", "--layout", "ravdess"], "holds no recording of the layout 'ravdess'"),
        (["--target", "who", "--folder", ".", "--layout", "ravdess"], "--folder is for tables"),
    ],
)
def test_what_is_refused(make, tmp_path, options, message):
    code, words, _ = make(*options)
    assert code == 2
    for part in message.split(" .* "):
        assert part in words
    assert not (tmp_path / "out").exists()


def test_speakers_that_cross(make, table, tmp_path):
    code, words, _ = make("--target", "phones", "--speaker", "who", metadata=table(who=["a", "b", "a", "c"]))
    assert code == 2
    assert "metadata.jsonl, line 3: `speaker` 'a' stands in more than one split" in words
    assert not (tmp_path / "out").exists()


def test_manifests_are_not_replaced_unasked(make):
    assert make("--target", "phones", "--group")[0] == 0
    assert "is there already; pass --overwrite" in make("--target", "who", "--group")[1]
    assert make("--target", "who", "--group", "--overwrite")[2]["0.wav"] == "a"
    assert "must end in .jsonl" in make("--target", "who", "--group", output="manifest.csv")[1]


def test_slots_that_cannot_be_parted():
    with pytest.raises(ValueError, match="row 1: the slot 'size' is 'a; b', but `;` and `:` part slots"):
        make_manifest.slots_text({"size": "a; b"}, "row 1")
    assert make_manifest.slots_text({"time": "8:30", "day": "today"}, "row 1") == "day: today; time: 8:30"


def test_a_public_corpus(run, tmp_path):
    corpus = tmp_path / "ravdess"
    for actor in range(1, 11):
        for emotion in (3, 4):
            path = corpus / f"Actor_{actor:02}" / f"03-01-{emotion:02}-01-01-01-{actor:02}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    path = tmp_path / "manifest.jsonl"
    code, words = run("make-manifest", corpus, "--layout", "ravdess", "-o", path, "--closed")
    assert code == 0
    assert "by speaker: ravdess-09, ravdess-10 test; ravdess-08 dev; others train" in "\n".join(words)
    manifest = read_manifest(path, is_closed=True)
    assert {clip.group for clip in manifest.of("test")} == {"ravdess-09", "ravdess-10"}
    assert manifest.labels == ["happy", "sad"]


def test_layouts_are_those_of_the_library():
    assert set(make_manifest._LAYOUTS) == set(LAYOUTS)


def folder_of_classes(tmp_path, **speakers):
    """A table of clips: for each label its speakers, two clips each."""
    (tmp_path / "data").mkdir(exist_ok=True)
    rows = []
    for label, names in speakers.items():
        for name in names:
            for take in range(2):
                file_name = f"{label}-{name}-{take}.wav"
                (tmp_path / "data" / file_name).touch()
                rows.append({"file_name": file_name, "class": label, "speaker": name})
    path = tmp_path / "data" / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_label_is_in_every_split_where_it_can(make, tmp_path):
    options = ("--target", "class", "--split-by", "speaker", "--closed", "--overwrite")
    metadata = folder_of_classes(tmp_path, cat=["a", "b", "c", "d"], dog=["e", "f", "g", "h"], owl=["i", "j"], yak="k")
    dealt = []
    for more in ([], [], ["--seed", 0], ["--seed", 0], ["--seed", 1]):
        code, words, _ = make(*options, *more, metadata=metadata)
        assert code == 0
        clips = read_manifest(tmp_path / "out" / "manifest.jsonl", is_closed=True).clips
        found = {split: {clip.target for clip in clips if clip.split == split} for split in ("train", "dev", "test")}
        assert found == {"train": {"cat", "dog", "owl", "yak"}, "dev": {"cat", "dog"}, "test": {"cat", "dog", "owl"}}
        assert "owl: not in dev, since three splits need it of three different speakers, but there is it of 2" in words
        assert "yak: not in dev and test, since" in words
        assert "leave it out by --filter, or pass another --split-by or --seed" in words
        dealt.append([clip.split for clip in clips])
    assert dealt[0] == dealt[1] != dealt[2] == dealt[3] != dealt[4]


def test_a_seed_without_a_deal_is_refused(make):
    assert "--seed is for splits that are made here" in make("--target", "who", "--group", "--seed", "1")[1]
    assert "--seed must not be negative" in make("--target", "who", "--split-by", "who", "--seed", "-1")[1]
