# SPDX-License-Identifier: Apache-2.0
"""A vocoder is trained on any model's codes, each crop with the codes and the speaker of its place."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModel, HubertConfig

from speech_tokenizers import cli, load
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments, UnitArguments
from speech_tokenizers.training.codec.codec_recipe import train_from_recipe
from speech_tokenizers.training.codec.vocoder_conditions import UnitConditions, new_vocoder
from speech_tokenizers.training.common.recipe_files import build_section
from speech_tokenizers.training.common.reporting import read_log
from speech_tokenizers.training.units.pseudo_labels import TokenLabeler


SPEAKERS = ["eve", "ann", "eve", "bob", "ann", "eve"]
SIZES = {"hidden_size": 12, "decoder_hidden_size": 24, "decoder_num_layers": 2, "n_fft": None}


@pytest.fixture(scope="module")
def units_folder(tmp_path_factory):
    """Folder of a model with 12 random units a frame of 80 samples, whose frames hear 5 frames of audio."""
    encoder_config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8, 8),
        conv_kernel=(100, 8, 2),
        conv_stride=(10, 4, 2),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    folder = tmp_path_factory.mktemp("units") / "tiny-units"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = KMeansUnitsConfig(encoder_config=encoder_config, layers=[1], codebook_size=12)
        model = KMeansUnitsModel(config).eval()
        frames = model.features(torch.randn(1, 1, 16000))[0][0, 0]
        model.set_centroids(frames[:: len(frames) // 12][:12][None])
    model.save_pretrained(folder)
    KMeansUnitsFeatureExtractor(hop_length=model.hop_length).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speech_folder(tmp_path_factory, recordings):
    """The recordings with who speaks, and what the speakers are like."""
    folder = tmp_path_factory.mktemp("speech")
    rows = []
    for number, (samples, speaker) in enumerate(zip(recordings, SPEAKERS, strict=True)):
        soundfile.write(folder / f"{number}.wav", samples, 16000)
        vector = [float(ord(letter)) / 100 for letter in speaker]
        rows.append({"file_name": f"{number}.wav", "speaker": speaker, "vector": vector})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def write_recipe(tmp_path, speech_folder, units_folder):
    """Function: a recipe of a tiny vocoder as a YAML file, with changes."""

    def write(model=units_folder, units=None, name="run", overrides=None, **changes):
        recipe = {
            "seed": 3,
            "output_dir": str(tmp_path / name),
            "model": {"preset": "unit-vocoder-16khz", "overrides": {**SIZES, **(overrides or {})}},
            "units": {"model": str(model), **(units or {})},
            "data": {"train": str(speech_folder), "cache_dir": str(tmp_path / "audio"), "segment_seconds": 0.1},
            "loss_weights": {"mel": 15.0, "waveform": 0.0},
            "mel_scales": [{"n_fft": 256, "hop_length": 64, "num_mels": 20}],
            "optimizer": {"learning_rate": 3e-3},
            "global_batch_size": 4,
            "max_steps": 4,
            "logging_steps": 1,
            "eval_steps": 0,
            "save_steps": 0,
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return str(path)

    return write


def arguments(path: str) -> CodecTrainingArguments:
    with open(path, encoding="utf-8") as file:
        return build_section(CodecTrainingArguments, yaml.safe_load(file), "")


def test_a_new_vocoder_fits_its_units_and_speakers(write_recipe, tiny_checkpoint):
    config = new_vocoder(arguments(write_recipe())).config
    assert (config.num_quantizers, config.codebook_size, config.hop_length) == (1, 12, 80)
    assert config.num_speakers is None
    config = new_vocoder(arguments(write_recipe(units={"speaker_column": "speaker"}))).config
    assert config.speaker_names == ["ann", "bob", "eve"]
    config = new_vocoder(arguments(write_recipe(units={"speaker_embedding_column": "vector"}))).config
    assert config.speaker_embedding_dim == 3
    # The codes of a codec are units too, all or the first of them.
    config = new_vocoder(arguments(write_recipe(tiny_checkpoint))).config
    assert (config.num_quantizers, config.codebook_size, config.hop_length) == (4, 32, 40)
    assert new_vocoder(arguments(write_recipe(tiny_checkpoint, {"num_quantizers": 2}))).config.num_quantizers == 2


@pytest.mark.parametrize("hop_ratio", [1, 2, 0.5])  # of the vocoder's frames to the units'
@pytest.mark.parametrize("model", ["units_folder", "tiny_checkpoint"])
def test_a_crop_has_the_codes_of_its_place(model, hop_ratio, request, write_recipe, speech_folder, tmp_path):
    folder = request.getfixturevalue(model)
    units, feature_extractor = load(folder)
    hop = int(units.hop_length * hop_ratio)
    args = arguments(write_recipe(folder, {"speaker_column": "speaker"}, overrides={"hop_length": hop}))
    vocoder = new_vocoder(args)
    recordings = decode_all(load_recordings(str(speech_folder)), 16000, tmp_path / "audio", show_progress=False)
    conditions = UnitConditions(args.units)
    conditions.prepare(recordings, recordings, vocoder, Accelerator(), tmp_path)
    for number, samples in enumerate(recordings):
        waveform = samples.astype(np.float32) / 32767
        inputs = feature_extractor(waveform, sampling_rate=16000, return_tensors="pt")
        codes = units.encode(**inputs).audio_codes[0]  # (Q, F)
        for first_frame, num_samples in ((0, 7 * hop), (3, 7 * hop), (5, len(samples)), (2, 10 * hop + 1)):
            found = conditions.of_crop(number, first_frame * hop, num_samples)
            num_frames = -(-num_samples // hop)
            for frame in range(num_frames):
                start = (first_frame + frame) * hop
                is_real = start < len(samples)
                assert found["audio_codes_mask"][frame] == is_real
                place = min(start // units.hop_length, codes.shape[1] - 1)
                expected = codes[:, place].tolist() if is_real else [0] * len(codes)
                assert found["audio_codes"][:, frame].tolist() == expected
            assert found["audio_codes"].shape == (len(codes), num_frames)
            assert vocoder.config.speaker_names[found["speaker_ids"]] == SPEAKERS[number]
        whole = conditions.of_evaluated(number, len(samples))
        assert torch.equal(whole["audio_codes"], conditions.of_crop(number, 0, len(samples))["audio_codes"])


def test_a_vocoder_knows_the_sizes_of_codebooks_that_differ(units_folder, speech_folder, write_recipe, tmp_path):
    units, feature_extractor = load(units_folder)
    units.add_f0(5)
    with_f0 = tmp_path / "with-f0"
    units.save_pretrained(with_f0)
    feature_extractor.save_pretrained(with_f0)
    args = arguments(write_recipe(with_f0))
    vocoder = new_vocoder(args)
    assert vocoder.config.codebook_sizes == [12, 5]
    assert new_vocoder(arguments(write_recipe(with_f0, {"num_quantizers": 1}))).config.codebook_sizes is None
    units.attach_vocoder(vocoder)
    recordings = decode_all(load_recordings(str(speech_folder)), 16000, tmp_path / "cache")
    for known in ([12, 5], None):  # a training that was begun before vocoders could say them goes on
        vocoder.config.codebook_sizes = known
        UnitConditions(args.units).prepare(recordings, None, vocoder, Accelerator(), tmp_path / "run")
    vocoder.config.codebook_sizes = [12, 6]
    with pytest.raises(ValueError, match=r"`codebook_sizes` \[12, 5\], but the vocoder is for \[12, 6\]"):
        UnitConditions(args.units).prepare(recordings, None, vocoder, Accelerator(), tmp_path / "run")


def test_codes_are_computed_once(write_recipe, tmp_path, monkeypatch):
    original, calls = TokenLabeler.__call__, []
    monkeypatch.setattr(
        TokenLabeler, "__call__", lambda self, waveforms: calls.extend(waveforms) or original(self, waveforms)
    )
    train_from_recipe(write_recipe(units={"cache_dir": str(tmp_path / "codes")}, max_steps=1))
    num_recordings = len(calls)
    assert num_recordings > 0
    train_from_recipe(write_recipe(units={"cache_dir": str(tmp_path / "codes")}, name="other", max_steps=1))
    assert len(calls) == num_recordings


@pytest.mark.parametrize(
    ("units", "voice"),
    [
        ({}, {}),
        ({"speaker_column": "speaker"}, {"speaker_ids": torch.tensor([2])}),
        ({"speaker_embedding_column": "vector"}, {"speaker_embeddings": torch.ones(1, 3)}),
    ],
    ids=["one voice", "numbered", "embedded"],
)
def test_it_learns_and_what_was_trained_speaks_the_units(
    units, voice, write_recipe, units_folder, recordings, tmp_path
):
    weights = {"mel": 15.0, "waveform": 0.0, "duration": 1.0}
    overrides = {"predicts_durations": True}
    path = write_recipe(units=units, overrides=overrides, loss_weights=weights, max_steps=60)
    train_from_recipe(path)
    log = read_log(tmp_path / "run" / "training_log.jsonl")
    first, last = (
        [np.mean([entry[name] for entry in part]) for name in ("mel", "duration")] for part in (log[:5], log[-5:])
    )
    assert last[0] < 0.75 * first[0]
    assert last[1] < first[1]

    vocoder = AutoModel.from_pretrained(tmp_path / "run" / "final")
    assert type(vocoder) is UnitVocoderModel
    model, feature_extractor = load(units_folder)
    model.attach_vocoder(vocoder)
    model.save_pretrained(tmp_path / "audible")
    feature_extractor.save_pretrained(tmp_path / "audible")
    model, _ = load(tmp_path / "audible")
    codes = model.encode(torch.from_numpy(recordings[0])[None, None]).audio_codes
    audio = model.decode(codes, num_samples=len(recordings[0]), **voice).audio_values
    assert audio.shape == (1, 1, len(recordings[0]))
    assert torch.equal(audio, vocoder.decode(codes, num_samples=len(recordings[0]), **voice).audio_values)


def test_it_measures_on_held_out_speech(write_recipe, speech_folder, tmp_path):
    data = {"train": str(speech_folder), "eval": str(speech_folder), "cache_dir": str(tmp_path / "audio")}
    data |= {"train_filter": {"speaker": ["eve", "ann"]}, "eval_filter": {"speaker": ["ann"]}, "segment_seconds": 0.1}
    train_from_recipe(write_recipe(units={"speaker_column": "speaker"}, data=data, eval_steps=2))
    log = read_log(tmp_path / "run" / "training_log.jsonl")
    assert [entry["step"] for entry in log if "eval_mel" in entry] == [2, 4]


@pytest.mark.parametrize("first_steps", [1, 3])
def test_a_training_goes_on_as_if_it_had_not_been_stopped(first_steps, write_recipe, tmp_path):
    adversarial = {
        "start_step": 1,
        "warmup_steps": 2,
        "discriminators": {"multi_period": {"periods": [3], "channels": [2]}},
    }
    changes = {
        "units": {"speaker_column": "speaker"},
        "adversarial": adversarial,
        "loss_weights": {"mel": 15.0, "waveform": 0.0, "adversarial": 1.0, "feature_matching": 2.0},
        "weight_ema_decay": 0.9,
        "save_steps": first_steps,
        "save_total_limit": 9,
        "resume_from_checkpoint": "latest",
    }
    train_from_recipe(write_recipe(name="whole", **changes))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "final")
    for checkpoint in sorted((tmp_path / "cut").glob("checkpoint-*"))[1:]:
        shutil.rmtree(checkpoint)
    (checkpoint,) = (tmp_path / "cut").glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{first_steps:08d}"
    train_from_recipe(write_recipe(name="cut", **changes))
    whole, cut = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": {"speaker_column": "nobody"}}, "no column 'nobody'"),
        ({"units": {"speaker_embedding_column": "nothing"}}, "no column 'nothing'"),
        ({"units": {"speaker_column": "speaker", "speaker_embedding_column": "vector"}}, "exclude each other"),
        ({"units": {"num_quantizers": 2}}, "num_quantizers"),
        ({"model": "no-such-units"}, "no-such-units"),
        ({"overrides": {"hiden_size": 3}}, "hiden_size"),
        ({"overrides": {"n_fft": 100}}, "multiple of `hop_length / decoder_spectra`"),
        ({"overrides": {"codebook_size": 5}}, "`units.model` has `codebook_size` 12, but the vocoder is for 5"),
        ({"overrides": {"num_quantizers": 2}}, "`units.model` has `num_quantizers` 1, but the vocoder is for 2"),
        ({"loss_weights": {"mel": 1.0, "waveform": 0.0, "duration": 1.0}}, "duration"),
        ({"data": {"segment_seconds": 0.1}}, "`data.train` must name"),
    ],
    ids=str,
)
def test_a_training_that_cannot_start_is_one_line(changes, message, write_recipe, capsys):
    assert cli.main(["train", write_recipe(**changes)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line


def test_speakers_without_a_voice_are_named(write_recipe, speech_folder, tmp_path, capsys):
    data = {"train": str(speech_folder), "eval": str(speech_folder), "cache_dir": str(tmp_path / "audio")}
    data |= {"train_filter": {"speaker": ["ann"]}, "segment_seconds": 0.1}
    path = write_recipe(units={"speaker_column": "speaker"}, data=data, eval_steps=2)
    assert cli.main(["train", path]) == 2
    assert "no voice for 2 of the speakers (bob, eve)" in capsys.readouterr().err


def test_recordings_that_stream_are_refused(write_recipe, tmp_path):
    args = arguments(write_recipe())
    conditions = UnitConditions(UnitArguments(args.units.model))
    with pytest.raises(ValueError, match="`data.streaming=false`"):
        conditions.prepare(iter([]), None, new_vocoder(args), Accelerator(), tmp_path)
