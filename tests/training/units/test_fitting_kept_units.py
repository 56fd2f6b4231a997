# SPDX-License-Identifier: Apache-2.0
"""Units that keep labels: what plain units lose is kept, at a cost that is measured; and what cannot be is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from helpers.processes import run_ranks
from helpers.tiny_models import tiny_hubert, write_tiny_hubert
from speech_tokenizers import cli
from speech_tokenizers.coding.loading import load
from speech_tokenizers.evaluation.codec_systems import EncodingSystem
from speech_tokenizers.evaluation.units.measures import measure_rate, measure_usage
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.processing.unit_sequences import units_to_string
from speech_tokenizers.training.units import kept_choice
from speech_tokenizers.training.units.kept_choice import KeptPlan, _Trial
from speech_tokenizers.training.units.kept_frames import KeptClasses, KeptFrames
from speech_tokenizers.training.units.kept_labels import NamedLabels, parse_labels, read_label_set
from speech_tokenizers.training.units.units_fitting import fit_on_recordings, fit_units


VOWELS = {"a": (700, 1200), "i": (300, 2300), "u": (350, 800)}
QUICK = {"num_init": 2, "batch_size": 500, "max_epochs": 10}


def labelled_frames(num_frames=4000, seed=0):
    """Frames (1, num_frames, 16) with four large clusters in two dimensions, and a small difference in a third."""
    generator = np.random.default_rng(seed)
    cluster, label = generator.integers(4, size=num_frames), generator.integers(2, size=num_frames)
    frames = generator.normal(size=(num_frames, 16)) * 0.3
    frames[:, 0] += np.array([-5, -5, 5, 5])[cluster]
    frames[:, 1] += np.array([-5, 5, -5, 5])[cluster]
    frames[:, 2] += np.array([-1, 1])[label]
    return frames[None].astype(np.float32), cluster, label


def purity(codes, labels):
    """Share of the frames whose label is the most frequent one of their unit."""
    return sum(np.bincount(labels[codes == code]).max() for code in np.unique(codes)) / len(codes)


def fitted(features, folder, kept=None, **fields):
    fields |= {} if kept is None else kept.fields(16)
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=tiny_hubert(), layers=[1], **fields)).eval()
    fit_units(model, features, folder, kept=kept, **QUICK)
    return model


def codes_of(model, features):
    return model.quantizer.encode(model.quantizer.weigh(torch.from_numpy(features)[None]))[0].numpy()


def test_a_label_that_plain_units_lose_is_kept(tmp_path):
    features, _, label = labelled_frames()
    new, cluster, new_label = labelled_frames(seed=1)
    plain = codes_of(fitted(features, tmp_path / "plain", codebook_size=4), new)[0]
    assert purity(plain, cluster) > 0.99
    assert purity(plain, new_label) < 0.55
    kept = fitted(features, tmp_path / "kept", KeptFrames([KeptClasses("small", label, 1.0)]), codebook_size=8)
    (codes,) = codes_of(kept, new)
    assert purity(codes, new_label) > 0.95
    assert purity(codes, cluster) > 0.95
    weak = fitted(features, tmp_path / "weak", KeptFrames([KeptClasses("small", label, 0.01)]), codebook_size=4)
    assert purity(codes_of(weak, new)[0], new_label) < 0.55


def test_a_codebook_beside_keeps_the_label_and_leaves_the_plain_codes(tmp_path):
    features, _, label = labelled_frames()
    new, _, new_label = labelled_frames(seed=1)
    plain = fitted(features, tmp_path / "plain", codebook_size=4)
    kept = KeptFrames([KeptClasses("small", label, 1.0)], codebook_size=2)
    beside = fitted(features, tmp_path / "beside", kept, codebook_size=4)
    assert torch.equal(beside.centroids, plain.centroids)
    first, second = codes_of(beside, new)
    assert np.array_equal(first, codes_of(plain, new)[0])
    assert purity(second, new_label) > 0.95


def test_a_stopped_fit_continues_bit_for_bit(tmp_path, monkeypatch):
    from speech_tokenizers.training.units import kmeans

    features, _, label = labelled_frames()
    whole = fitted(features, tmp_path / "whole", KeptFrames([KeptClasses("small", label, 1.0)], 2), codebook_size=6)
    step, steps = kmeans._step, []

    def stops_at_the_fifth(*args):
        steps.append(args)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(kmeans, "_step", stops_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        fitted(features, tmp_path / "cut", KeptFrames([KeptClasses("small", label, 1.0)], 2), codebook_size=6)
    # What was found before is read, not found again.
    monkeypatch.setattr("speech_tokenizers.training.units.kept_frames.discriminative_directions", None)
    resumed = fitted(features, tmp_path / "cut", KeptFrames([KeptClasses("small", label, 1.0)], 2), codebook_size=6)
    for name, value in whole.quantizer.state_dict().items():
        assert torch.equal(resumed.quantizer.state_dict()[name], value)


def spoken(vowel, pitch, num_samples, generator):
    """A buzz of a pitch through two resonances, with noise."""
    times = np.arange(num_samples) / 16000
    harmonics = np.arange(1, int(3500 / pitch)) * pitch
    gains = sum(1 / (1 + ((harmonics - formant) / 150) ** 2) for formant in VOWELS[vowel])
    phases = generator.uniform(0, 2 * np.pi, len(harmonics))
    waveform = (gains[:, None] * np.sin(2 * np.pi * harmonics[:, None] * times + phases[:, None])).sum(0)
    return 0.2 * waveform / np.abs(waveform).max() + 0.01 * generator.normal(size=num_samples)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Folder of a tiny HuBERT of two layers with random weights."""
    return write_tiny_hubert(
        tmp_path_factory.mktemp("encoder"), conv_dim=(8, 8, 8), conv_kernel=(10, 4, 4), conv_stride=(5, 4, 4)
    )


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A folder of recordings of three speakers, with a column `mood`, and files of their vowels and tones."""
    folder = tmp_path_factory.mktemp("speech")
    generator = np.random.default_rng(0)
    rows, lines = [], {"vowels": [], "tones": []}
    for number in range(12):
        name, labels, parts = f"{number}.wav", {"vowels": [], "tones": []}, []
        for place in range(6):
            vowel, tone = generator.choice([*VOWELS]), generator.choice(["high", "low"])
            parts.append(spoken(vowel, {"high": 240, "low": 120}[tone] + 5 * (number % 3), 1600, generator))
            for key, label in (("vowels", vowel), ("tones", tone)):
                labels[key].append({"label": label, "start": place / 10, "end": (place + 1) / 10})
        loudness = 1.0 if number % 2 else 0.3
        soundfile.write(folder / name, np.concatenate(parts) * loudness, 16000)
        rows.append({"file_name": name, "speaker": f"s{number % 3}", "mood": "glad" if number % 2 else "sad"})
        for key, items in labels.items():
            lines[key].append({"file_name": name, "labels": items})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for key, found in lines.items():
        (folder.parent / f"{folder.name}-{key}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    return SimpleNamespace(
        folder=folder,
        vowels=folder.parent / f"{folder.name}-vowels.jsonl",
        tones=folder.parent / f"{folder.name}-tones.jsonl",
    )


def command(encoder, speech, output, *more):
    arguments = ["fit-units", str(encoder), str(speech.folder), "-o", str(output), "--layers", "1"]
    return [*arguments, "--codebook-size", "8", "--max-epochs", "5", *map(str, more)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"normalization": "standardize", "layers": [1, 2], "num_stages": 2},
        {"normalization": "standardize", "layers": [1, 2], "beside": 4},
    ],
    ids=str,
)
def test_the_model_weighs_its_frames_as_the_fit_did(encoder, speech, tmp_path, fields):
    fields = dict(fields)
    rows = load_recordings(str(speech.folder))
    decoded = decode_all(rows, 16000, tmp_path / "decoded")
    plan = KeptPlan(
        [read_label_set(NamedLabels(str(speech.vowels), 0.5, 2), rows), read_label_set(NamedLabels("mood"), rows)],
        [],
        fields.pop("beside", 0),
    )
    model = KMeansUnitsModel.from_encoder(str(encoder), **{"layers": [1], "codebook_size": 6, **fields})
    [(units, fit)] = fit_on_recordings(model, decoded, tmp_path, keep=plan, num_init=2)
    assert units.config.kept_dims == (3 * 2 - 1) + 1
    config, distances, frames = units.config, [], []
    for recording in decoded:
        encoded = units.encode(torch.from_numpy(recording / np.float32(32767.0))[None, None])
        distances.append((encoded.latents - units.dequantize(encoded.audio_codes))[0])
        frames.append(encoded.latents[0])
    squares = torch.cat(distances).unflatten(-1, (config.num_streams, -1)).square().mean(0)
    found = fit.distortion
    if config.kept_codebook_size:
        assert float(squares[:, 16:].sum()) == pytest.approx(found[-1], rel=2e-2)
        squares, found = squares[:, :16], found[:-1]
    for stream, distortion in enumerate(found[config.num_stages - 1 :: config.num_stages]):
        assert float(squares[stream].sum()) == pytest.approx(distortion, rel=2e-2)
    # Each block has the mean squared norm of its squared weight.
    blocks = torch.cat(frames).unflatten(-1, (config.num_streams, -1)).square().mean(0)
    for stream in blocks:
        if not config.kept_codebook_size:
            assert float(stream[:16].sum()) == pytest.approx(1, rel=2e-2)
        assert float(stream[16:21].sum()) == pytest.approx(0.25, rel=2e-2)
        assert float(stream[21:].sum()) == pytest.approx(1, rel=2e-2)


def test_the_command_keeps_timed_labels_and_columns(encoder, speech, tmp_path, capsys):
    output = tmp_path / "units"
    arguments = command(encoder, speech, output, "--keep", f"{speech.tones}:0.5:2", "mood", "--keep-codebook", 4)
    assert cli.main(arguments) == 0
    assert "account for" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"units"}
    model = AutoModel.from_pretrained(output)
    assert (model.config.kept_dims, model.config.kept_codebook_size, model.num_quantizers) == (4, 4, 2)
    kept = json.loads((output / "fit.json").read_text(encoding="utf-8"))["kept"]
    tones, mood = kept["labels"]
    assert (tones["weight"], tones["parts"], tones["classes"]) == (0.5, 2, 2)
    assert (mood["name"], mood["weight"], len(mood["eigenvalues"][0])) == ("mood", 1.0, 1)
    assert "choice" not in kept
    plain = tmp_path / "plain"
    assert cli.main(command(encoder, speech, plain)) == 0
    assert "kept" not in json.loads((plain / "fit.json").read_text(encoding="utf-8"))
    assert torch.equal(AutoModel.from_pretrained(plain).centroids, model.centroids)


@pytest.fixture(scope="module")
def beside(encoder, speech, tmp_path_factory):
    """Folder of units with a second codebook, of 4 centroids beside 8."""
    folder = tmp_path_factory.mktemp("beside") / "units"
    assert cli.main(command(encoder, speech, folder, "--keep", speech.tones, "--keep-codebook", 4)) == 0
    return folder


def test_both_codebooks_are_written_and_described(beside, speech, tmp_path, capsys):
    recording, output = str(speech.folder / "0.wav"), tmp_path / "units.jsonl"
    assert cli.main(["units", recording, "-o", str(output), "--model", str(beside)]) == 0
    spelled = json.loads(output.read_text(encoding="utf-8").splitlines()[0])["audio_repr"]
    model, extractor = load(str(beside))
    samples = soundfile.read(recording)[0].astype(np.float32)
    codes = model.encode(**extractor(samples, sampling_rate=16000, return_tensors="pt")).audio_codes[0]
    assert codes[0].max() > 3
    assert codes[1].max() == 3
    assert spelled == units_to_string(codes.numpy())
    assert cli.main(["units", recording, "-o", str(tmp_path / "a.km"), "--model", str(beside), "--format", "km"]) == 2
    assert "is for one codebook" in capsys.readouterr().err
    assert cli.main(["info", str(beside)]) == 0
    said = capsys.readouterr().out
    assert "2 of 8, 4 entries" in said
    assert "1 kbit/s" in said  # 200 frames a second of 3 + 2 bits


def test_the_evaluation_counts_both_codebooks_by_their_sizes(beside, speech, tmp_path):
    system = EncodingSystem(*load(str(beside)), "beside")
    assert system.codebook_sizes == (8, 4)
    assert EncodingSystem(*load(str(beside)), "beside", 1).codebook_sizes == (8,)
    codes = [system.encode(soundfile.read(path)[0].astype(np.float32)) for path in sorted(speech.folder.glob("*.wav"))]
    encoded = SimpleNamespace(
        system=system,
        codes=codes,
        data=SimpleNamespace(groups=[str(i) for i in range(len(codes))]),
        of_clips=lambda values: values,
    )
    rates = measure_rate(encoded, SimpleNamespace(seed=0))
    assert rates.scores["bits_nominal"]["value"] == pytest.approx(200 * (3 + 2))
    usage = measure_usage(encoded, SimpleNamespace(seed=0)).details["usage_by_codebook"]
    assert [row["share_used"] for row in usage] == [1.0, 1.0]


def test_weights_are_chosen_on_other_speakers(encoder, speech, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kept_choice, "GRID", (0.5, 2.0))
    output = tmp_path / "units"
    more = ["--keep", speech.tones, f"{speech.vowels}:1", "--tell", "mood", "--max-loss", 100]
    assert cli.main(command(encoder, speech, output, *more)) == 0
    said = capsys.readouterr().err
    choice = json.loads((output / "fit.json").read_text(encoding="utf-8"))["kept"]["choice"]
    assert choice["held_out"] == "1 of the speakers"
    tones, vowels = choice["told"]
    assert choice["untold"] == ["mood"]
    assert [row["weights"] for row in choice["tried"]] == [{tones: 0.5, vowels: 1.0}, {tones: 2.0, vowels: 1.0}]
    means = [row["scores"][tones] + row["scores"][vowels] for row in choice["tried"]]
    assert choice["chosen"] == choice["tried"][int(np.argmax(means))]["weights"]
    assert max(means) > choice["plain"][tones] + choice["plain"][vowels]
    assert "mood (not told)" in said
    assert "chosen: " in said
    assert {path.name for path in tmp_path.iterdir()} == {"units"}


def test_nothing_that_is_held_out_is_seen_while_weights_are_chosen(encoder, speech, tmp_path):
    rows = load_recordings(str(speech.folder))
    decoded = decode_all(rows, 16000, tmp_path / "decoded")
    told = [read_label_set(NamedLabels(str(speech.tones)), rows)]
    seen = []
    original = KeptPlan.fit

    def spying(self, fit, model, recordings, excerpts, features, *rest):
        def recorded(kept, part, *named, **options):
            if named:
                assert not kept or len(kept.sets[0].numbers) == part.shape[1]
                seen.append(part)
            return fit(kept, part, *named, **options)

        return original(self, recorded, model, recordings, excerpts, features, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptPlan, "fit", spying)
        model = KMeansUnitsModel.from_encoder(str(encoder), layers=[1], codebook_size=6)
        fit_on_recordings(model, decoded, tmp_path, keep=KeptPlan(told, [], 0, 100.0), num_init=2)
    assert len(seen) == 1 + len(kept_choice.GRID)
    frames = {tuple(row) for row in seen[0][0].astype(np.float64).round(3)}
    missing = []
    for index, recording in enumerate(decoded):
        features = model.features(torch.from_numpy(recording / np.float32(32767.0))[None, None])[0][0, 0]
        own = {tuple(row) for row in features.half().double().numpy().round(3)}
        if len(own & frames) < 0.5 * len(own):
            missing.append(decoded.metadata["speaker"][index])
    assert len(missing) == 4
    assert len({*missing}) == 1


class Scored(_Trial):
    """A trial with given scores by weight."""

    def __init__(self, plan, scores, plain):
        self.plan, self.sets, self.given, self.plain = plan, [*plan.told, *plan.untold], scores, plain
        self.accelerator, self.num_held_out, self.held_out_by = None, 1, "speakers"

    def _scores(self, weights):
        return self.plain if weights is None else self.given(*weights)


def label_set(name, weight=None):
    return SimpleNamespace(name=name, weight=weight)


def test_the_best_weights_are_those_with_which_no_label_loses_too_much():
    plan = KeptPlan([label_set("tone"), label_set("vowel")], [label_set("initial")], 0, 2.0)
    plain = {"tone": 40.0, "vowel": 50.0, "initial": 30.0}

    def scores(tone, vowel):
        return {"tone": 40 + 10 * tone, "vowel": 50 + 5 * vowel, "initial": 30 - 2 * max(tone, vowel) - 0.4 * tone}

    weights, choice = Scored(plan, scores, plain).choose(2.0)
    assert weights == [0.5, 0.5]  # with 1, the label that is not told loses 2.4 points
    assert choice["chosen"] == {"tone": 0.5, "vowel": 0.5}
    assert Scored(plan, scores, plain).choose(2.4)[0] == [1.0, 1.0]
    assert Scored(plan, scores, plain).choose(2.2)[0] == [0.5, 1.0]  # one weight changed after the others
    assert Scored(plan, scores, plain).choose(100)[0] == [2.0, 2.0]
    with pytest.raises(ValueError, match=r"even with tone 0.25, vowel 0.25, initial loses 0.6\. Raise --max-loss"):
        Scored(plan, scores, plain).choose(0.1)


def test_a_stated_weight_stays(capsys):
    plan = KeptPlan([label_set("tone", 3.0), label_set("vowel")], [], 0, 2.0)
    tried = []

    def scores(tone, vowel):
        tried.append((tone, vowel))
        return {"tone": 40 + tone, "vowel": 50 - vowel}

    weights, _ = Scored(plan, scores, {"tone": 40.0, "vowel": 50.0}).choose(5.0)
    assert weights == [3.0, 0.25]
    assert {tone for tone, _ in tried} == {3.0}
    assert "tone 3, vowel 0.25: tone 43.0 (+3.0), vowel 49.8 (-0.2)" in capsys.readouterr().err


def test_two_processes_find_the_same_units(encoder, speech, tmp_path):
    more = ["--keep", f"{speech.tones}:1:2", "--batch-seconds", "1"]
    assert cli.main(command(encoder, speech, tmp_path / "one", *more)) == 0
    run_ranks("-m", "speech_tokenizers", *command(encoder, speech, tmp_path / "two", *more))
    one, two = (load_file(tmp_path / part / "model.safetensors") for part in ("one", "two"))
    for name in ("centroids", "kept_matrix", "base_scale"):
        assert torch.equal(one[f"quantizer.{name}"], two[f"quantizer.{name}"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tone", NamedLabels("tone")),
        ("a.jsonl:0.5", NamedLabels("a.jsonl", 0.5)),
        ("a.jsonl:2:4", NamedLabels("a.jsonl", 2.0, 4)),
        ("a.jsonl::4", NamedLabels("a.jsonl", None, 4)),
    ],
)
def test_labels_are_named_with_weight_and_parts(text, expected):
    assert parse_labels(text) == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--keep", "emotion"], "no such file of labels, and the recordings have no such column; they have"),
        (["--keep", "{tones}:loud"], "the weight must be a number"),
        (["--keep", "{tones}:-1"], "the weight must be positive and finite, but is -1"),
        (["--keep", "{tones}:inf"], "the weight must be positive and finite"),
        (["--keep", "{tones}:1:0"], "there must be 1 part or more"),
        (["--keep", "{tones}:1:2:3"], "must be LABELS[:weight[:parts]]"),
        (["--keep", "{other}"], "names none of the 12 recordings"),
        (["--keep", "{single}"], "must have two labels or more to tell apart, but has only 'a'"),
        (["--keep", "mood", "mood:2"], "Two sets of labels are named 'mood'"),
        (["--keep", "mood", "--tell", "{tones}:2"], "labels that units are not told have no weight"),
        (["--keep", "mood", "--keep-codebook", "9"], "--keep-codebook must lie between 2 and --codebook-size, 8"),
        (["--keep", "mood", "--max-loss", "-1"], "--max-loss must not be negative"),
        (["--tell", "mood"], "--tell is for labels that are kept; name them with --keep"),
        (["--keep-codebook", "4"], "--keep-codebook is for labels that are kept"),
        (["--max-loss", "4"], "--max-loss is for labels that are kept"),
        (["--keep", "{silent}"], "The frames have 1 class of silent"),
        (["--keep", "{tones}", "--tell", "{rare}"], "rare cannot be measured"),
    ],
    ids=str,
)
def test_the_command_says_what_is_wrong(encoder, speech, tmp_path, capsys, more, message):
    def write(name, file_name, *spans):
        items = [{"label": label, "start": start, "end": end} for label, start, end in spans]
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"file_name": file_name, "labels": items}) + "\n")
        return path

    files = {
        "tones": speech.tones,
        "other": write("other", "elsewhere.wav", ("a", 0, 1), ("b", 1, 2)),
        "single": write("single", "0.wav", ("a", 0, 1)),
        "silent": write("silent", "0.wav", ("a", 0, 0.1), ("b", 70, 71)),
        "rare": write("rare", "0.wav", ("a", 0, 0.1), ("b", 0.1, 0.2)),
    }
    more = [text.format(**files) if "{" in text else text for text in more]
    assert cli.main(command(encoder, speech, tmp_path / "units", *more)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("speech-tokenizers fit-units: error: ")
    assert message in line
    assert not (tmp_path / "units").exists()


def test_another_label_file_is_another_fit(encoder, speech, tmp_path, capsys):
    output = tmp_path / "units"
    arguments = ["--separately", "--keep", f"{speech.tones}:1"]
    assert cli.main([*command(encoder, speech, output, *arguments), "--layers", "1", "2"]) == 0
    (output / "layer2" / "config.json").unlink()
    arguments[-1] = f"{speech.vowels}:1"
    assert cli.main([*command(encoder, speech, output, *arguments), "--layers", "1", "2"]) == 2
    assert "is finished and --keep was" in capsys.readouterr().err
