# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers evaluate units` on synthetic recordings whose phones are levels of a constant signal."""

import itertools
import json
import types

import jiwer
import numpy as np
import pytest
import soundfile
import torch

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main
from speech_tokenizers.evaluation.codec_systems import EncodedClip, EncodingSystem
from speech_tokenizers.evaluation.units import command as units
from speech_tokenizers.evaluation.units import comparison as unit_comparison
from speech_tokenizers.evaluation.units import probes as unit_probes
from speech_tokenizers.evaluation.units.comparison import UnitComparison, read_spoken_clips, usable_measures
from speech_tokenizers.evaluation.units.encoded_clips import UnitSettings
from speech_tokenizers.evaluation.units.perturbations import default_perturbations, perturb
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor


PHONES = ["AA0", "B", "IY1", "S"]
SETTINGS = UnitSettings(robustness_clips=4)


@pytest.fixture(autouse=True)
def hasty_probes(monkeypatch):
    """Probes that hardly learn: here it matters only that they run."""
    monkeypatch.setattr(unit_probes, "NUM_STEPS", 2)


@pytest.fixture
def data(tmp_path):
    """Eight recordings of four speakers, each of twelve phones of 0.1 s: phone k has the level (k + 1) / 10."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    rows, labels = [], []
    for number in range(8):
        said = generator.permutation(np.arange(12) % 4)
        audio = np.repeat((said + 1) / 10, 1600)
        name = f"{number}.wav"
        soundfile.write(folder / name, audio, 16000, subtype="FLOAT")
        rows.append({"file_name": name, "speaker": f"speaker {number // 2}", "gender": "mf"[number // 4]})
        spans = [{"label": PHONES[k], "start": place / 10, "end": (place + 1) / 10} for place, k in enumerate(said)]
        labels.append({"file_name": name, "labels": spans})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    return folder


class LevelSystem:
    """The level of each frame of 0.02 s in tenths, as the only code; `late` hears frames so many seconds later."""

    sampling_rate = 16000
    frame_rate = 50.0
    codebook_size = 8

    def __init__(self, name: str = "levels", late: float = 0.0):
        self.name = self.key = name
        self.late = late
        self.num_calls = 0
        self.model = types.SimpleNamespace(config=types.SimpleNamespace(), family="Levels", longest_exact_stream=None)

    def encode(self, audio: np.ndarray) -> np.ndarray:
        self.num_calls += 1
        moved = np.pad(audio, (0, 3200), mode="edge")[round(self.late * 16000) :][: len(audio)]
        levels = moved[: len(moved) // 320 * 320].reshape(-1, 320).mean(1)
        return np.clip(np.round(10 * levels), 0, 7).astype(np.int64)[None]

    def encode_frames(self, audio: np.ndarray) -> EncodedClip:
        codes = self.encode(audio)
        return EncodedClip(codes, self.dequantize(codes))

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        return np.eye(8, dtype=np.float32)[codes[0]]

    def frame_centres(self, num_frames: int) -> np.ndarray:
        return (np.arange(num_frames) + 0.5) / 50 + self.late


def compare(data, tmp_path, system, measures=tuple(unit_comparison.MEASURES), **labels):
    clips = read_spoken_clips(str(data), {}, labels={"labels": tmp_path / "labels.jsonl", **labels}["labels"])
    return UnitComparison(clips, usable_measures(measures, clips, SETTINGS)[0], SETTINGS, tmp_path / "out").measure(
        system
    )


def test_units_that_are_the_phones_agree_with_them_wholly(data, tmp_path):
    summary = compare(data, tmp_path, LevelSystem())
    for name in ("pnmi", "phone_purity", "cluster_purity"):
        score = summary["scores"][name]
        assert (score["value"], score["num_clips"]) == (pytest.approx(1.0), 8)
        assert summary["scores"][f"{name}[chance]"]["value"] < 0.9
    for name in ("abx_within[centroids]", "abx_across[features]"):
        assert summary["scores"][name]["value"] == 0.0
    assert summary["scores"]["bits_nominal"]["value"] == 50 * 3
    # Four of eight codes, and at most a phone each 0.1 s.
    assert summary["scores"]["share_used"]["value"] == 0.5
    assert summary["scores"]["perplexity"]["value"] == pytest.approx(4.0)
    assert summary["scores"]["units_per_second"]["value"] < 10.0
    assert summary["details"]["pnmi_confusion"]["labels"] == ["AA", "B", "IY", "S"]
    assert np.count_nonzero(summary["details"]["pnmi_confusion"]["counts"]) == 4
    assert summary["encoding_failures"] == {}


def test_labels_are_taken_where_a_frame_is_heard(data, tmp_path):
    on_time = compare(data, tmp_path, LevelSystem("late", 0.06), ["agreement"])
    assert on_time["scores"]["pnmi"]["value"] == pytest.approx(1.0, abs=0.02)
    wrong = LevelSystem("wrong", 0.06)
    wrong.frame_centres = LevelSystem().frame_centres
    assert compare(data, tmp_path, wrong, ["agreement"])["scores"]["pnmi"]["value"] < 0.6


def test_unit_edit_distance_is_that_of_jiwer_over_the_clips_that_were_drawn(data, tmp_path):
    system = LevelSystem()
    summary = compare(data, tmp_path, system, ["robustness"])
    clips = read_spoken_clips(str(data), {}).clips
    drawn = [clips[number] for number in np.random.default_rng(0).permutation(8)[:4]]
    for name, perturbation in default_perturbations().items():
        said = [
            [
                " ".join(str(unit) for unit, _ in itertools.groupby(system.encode(audio)[0]))
                for audio in (clip.load(), perturb(clip.load(), perturbation, 0, clip.key))
            ]
            for clip in drawn
        ]
        score = summary["scores"][f"ued[{name}]"]
        expected = 100 * jiwer.wer(*map(list, zip(*said, strict=True)))
        assert (score["value"], score["num_clips"]) == (pytest.approx(expected), 4)
        assert score["low"] <= score["value"] <= score["high"]
        assert summary["details"]["perturbations"][name] == perturbation.description
    assert summary["scores"]["ued[time_stretch]"]["value"] < summary["scores"]["ued[chance]"]["value"]
    assert summary["scores"]["ued[gain]"]["value"] > 0


def test_units_that_nothing_changes_have_no_distance(data, tmp_path):
    class Deaf(LevelSystem):
        def encode(self, audio):
            return np.arange(30)[None] % 8

    scores = compare(data, tmp_path, Deaf(), ["robustness"])["scores"]
    assert {score["value"] for score in scores.values()} == {0.0}
    assert len(scores) == len(default_perturbations()) + 1


def test_a_clip_whose_changed_version_fails_is_in_no_score_of_it(data, tmp_path):
    class Fragile(LevelSystem):
        def encode(self, audio):
            if len(audio) != 19200:
                raise RuntimeError("of another length")
            return super().encode(audio)

    summary = compare(data, tmp_path, Fragile(), ["robustness"])
    assert summary["scores"]["ued[time_stretch]"] is None
    (reason,) = summary["failures"]["ued[time_stretch]"]
    assert reason == "of another length"
    assert len(summary["failures"]["ued[time_stretch]"][reason]) == 4
    assert summary["scores"]["ued[gain]"]["num_clips"] == 4
    assert summary["encoding_failures"] == {}


def test_other_perturbations_are_measured_anew_and_known_ones_are_not(data, tmp_path):
    noise = tmp_path / "noise"
    noise.mkdir()
    soundfile.write(noise / "hum.wav", 0.1 * np.sin(np.arange(16000) / 50), 16000)
    clips = read_spoken_clips(str(data), {})

    def measure(**settings):
        system = LevelSystem()
        settings = UnitSettings(robustness_clips=4, **settings)
        return UnitComparison(clips, ["robustness"], settings, tmp_path / "out").measure(system), system.num_calls

    summary, num_calls = measure(perturbations=("gain", "noise"))
    assert num_calls == 8 + 4 * 2
    assert set(summary["scores"]) == {"ued[gain]", "ued[noise]", "ued[chance]"}
    wider, num_calls = measure(perturbations=("gain", "noise", "mp3"))
    assert num_calls == 4
    assert wider["scores"]["ued[gain]"] == summary["scores"]["ued[gain]"]
    recorded, num_calls = measure(perturbations=("gain", "noise"), noise_folder=str(noise))
    assert num_calls == 4
    assert recorded["scores"]["ued[noise]"] != summary["scores"]["ued[noise]"]
    soundfile.write(noise / "hum.wav", 0.1 * np.sin(np.arange(16000) / 5), 16000)
    assert measure(perturbations=("gain", "noise"), noise_folder=str(noise))[1] == 4
    with pytest.raises(ValueError, match="must be among noise, noise_nast"):
        measure(perturbations=("echo",))


def test_a_second_run_reads_what_is_known_and_does_not_call_the_model(data, tmp_path):
    first = compare(data, tmp_path, LevelSystem())
    again = LevelSystem()
    assert compare(data, tmp_path, again) == first
    assert again.num_calls == 0


def test_an_interruption_costs_what_was_not_written(data, tmp_path):
    first = compare(data, tmp_path, LevelSystem(), ["agreement", "usage"])
    (path,) = (tmp_path / "out" / "systems").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    again = LevelSystem()
    assert compare(data, tmp_path, again, ["agreement", "usage"])["scores"] == first["scores"]
    assert again.num_calls == 3


def test_other_clips_or_settings_are_measured_anew(data, tmp_path):
    compare(data, tmp_path, LevelSystem(), ["agreement"])
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    for line in lines[:4]:
        line["labels"] = [{**item, "label": "AA0"} for item in line["labels"]]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    system = LevelSystem()
    assert compare(data, tmp_path, system, ["agreement"])["scores"]["pnmi"]["value"] < 0.9
    assert system.num_calls == 0


def test_a_clip_that_fails_is_named_and_in_no_score(data, tmp_path):
    (data / "3.wav").write_bytes(b"RIFF and nothing else")

    class Fragile(LevelSystem):
        def encode(self, audio):
            if audio[0] == np.float32(0.1):
                raise RuntimeError("out of\norder")
            return super().encode(audio)

    summary = compare(data, tmp_path, Fragile())
    broken = [name for names in summary["encoding_failures"].values() for name in names]
    assert "3.wav" in broken
    assert "out of order" in summary["encoding_failures"]
    assert 0 < summary["num_clips"] == 8 - len(broken)
    assert summary["scores"]["pnmi"]["num_clips"] == summary["num_clips"]


def test_clips_without_labels_are_named(data, tmp_path):
    lines = (tmp_path / "labels.jsonl").read_text().splitlines()
    (tmp_path / "labels.jsonl").write_text("\n".join(lines[:6]))
    summary = compare(data, tmp_path, LevelSystem(), ["agreement"])
    assert summary["scores"]["pnmi"]["num_clips"] == 6
    assert summary["failures"]["pnmi"] == {"no frame has a label": ["6.wav", "7.wav"]}


def test_measures_that_the_data_does_not_permit_are_skipped_with_what_is_missing(data, tmp_path):
    clips = read_spoken_clips(str(data), {"gender": ["m"]})
    assert len(clips.clips) == 4
    usable, skipped = usable_measures(["agreement", "characters", "rate", "resynthesis"], clips, SETTINGS)
    assert usable == ["rate"]
    assert "--labels" in skipped["agreement"]
    assert "--recognizer" in skipped["resynthesis"]
    (tmp_path / "labels.jsonl").write_text(json.dumps({"file_name": "other.wav", "labels": []}))
    with pytest.raises(ValueError, match="has no labels of these recordings, such as 0.wav"):
        read_spoken_clips(str(data), {}, labels=tmp_path / "labels.jsonl")


def test_a_limit_is_drawn_by_the_seed(data):
    drawn = [
        [clip.name for clip in read_spoken_clips(str(data), {}, limit=3, seed=seed).clips] for seed in (0, 0, 1, 2)
    ]
    assert len(drawn[0]) == 3
    assert drawn[0] == drawn[1]
    assert len({tuple(names) for names in drawn}) > 1


@pytest.mark.parametrize("codec", ["encodec", "dac", "mimi"])
def test_codecs_of_transformers_are_measured_like_ours(data, tmp_path, codec, make_transformers_codec):
    model, feature_extractor = make_transformers_codec(codec)
    for name, buffer in model.named_buffers():
        if "embed" in name:  # zeros before they are trained
            buffer.normal_()
    summary = compare(data, tmp_path, EncodingSystem(model, feature_extractor, "codec"))
    assert summary["num_quantizers"] == 4
    assert summary["num_clips"] == 8
    assert 0 <= summary["scores"]["abx_within[features]"]["value"] <= 100
    assert len(summary["details"]["pnmi_by_codebook"]) == 4
    distances = summary["details"]["ued_by_codebook"]
    for name in default_perturbations():
        assert len(distances[name]) == 4
        assert min(distances[name]) >= 0


@pytest.fixture
def units_model():
    torch.manual_seed(0)
    encoder = tiny_hubert(intermediate_size=32, conv_dim=(8,) * 7, num_conv_pos_embeddings=16)
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder, layers=[1], codebook_size=6)).eval()
    audio = 0.1 * torch.randn(1, 8000)
    model.set_centroids(model.features(audio)[0][0, :, :6])
    return model


def test_bits_are_those_that_the_configuration_says(data, tmp_path):
    torch.manual_seed(0)
    encoder = tiny_hubert(intermediate_size=32, conv_dim=(8,) * 7, num_conv_pos_embeddings=16)
    fields = {"kept_dims": 2, "kept_codebook_size": 4, "f0_bins": 4, "f0_stride": 5}
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder, layers=[1], codebook_size=6, **fields)).eval()
    quantizer = model.quantizer
    model.set_centroids(torch.randn(model.centroids.shape))
    model.set_weighting(torch.randn(quantizer.kept_matrix.shape), torch.randn(quantizer.kept_offset.shape))
    model.set_kept_centroids(torch.randn(quantizer.kept_centroids.shape))
    system = EncodingSystem(model, KMeansUnitsFeatureExtractor(), "units")
    scores = compare(data, tmp_path, system, ("rate",))["scores"]
    assert scores["bits_nominal"]["value"] == pytest.approx(model.bits_per_second)
    assert scores["bits_nominal"]["value"] == pytest.approx(50 * (np.log2(6) + 2 + 2 / 5))
    assert scores["bits_entropy"]["value"] <= scores["bits_nominal"]["value"]
    first = EncodingSystem(model, KMeansUnitsFeatureExtractor(), "units", num_quantizers=1)
    found = compare(data, tmp_path / "first", first, ("rate",), labels=tmp_path / "labels.jsonl")["scores"]
    assert found["bits_nominal"]["value"] == pytest.approx(50 * np.log2(6))


def test_the_command_knows_the_perturbations_that_there_are():
    assert tuple(default_perturbations()) == units.PERTURBATION_NAMES


def test_the_command_knows_the_measures_that_there_are():
    assert tuple(unit_comparison.MEASURES) == units.MEASURE_NAMES


def test_probes_are_kept_and_measured_anew_with_other_frames(data, tmp_path):
    clips = read_spoken_clips(str(data), {}, labels=tmp_path / "labels.jsonl")

    def measure(probe_frames):
        system = LevelSystem()
        comparison = UnitComparison(clips, ["probes"], UnitSettings(probe_frames=probe_frames), tmp_path / "out")
        return comparison.measure(system), system.num_calls

    first, num_calls = measure(20)
    assert num_calls == 8
    assert len(first["scores"]) == 3 * 3 * 2 * 3
    assert first["details"]["probes"]["phone"]["num_items"] == 8 * 20
    assert measure(20) == (first, 0)
    other, num_calls = measure(5)
    assert num_calls == 8  # for the features
    assert other["details"]["probes"]["phone"]["num_items"] == 8 * 5


def run(tmp_path, *arguments: str) -> int:
    shared = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--robustness-clips", "4"]
    return main(["evaluate", "units", *arguments, *shared])


def test_the_command_writes_every_report(data, tmp_path, units_model, make_rvq_codec, capsys):
    for name, parts in {
        "units": (units_model, KMeansUnitsFeatureExtractor(sampling_rate=16000)),
        "codec": make_rvq_codec(),
    }.items():
        for part in parts:
            part.save_pretrained(tmp_path / name)
    models = [str(tmp_path / "units"), "--systems", f"tiny codec={tmp_path / 'codec'}"]
    assert run(tmp_path, *models, "--labels", str(tmp_path / "labels.jsonl")) == 0
    report = json.loads((tmp_path / "out" / "units.json").read_text())
    ours, codec = report["systems"]
    assert (ours["system"], ours["layers"], ours["num_quantizers"]) == ("units", [1], 1)
    assert (codec["system"], codec["layers"], codec["num_quantizers"]) == ("tiny codec", [], 4)
    for system in report["systems"]:
        assert {f"ued[{name}]" for name in units.PERTURBATION_NAMES} <= set(system["scores"])
    assert "UED % (noise nast)" in (tmp_path / "out" / "units.md").read_text()
    assert "it needs characters and their times" in capsys.readouterr().err
    assert "Skipped characters" in (tmp_path / "out" / "units.md").read_text()
    (data / "5.wav").unlink()
    assert run(tmp_path, *models) == 2
    assert "lists 5.wav, which is no file" in capsys.readouterr().err
    (data / "5.wav").write_bytes(b"RIFF")
    assert run(tmp_path, *models, "--measures", "rate") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name at least one model"),
        (["--systems", "nameless"], "--systems takes NAME=MODEL, but got 'nameless'"),
        (["a/b", "--systems", "b=c"], "Two models are named b"),
        (["a/b", "--filter", "speaker"], "COLUMN=VALUE"),
        (["a/b", "--language", "xx"], "`language` is 'xx'"),
        (["a/b", "--noise", "no-such-folder"], "no-such-folder"),
        (["a/b", "--recognizer", "no-such-folder"], "`--recognizer` is 'no-such-folder', but there is no such file"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(data, tmp_path, capsys, arguments, message):
    assert run(tmp_path, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("speech-tokenizers evaluate units: error: ")
    assert message in error
