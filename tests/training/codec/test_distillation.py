# SPDX-License-Identifier: Apache-2.0
"""A codec learns from its teachers, on the frames that they speak of."""

import dataclasses
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator

from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.codec.arguments import ModelArguments
from speech_tokenizers.training.codec.codec_building import build_model, build_objectives
from speech_tokenizers.training.codec.distillation import Distillation
from speech_tokenizers.training.codec.teacher_cache import TeacherCacheError
from speech_tokenizers.training.common.reporting import read_log


SAID = "one two three"
WORDS = [{"word": word, "start": 0.05 * k, "end": 0.05 * k + 0.04} for k, word in enumerate(SAID.split())]


@pytest.fixture(scope="session")
def transcribed_folder(tmp_path_factory, recordings) -> Path:
    """The recordings with `metadata.jsonl`: text, and word times."""
    folder = tmp_path_factory.mktemp("transcribed")
    rows = []
    for i, recording in enumerate(recordings):
        soundfile.write(folder / f"{i}.wav", recording, 16000)
        rows.append({"file_name": f"{i}.wav", "text": SAID, "words": WORDS})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def transcribed(transcribed_folder, tmp_path_factory):
    return decode_all(load_recordings(str(transcribed_folder)), 16000, tmp_path_factory.mktemp("decoded"))


@pytest.fixture
def distilled(make_trainer, transcribed, speech_teacher_folder, language_teacher_folder):
    """A trainer of a tiny DM-Codec with both teachers and no discriminators, with changes."""

    def make(
        train=transcribed, distillation=None, overrides=None, weights=None, preset="dm-codec-fast-16khz", **changes
    ):
        sizes = {"semantic_dimension": 24, "contextual_dimension": 12, "quantizer_dropout": 0.0, **(overrides or {})}
        if preset == "fast-16khz":  # which has no fields for teachers
            sizes = {"quantizer_dropout": 0.0}
        settings = {"preset": preset, "overrides": sizes}
        teachers = {
            "speech_teacher": {"model": str(speech_teacher_folder)},
            "language_teacher": {"model": str(language_teacher_folder)},
            **(distillation or {}),
        }
        losses = {"mel": 1.0, "waveform": 1.0, "commitment": 0.1}
        losses |= {"semantic_distillation": 5.0, "contextual_distillation": 5.0, **(weights or {})}
        return make_trainer(
            train=train,
            model=settings,
            distillation=teachers,
            loss_weights=losses,
            adversarial={"discriminators": {}},
            **changes,
        )

    return make


def with_model(args, settings):
    return dataclasses.replace(args, model=ModelArguments(**settings))


def logged(trainer):
    timing = {"steps_per_second", "audio_seconds_per_second", "training_seconds", "training_minutes"}
    return [
        {k: v for k, v in e.items() if k not in timing} for e in read_log(trainer.output_dir / "training_log.jsonl")
    ]


def test_both_losses_fall_and_are_weighted(distilled):
    trainer = distilled(
        max_steps=60, optimizer={"learning_rate": 5e-3, "schedule": "constant"}, data={"segment_seconds": 0.2}
    )
    trainer.train()
    log = logged(trainer)
    for name in ("semantic_distillation", "contextual_distillation"):
        assert np.mean([e[name] for e in log[-5:]]) < 0.9 * np.mean([e[name] for e in log[:3]])
    first = log[0]
    assert first["loss"] == pytest.approx(
        first["mel"]
        + first["waveform"]
        + 0.1 * first["commitment"]
        + 5 * first["semantic_distillation"]
        + 5 * first["contextual_distillation"],
        rel=1e-5,
    )


@pytest.mark.parametrize("kind", ["semantic", "contextual"])
@pytest.mark.parametrize("stage", [1, 2, "mean", "sum"])
def test_every_stage_choice_trains_the_encoder(distilled, transcribed, kind, stage):
    # In the original, only the first stage's loss reaches it.
    trainer = distilled(overrides={f"{kind}_stage": stage})
    (objective,) = trainer.objectives
    objective.prepare(transcribed, trainer.unwrapped_model, trainer.accelerator, trainer.output_dir)
    trainer.data.train = transcribed
    batch = next(iter(trainer.train_batches()))
    outputs = trainer.model(batch["input_values"], return_loss=False)
    objective.losses(outputs, batch)[f"{kind}_distillation"].backward()
    norms = [p.grad.norm() for p in trainer.unwrapped_model.encoder.parameters() if p.grad is not None]
    assert torch.stack(norms).max() > 1e-6


def test_targets_of_a_crop_are_the_whole_recording_s_at_its_place(distilled, transcribed):
    trainer = distilled()
    (objective,) = trainer.objectives
    objective.prepare(transcribed, trainer.unwrapped_model, trainer.accelerator, trainer.output_dir)
    whole = objective.targets(2, 0, 4800)  # 30 frames of 160 samples
    crop = objective.targets(2, 1600, 1600)
    for name in ("semantic_targets", "semantic_mask", "contextual_targets", "contextual_mask"):
        torch.testing.assert_close(crop[name], whole[name][10:20])
    # "two" is spoken from 0.05 to 0.09 s, "three" from 0.1 to 0.14 s; frames are 10 ms.
    spoken = whole["contextual_targets"].abs().sum(-1) > 0
    assert spoken.nonzero().flatten().tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13]
    torch.testing.assert_close(whole["contextual_targets"][5], whole["contextual_targets"][8])


def test_frames_after_the_recording_do_not_count(distilled, transcribed):
    trainer = distilled()
    (objective,) = trainer.objectives
    objective.prepare(transcribed, trainer.unwrapped_model, trainer.accelerator, trainer.output_dir)
    end = len(transcribed[0])  # 4000 samples: 25 frames
    found = objective.targets(0, end - 800, 1600)
    for kind in ("semantic", "contextual"):
        assert found[f"{kind}_mask"].tolist() == [1] * 5 + [0] * 5


def test_centered_targets_have_no_mean_over_the_data(distilled, transcribed):
    trainer = distilled(distillation={"centered": True, "language_teacher": None})
    (objective,) = trainer.objectives
    objective.prepare(transcribed, trainer.unwrapped_model, trainer.accelerator, trainer.output_dir)
    rows = torch.cat([objective.caches["semantic"][key].features.float() for key in objective.keys["semantic"]])
    assert rows.mean(0).abs().max() > 0.1
    assert (rows - objective.means["semantic"]).mean(0).abs().max() < 1e-5
    first = objective.targets(0, 0, 1600)["semantic_targets"]
    objective.args.centered = False
    difference = objective.targets(0, 0, 1600)["semantic_targets"] - first
    torch.testing.assert_close(difference, objective.means["semantic"].expand_as(first), rtol=0, atol=1e-5)


def test_on_the_fly_gives_the_cached_targets_of_whole_recordings(distilled, transcribed, tmp_path):
    # Crops as long as the shortest recording, from its start: the speech teacher hears the same either way.
    found = {}
    for cache in (True, False):
        trainer = distilled(distillation={"cache": cache})
        (objective,) = trainer.objectives
        objective.prepare(transcribed, trainer.unwrapped_model, trainer.accelerator, tmp_path)
        samples = torch.from_numpy(transcribed[0] / np.float32(32767)).view(1, 1, -1)
        batch = {"input_values": samples}
        batch |= {name: value[None] for name, value in objective.targets(0, 0, samples.shape[-1]).items()}
        with torch.no_grad():
            found[cache] = objective.losses(trainer.unwrapped_model.eval()(samples, return_loss=False), batch)
    for name, value in found[True].items():
        torch.testing.assert_close(value, found[False][name], rtol=1e-3, atol=1e-4)


def test_resumed_distillation_equals_uninterrupted(distilled, tmp_path):
    whole = distilled(max_steps=6, save_steps=3)
    whole.train()
    expected = logged(whole)
    shutil.move(whole.output_dir / "checkpoint-00000003", tmp_path / "checkpoint")
    shutil.rmtree(whole.output_dir)
    resumed = distilled(max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint"))
    assert logged(resumed) == expected[3:]


def test_teachers_are_not_saved(distilled):
    trainer = distilled(max_steps=1)
    trainer.train()
    names = trainer.unwrapped_model.state_dict()
    assert not any("teacher" in name for name in names)
    saved = trainer.save_model()
    assert (
        sum(path.stat().st_size for path in saved.iterdir()) < 1.5 * 4 * sum(v.numel() for v in names.values()) + 1e4
    )


def test_a_changed_transcript_is_computed_anew(distilled, transcribed, tmp_path):
    distilled(max_steps=1, distillation={"cache_dir": str(tmp_path)}).train()
    shards = set((tmp_path / "contextual").glob("*.safetensors"))
    changed = transcribed.metadata.map(lambda row, index: {"words": WORDS[: 1 + index % 2]}, with_indices=True)
    other = type(transcribed)(*transcribed.__reduce__()[1][:-1], changed)
    distilled(train=other, max_steps=1, distillation={"cache_dir": str(tmp_path)}).train()
    assert set((tmp_path / "contextual").glob("*.safetensors")) > shards


def test_another_layer_s_cache_is_an_error(distilled, speech_teacher_folder, tmp_path):
    options = {"cache_dir": str(tmp_path), "language_teacher": None}
    distilled(max_steps=1, distillation=options).train()
    other = {**options, "speech_teacher": {"model": str(speech_teacher_folder), "layer": "last"}}
    with pytest.raises(TeacherCacheError, match="'average' there, 'last' here"):
        distilled(max_steps=1, distillation=other).train()


def test_projections_must_fit_the_teachers(distilled):
    with pytest.raises(ValueError, match=r"semantic_dimension=24"):
        distilled(overrides={"semantic_dimension": 25}).train()


def test_a_stage_that_dropout_leaves_out_is_an_error(distilled):
    with pytest.raises(ValueError, match="quantizer dropout"):
        distilled(overrides={"contextual_stage": 2, "quantizer_dropout": 0.5}).train()


def test_text_and_word_times_are_asked_for(distilled, transcribed, language_teacher_folder):
    untold = type(transcribed)(*transcribed.__reduce__()[1][:-1], transcribed.metadata.select_columns(["file_name"]))
    with pytest.raises(
        ValueError, match=r"6 of 6 recordings \(0.wav, 1.wav, 2.wav, ...\) have no transcript in column 'text'"
    ):
        distilled(train=untold).train()
    unaligned = type(transcribed)(*transcribed.__reduce__()[1][:-1], transcribed.metadata.remove_columns("words"))
    with pytest.raises(ValueError, match=r"6 of 6 recordings \(.*\) have no word times"):
        distilled(train=unaligned).train()
    teacher = {"model": str(language_teacher_folder), "alignment": "interpolate"}
    assert distilled(train=unaligned, max_steps=1, distillation={"language_teacher": teacher}).train()


def test_word_times_are_read_from_a_file(distilled, transcribed, language_teacher_folder, tmp_path):
    path = tmp_path / "words.jsonl"
    rows = [{"file_name": name, "text": SAID, "words": WORDS} for name in transcribed.names]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    unaligned = type(transcribed)(*transcribed.__reduce__()[1][:-1], transcribed.metadata.remove_columns("words"))
    found = []
    for train, teacher in (
        (transcribed, {"model": str(language_teacher_folder)}),
        (unaligned, {"model": str(language_teacher_folder), "word_times": str(path)}),
    ):
        trainer = distilled(train=train, max_steps=2, distillation={"language_teacher": teacher})
        trainer.train()
        found.append(logged(trainer))
        shutil.rmtree(trainer.output_dir)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no JSON", "line 1, is no object"),
        ('{"file_name": "0.wav"}', "line 1, is no object"),
        ('{"file_name": "0.wav", "words": [{"word": "one"}]}', "must be a list of `word`, `start` and `end`"),
        ('{"file_name": "0.wav", "words": [{"word": "one", "start": 0.2, "end": 0.1}]}', "end after they start"),
        (json.dumps({"file_name": "0.wav", "words": WORDS[::-1]}), "must be in order"),
        ('{"file_name": "0.wav", "words": [{"word": "one", "start": NaN, "end": 0.1}]}', "must be in order"),
        ('{"file_name": "clips/0.wav", "words": []}', "names none of the recordings, but such as 'clips/0.wav'"),
    ],
)
def test_wrong_word_times_are_an_error(distilled, language_teacher_folder, tmp_path, line, message):
    path = tmp_path / "words.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    teacher = {"model": str(language_teacher_folder), "word_times": str(path)}
    with pytest.raises(ValueError, match=message):
        distilled(distillation={"language_teacher": teacher}).train()


def test_a_full_cache_needs_no_teacher(distilled, speech_teacher_folder, tmp_path, monkeypatch):
    options = {"cache_dir": str(tmp_path / "cache")}
    distilled(max_steps=1, distillation=options).train()
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", None)
    # A copy elsewhere is the same teacher.
    copy = shutil.copytree(speech_teacher_folder, tmp_path / "elsewhere")
    assert distilled(max_steps=1, distillation={**options, "speech_teacher": {"model": str(copy)}}).train()


def test_a_trained_codec_gets_projections_to_new_teachers(distilled, make_args, tmp_path):
    trainer = distilled(max_steps=1, distillation={"language_teacher": None}, overrides={"contextual_dimension": None})
    trainer.train()
    trained = trainer.save_model(tmp_path / "trained")
    changed = {"pretrained": str(trained), "preset": None, "overrides": {"contextual_dimension": 12}}
    model = build_model(with_model(make_args(), changed))
    assert model.config.contextual_dimension == 12
    for name, value in trainer.unwrapped_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    with pytest.raises(ValueError, match="`model.overrides.contextual_dimensions` is unknown"):
        build_model(with_model(make_args(), {**changed, "overrides": {"contextual_dimensions": 12}}))


def test_a_codec_without_projections_is_refused(distilled):
    with pytest.raises(ValueError, match="choose a preset of `DM_CODEC_PRESETS`"):
        distilled(preset="fast-16khz").train()


def test_a_text_model_that_hears_is_refused(distilled, whisper_folder):
    with pytest.raises(ValueError, match="whisper, which reads no text"):
        distilled(distillation={"language_teacher": {"model": str(whisper_folder)}}).train()


def test_a_teacher_that_is_not_there_is_named(distilled):
    with pytest.raises(ValueError, match="`distillation.speech_teacher.model` is 'no/such/folder/here'"):
        distilled(distillation={"speech_teacher": {"model": "no/such/folder/here"}}).train()


def test_a_teacher_that_is_switched_off_may_leave_its_weight_behind(distilled):
    entry = distilled(
        max_steps=1, distillation={"speech_teacher": None}, overrides={"semantic_dimension": None}
    ).train()
    assert "semantic_distillation" not in entry
    assert "contextual_distillation" in entry


def test_a_stream_learns_from_the_speech_teacher_on_the_fly(
    make_args, transcribed_folder, speech_teacher_folder, tmp_path
):
    stream = load_recordings(str(transcribed_folder), streaming=True)
    assert isinstance(stream, datasets.IterableDataset)
    args = make_args(
        model={"preset": "dm-codec-fast-16khz", "overrides": {"semantic_dimension": 24}},
        distillation={"speech_teacher": {"model": str(speech_teacher_folder)}},
        loss_weights={"mel": 1.0, "waveform": 1.0, "commitment": 1.0, "semantic_distillation": 1.0},
        adversarial={"discriminators": {}},
    )
    model = build_model(args)
    (objective,) = build_objectives(args)
    with pytest.raises(ValueError, match="A stream"):
        objective.prepare(stream, model, Accelerator(cpu=True), tmp_path)
    args.distillation.cache = False
    objective = Distillation(args.distillation)
    objective.prepare(stream, model, Accelerator(cpu=True), tmp_path)
    samples = torch.randn(2, 1, 1600) * 0.1
    losses = objective.losses(model(samples, return_loss=False), {"input_values": samples})
    assert losses["semantic_distillation"].isfinite()
