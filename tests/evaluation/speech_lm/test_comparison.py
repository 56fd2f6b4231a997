# SPDX-License-Identifier: Apache-2.0
"""A voice beside its ceilings, with a recogniser that hears levels: every number is known beforehand."""

import importlib.util
import json
import math
import types

import numpy as np
import pytest
import soundfile

from speech_tokenizers.cli import main
from speech_tokenizers.evaluation.clip_results import ClipMetric, MetricFailure
from speech_tokenizers.evaluation.reconstruction.neural_metrics import SpeakerSimilarity
from speech_tokenizers.evaluation.reconstruction.signal_metrics import STOI
from speech_tokenizers.evaluation.speech_lm import comparison as speech_lm_comparison
from speech_tokenizers.evaluation.speech_lm.comparison import SynthesisComparison, evaluate_synthesis, score_speech
from speech_tokenizers.evaluation.speech_lm.report import build_report
from speech_tokenizers.evaluation.speech_lm.sentences import read_sentences


pytest.importorskip("jiwer")
SETTINGS = {"settings": {"threads": 1, "device": "cpu", "seed": 0, "dnsmos_windows": 2}, "skipped": {}}


class Loudness(ClipMetric):
    """The largest sample; silence has none."""

    score_name, title, uses_recording = "dnsmos", "Loudness", False

    def score_clip(self, decoded: np.ndarray, recorded: np.ndarray, sampling_rate: int) -> float:
        if decoded.max() > 0.45:
            raise MetricFailure("it is too loud")
        return float(decoded.max())


@pytest.fixture
def evaluate(make_rows, tmp_path):
    """Function: evaluate a voice on the rows of `make_rows`; the results."""

    def run(voice, recognizers, metrics=(), changes=None, recordings=True, limit=None):
        rows, folder = make_rows(changes)
        alignment = voice.text_alignment
        sentences = read_sentences(rows, 2, alignment, voice.codec, folder if recordings else None, limit=limit)
        comparison = SynthesisComparison(sentences, list(metrics), list(recognizers), tmp_path / "out")
        return evaluate_synthesis(voice, comparison, SETTINGS)

    return run


def scores(results, name):
    return {
        system["system"]: system["scores"][name] and system["scores"][name]["value"]
        for system in results["systems"]
        if name in system["scores"]
    }


def test_error_rates_are_those_of_each_speaker(evaluate, make_voice, reader):
    results = evaluate(make_voice(misread={"bravo": "zero"}), [reader])
    # 9 words; the codec says two `delta` as `echo`, of which one falls together with the `echo` before it.
    assert scores(results, "wer[reader]") == {
        "recording": 0.0,
        "codec (2 codebooks)": pytest.approx(100 * 2 / 9),
        "levels-tts (true durations)": pytest.approx(100 * 2 / 9),
        "levels-tts": pytest.approx(100 * 2 / 9),
    }
    assert scores(results, "cer[reader]")["recording"] == 0.0
    assert 0 < scores(results, "cer[reader]")["levels-tts"] < 40


def test_differences_are_to_each_ceiling_on_the_same_sentences(evaluate, make_voice, reader):
    differences = evaluate(make_voice(), [reader])["differences"]
    assert list(differences) == ["recording", "codec (2 codebooks)", "levels-tts (true durations)"]
    assert differences["recording"]["wer[reader]"]["value"] == 0
    found = differences["codec (2 codebooks)"]["wer[reader]"]
    assert found["value"] == pytest.approx(-100 * 2 / 9)
    assert found["low"] < found["value"] < found["high"] <= 0
    assert set(differences["recording"]) == {"wer[reader]", "cer[reader]"}


def test_how_the_model_speaks_is_counted(evaluate, make_voice, reader):
    voice = make_voice(misread={"bravo": None, "echo": "delta"}, ends=False)
    voice.model.num_dropped = 1
    results = evaluate(voice, [reader])
    assert scores(results, "ended") == {"levels-tts (true durations)": 0.0, "levels-tts": 0.0}
    # Of 9 words two are skipped, and two are replaced: these count on both sides.
    assert scores(results, "skipped_pieces")["levels-tts"] == pytest.approx(100 * 4 / 9)
    assert scores(results, "added_pieces")["levels-tts"] == pytest.approx(100 * 2 / 9)
    assert scores(results, "invalid_frames")["levels-tts"] == 0.0
    assert scores(results, "dropped_codes")["levels-tts"] == pytest.approx(100 * 4 / (7 * 20 * 2 + 4))
    recorded = (10 + 11) + (10 + 11 + 12) + 10 + (10 + 11 + 12)
    assert scores(results, "length_ratio")["levels-tts"] == pytest.approx(7 * 20 / recorded)
    assert scores(results, "length_ratio")["recording"] == 1.0


def test_times_are_medians_of_the_sentences(evaluate, make_voice, reader, tmp_path):
    results = evaluate(make_voice(), [reader])
    key = results["systems"][-1]["system_key"]
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").open()]
    records = [record for record in records if record["system_key"] == key]
    factors = [record["facts"]["wall_seconds"] / record["seconds"] for record in records]
    assert scores(results, "real_time_factor")["levels-tts"] == pytest.approx(np.median(factors))
    first = [record["facts"]["first_audio_seconds"] for record in records]
    assert scores(results, "first_audio")["levels-tts"] == pytest.approx(np.median(first))
    processor = [record["facts"]["first_audio_cpu_seconds"] for record in records]
    assert scores(results, "first_audio_cpu")["levels-tts"] == pytest.approx(np.median(processor))
    assert len(factors) == 4
    assert "real_time_factor" not in results["systems"][1]["scores"]


def test_a_sentence_that_is_done_is_not_done_again(evaluate, make_voice, reader):
    voice = make_voice()
    before = evaluate(voice, [reader])
    assert (voice.model.num_spoken, reader.num_heard) == (8, 16)
    after = evaluate(voice, [reader])
    assert (voice.model.num_spoken, reader.num_heard) == (8, 16)
    assert after == before


def test_a_new_recogniser_hears_what_is_there_and_nothing_is_spoken_anew(evaluate, make_voice, reader):
    voice = make_voice()
    evaluate(voice, [reader])
    second = type(reader)("second")
    results = evaluate(voice, [reader, second])
    assert (voice.model.num_spoken, reader.num_heard, second.num_heard) == (8, 16, 16)
    assert scores(results, "wer[second]") == scores(results, "wer[reader]")


def test_an_interrupted_run_goes_on_and_ends_as_if_undisturbed(evaluate, make_voice, reader, tmp_path):
    voice = make_voice(misread={"bravo": "zero"})
    spoken, limit = voice.model.generate_speech, 5

    def stopped(*args, **kwargs):
        if voice.model.num_spoken == limit:
            raise KeyboardInterrupt
        return spoken(*args, **kwargs)

    voice.model.generate_speech = stopped
    with pytest.raises(KeyboardInterrupt):
        evaluate(voice, [reader])
    voice.model.generate_speech = spoken
    resumed = evaluate(voice, [reader])
    assert voice.model.num_spoken == 8
    (tmp_path / "out" / "results.jsonl").unlink()
    undisturbed = evaluate(voice, [reader])
    for name in ("wer[reader]", "cer[reader]", "ended", "skipped_pieces", "length_ratio"):
        assert scores(resumed, name) == scores(undisturbed, name)


def test_another_sentence_text_or_model_is_spoken_anew(evaluate, make_voice, reader):
    voice = make_voice()
    evaluate(voice, [reader])
    evaluate(voice, [reader], changes={0: {"text": "alpha charlie"}})
    assert voice.model.num_spoken == 8 + 2
    other = make_voice(ends=False)
    evaluate(other, [reader])
    assert other.model.num_spoken == 8


def test_speech_whose_file_is_gone_is_made_anew(evaluate, make_voice, reader, tmp_path):
    voice = make_voice()
    results = evaluate(voice, [reader])
    (tmp_path / "out" / results["sentences"][1]["systems"]["levels-tts"]["audio"]).unlink()
    evaluate(voice, [reader])
    assert voice.model.num_spoken == 9


def test_results_of_an_earlier_version_are_made_anew(evaluate, make_voice, reader, tmp_path):
    voice, path = make_voice(), tmp_path / "out" / "results.jsonl"
    evaluate(voice, [reader])
    records = [json.loads(line) for line in path.open()]
    earlier = [{**record, "version": record["version"] - 1} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in earlier))
    evaluate(voice, [reader])
    assert (voice.model.num_spoken, len(voice.model.streamed)) == (16, 16)


def test_a_codec_that_cannot_stream_has_no_first_audio_but_a_reason(evaluate, make_voice, reader):
    voice = make_voice()
    assert "a look-ahead of 0.05 s of speech" in build_report(evaluate(voice, [reader])).markdown()
    voice = make_voice(ends=False)  # so that it is spoken anew
    voice.model.look_ahead_seconds = math.inf
    results = evaluate(voice, [reader])
    assert results["look_ahead_seconds"] is None
    assert "first_audio" not in results["systems"][-1]["scores"]
    report = build_report(results).markdown()
    assert "levels-tts, first_audio: 4 × the codec decodes the whole at once" in report
    assert "look-ahead" not in report


def test_a_sentence_that_cannot_be_spoken_has_no_score_and_is_tried_again(evaluate, make_voice, reader):
    voice = make_voice()
    voice.model.breaks_on = "charlie"
    results = evaluate(voice, [reader])
    *_, model = results["systems"]
    assert model["not_spoken"] == {"not spoken: the cache is full": 1}
    assert (model["num_clips"], model["num_spoken"]) == (4, 3)
    assert model["scores"]["wer[reader]"]["num_clips"] == model["scores"]["ended"]["num_clips"] == 3
    assert model["failures"]["wer[reader]"] == {"not spoken: the cache is full": 1}
    assert results["differences"]["recording"]["wer[reader]"]["num_clips"] == 3
    assert results["sentences"][1]["systems"]["levels-tts"] == {"failure": "not spoken: the cache is full"}
    report = build_report(results).markdown()
    assert "levels-tts: 1 × not spoken: the cache is full" in report
    assert "n=3, 1 failed" in report
    voice.model.breaks_on = None
    assert evaluate(voice, [reader])["systems"][-1]["not_spoken"] == {}
    assert voice.model.num_spoken == 8 + 2


def test_a_text_without_a_pronunciation_fails_for_the_model_and_not_for_the_ceilings(evaluate, make_voice, reader):
    results = evaluate(make_voice(), [reader], changes={2: {"text": "eccho"}})
    recording, codec, _, model = results["systems"]
    assert model["not_spoken"] == {"not spoken: no pronunciation of eccho": 1}
    assert recording["num_spoken"] == codec["num_spoken"] == 4
    assert recording["scores"]["wer[reader]"]["value"] == pytest.approx(100 / 9)


def test_nan_is_no_speech(evaluate, make_voice, reader):
    voice = make_voice()
    decode = voice.codec.decode
    voice.codec.decode = lambda audio_codes: types.SimpleNamespace(
        audio_values=decode(audio_codes).audio_values * float("nan")
    )
    results = evaluate(voice, [reader])
    assert results["systems"][1]["not_spoken"] == {"not spoken: the speech holds NaN or infinite samples": 4}
    assert results["systems"][1]["scores"]["wer[reader]"] is None


def test_nothing_said_is_all_words_lost_and_has_no_other_score(evaluate, make_voice, reader):
    silent = make_voice(misread={"echo": None})
    results = evaluate(silent, [reader], metrics=[Loudness()])
    model = results["systems"][-1]
    assert model["num_spoken"] == 4
    assert results["sentences"][2]["systems"]["levels-tts"]["heard"] == {"reader": ""}
    assert scores(results, "wer[reader]")["levels-tts"] == pytest.approx(100 * 2 / 9)
    assert model["failures"]["dnsmos"] == {"nothing was said": 1}
    assert model["scores"]["real_time_factor"]["num_clips"] == 3
    assert model["failures"]["first_audio"] == {"nothing was said": 1}


def test_a_metric_that_fails_has_no_score_but_a_reason(evaluate, make_voice, reader):
    results = evaluate(make_voice(), [reader], metrics=[Loudness()])
    recording, codec, _, model = results["systems"]
    assert recording["scores"]["dnsmos"]["value"] == pytest.approx((0.2 + 0.4) / 2, abs=1e-3)
    assert recording["failures"]["dnsmos"] == {"it is too loud": 2}
    assert codec["failures"]["dnsmos"] == {"it is too loud": 3}
    # On the one sentence that neither fails on.
    assert results["differences"]["codec (2 codebooks)"]["dnsmos"]["num_clips"] == 1


def test_without_recordings_and_pieces_the_codec_is_the_ceiling(evaluate, make_voice, reader):
    results = evaluate(make_voice(alignment="none"), [reader], recordings=False)
    assert [system["system"] for system in results["systems"]] == ["codec (2 codebooks)", "levels-tts"]
    assert "skipped_pieces" not in results["systems"][-1]["scores"]
    assert build_report(results).html()


def test_the_page_plays_each_sentence_and_shows_what_was_heard(evaluate, make_voice, reader, tmp_path, read_page):
    results = evaluate(make_voice(misread={"bravo": "zero"}), [reader])
    report = build_report(results)
    written = report.write(tmp_path / "out", "results")
    assert {path.name for path in written} == {"results.json", "results.md", "results.html"}
    page = read_page((tmp_path / "out" / "results.html").read_text())
    assert page.tags.count("audio") == 4 * 4
    for reference in page.references:
        audio, rate = soundfile.read(tmp_path / "out" / reference)
        assert rate == 16000
        assert len(audio)
    assert len(page.alts) == 2
    text = report.markdown()
    assert "alpha zero" in text
    assert "### s0.wav\n\nalpha bravo" in text
    assert "### s0.wav" not in build_report(results, with_sentences=False).markdown()
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))


def test_speakers_of_speech_of_other_lengths_are_compared(make_rows):
    if importlib.util.find_spec("resemblyzer") is None:
        pytest.skip("needs resemblyzer")
    metric = SpeakerSimilarity()
    rows, recordings = make_rows()
    first, *_ = read_sentences(rows, 2, recordings=recordings)
    tone = 0.1 * np.sin(np.arange(48000) * 0.1)
    soundfile.write(first.recording, tone, 16000)
    assert score_speech(metric, tone.astype(np.float32), first) == pytest.approx(1.0, abs=1e-3)
    assert score_speech(metric, tone[:32000].astype(np.float32), first) > 0.95
    other = np.random.default_rng(0).normal(0, 0.1, 40000).astype(np.float32)
    assert score_speech(metric, other, first) < 0.9
    with pytest.raises(MetricFailure, match="nothing was said"):
        score_speech(metric, tone[:0], first)


def test_a_metric_that_compares_samples_is_refused(make_rows):
    pytest.importorskip("pystoi")
    rows, recordings = make_rows()
    first, *_ = read_sentences(rows, 2, recordings=recordings)
    with pytest.raises(ValueError, match="compares sample by sample"):
        score_speech(STOI(), np.zeros(16000, np.float32), first)


@pytest.fixture
def command(make_rows, make_voice, reader, tmp_path, monkeypatch):
    """Function: run the command on the voice of levels; its exit code. `command.asked` is what was loaded."""
    asked = {}

    def load_voice(name, device, options, seed):
        asked.update(name=name, device=device, options=options, seed=seed)
        return voice

    voice = make_voice()
    monkeypatch.setattr(speech_lm_comparison, "load_voice", load_voice)
    monkeypatch.setattr(speech_lm_comparison, "load_recognizers", lambda names, language: ([reader][: len(names)], {}))

    def run(*arguments, with_recordings=True, changes=None):
        rows, recordings = make_rows(changes)
        given = ["--rows", str(rows), "-o", str(tmp_path / "out"), "--metrics", *arguments, "--device", "cpu"]
        given += ["--recordings", str(recordings)] if with_recordings else []
        return main(["evaluate", "speech-lm", "levels-tts", *given])

    run.asked, run.voice = asked, voice
    return run


def test_the_command_measures_writes_and_prints(command, tmp_path, capsys):
    assert command("--recognizer", "reader", "--limit", "2", "--temperature", "0.5", "--seed", "3") == 0
    assert command.asked == {"name": "levels-tts", "device": "cpu", "options": {"temperature": 0.5}, "seed": 3}
    out = capsys.readouterr().out
    assert "| speaker | WER % (reader) | CER % (reader) |" in out
    assert "### s0.wav" not in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["num_sentences"] == 2
    assert results["settings"] == {
        "threads": 1, "device": "cpu", "seed": 3, "dnsmos_windows": 2, "temperature": 0.5
    }  # fmt: skip
    assert "temperature 0.5, seed 3" in (tmp_path / "out" / "results.md").read_text()


def test_the_command_says_what_is_not_measured(command, monkeypatch, capsys):
    # In place of a metric whose package may be missing.
    compared = types.SimpleNamespace(score_name="speaker_similarity", uses_recording=True)
    monkeypatch.setattr(speech_lm_comparison, "build_metrics", lambda names: ([compared], {}))
    assert command("speaker_similarity", with_recordings=False) == 0
    told = capsys.readouterr().err
    assert "skipped recordings: no folder of them was named by --recordings" in told
    assert "skipped speaker_similarity: it needs --recordings" in told
    assert "skipped error rates: no recogniser was named by --recognizer" in told


def test_the_command_fails_where_a_sentence_could_not_be_spoken(command, capsys):
    command.voice.model.breaks_on = "echo"
    assert command("--recognizer", "reader") == 1
    assert "2 × not spoken: the cache is full" in capsys.readouterr().out


def test_rows_of_another_codec_are_refused_by_the_command(command, capsys):
    command.voice.codec.fingerprint = lambda: "other"
    assert command() == 2
    assert "encode the recordings anew" in capsys.readouterr().err
