# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers evaluate` from end to end on small synthetic recordings."""

import argparse
import json

import numpy as np
import pytest
import soundfile

from speech_tokenizers.cli import main
from speech_tokenizers.evaluation.clip_results import ClipMetric, MetricFailure, ResultsFile
from speech_tokenizers.evaluation.clips import Clip, read_clips
from speech_tokenizers.evaluation.reconstruction import comparison as codec_comparison
from speech_tokenizers.evaluation.reconstruction.comparison import METRICS, measure_clip
from speech_tokenizers.evaluation.reconstruction.report import table_rows


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    generator = np.random.default_rng(0)
    rows = []
    for number, group in enumerate(["north", "north", "south"]):
        time = np.arange(16000 + 800 * number) / 16000
        audio = 0.1 * np.sin(2 * np.pi * 150 * (number + 1) * time) * np.sin(2 * np.pi * 3 * time) ** 2
        (folder / group).mkdir(parents=True, exist_ok=True)
        name = f"{group}/{number}.wav"
        soundfile.write(folder / name, audio + 0.02 * generator.standard_normal(len(time)), 16000)
        rows.append({"file_name": name, "text": "a b"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "list.txt").write_text("\n".join(row["file_name"] for row in rows) + "\n")
    return folder


@pytest.fixture
def save_model(make_rvq_codec):
    def save(folder, seed: int = 0) -> None:
        for part in make_rvq_codec(seed):
            part.save_pretrained(folder)

    return save


def run(tmp_path, *arguments: str) -> int:
    shared = [
        "--data",
        str(tmp_path / "data"),
        "--list",
        str(tmp_path / "list.txt"),
        "--output",
        str(tmp_path / "out"),
    ]
    metrics = ["--metrics", "stoi", "mel_distance", "si_sdr"]
    return main(["evaluate", *arguments, *shared, *metrics])


@pytest.fixture
def measured(monkeypatch):
    """Names of the systems of each clip that is measured, in order."""
    calls = []

    def counted(system, *args):
        calls.append(system.name)
        return measure_clip(system, *args)

    monkeypatch.setattr(codec_comparison, "measure_clip", counted)
    return calls


def test_results_table_and_page_are_written(tmp_path, data, save_model, measured, read_page):
    save_model(tmp_path / "tiny")
    assert run(tmp_path, str(tmp_path / "tiny"), "--num-quantizers", "2", "4", "--examples", "1") == 0
    assert measured == ["recording"] * 3 + ["tiny (2 codebooks)"] * 3 + ["tiny (4 codebooks)"] * 3
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    recording, two, four = report["systems"]
    assert set(recording["scores"]) == set()
    assert report["data"]["groups"] == {"north": 2, "south": 1}
    assert four["scores"]["mel_distance"]["num_clips"] == 3
    assert four["groups"]["south"]["scores"]["mel_distance"]["num_clips"] == 1
    # 50 frames of 5 bits a stage.
    assert (two["kbps_nominal"], four["kbps_nominal"]) == (0.5, 1.0)
    assert 0 <= two["kbps_entropy"] <= two["kbps_nominal"]
    assert four["kbps_measured"] == pytest.approx(1.0, rel=0.03)
    assert len(four["stages"]) == 4
    assert four["real_time_factor_encode"] > 0
    # The mean is that of the clips' own scores.
    clips = read_clips(data, tmp_path / "list.txt", None, None)
    system = argparse.Namespace(key=four["system_key"])
    results = ResultsFile(tmp_path / "out" / "results.jsonl")
    scores = [results.get(system, clip)["scores"]["mel_distance"] for clip in clips]
    assert four["scores"]["mel_distance"]["value"] == pytest.approx(np.mean(scores))
    page = (tmp_path / "out" / "results.html").read_text()
    for wanted in ("<audio controls", "tiny (4 codebooks)", "Only south"):
        assert wanted in page
    reader = read_page(page)
    assert reader.references == [path for system in report["systems"] for path in system["audio"].values()]
    assert [alt.partition(" ")[0] for alt in reader.alts] == ["Scores", *["Spectrograms"] * len(four["audio"])]
    for path in four["audio"].values():
        assert soundfile.info(tmp_path / "out" / path).frames == 16000
    assert "| tiny (2 codebooks) |" in (tmp_path / "out" / "results.md").read_text()


def test_continuous_tokens_and_unquantized_codecs_stand_beside_codecs(tmp_path, data, save_model, make_cst):
    save_model(tmp_path / "tiny")
    for part in make_cst():
        part.save_pretrained(tmp_path / "cst")
    tiny = str(tmp_path / "tiny")
    assert run(tmp_path, tiny, f"{tiny}:latents", str(tmp_path / "cst"), "--examples", "1") == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    codec, latents, cst = report["systems"][1:]
    assert [system["system"] for system in (codec, latents, cst)] == ["tiny", "tiny (latents)", "cst"]
    assert "stages" in codec
    assert "bits_per_number" not in codec
    for system, kilobits in ((latents, 16 * 50 * 16 / 1000), (cst, 16 * 25 * 6 / 1000)):
        assert not {"stages", "kbps_nominal", "kbps_entropy"} & system.keys()
        assert system["kbps_measured"] == pytest.approx(kilobits, rel=0.03)
        assert system["scores"]["mel_distance"]["num_clips"] == 3
    assert latents["scores"] != codec["scores"]
    page = (tmp_path / "out" / "results.md").read_text()
    assert "no code to count: tiny (latents), cst. The measured rate takes 16 bits a number" in page
    assert page.count("### Codebooks of") == 1


def test_a_second_run_measures_only_what_is_new(tmp_path, data, save_model, measured):
    save_model(tmp_path / "tiny")
    assert run(tmp_path, str(tmp_path / "tiny"), "--examples", "1") == 0
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    measured.clear()
    assert run(tmp_path, str(tmp_path / "tiny"), "--examples", "1") == 0
    assert measured == []
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == first

    # A crash in the middle of a line costs that clip only.
    path = tmp_path / "out" / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert run(tmp_path, str(tmp_path / "tiny"), "--examples", "1") == 0
    assert measured == ["tiny"]
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["systems"][1]["scores"] == first["systems"][1]["scores"]


def test_changed_weights_are_measured_anew(tmp_path, data, save_model, measured):
    save_model(tmp_path / "tiny")
    assert run(tmp_path, str(tmp_path / "tiny")) == 0
    measured.clear()
    save_model(tmp_path / "tiny", seed=1)
    assert run(tmp_path, str(tmp_path / "tiny")) == 0
    assert measured == ["tiny"] * 3


class Fickle(ClipMetric):
    """Fails where the recording is longer than a second."""

    score_name = "fickle"
    title = "Fickle"

    def score_clip(self, decoded, recorded, sampling_rate):
        if len(recorded) > 16000:
            raise MetricFailure("too long")
        return 3.0


def test_a_metric_that_fails_is_shown_as_failed(tmp_path, data, save_model, monkeypatch):
    monkeypatch.setitem(METRICS, "mel_distance", Fickle)
    save_model(tmp_path / "tiny")
    assert run(tmp_path, str(tmp_path / "tiny")) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    tiny = report["systems"][1]
    assert tiny["scores"]["fickle"] == {"value": 3.0, "low": 3.0, "high": 3.0, "num_clips": 1}
    assert tiny["failures"]["fickle"] == {"too long": 2}
    rows = table_rows(report)
    assert rows[2][rows[0].index("Fickle")] == "3.00 [3.00, 3.00], n=1, 2 failed"
    south = table_rows(report, "south")
    assert south[2][south[0].index("Fickle")] == "failed (1)"
    text = (tmp_path / "out" / "results.md").read_text()
    assert "tiny, fickle: 2 × too long" in text


class Echo:
    """Hears a word a second; `deaf` hears nothing."""

    name = key = "echo"

    def transcribe(self, audio):
        return "a b" if len(audio) == 16000 else "a c"


def test_error_rates_are_against_transcript_and_recording(tmp_path, data, save_model, monkeypatch):
    monkeypatch.setattr(codec_comparison, "find_model", lambda name, **_: name)
    monkeypatch.setattr(codec_comparison, "load_recognizer", lambda name, language: Echo())
    save_model(tmp_path / "tiny")
    assert run(tmp_path, str(tmp_path / "tiny"), "--recognizer", "echo") == 0
    recording, tiny = json.loads((tmp_path / "out" / "results.json").read_text())["systems"]
    # Two of three clips have one wrong word of two: 2 / 6.
    assert recording["scores"]["wer_transcript[echo]"]["value"] == pytest.approx(100 / 3)
    assert tiny["scores"]["wer_transcript[echo]"]["value"] == pytest.approx(100 / 3)
    assert tiny["scores"]["wer_recording[echo]"]["value"] == 0.0
    assert "wer_recording[echo]" not in recording["scores"]


def test_how_many_clips_have_no_transcript_is_said_and_shown(tmp_path, data, save_model, monkeypatch, capsys):
    monkeypatch.setattr(codec_comparison, "find_model", lambda name, **_: name)
    monkeypatch.setattr(codec_comparison, "load_recognizer", lambda name, language: Echo())
    save_model(tmp_path / "tiny")
    rows = [("./north/0.wav", "a b"), ("north/0.flac", "a b"), ("gone.wav", "a b")]
    true = tmp_path / "true.tsv"
    true.write_text("".join(f"{name}\t{text}\n" for name, text in rows))
    assert run(tmp_path, str(tmp_path / "tiny"), "--recognizer", "echo", "--transcripts", str(true)) == 0
    told = capsys.readouterr().err
    assert "2 of 3 clips have no text, first 'north/1.wav'; error rates against transcripts leave them out" in told
    assert f"{true}: 2 rows name no file in {data}, first 'north/0.flac'" in told
    row = next(
        line for line in (tmp_path / "out" / "results.md").read_text().splitlines() if line.startswith("| recording")
    )
    assert "0.0 [0.0, 0.0], n=1 |" in row
    assert "n: number of clips that have the score" in (tmp_path / "out" / "results.md").read_text()


def test_no_number_of_clips_is_shown_where_all_have_the_score(tmp_path, data, save_model, monkeypatch, capsys):
    monkeypatch.setattr(codec_comparison, "find_model", lambda name, **_: name)
    monkeypatch.setattr(codec_comparison, "load_recognizer", lambda name, language: Echo())
    save_model(tmp_path / "tiny")
    assert run(tmp_path, str(tmp_path / "tiny"), "--recognizer", "echo") == 0
    assert "n=" not in (tmp_path / "out" / "results.md").read_text()
    assert "have no text" not in capsys.readouterr().err


def test_word_information_lost_is_summed_over_clips(tmp_path, data, save_model, monkeypatch):
    monkeypatch.setattr(codec_comparison, "find_model", lambda name, **_: name)
    monkeypatch.setattr(codec_comparison, "load_recognizer", lambda name, language: Echo())
    save_model(tmp_path / "tiny")
    assert run(tmp_path, str(tmp_path / "tiny"), "--recognizer", "echo") == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    # 2, 1 and 1 hits of two true and two recognised words each.
    lost = report["systems"][1]["scores"]["wil_transcript[echo]"]
    assert lost["value"] == pytest.approx(100 * (1 - 4 / 6 * 4 / 6))
    assert 0.0 <= lost["low"] < lost["value"] < lost["high"] <= 75.0
    assert "WIL % (echo, to transcript)" in (tmp_path / "out" / "results.md").read_text()


def test_files_that_another_codec_decoded_are_scored_beside_ours(tmp_path, data, save_model):
    save_model(tmp_path / "tiny")
    for name in ("north/0.wav", "south/2.wav"):
        recorded = soundfile.read(data / name)[0]
        (tmp_path / "decoded" / name).parent.mkdir(parents=True)
        soundfile.write((tmp_path / "decoded" / name).with_suffix(".flac"), 0.5 * recorded[:-100], 16000)
    assert run(tmp_path, str(tmp_path / "tiny"), "--peers", f"files:Half={tmp_path / 'decoded'}") == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    half = report["systems"][2]
    # Half as loud, and 100 samples short at the end.
    assert half["scores"]["si_sdr"]["num_clips"] == 2
    assert half["scores"]["si_sdr"]["value"] > 15
    assert list(half["failures"]["si_sdr"].values()) == [1]
    assert "there is no decoded file" in next(iter(half["failures"]["si_sdr"]))
    # What it costs is not known.
    assert "kbps_measured" not in half
    assert "real_time_factor_encode" not in half
    rows = table_rows(report)
    assert rows[3][-5:] == ["–"] * 5
    assert rows[2][-5] == "1.00"


def test_a_pattern_picks_the_recordings(tmp_path, data):
    assert [clip.name for clip in read_clips(data, None, None, None, "north/*")] == ["north/0.wav", "north/1.wav"]
    assert [clip.name for clip in read_clips(data, None, None, None, "2.*")] == ["south/2.wav"]
    with pytest.raises(ValueError, match="no clip to evaluate"):
        read_clips(data, None, None, None, "*.flac")


def test_a_codec_that_fails_on_a_clip_fails_every_metric_there(tmp_path, data):
    class Broken:
        name = key = "broken"
        sampling_rate = 16000

        def code(self, audio):
            raise RuntimeError("out of\norder")

    clip = Clip("north/0.wav", data / "north/0.wav", "key")
    empty = {"scores": {}, "failures": {}, "texts": {}}
    record = measure_clip(Broken(), clip, empty, [METRICS["stoi"](), METRICS["si_sdr"]()], [], None)
    reason = "coding failed: out of order"
    assert record["failures"] == {"stoi": reason, "si_sdr": reason}
    assert record["scores"] == {}


def test_a_clip_that_cannot_be_read_is_set_aside_and_the_others_are_measured(tmp_path, data, save_model, capsys):
    save_model(tmp_path / "tiny")
    (data / "north" / "0.wav").write_bytes(b"RIFF and nothing else")
    assert run(tmp_path, str(tmp_path / "tiny")) == 1
    assert "set aside: " in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "results.json").read_text())["data"]["num_clips"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name at least one model or one of --peers"),
        (["--peers", "speex:8"], "A peer is `opus:KBPS`"),
        (["no-such-checkpoint"], "no-such-checkpoint"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(tmp_path, data, capsys, arguments, message):
    assert run(tmp_path, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("speech-tokenizers evaluate: error: ")
    assert message in error


def test_a_language_that_is_none_is_refused_before_the_work(tmp_path, data, save_model, capsys):
    save_model(tmp_path / "tiny")
    assert run(tmp_path, str(tmp_path / "tiny"), "--language", "xx") == 2
    assert "`language` is 'xx', which is no code of a language" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_missing_recogniser_is_told_of_before_the_recordings_are_read(tmp_path, data, save_model, capsys):
    save_model(tmp_path / "tiny")
    (data / "north" / "0.wav").write_bytes(b"RIFF and nothing else")
    assert run(tmp_path, str(tmp_path / "tiny"), "--recognizer", "no-such-folder") == 2
    error = capsys.readouterr().err
    assert "`--recognizer` is 'no-such-folder', but there is no such file" in error
    assert "set aside" not in error
    assert not (tmp_path / "out").exists()


def test_a_peer_that_is_not_installed_is_skipped_with_the_reason(tmp_path, data, save_model, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda program: None)
    save_model(tmp_path / "tiny")
    assert run(tmp_path, str(tmp_path / "tiny"), "--peers", "opus:6") == 0
    assert "skipped opus:6: The program `opusenc` is missing" in capsys.readouterr().err
    assert "Skipped opus:6" in (tmp_path / "out" / "results.md").read_text()


def test_true_transcripts_replace_those_of_the_data(data, tmp_path):
    (tmp_path / "true.tsv").write_text("north/0.wav\twhat was said\n\n", encoding="utf-8")
    (tmp_path / "all.jsonl").write_text(
        '{"file_name": "north/0.wav", "text": "heard"}\n{"file_name": "north/1.wav", "text": "kept"}\n',
        encoding="utf-8",
    )
    files = [tmp_path / "all.jsonl", tmp_path / "true.tsv"]
    texts = [clip.text for clip in read_clips(data, None, files, None, "north/*")]
    assert texts == ["what was said", "kept"]
    texts = [clip.text for clip in read_clips(data, None, files[::-1], None, "north/*")]
    assert texts == ["heard", "kept"]
    files[1].write_text("0.wav\twhat was said\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no transcript is of a clip; names there, such as '0.wav', must be paths"):
        read_clips(data, None, files[1:], None)
    files[1].write_text("north/0.wav what was said\n", encoding="utf-8")
    with pytest.raises(ValueError, match="true.tsv, line 1: a file name, a tab and a text were expected"):
        read_clips(data, None, files, None)
