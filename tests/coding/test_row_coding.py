# SPDX-License-Identifier: Apache-2.0
"""A corpus becomes rows: the codes that each recording gives alone, beside what is known of it."""

import json

import numpy as np
import pytest
import soundfile
import torch

from speech_tokenizers.coding.file_coding import encode_file
from speech_tokenizers.coding.loading import load
from speech_tokenizers.coding.row_coding import RowCoding, RowFields, encode_speech_rows, timed_pieces
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
from speech_tokenizers.processing.audio_files import load_audio
from speech_tokenizers.processing.recordings import load_recordings
from speech_tokenizers.processing.speech_rows import SpeechRowsError, read_speech_rows, row_audio_codes, set_aside_path


LENGTHS = [4000, 9000, 2000, 6500, 4001]


@pytest.fixture
def codec(tiny_checkpoint):
    return load(tiny_checkpoint)


@pytest.fixture
def corpus(tmp_path):
    """Function: write recordings of `LENGTHS` samples with metadata that is changed as asked; returns them loaded."""

    def write(**columns):
        folder = tmp_path / "speech"
        folder.mkdir(exist_ok=True)
        lines = []
        for number, length in enumerate(LENGTHS):
            name = f"{number}.wav"
            soundfile.write(folder / name, np.random.default_rng(number).normal(0, 0.1, length), 16000)
            line = {"file_name": name, "text": f"number {number}", "speaker": f"s{number % 2}", "split": "train"}
            lines.append(line | {column: values[number] for column, values in columns.items()})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return load_recordings(str(folder))

    return write


def coded(codec, recordings, *, num_quantizers=None, batch_seconds=60.0, **options):
    coding = RowCoding(*codec, "tiny", RowFields(recordings, **options), num_quantizers, batch_seconds)
    return coding(recordings)


@pytest.mark.parametrize("num_quantizers", [1, 2, 4])
def test_a_row_holds_the_codes_that_the_recording_gives_alone(codec, corpus, num_quantizers):
    recordings = corpus()
    rows = coded(codec, recordings, num_quantizers=num_quantizers, batch_seconds=1.0)
    for row, recording, length in zip(rows, recordings, LENGTHS, strict=True):
        alone = encode_file(codec[0], recording["audio"]["path"], num_quantizers=num_quantizers)
        assert np.array_equal(row["audio_codes"], alone.audio_codes)
        assert row["seconds"] == length / 16000
        assert (row["id"], row["text"]) == (recording["file_name"], recording["text"])


@pytest.mark.parametrize("name", ["encodec", "dac", "mimi"])
def test_rows_of_a_codec_of_transformers_hold_the_codes_that_it_gives_alone(
    make_transformers_codec, corpus, tmp_path, name
):
    model, feature_extractor = make_transformers_codec(name)
    recordings, speech_codec = corpus(), as_speech_codec(model, feature_extractor)
    coding = RowCoding(model, feature_extractor, name, RowFields(recordings), 2)
    list(encode_speech_rows(coding, recordings, tmp_path / "rows"))
    for row, recording in zip(read_speech_rows(tmp_path / "rows", speech_codec), recordings, strict=True):
        waveform = load_audio(recording["audio"]["path"], speech_codec.sampling_rate)
        expected = speech_codec.encode(torch.from_numpy(waveform)[None, None], num_quantizers=2).audio_codes
        codes = torch.from_numpy(row_audio_codes(row))[None]
        assert torch.equal(codes, expected)
        assert speech_codec.decode(audio_codes=codes).audio_values.shape[-1] > 0.9 * len(waveform)


def test_times_and_other_columns_of_the_metadata_stand_in_the_rows(codec, corpus):
    words = [
        [{"word": "number", "start": 0, "end": 0.05}, {"word": str(n), "start": 0.05, "end": 0.1}] for n in range(5)
    ]
    phones = [None, *([[{"label": "N", "start": 0.0, "end": 0.1}]] * 4)]
    rows = coded(codec, corpus(words=words, phones=phones, language=["en"] * 5, slots=[["a", "b"]] * 5))
    assert [row["words"] for row in rows] == words
    assert [row["phones"] for row in rows] == phones
    assert {row["language"] for row in rows} == {"en"}
    assert rows[3]["slots"] == ["a", "b"]
    assert rows[3]["speaker"] == "s1"


def test_a_file_of_align_gives_the_times(codec, corpus, tmp_path):
    recordings = corpus(words=[[{"word": "other", "start": 0.0, "end": 0.1}]] * 5)
    word, label = {"word": "number", "start": 0.0, "end": 0.1}, {"label": "N", "start": 0.0, "end": 0.1}
    times = tmp_path / "times.jsonl"
    lines = [
        {"file_name": "0.wav", "text": "number 0", "words": [word], "labels": [label]},
        {"file_name": "2.wav", "words": []},
        {"file_name": "of another corpus.wav", "words": [word]},
    ]
    times.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = coded(codec, recordings, times=times)
    assert (rows[0]["words"], rows[0]["phones"]) == ([word], [label])
    assert (rows[2]["words"], rows[2]["phones"]) == ([], None)
    assert rows[1]["words"][0]["word"] == "other"
    assert RowFields(recordings, times=times).told == [f"3 of 5 recordings have no times in {times}"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"file_name": "0.wav", "text": "else", "words": []}, "line 1: the text of '0.wav' was 'else' when it was"),
        ({"file_name": "x.wav", "words": []}, "names none of the recordings, such as '0.wav'"),
        ({"file_name": "0.wav"}, "line 1: is no object with `file_name` and `words`"),
        ({"file_name": "0.wav", "words": [{"word": "a", "start": 1}]}, "line 1: times must be a list of objects"),
    ],
)
def test_times_that_cannot_be_of_the_corpus_are_refused(corpus, tmp_path, line, message):
    (tmp_path / "times.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match=message):
        RowFields(corpus(), times=tmp_path / "times.jsonl")


def test_a_recording_that_stands_twice_in_the_times_is_refused(corpus, tmp_path):
    (tmp_path / "times.jsonl").write_text('{"file_name": "0.wav", "words": []}\n' * 2)
    with pytest.raises(ValueError, match=r"line 2: '0\.wav' stands in line 1 too"):
        RowFields(corpus(), times=tmp_path / "times.jsonl")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"word": "a", "start": 0.2, "end": 0.1}], "'a' is from 0.2 to 0.1 s"),
        (
            [{"word": "a", "start": 0.2, "end": 0.3}, {"word": "b", "start": 0.1, "end": 0.3}],
            "after a piece that begins",
        ),
        ([{"word": "a", "start": -0.1, "end": 0.1}], "'a' is from -0.1"),
        ([{"word": "a", "start": 0.0, "end": float("nan")}], "'a' is from 0 to nan s"),
        ([{"word": "a", "start": 0.0, "end": float("inf")}], "'a' is from 0 to inf s"),
        ([{"word": " ", "start": 0.0, "end": 0.1}], "the `word` of piece 0 is ' '"),
        ([{"word": None, "start": 0.0, "end": 0.1}], "the `word` of piece 0 is None"),
        ([{"label": "a", "start": 0.0, "end": 0.1}], "a list of objects with `word`"),
        ([{"word": "a", "start": None, "end": 0.1}], "a list of objects with `word`"),
        (7, "a list of objects with `word`"),
    ],
)
def test_times_that_no_recording_has_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        timed_pieces(entries, "word")


def test_a_recording_with_wrong_times_is_set_aside_and_the_others_are_not(codec, corpus):
    words = [[{"word": "a", "start": 0.0, "end": 0.1}] for _ in range(5)]
    words[1][0]["start"] = 0.2
    words[2][0]["end"] = 2000 / 16000 + 0.101
    words[3][0]["end"] = 6500 / 16000 + 0.09
    rows = coded(codec, corpus(words=words))
    assert rows[1] == {"name": "1.wav", "reason": rows[1]["reason"]}
    assert "'a' is from 0.2 to 0.1 s" in rows[1]["reason"]
    assert rows[2]["reason"] == "`words` end at 0.226 s, but the recording at 0.125 s; align it anew."
    assert [number for number, row in enumerate(rows) if "audio_codes" in row] == [0, 3, 4]


def test_phones_without_times_keep_a_column_of_their_own(codec, corpus):
    recordings = corpus(phones=["N AH1 M"] * 5, words=[["number"]] * 5, seconds=[1] * 5)
    rows = coded(codec, recordings)
    assert (rows[0]["phones"], rows[0]["words"]) == (None, None)
    assert (rows[0]["phones_untimed"], rows[0]["words_untimed"]) == ("N AH1 M", ["number"])
    assert rows[0]["seconds"] == 0.25
    assert "the column 'phones' has no times, and becomes 'phones_untimed'" in RowFields(recordings).told


def test_times_with_other_fields_are_refused_rather_than_left_out(corpus):
    with pytest.raises(ValueError, match=r"'phones' holds objects with \['end', 'phone', 'start'\], but \['label'"):
        RowFields(corpus(phones=[[{"phone": "N", "start": 0.0, "end": 0.1}]] * 5))


def test_the_metadata_may_name_the_rows(codec, corpus):
    rows = coded(codec, corpus(id=list("abcde")))
    assert [row["id"] for row in rows] == list("abcde")
    assert rows[0]["file_name"] == "0.wav"
    with pytest.raises(ValueError, match=r"the recordings 0 and 2 \(from 0\) have the same 'id', 'a'"):
        RowFields(corpus(id=list("abade")))
    with pytest.raises(ValueError, match=r"the recording 4 \(from 0\) has no 'id'"):
        RowFields(corpus(id=[*"abcd", None]))


def test_another_column_may_hold_the_texts(codec, corpus):
    recordings = corpus(said=[f"said {number}" for number in range(4)] + [None])
    rows = coded(codec, recordings, text_column="said")
    assert [row["text"] for row in rows] == ["said 0", "said 1", "said 2", "said 3", None]
    assert RowFields(recordings, "said").told == [
        "the column 'text' is left out, since 'said' takes its place",
        "1 of 5 recordings have no text in a column 'said'",
    ]
    with pytest.raises(ValueError, match="there is no column 'Said' of texts.*'said' was probably meant"):
        RowFields(recordings, "Said")


def test_a_codec_that_cannot_give_such_rows_is_refused(codec, corpus, make_cst):
    fields = RowFields(corpus())
    with pytest.raises(ValueError, match="`num_quantizers`"):
        RowCoding(*codec, "tiny", fields, num_quantizers=5)
    with pytest.raises(ValueError, match="A CSTModel has no codebooks"):
        RowCoding(*make_cst(), "cst", fields, kind="codes")
    with pytest.raises(ValueError, match="`model` is in training mode, in which codes are random"):
        RowCoding(codec[0].train(), codec[1], "tiny", fields)


def folder_bytes(folder):
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    aside = set_aside_path(folder)
    return found | ({"aside": aside.read_bytes()} if aside.exists() else {})


def encode(codec, recordings, folder, **options):
    coding = RowCoding(*codec, "tiny", RowFields(recordings))
    return list(encode_speech_rows(coding, recordings, folder, rows_per_shard=2, **options))


def test_a_mended_recording_is_tried_again_and_leaves_the_folder_of_a_whole_run(codec, corpus, tmp_path):
    recordings = corpus()
    whole = (tmp_path / "speech" / "2.wav").read_bytes()
    (tmp_path / "speech" / "2.wav").write_bytes(b"no audio")
    (tmp_path / "speech" / "4.wav").unlink()
    shards = encode(codec, recordings, tmp_path / "rows")
    assert [shard.num_rows for shard in shards] == [2, 1, 0]
    assert [shard.set_aside.keys() for shard in shards] == [set(), {0}, {0}]
    assert read_speech_rows(tmp_path / "rows")["id"][:] == ["0.wav", "1.wav", "3.wav"]
    before = folder_bytes(tmp_path / "rows")
    assert [shard.is_kept for shard in encode(codec, recordings, tmp_path / "rows")] == [True, True, False]
    assert folder_bytes(tmp_path / "rows") == before

    (tmp_path / "speech" / "2.wav").write_bytes(whole)
    corpus()
    assert [shard.is_kept for shard in encode(codec, recordings, tmp_path / "rows")] == [True, False, False]
    encode(codec, recordings, tmp_path / "undisturbed")
    assert not set_aside_path(tmp_path / "rows").exists()
    assert folder_bytes(tmp_path / "rows") == folder_bytes(tmp_path / "undisturbed")


def test_rows_of_changed_recordings_or_texts_are_not_kept(codec, corpus, tmp_path):
    encode(codec, corpus(), tmp_path / "rows")
    before = folder_bytes(tmp_path / "rows")
    with pytest.raises(SpeechRowsError, match=r"rows-00001\.parquet: was made from other recordings, texts, times"):
        encode(codec, corpus(text=["number 0", "number 1", "other", "number 3", "number 4"]), tmp_path / "rows")
    recordings = corpus()
    soundfile.write(tmp_path / "speech" / "0.wav", np.zeros(4000), 16000)
    with pytest.raises(SpeechRowsError, match=r"rows-00000\.parquet: was made from other recordings"):
        encode(codec, recordings, tmp_path / "rows")
    assert folder_bytes(tmp_path / "rows") == before
    assert [shard.is_kept for shard in encode(codec, recordings, tmp_path / "rows", overwrite=True)] == [False] * 3
