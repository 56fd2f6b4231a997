# SPDX-License-Identifier: Apache-2.0
"""What the trainer promises within one process."""

import json

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoFeatureExtractor, AutoModel

from speech_tokenizers.evaluation.speed import processor
from speech_tokenizers.training.codec.codec_building import build_model
from speech_tokenizers.training.codec.codec_trainer import CodecTrainer
from speech_tokenizers.training.codec.objectives import CodecObjective
from speech_tokenizers.training.common import precision
from speech_tokenizers.training.common.optimization import learning_rate_factor
from speech_tokenizers.training.common.reporting import read_log


NO_DISCRIMINATORS = {"discriminators": {}}
RECONSTRUCTION = {"mel": 1.0, "waveform": 1.0, "commitment": 0.1}


def logged_losses(folder):
    ignored = {"steps_per_second", "audio_seconds_per_second", "training_seconds", "training_minutes"}
    return [{k: v for k, v in entry.items() if k not in ignored} for entry in read_log(folder / "training_log.jsonl")]


def test_one_batch_is_overfit(make_trainer, recordings):
    # Crops as long as the recording are the same at each step.
    trainer = make_trainer(
        train=[recordings[0][:3200]],
        adversarial=NO_DISCRIMINATORS,
        loss_weights=RECONSTRUCTION,
        model={"overrides": {"codebook_size": 64, "quantizer_dropout": 0.0}},
        optimizer={"learning_rate": 5e-3, "schedule": "constant"},
        data={"segment_seconds": 0.2, "gain_db": [0.0, 0.0]},
        global_batch_size=1,
        max_steps=150,
    )
    trainer.train()
    losses = [entry["mel"] for entry in logged_losses(trainer.output_dir)]
    assert losses[-1] < 0.35 * losses[0]


@pytest.mark.parametrize("name", ["mell", "adverserial", "distillation"])
def test_misspelt_weight_is_an_error(make_trainer, name):
    with pytest.raises(ValueError, match=name):
        make_trainer(loss_weights={**RECONSTRUCTION, "adversarial": 1.0, "feature_matching": 1.0, name: 1.0})


def test_missing_weight_is_an_error(make_trainer):
    with pytest.raises(ValueError, match="lacks waveform"):
        make_trainer(loss_weights={"mel": 1.0, "commitment": 1.0, "adversarial": 1.0, "feature_matching": 1.0})


def test_losses_that_all_weigh_nothing_are_refused(make_trainer):
    weights = dict.fromkeys(make_trainer().args.loss_weights, 0.0)
    with pytest.raises(ValueError, match="`loss_weights` are all 0 .*give one of them a weight"):
        make_trainer(loss_weights=weights)


def test_unknown_discriminator_is_an_error(make_trainer):
    with pytest.raises(ValueError, match="did you mean `multi_period`"):
        make_trainer(adversarial={"discriminators": {"multi_periods": {}}})


def test_objective_adds_a_named_loss(make_args, recordings):
    class LatentNorm(CodecObjective):
        loss_names = ("latent_norm",)

        def prepare(self, recordings, model, accelerator, folder):
            self.recordings = recordings

        def targets(self, recording, first_sample, num_samples):
            return {"mean": torch.tensor(self.recordings[recording][first_sample : first_sample + num_samples].mean())}

        def losses(self, outputs, batch):
            assert batch["mean"].shape == (4,)
            return {"latent_norm": outputs.latents.square().mean()}

    weights = {**RECONSTRUCTION, "adversarial": 1.0, "feature_matching": 1.0, "latent_norm": 0.5}
    args = make_args(loss_weights=weights, max_steps=1)
    logged = CodecTrainer(build_model(args), args, recordings, objectives=[LatentNorm()]).train()
    assert logged["latent_norm"] > 0
    assert logged["loss"] == pytest.approx(
        logged["mel"] + logged["waveform"] + 0.1 * logged["commitment"] + 0.5 * logged["latent_norm"], rel=1e-5
    )


def test_codec_runs_forward_once_a_step(make_trainer):
    trainer = make_trainer(max_steps=5)
    calls = []
    trainer.unwrapped_model.encoder.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 5


def test_discriminators_cost_nothing_before_their_start_and_then_both_sides_learn(make_trainer):
    trainer = make_trainer(max_steps=6, adversarial={"start_step": 3})
    calls = []
    trainer.adversary.discriminator.register_forward_pre_hook(lambda *_: calls.append(trainer.step))
    before = {name: value.clone() for name, value in trainer.adversary.discriminator.named_parameters()}
    trainer.train()
    assert min(calls) == 3
    log = logged_losses(trainer.output_dir)
    assert ["adversarial" in entry for entry in log] == [False] * 3 + [True] * 3
    # Within its margins, the hinge loss pulls recorded and decoded audio equally far apart. So the gradient of some
    # biases is 0 but for rounding, which depends on the number of threads.
    after = {name: value for name, value in trainer.adversary.discriminator.named_parameters() if ".weight" in name}
    assert len(after) > 10
    assert [name for name, value in after.items() if torch.equal(value, before[name])] == []
    # Frozen only while the codec learns.
    assert all(parameter.requires_grad for parameter in trainer.adversary.discriminator.parameters())


def test_adversarial_weights_grow_over_the_warmup(make_trainer):
    trainer = make_trainer(adversarial={"start_step": 10, "warmup_steps": 4})
    trainer.adversary.schedule.begin(10, 10)
    weights = []
    for trainer.run.step in (10, 11, 13, 50):
        weights.append(trainer.current_weight("adversarial"))
    assert weights == [0.25, 0.5, 1.0, 1.0]
    assert trainer.current_weight("mel") == 15.0


def test_accumulated_micro_batches_equal_one_batch(make_trainer, tmp_path):
    # Not so with discriminators, which learn between the codec's micro-batches, nor while codebooks move at each.
    runs = []
    for accumulation in (1, 2, 4):
        trainer = make_trainer(
            output_dir=str(tmp_path / str(accumulation)),
            adversarial=NO_DISCRIMINATORS,
            loss_weights=RECONSTRUCTION,
            gradient_accumulation_steps=accumulation,
            model={"overrides": {"quantizer_dropout": 0.0, "kmeans_iterations": 0}},
        )
        for quantizer in trainer.unwrapped_model.quantizer.quantizers:
            quantizer.update = lambda *_: None
        trainer.train()
        runs.append([entry["loss"] for entry in logged_losses(trainer.output_dir)])
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-5)
    np.testing.assert_allclose(runs[2], runs[0], rtol=1e-5)


def test_global_batch_must_divide(make_trainer):
    with pytest.raises(ValueError, match="multiple of the number of processes"):
        make_trainer(gradient_accumulation_steps=3).train()


def test_gradients_are_clipped(make_trainer):
    trainer = make_trainer(optimizer={"max_grad_norm": 0.01}, max_steps=1)
    norms = []
    step = trainer.optimizer.step

    def observed_step():
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        step()

    trainer.optimizer.step = observed_step
    logged = trainer.train()
    assert logged["grad_norm"] > 0.01
    assert norms == [pytest.approx(0.01, rel=1e-3)]


def test_schedules(make_args):
    cosine = make_args(optimizer={"warmup_steps": 10, "final_ratio": 0.1}).optimizer
    assert learning_rate_factor(cosine, 0, 110) == 0.1
    assert learning_rate_factor(cosine, 10, 110) == 1.0
    assert learning_rate_factor(cosine, 60, 110) == pytest.approx(0.55)
    assert learning_rate_factor(cosine, 110, 110) == pytest.approx(0.1)
    exponential = make_args(
        optimizer={"schedule": "exponential", "warmup_steps": 0, "decay_rate": 0.5, "decay_steps": 10}
    ).optimizer
    assert learning_rate_factor(exponential, 20, 100) == 0.25
    assert learning_rate_factor(make_args(optimizer={"schedule": "constant"}).optimizer, 99, 100) == 1.0


def test_saved_codec_loads_and_has_the_averaged_weights(make_trainer, recordings):
    trainer = make_trainer()
    trainer.train()
    own = {name: value.clone() for name, value in trainer.unwrapped_model.state_dict().items()}
    folder = trainer.save_model()
    loaded = AutoModel.from_pretrained(folder).eval()
    feature_extractor = AutoFeatureExtractor.from_pretrained(folder)
    for name, average in trainer.weight_average.averages.items():
        torch.testing.assert_close(loaded.state_dict()[name], average, rtol=0, atol=0)
    assert any((loaded.state_dict()[name] != value).any() for name, value in own.items())
    for name, value in trainer.unwrapped_model.state_dict().items():
        torch.testing.assert_close(value, own[name], rtol=0, atol=0)
    inputs = feature_extractor(recordings[0], sampling_rate=16000, return_tensors="pt")
    assert loaded.encode(**inputs).audio_codes.shape[1] == 2


def test_a_push_without_a_name_is_refused(make_trainer):
    with pytest.raises(ValueError, match="hub_model_id"):
        make_trainer().push_to_hub()


def test_average_of_weights_follows_its_definition(make_trainer):
    trainer = make_trainer(max_steps=4, weight_ema_decay=0.15)
    name = next(key for key, value in trainer.unwrapped_model.state_dict().items() if value.is_floating_point())
    history = []
    update = trainer.weight_average.update

    def observed_update(model):
        history.append(model.state_dict()[name].clone())
        update(model)

    trainer.weight_average.update = observed_update
    trainer.train()
    expected = history[0]
    for n, value in enumerate(history[1:], start=1):
        decay = min(0.15, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(trainer.weight_average.averages[name], expected)


def test_evaluation_reports_losses_metrics_and_code_use_and_changes_nothing(make_trainer):
    trainer = make_trainer(max_steps=2, eval_steps=2, save_steps=1)
    trainer.compute_metrics = lambda recorded, decoded, rate: {"length": float(len(decoded))}
    trainer.train()
    entry = next(entry for entry in logged_losses(trainer.output_dir) if "eval_mel" in entry)
    assert entry["step"] == 2
    assert entry["eval_length"] == (4000 + 4700) / 2
    assert 0 < entry["eval_codes_used_1"] <= 1
    assert 1 <= entry["eval_perplexity_2"] <= 16
    assert (trainer.output_dir / "loss_curves.png").stat().st_size > 0
    assert (trainer.output_dir / "samples" / "000" / "step-00000002.png").stat().st_size > 0
    assert (trainer.output_dir / "samples" / "001" / "step-00000002.wav").stat().st_size > 0
    before = {name: value.clone() for name, value in trainer.unwrapped_model.state_dict().items()}
    assert trainer.evaluate() == trainer.evaluate()
    assert trainer.unwrapped_model.training
    for name, value in trainer.unwrapped_model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_resumed_run_equals_an_uninterrupted_one(make_trainer, tmp_path):
    # Spectral normalisation has vectors of its own to keep; the checkpoint at step 5 lies within a logging interval.
    changes = {
        "max_steps": 9,
        "logging_steps": 2,
        "adversarial": {"discriminators": {"multi_scale": {"num_scales": 1, "width": 16}}},
    }
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **changes)
    whole.train()
    make_trainer(output_dir=str(tmp_path / "cut"), save_steps=5, **changes).train()
    (tmp_path / "cut" / "checkpoint-00000009").rename(tmp_path / "later")
    resumed = make_trainer(output_dir=str(tmp_path / "cut"), **changes)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    assert logged_losses(tmp_path / "cut") == logged_losses(tmp_path / "whole")
    for name, value in whole.unwrapped_model.state_dict().items():
        torch.testing.assert_close(resumed.unwrapped_model.state_dict()[name], value, rtol=0, atol=0)
    for name, value in whole.weight_average.averages.items():
        torch.testing.assert_close(resumed.weight_average.averages[name], value, rtol=0, atol=0)


def test_a_checkpoint_has_the_names_by_which_older_ones_resume(make_trainer):
    trainer = make_trainer(max_steps=4)
    trainer.train()
    folder = trainer.output_dir / "checkpoint-00000004"
    files = {"codec.safetensors", "discriminator.safetensors", "optimization.pt", "process_0.pt", "trainer_state.json"}
    files |= {"checksums.json", "recipe.yaml", "inputs.json"}
    # What `load` takes is beside it.
    model = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in folder.iterdir()} == files | model
    optimization = torch.load(folder / "optimization.pt", weights_only=True)
    assert set(optimization) == {"codec_optimizer", "discriminator_optimizer", "weight_average"}
    assert set(torch.load(folder / "process_0.pt", weights_only=True)) == {"random", "window"}
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    assert state.pop("training_seconds") > 0
    assert state == {"step": 4, "seed": 3, "global_batch_size": 4, "discriminators_first_step": 3}


def test_old_checkpoints_go_and_incomplete_ones_do_not_count(make_trainer):
    trainer = make_trainer(max_steps=5, save_steps=1, save_total_limit=2)
    incomplete = trainer.output_dir / ".checkpoint-00000099.incomplete"
    incomplete.mkdir(parents=True)
    trainer.train()
    names = sorted(path.name for path in trainer.output_dir.glob("*checkpoint*"))
    assert names == ["checkpoint-00000004", "checkpoint-00000005"]


def test_resume_refuses_another_order_of_data_and_a_folder_without_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=1, save_steps=1)
    trainer.train()
    with pytest.raises(ValueError, match=r"begun with other settings \(.*`global_batch_size` was 4 and is 8\)"):
        make_trainer(global_batch_size=8).train(resume_from_checkpoint="latest")
    # Older folders do not say it; their checkpoints do.
    for name in ("recipe.yaml", "inputs.json", "checksums.json"):
        for path in trainer.output_dir.rglob(name):
            path.unlink()
    with pytest.raises(ValueError, match="`global_batch_size` is 8, but the checkpoint"):
        make_trainer(global_batch_size=8).train(resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="no complete checkpoint"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "nothing"))
    overrides = {"hidden_size": 12}
    with pytest.raises(ValueError, match="is of another recipe than this one's; choose another `output_dir`"):
        make_trainer(model={"overrides": overrides}).train(resume_from_checkpoint="latest")


def test_discriminators_that_have_not_learnt_yet_may_be_exchanged(make_trainer, capsys):
    make_trainer(max_steps=2, save_steps=2).train()
    assert "warning: the run ends before `adversarial.start_step`" in capsys.readouterr().out
    other = {"start_step": 2, "discriminators": {"multi_period": {"periods": [2], "channels": [2, 2]}}}
    trainer = make_trainer(max_steps=3, adversarial=other)
    assert "adversarial" in trainer.train(resume_from_checkpoint="latest")


def test_loss_that_is_not_finite_ends_the_run(make_trainer, recordings):
    broken = [recording * np.float32("nan") for recording in recordings]
    with pytest.raises(FloatingPointError, match="learning_rate"):
        make_trainer(train=broken).train()


def test_bfloat16_trains_with_the_quantizer_in_float32(make_trainer):
    trainer = make_trainer(mixed_precision="bf16")
    dtypes = set()
    quantizer = trainer.unwrapped_model.quantizer.quantizers[0]
    encode = quantizer.encode

    def observed_encode(vectors):
        dtypes.add(vectors.dtype)
        return encode(vectors)

    quantizer.encode = observed_encode
    assert np.isfinite(trainer.train()["loss"])
    assert dtypes == {torch.float32}


def test_trackers_get_the_log(make_trainer):
    pytest.importorskip("tensorboard")
    trainer = make_trainer(max_steps=1, report_to=["tensorboard"])
    trainer.train()
    assert list(trainer.output_dir.rglob("events.out.tfevents*"))


def test_log_states_throughput_and_the_recipe_is_kept(make_trainer):
    trainer = make_trainer(max_steps=2)
    trainer.train()
    entry = read_log(trainer.output_dir / "training_log.jsonl")[-1]
    assert entry["audio_seconds_per_second"] == pytest.approx(entry["steps_per_second"] * 4 * 0.1)
    assert "loss_weights" in (trainer.output_dir / "recipe.yaml").read_text(encoding="utf-8")
    assert json.loads((trainer.output_dir / "checkpoint-00000002" / "trainer_state.json").read_text())["step"] == 2


@pytest.mark.parametrize(("flags", "expected"), [({"avx2", "amx_bf16"}, "bf16"), ({"avx2", "avx512f"}, "no")])
def test_precision_follows_the_processor_where_a_recipe_leaves_it_to_it(make_trainer, monkeypatch, flags, expected):
    monkeypatch.setattr(processor, "cpu_flags", lambda: flags)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert make_trainer(mixed_precision="auto").accelerator.mixed_precision == expected


@pytest.mark.parametrize(("launched", "expected"), [("fp16", "fp16"), ("bf16", "bf16"), ("no", "no")])
def test_precision_follows_the_launcher_where_that_asks_for_one(monkeypatch, launched, expected):
    monkeypatch.setattr(processor, "cpu_flags", lambda: {"avx2"})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert precision.resolve_precision("auto", "cpu") == expected
    assert precision.resolve_precision("no", "cpu") == "no"
    assert precision.resolve_precision(None, "cpu") is None


def test_no_is_what_the_launcher_says_unasked(monkeypatch):
    monkeypatch.setattr(processor, "cpu_flags", lambda: {"amx_bf16"})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert precision.resolve_precision("auto", "cpu") == "bf16"


def test_a_run_that_goes_on_with_other_settings_says_so_and_keeps_both_recipes(make_trainer, capsys):
    make_trainer(max_steps=2).train()
    make_trainer(max_steps=3).train(resume_from_checkpoint=True)
    assert "goes on from step 2 with other settings: `max_steps` was 2 and is 3." in capsys.readouterr().err
    weights = {**make_trainer().args.loss_weights, "mel": 1.0}
    with pytest.raises(ValueError, match=r"mel` was 15.0 and is 1.0\).*give `allow_changes=\[loss_weights.mel\]`"):
        make_trainer(max_steps=3, loss_weights=weights).train(resume_from_checkpoint=True)
    trainer = make_trainer(loss_weights=weights, allow_changes=["loss_weights.mel"], max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert (
        "goes on from step 3 with other settings: `loss_weights.mel` was 15.0 and is 1.0." in capsys.readouterr().err
    )
    recipes = [trainer.output_dir / name for name in ("recipe-until-00000003.yaml", "recipe.yaml")]
    assert [yaml.safe_load(path.read_text())["loss_weights"]["mel"] for path in recipes] == [15.0, 1.0]
