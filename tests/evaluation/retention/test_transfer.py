# SPDX-License-Identifier: Apache-2.0
"""
The spectra against SciPy's, the quantities against values worked out by hand, and the command from end to end.
"""

import json

import numpy as np
import pytest
import scipy.signal
import scipy.special
import soundfile

from speech_tokenizers.cli import main
from speech_tokenizers.evaluation.codec_systems import CodedClip
from speech_tokenizers.evaluation.retention import comparison as retention_comparison
from speech_tokenizers.evaluation.retention.transfer import (
    QUANTITIES,
    audible_bins,
    curve_cells,
    estimate_retention,
    frequency_ranges,
    pack_table,
    retention_counts,
    sum_spectra,
    unpack_table,
)


RATE = 16000


@pytest.fixture
def noise():
    return np.random.default_rng(0).standard_normal(20 * RATE)


def quantities(recorded: np.ndarray, decoded: np.ndarray, window: int = 400) -> dict[str, np.ndarray]:
    """Each quantity of each bin."""
    table = sum_spectra(recorded, decoded, window).table()
    return {name: np.array([statistic(bin) for bin in table.T]) for name, statistic in QUANTITIES.items()}


@pytest.mark.parametrize("window", [160, 401, 1600])
def test_spectra_are_those_of_scipy(noise, window):
    decoded = scipy.signal.lfilter([0.5, 0.3], [1, -0.4], noise) + 0.2 * np.random.default_rng(1).standard_normal(
        len(noise)
    )
    settings = {"fs": RATE, "nperseg": window, "noverlap": window - window // 2, "detrend": False}
    cross = scipy.signal.csd(noise, decoded, return_onesided=False, **settings)[1]
    recorded = scipy.signal.welch(noise, return_onesided=False, **settings)[1]
    spectra = sum_spectra(noise, decoded, window)
    count = window // 2 + 1
    scale = spectra.num_windows * RATE
    assert spectra.cross / scale == pytest.approx(cross[:count], abs=1e-12)
    assert spectra.recorded / scale == pytest.approx(recorded[:count], abs=1e-12)
    found = quantities(noise, decoded, window)
    assert found["transfer"] == pytest.approx(np.abs(cross / recorded)[:count], rel=1e-9)
    assert found["coherence"] == pytest.approx(scipy.signal.coherence(noise, decoded, **settings)[1], rel=1e-9)


def test_a_recording_is_kept_by_no_change_and_its_level_is_told(noise):
    for level in (1.0, -0.5):
        found = quantities(noise, level * noise)
        assert found["transfer"] == pytest.approx(abs(level))
        assert found["gain"] == pytest.approx(abs(level))
        assert found["coherence"] == pytest.approx(1)
        assert found["magnitude_transfer"] == pytest.approx(abs(level))
        assert found["magnitude_correlation"] == pytest.approx(1)


def test_magnitudes_are_those_of_numpy(noise):
    decoded = 0.3 * noise + np.random.default_rng(1).standard_normal(len(noise))
    stft = {"nperseg": 400, "noverlap": 200, "boundary": None, "padded": False}
    x, y = (np.abs(scipy.signal.stft(waveform, **stft)[2]) for waveform in (noise, decoded))
    found = quantities(noise, decoded)
    expected = [np.corrcoef(x[bin], y[bin])[0, 1] for bin in range(201)]
    assert found["magnitude_correlation"] == pytest.approx(np.array(expected), abs=1e-9)
    expected = [np.polyfit(x[bin], y[bin], 1)[0] for bin in range(201)]
    assert found["magnitude_transfer"] == pytest.approx(np.array(expected), abs=1e-9)


def test_a_known_filter_is_found(noise):
    # y[n] = (x[n] + x[n-1]) / 2 has |H| = cos(pi f / rate): 1 at 0 Hz, 0.7071 at a quarter, 0 at half the rate.
    found = quantities(noise, (noise + np.concatenate([[0], noise[:-1]])) / 2, 800)
    frequencies = np.linspace(0, RATE / 2, 401)
    expected = np.cos(np.pi * frequencies / RATE)
    assert expected[200] == pytest.approx(0.7071, abs=1e-4)
    assert found["transfer"] == pytest.approx(expected, abs=0.01)
    assert found["coherence"][:390] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("ratio", [9.0, 1.0, 0.25])
def test_added_white_noise_leaves_the_coherence_of_its_ratio(noise, ratio):
    added = np.random.default_rng(1).standard_normal(len(noise)) / np.sqrt(ratio)
    found = quantities(noise, noise + added)
    assert found["coherence"].mean() == pytest.approx(ratio / (1 + ratio), abs=0.005)  # 0.9, 0.5 and 0.2
    # What is added is no part of a filtered recording, but of the power.
    assert found["transfer"].mean() == pytest.approx(1, abs=0.01)
    assert found["gain"].mean() == pytest.approx(np.sqrt(1 + 1 / ratio), abs=0.01)
    # Magnitudes of complex normal numbers of coherence c: E|X||Y| is pi/4 times 2F1(-1/2, -1/2; 1; c).
    joint = np.pi / 4 * (scipy.special.hyp2f1(-0.5, -0.5, 1, ratio / (1 + ratio)) - 1)
    correlation = found["magnitude_correlation"][1:-1].mean()
    assert correlation == pytest.approx(joint / (1 - np.pi / 4), abs=0.01)


@pytest.mark.parametrize("delay", [0, 7, -7])
def test_the_correlation_of_waveforms_is_taken_where_they_are_aligned(noise, delay):
    late = np.roll(noise, delay)
    assert retention_comparison.shifted_correlation(-2 * late, noise, delay) == pytest.approx(-1)
    assert abs(retention_comparison.shifted_correlation(late, noise, delay + 5)) < 0.02
    assert retention_comparison.shifted_correlation(late, 0 * noise, delay) == 0


def test_what_only_sounds_alike_has_gain_and_no_transfer(noise):
    found = quantities(noise, np.random.default_rng(1).standard_normal(len(noise)))
    assert found["gain"].mean() == pytest.approx(1, abs=0.01)
    assert found["transfer"].mean() < 0.05
    assert found["coherence"].mean() < 0.002  # 1600 windows
    assert abs(found["magnitude_transfer"].mean()) < 0.01
    assert abs(found["magnitude_correlation"].mean()) < 0.01
    assert found["transfer"] == pytest.approx(found["gain"] * np.sqrt(found["coherence"]))


def test_what_keeps_magnitudes_alone_is_told_by_them():
    # Bursts of one noise, and bursts of another at the same moments.
    generator = np.random.default_rng(0)
    loudness = np.repeat(generator.uniform(0, 1, 500) ** 2, 800)
    recorded, decoded = (loudness * generator.standard_normal(len(loudness)) for _ in range(2))
    found = quantities(recorded, decoded)
    assert found["coherence"].mean() < 0.01
    # Loudness u^2 has variance 4/45 and mean square 1/5; Rayleigh magnitudes of mean square 1 have mean sqrt(pi)/2.
    # Windows across two bursts take a little off.
    expected = np.pi / 4 * 4 / 45 / (1 / 5 - np.pi / 4 / 9)
    assert found["magnitude_correlation"].mean() == pytest.approx(expected, abs=0.08)
    assert found["magnitude_transfer"].mean() == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize(("delay", "transfer"), [(20, 0.984), (40, 0.936)])
def test_a_delay_costs_what_the_description_says(noise, delay, transfer):
    found = quantities(noise, np.concatenate([np.zeros(delay), noise[:-delay]]), 400)
    assert found["transfer"].mean() == pytest.approx(transfer, abs=0.003)
    assert found["coherence"].mean() == pytest.approx(transfer**2, abs=0.005)


def test_a_silent_reconstruction_keeps_nothing(noise):
    found = quantities(noise, np.zeros_like(noise))
    for name in QUANTITIES:
        assert (found[name] == 0).all()


def test_short_clips_fill_one_window_and_unequal_ones_are_refused():
    assert sum_spectra(np.ones(10), np.ones(10), 400).num_windows == 1
    with pytest.raises(ValueError, match="must be one-dimensional and equally long"):
        sum_spectra(np.ones(10), np.ones(11), 4)
    with pytest.raises(ValueError, match="`window_length` must be at least 2 samples, but got 1"):
        sum_spectra(np.ones(10), np.ones(10), 1)


def test_frequencies_that_a_recording_does_not_hold_do_not_count(noise):
    low_pass = scipy.signal.firwin(801, 4000, fs=RATE)
    recorded = np.round(0.1 * scipy.signal.lfilter(low_pass, 1, noise) * 2**15) / 2**15
    spectra = sum_spectra(recorded, recorded, 400)
    frequencies = np.linspace(0, RATE / 2, 201)
    audible = audible_bins(spectra, RATE, RATE)
    assert audible[frequencies < 3800].all()
    assert not audible[frequencies > 4800].any()  # a Hann window leaks 71 dB below the edge for a dozen bins
    # A file of a lower rate ends earlier, though resampling leaves a little above its end.
    assert not audible_bins(sum_spectra(noise, noise, 400), RATE, 8000)[frequencies > 3800].any()
    assert audible_bins(sum_spectra(noise, noise, 400), RATE, 48000)[frequencies <= 7600].all()
    table = retention_counts(spectra, 1.0, audible)[None]
    assert estimate_retention(table, "transfer", 5000, 6000, RATE, [0]) is None
    assert estimate_retention(table, "transfer", 1000, 2000, RATE, [0]).value == pytest.approx(1)


def test_clips_count_by_length_and_not_by_level(noise):
    def counts(level: float, kept: float, num_samples: int) -> np.ndarray:
        recorded = level * noise[:num_samples]
        spectra = sum_spectra(recorded, kept * recorded, 400)
        return retention_counts(spectra, np.mean(recorded**2), np.ones(201, bool))

    half = RATE * 10
    for quiet, length, expected in ((0.01, half, 0.5), (1.0, half // 3, 0.75)):
        tables = np.stack([counts(1.0, 1.0, half), counts(quiet, 0.0, length)])
        found = estimate_retention(tables, "transfer", 1000, 2000, RATE, [0, 1])
        assert found.value == pytest.approx(expected, abs=0.01)
        assert (found.low, found.high, found.num_clips) == (0.0, pytest.approx(1, abs=1e-6), 2)
    # Both clips are one speaker's: there is nothing to redraw.
    one = estimate_retention(tables, "transfer", 1000, 2000, RATE, [4, 4])
    assert one.low == one.value == one.high
    assert one.num_clips == 1


def test_ranges_end_where_a_rate_does():
    assert list(frequency_ranges(8000)) == ["2 kHz", "top", "0.1–1 kHz", "1–2 kHz", "2–4 kHz"]
    assert frequency_ranges(8000)["2–4 kHz"] == (2000, 3800)
    assert "8 kHz" not in frequency_ranges(16000)
    assert frequency_ranges(16000)["top"] == (6400, 7600)
    assert frequency_ranges(24000)["8 kHz"] == (7750, 8250)
    assert frequency_ranges(24000)["8–12 kHz"] == (8000, 11400)
    cells = curve_cells(16000)
    assert cells[0] == (100, 250)
    assert cells[-1] == (7250, 7500)


def test_tables_survive_the_results_file():
    table = np.random.default_rng(0).standard_normal((8, 7)).astype(np.float32)
    assert (unpack_table(json.loads(json.dumps(pack_table(table)))) == table).all()


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    generator = np.random.default_rng(0)
    rows = []
    for number, rate in enumerate([16000, 16000, 24000]):
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / f"{number}.wav", 0.1 * generator.standard_normal(rate).clip(-4, 4), rate)
        rows.append({"file_name": f"{number}.wav", "speaker": "ab"[number // 2]})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture
def run(tmp_path, data):
    def run(*arguments: str) -> int:
        return main(["evaluate", "retention", *arguments, "--data", str(data), "--output", str(tmp_path / "out")])

    return run


class Halving:
    """Gives half of the recording back, at 24 kHz, and fails on what is longer than a second at its rate."""

    name, key, sampling_rate, codebook_size, frame_rate = "halving", "halving", 24000, None, None

    def code(self, audio):
        return CodedClip(0.5 * audio)


def test_a_known_system_gives_known_numbers(run, tmp_path, monkeypatch, read_page):
    monkeypatch.setattr(retention_comparison, "load_systems", lambda args: ([None, Halving], {}))
    assert run("halving", "--windows", "25", "10") == 0
    report = json.loads((tmp_path / "out" / "retention.json").read_text())
    alone, halving = report["systems"]
    assert (alone["system"], halving["system"]) == ("none, 24 kHz", "halving")
    for system, kept in ((alone, 1.0), (halving, 0.5)):
        for rate in ("8000", "16000"):
            scores = system["rates"][rate]["windows"]["25"]["scores"]
            assert scores["transfer"]["2 kHz"]["value"] == pytest.approx(kept, abs=1e-3)
            assert scores["coherence"]["2 kHz"]["value"] == pytest.approx(1, abs=1e-3)
        at_24 = system["rates"]["24000"]["windows"]["10"]["scores"]["transfer"]
        # Only one file goes beyond 8 kHz, and none has anything at 5 kHz that 8 kHz could hold.
        assert (at_24["8 kHz"]["num_clips"], at_24["5 kHz"]["num_clips"]) == (1, 3)
        assert at_24["8–12 kHz"]["value"] == pytest.approx(kept, abs=1e-3)
        assert "5 kHz" not in system["rates"]["8000"]["windows"]["25"]["scores"]["transfer"]
    page = (tmp_path / "out" / "retention.md").read_text()
    assert "| 16 kHz | halving | 0.50 [0.50, 0.50] | 0.50 [0.50, 0.50] | – |" in page
    assert (tmp_path / "out" / "retention.png").read_bytes().startswith(b"\x89PNG")
    assert "![Retention over the frequency, with intervals.](retention.png)" in page
    reader = read_page((tmp_path / "out" / "retention.html").read_text())
    assert reader.alts == ["Retention over the frequency, with intervals."]


def test_models_are_measured_once_and_a_cut_line_costs_a_clip(run, tmp_path, make_rvq_codec, make_cst, monkeypatch):
    for name, parts in (("rvq", make_rvq_codec()), ("cst", make_cst())):
        for part in parts:
            part.save_pretrained(tmp_path / name)
    models = [str(tmp_path / "rvq"), f"{tmp_path / 'rvq'}:latents", str(tmp_path / "cst")]
    arguments = [*models, "--rates", "8000", "16000", "--windows", "25", "--resample", "speakers"]
    calls = []

    def counted(system, *args, measure=retention_comparison.measure_clip):
        calls.append(system.name)
        return measure(system, *args)

    monkeypatch.setattr(retention_comparison, "measure_clip", counted)
    assert run(*arguments) == 0
    names = ["none, 16 kHz", "rvq", "rvq (latents)", "cst"]
    assert sorted(calls) == sorted(6 * names)
    first = json.loads((tmp_path / "out" / "retention.json").read_text())
    assert [system["system"] for system in first["systems"]] == names
    assert first["data"]["num_speakers"] == 2
    found = first["systems"][3]["rates"]["16000"]["windows"]["25"]["scores"]["coherence"]["2 kHz"]
    assert found["num_clips"] == 2
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    calls.clear()
    path = next(
        path for path in (tmp_path / "out" / "systems").glob("*.jsonl") if '"rvq"' in path.read_text().split("\n")[0]
    )
    path.write_bytes(path.read_bytes()[:-40])
    assert run(*arguments) == 0
    assert calls == ["rvq"]
    assert json.loads((tmp_path / "out" / "retention.json").read_text())["systems"] == first["systems"]


def test_clips_that_cannot_be_coded_are_told(run, tmp_path, monkeypatch):
    class Fickle(Halving):
        def code(self, audio):
            raise RuntimeError("out of order")

    monkeypatch.setattr(retention_comparison, "load_systems", lambda args: ([None, Fickle], {}))
    assert run("fickle", "--rates", "16000") == 0
    assert "halving, 16000 Hz: 3 × out of order" in (tmp_path / "out" / "retention.md").read_text()
    report = json.loads((tmp_path / "out" / "retention.json").read_text())
    assert report["systems"][1]["rates"] == {"16000": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name at least one model"),
        (["x", "--rates", "16000", "16000"], "--rates takes different numbers"),
        (["x", "--windows", "0.5"], "--windows takes different numbers of at least 1"),
        (["--peers", "files:x=."], "x is known by files of one rate"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(run, capsys, arguments, message):
    assert run(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("speech-tokenizers evaluate retention: error: ")
    assert message in error


def test_speakers_are_needed_to_redraw_them(run, data, capsys):
    (data / "metadata.jsonl").unlink()
    assert run("rvq-codec-16khz-4kbps", "--resample", "speakers") == 2
    assert "names no speaker of 0.wav; use --resample clips" in capsys.readouterr().err
