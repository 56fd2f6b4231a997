# SPDX-License-Identifier: Apache-2.0
"""Systems of a study: one pass of the encoder, units of its frames, and codes of other models."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speech_tokenizers import KMeansUnitsFeatureExtractor, KMeansUnitsModel
from speech_tokenizers.coding.loading import load
from speech_tokenizers.processing.speech_rows import read_speech_rows, row_audio_codes, row_audio_latents
from speech_tokenizers.training.studies.clip_tokens import read_tokens
from speech_tokenizers.training.studies.token_study import systems as systems_module
from speech_tokenizers.training.studies.token_study.arguments import TaskArguments
from speech_tokenizers.training.studies.token_study.clips import few_shot
from speech_tokenizers.training.studies.token_study.systems import ENCODER, StudySystems


@pytest.fixture
def fitted_units(study, tmp_path):
    """Folder of units of the tiny encoder, as those of another model."""
    StudySystems(study(tmp_path / "other")).units_model(2, 0)
    return tmp_path / "other" / "systems" / "layer2-seed0"


def states_of(clip, tiny_whisper, layer):
    model = KMeansUnitsModel.from_encoder(str(tiny_whisper), layers=[layer], codebook_size=2, window="tight")
    audio, _ = soundfile.read(clip.path, dtype="float32")
    return model.features(torch.from_numpy(audio)[None, None])[0][0, 0].numpy()


def test_frames_are_those_of_the_encoder(study, tiny_whisper):
    systems = StudySystems(study(layer=1))
    arrays = systems.arrays(ENCODER, "tone")
    assert len(arrays.clips) == 24
    assert (arrays.frame_rate, arrays.codes, arrays.codebook_size) == (50.0, None, None)
    assert arrays.group_columns == ("speaker",)
    for index in (0, 23):
        expected = states_of(arrays.clips[index], tiny_whisper, 1)
        assert arrays.features[index].shape == expected.shape == (25, 16)
        np.testing.assert_allclose(arrays.features[index], expected, atol=1e-3, rtol=1e-3)
    second = systems.layer_arrays(2, "tone")
    np.testing.assert_allclose(second.features[3], states_of(second.clips[3], tiny_whisper, 2), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("normalization", [None, "standardize", "layer_norm"])
def test_units_are_the_nearest_centroids_of_the_frames(study, normalization):
    args = study()
    args.encoder.normalization = normalization
    arrays = StudySystems(args).arrays("layer2-seed0", "tone")
    assert arrays.codebook_vectors.shape == (1, 6, 16)
    assert arrays.codebook_size == 6
    for index, (features, codes) in enumerate(zip(arrays.features, arrays.codes, strict=True)):
        distances = np.square(features[:, None] - arrays.codebook_vectors[0]).sum(-1)
        np.testing.assert_array_equal(codes, [distances.argmin(-1)])
        np.testing.assert_array_equal(arrays.centroids(index), arrays.codebook_vectors[0][codes[0]])
    assert len({unit for codes in arrays.codes for unit in codes[0].tolist()}) > 2
    if normalization == "standardize":
        # By statistics of training clips, which are half of all.
        training = np.concatenate(
            [f for f, clip in zip(arrays.features, arrays.clips, strict=True) if clip.split == "train"]
        )
        np.testing.assert_allclose(training.mean(0), 0, atol=1e-2)
        np.testing.assert_allclose(training.std(0), 1, atol=1e-2)


def test_saved_units_give_the_same_codes_by_the_models_own_encode(study):
    args = study()
    arrays = StudySystems(args).arrays("layer2-seed0", "tone")
    model, extractor = load(Path(args.output_dir) / "systems" / "layer2-seed0")
    assert isinstance(extractor, KMeansUnitsFeatureExtractor)
    same = []
    for clip, codes in zip(arrays.clips, arrays.codes, strict=True):
        audio, rate = soundfile.read(clip.path, dtype="float32")
        encoded = model.encode(**extractor(audio, sampling_rate=rate, return_tensors="pt"))
        same.append(encoded.audio_codes[0].numpy() == codes)
    assert np.mean(same) > 0.99  # frames are kept in half precision, which decides near ties


def test_rows_hold_what_tasks_need(study):
    args = study()
    systems = StudySystems(args)
    codes = read_speech_rows(systems.rows_folder("layer1-seed0", "codes", "tone"), systems.units_model(1, 0))
    latents = read_speech_rows(systems.rows_folder("layer1-seed0", "latents", "tone"), systems.units_model(1, 0))
    arrays = systems.arrays("layer1-seed0", "tone")
    assert codes[4]["keyword"] == codes[4]["target"] == arrays.clips[4].target
    assert (codes[4]["id"], codes[4]["split"], codes[4]["seconds"]) == (arrays.clips[4].name, "train", 0.5)
    np.testing.assert_array_equal(row_audio_codes(codes[4]), arrays.codes[4])
    np.testing.assert_array_equal(row_audio_latents(latents[4]), arrays.features[4])
    assert read_tokens(systems.rows_folder("layer1-seed0", "codes", "tone")).keys() == {c.name for c in arrays.clips}


def test_a_second_call_encodes_and_fits_nothing(study, monkeypatch):
    args = study()
    first = StudySystems(args).arrays("layer2-seed0", "tone")
    merged = StudySystems(args).unit_bpe(2, 0)

    def refuse(*_, **__):
        raise AssertionError("made again")

    for name in ("fit_units", "train_unit_bpe"):
        monkeypatch.setattr(systems_module, name, refuse)
    monkeypatch.setattr(systems_module.RowCoding, "__call__", refuse)
    again = StudySystems(args).arrays("layer2-seed0", "tone")
    for one, other in zip(first.codes, again.codes, strict=True):
        np.testing.assert_array_equal(one, other)
    assert StudySystems(args).unit_bpe(2, 0).merges == merged.merges
    assert not list((Path(args.output_dir) / "systems").glob(".*"))


def test_two_runs_give_the_same(study, tmp_path):
    first, second = (StudySystems(study(tmp_path / name)) for name in ("one", "two"))
    a, b = first.arrays("layer2-seed0", "tone"), second.arrays("layer2-seed0", "tone")
    np.testing.assert_array_equal(a.codebook_vectors, b.codebook_vectors)
    assert first.unit_bpe(2, 0).merges == second.unit_bpe(2, 0).merges


def test_units_differ_by_seed_and_are_fitted_anew_when_the_recipe_changes(study, capsys):
    args = study(seeds=(0, 1))
    systems = StudySystems(args)
    assert not torch.equal(systems.units_model(2, 0).centroids, systems.units_model(2, 1).centroids)
    assert systems.units() == [(1, 0), (1, 1), (2, 0), (2, 1)]
    args.encoder.num_units = 4
    assert StudySystems(args).arrays("layer2-seed0", "tone").codebook_size == 4
    assert "layer2-seed0: was fitted on other clips or otherwise; the units are fitted anew" in capsys.readouterr().err


def test_changed_clips_are_encoded_anew(study, capsys):
    args = study()
    assert StudySystems(args).arrays(ENCODER, "tone").features[0].shape == (25, 16)
    capsys.readouterr()
    args.tasks["tone"].trim = True
    assert StudySystems(args).arrays(ENCODER, "tone").features[0].shape == (10, 16)
    assert "was made from other recordings" in capsys.readouterr().err


def test_merges_are_of_training_clips(study):
    systems = StudySystems(study())
    merged = systems.unit_bpe(2, 0)
    arrays = systems.arrays("layer2-seed0", "tone")
    assert merged.codebook_size == 6
    assert len(merged) <= 12
    training = [arrays.codes[i][0] for i, clip in enumerate(arrays.clips) if clip.split == "train"]
    expected = systems_module.train_unit_bpe(training, 6, 12)
    assert merged.merges == expected.merges


def test_units_hear_training_clips_alone_and_a_shared_file_once(study):
    args = study(clips_per_label=2, seeds=(0, 1))
    args.tasks["again"] = args.tasks["tone"]
    systems = StudySystems(args)
    drawn = systems._drawn(0)
    assert set(drawn) == {"tone"}
    clips = systems.prepared("tone").clips
    chosen = {clip.name for seed in (0, 1) for clip in few_shot(clips, 2, seed)}
    assert set(drawn["tone"]) == chosen
    args.encoder.fit_seconds = 1.2
    assert len(systems._drawn(0)["tone"]) == 3  # of half a second each
    arrays = systems.arrays(ENCODER, "tone")
    assert [clip.name for clip in few_shot(arrays.clips, 2, 1)] == [c.name for c in few_shot(clips, 2, 1)]


def test_tasks_share_clips_and_what_is_made_of_them(study, two_labels):
    args = study(trim=True)
    args.tasks["again"] = TaskArguments(str(two_labels), "emotion", trim=True)
    systems = StudySystems(args)
    assert len(list((Path(args.output_dir) / "clips" / "changed").glob("*.flac"))) == 0
    first, again = systems.arrays("layer1-seed0", "tone"), systems.arrays("layer1-seed0", "again")
    assert len(list((Path(args.output_dir) / "clips" / "changed").glob("*.flac"))) == 24
    assert sorted(path.name for path in (Path(args.output_dir) / "encoded/encoder/latents").iterdir()) == ["tone"]
    for one, other in zip(first.codes, again.codes, strict=True):
        np.testing.assert_array_equal(one, other)
    rows = read_speech_rows(systems.rows_folder("layer1-seed0", "codes", "again"))
    assert (len(rows), rows[0]["emotion"]) == (24, "high")


def test_another_model(study, fitted_units):
    args = study(systems={"others": str(fitted_units)})
    arrays = StudySystems(args).arrays("others", "tone")
    own = StudySystems(args).arrays("layer2-seed0", "tone")
    assert arrays.features is None
    assert arrays.codebook_vectors.shape == (1, 6, 16)
    same = [np.array_equal(one, other) for one, other in zip(arrays.codes, own.codes, strict=True)]
    assert np.mean(same) > 0.8  # the same units, but for frames near a tie
    assert (Path(args.output_dir) / "encoded" / "others" / "codes" / "tone" / "dataset_info.json").is_file()


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ("sounds", "there is no system 'sounds'; choose one of layer1-seed0, layer2-seed0"),
        ("layer3-seed0", r"there are no units 'layer3-seed0'; the study has the layers \[1, 2\] and the seeds \[0\]"),
    ],
)
def test_unknown_systems(study, system, message):
    with pytest.raises(ValueError, match=message):
        StudySystems(study()).arrays(system, "tone")


def test_the_encoders_frames_are_no_rows_of_a_language_model(study):
    with pytest.raises(ValueError, match="'encoder' has all layers at once, .*; choose units of one layer"):
        StudySystems(study()).rows_folder(ENCODER, "latents", "tone")


def test_too_few_frames(study):
    args = study()
    args.encoder.num_units, args.encoder.bpe_tokens = 400, 500
    with pytest.raises(ValueError, match="there are only 300 frames"):
        StudySystems(args).arrays("layer2-seed0", "tone")


def test_what_the_encoder_cannot_hear_is_set_aside(study, two_labels, tmp_path, capsys):
    soundfile.write(tmp_path / "long.wav", np.zeros(31 * 16000), 16000)
    rows = [json.loads(line) for line in two_labels.read_text().splitlines()]
    rows = [{**row, "file_name": str(two_labels.parent / row["file_name"])} for row in rows]
    path = tmp_path / "manifest.jsonl"
    long = {"file_name": str(tmp_path / "long.wav"), "target": "low", "split": "train", "speaker": "gina"}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, long]))
    arrays = StudySystems(study(manifest=str(path))).arrays(ENCODER, "tone")
    assert len(arrays.clips) == len(arrays.features) == 24
    assert "1 clips of encoder, tone could not be encoded" in capsys.readouterr().err
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(31 * 16000), 16000)
    more = [{**long, "file_name": str(tmp_path / f"{number}.wav")} for number in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, long, *more]))
    with pytest.raises(ValueError, match="3 of 27 clips of the task 'tone' cannot be used"):
        StudySystems(study(manifest=str(path))).arrays(ENCODER, "tone")
