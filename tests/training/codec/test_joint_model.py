# SPDX-License-Identifier: Apache-2.0
"""Stage 2 of continuous tokens: its plain form collapses, the safeguards hold, and nothing else changes."""

import json

import numpy as np
import pytest
import torch
import yaml

from speech_tokenizers.modeling.modeling_cst import CSTModel
from speech_tokenizers.modeling.modeling_latent_lm import LatentLanguageModel
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments, load_codec_recipe
from speech_tokenizers.training.codec.codec_building import build_model, build_objectives
from speech_tokenizers.training.codec.codec_recipe import train_from_recipe
from speech_tokenizers.training.codec.codec_trainer import CodecTrainer
from speech_tokenizers.training.codec.joint_model import JointModel
from speech_tokenizers.training.codec.latent_arguments import JointArguments
from speech_tokenizers.training.codec.latent_health import LatentCollapseError
from speech_tokenizers.training.common.recipe_files import build_section
from speech_tokenizers.training.common.reporting import read_log


TIMINGS = {"steps_per_second", "audio_seconds_per_second", "training_seconds", "training_minutes"}
# 320 samples a latent, 6 dimensions.
STAGE_1 = {
    "seed": 3,
    "model": {
        "preset": "cst-fast-16khz",
        "overrides": {
            "downsampling_ratios": [4, 5, 8],
            "n_fft": 320,
            "hidden_size": 6,
            "network_hidden_size": 16,
            "encoder_hidden_size": 16,
            "decoder_hidden_size": 16,
            "encoder_num_layers": 1,
            "decoder_num_layers": 1,
            "statistics_steps": 150,
        },
    },
    "data": {"segment_seconds": 0.25},
    "loss_weights": {"mel": 15.0, "waveform": 1.0, "kl": 0.01},
    "mel_scales": [{"n_fft": 256, "hop_length": 64, "num_mels": 20}],
    "optimizer": {"learning_rate": 5e-3},
    "global_batch_size": 4,
    "max_steps": 150,
    "logging_steps": 20,
    "eval_steps": 0,
    "save_steps": 0,
}
JOINT = {
    "head": "mse",
    "language_model": {
        "model_type": "llama",
        "vocab_size": 1,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    },
}
SAFE = {"mel": 15.0, "waveform": 1.0, "kl": 0.01, "prediction": 1.0}
PLAIN = {"mel": 0.0, "waveform": 0.0, "kl": 0.0, "prediction": 1.0}


def make_trainer(recipe: dict, recordings) -> CodecTrainer:
    args = build_section(CodecTrainingArguments, recipe, "")
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        model = build_model(args)
    torch.manual_seed(args.seed)
    return CodecTrainer(model, args, recordings, recordings[:2], objectives=build_objectives(args))


@pytest.fixture(scope="module")
def surprises() -> list[np.ndarray]:
    """Recordings in which each 40 ms have a pitch, a level and a share of noise that nothing foretells."""
    generator = np.random.default_rng(0)
    return [np.concatenate([surprise(generator) for _ in range(50)]).astype(np.float32) for _ in range(8)]


def surprise(generator: np.random.Generator) -> np.ndarray:
    phase = 2 * np.pi * np.arange(640) / 16000 * np.exp(generator.uniform(np.log(80), np.log(1500)))
    voice = sum(np.sin(k * phase) / k for k in range(1, 5))
    noise = generator.standard_normal(640)
    share = generator.uniform()
    return 0.3 * generator.uniform(0.05, 1) * ((1 - share) * voice + 0.5 * share * noise)


@pytest.fixture(scope="module")
def trained_tokenizer(tmp_path_factory, surprises):
    """Folder of a tokenizer after stage 1."""
    folder = tmp_path_factory.mktemp("stage_1")
    trainer = make_trainer({**STAGE_1, "output_dir": str(folder)}, surprises)
    trainer.train()
    return trainer.save_model()


@pytest.fixture
def joint_recipe(tmp_path, trained_tokenizer):
    """Function: a recipe of stage 2 with changes."""

    def make(joint=(), **changes) -> dict:
        return {
            **STAGE_1,
            "output_dir": str(tmp_path / "joint"),
            "model": {"pretrained": str(trained_tokenizer)},
            "joint": {**JOINT, **dict(joint)},
            "loss_weights": SAFE,
            "optimizer": {"learning_rate": 2e-2},
            "latents": {"grace_steps": 0, "window_steps": 10},
            **changes,
        }

    return make


def entries_of(trainer):
    log = read_log(trainer.output_dir / "training_log.jsonl")
    return [{name: value for name, value in entry.items() if name not in TIMINGS} for entry in log]


def test_the_plain_form_collapses_and_the_safeguards_hold(joint_recipe, surprises):
    plain = {"joint": {"stop_gradient": False}, "loss_weights": PLAIN, "max_steps": 160, "logging_steps": 10}
    trainer = make_trainer(joint_recipe(**plain), surprises)
    with pytest.raises(LatentCollapseError, match="The latents have collapsed"):
        trainer.train()
    assert trainer.step < 100
    # Without the guard it goes on: to next to nothing, from which nothing can be heard.
    trainer = make_trainer(joint_recipe(**plain, latents={"grace_steps": 1000}), surprises)
    trainer.train()
    log = entries_of(trainer)
    first, last = log[0], log[-1]
    assert last["prediction"] < 0.1 * first["prediction"]  # by giving up what is to be predicted
    assert last["latent_variance"] < 0.1 * first["latent_variance"]
    assert last["mel"] > 1.2 * first["mel"]  # 1.3 on one kind of processor, less on others

    safe = make_trainer(joint_recipe(max_steps=160, logging_steps=10), surprises)
    safe.train()
    first, last = entries_of(safe)[0], entries_of(safe)[-1]
    assert last["latent_variance"] > 0.7 * first["latent_variance"]
    assert last["latent_rank"] > 0.8 * first["latent_rank"]
    assert last["mel"] < 1.1 * first["mel"]
    assert last["prediction"] < 0.9 * first["prediction"]  # by learning


def test_no_gradient_enters_the_targets_unless_asked(joint_recipe):
    gradients = {}
    for stop_gradient in (True, False):
        args = build_section(CodecTrainingArguments, joint_recipe({"stop_gradient": stop_gradient}), "")
        torch.manual_seed(0)
        model = build_model(args)
        latents = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
        first_six = (torch.arange(8) < 6).long()[None]
        model.prediction_loss(latents, first_six).backward()
        gradients[stop_gradient] = latents.grad[0].abs().sum(-1) > 0
    assert gradients[True].tolist() == [True] * 5 + [False] * 3
    assert gradients[False].tolist() == [True] * 6 + [False] * 2


def test_the_encoder_learns_at_a_twentieth_and_the_decoder_not_at_all(joint_recipe, recordings):
    trainer = make_trainer(joint_recipe(max_steps=3), recordings)
    model = trainer.unwrapped_model
    assert isinstance(model, JointModel)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    rates = {}
    for group in trainer.optimizer.param_groups:
        rates |= dict.fromkeys(group["params"], group["lr"] / trainer.optimizer.param_groups[0]["lr"])
    of = {name: rates.get(parameter) for name, parameter in model.named_parameters()}
    of_encoder = [rate for name, rate in of.items() if name.startswith("tokenizer.encoder.")]
    assert of_encoder == pytest.approx([0.05] * len(of_encoder))
    assert {rate for name, rate in of.items() if name.startswith("language_model.head.")} == {1.0}
    assert {rate for name, rate in of.items() if name.startswith("tokenizer.decoder.")} == {None}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("tokenizer.encoder.") for name in changed)
    assert any(name.startswith("language_model.latent_input.") for name in changed)
    # The scale of the latents stays as it was, too.
    frozen = ("tokenizer.decoder.", "tokenizer.statistics.", "language_model.stop_head.")
    assert not {name for name in changed if name.startswith(frozen)}


@pytest.mark.parametrize("head", ["flow", "energy"])
def test_resumed_training_equals_an_uninterrupted_one(joint_recipe, recordings, tmp_path, head):
    # Heads draw noise, at the evaluations too.
    changes = {"joint": {"head": head, "head_options": {"num_layers": 1, "hidden_size": 16}, "input_noise_std": 0.1}}
    changes |= {"max_steps": 6, "logging_steps": 1, "eval_steps": 2, "num_audio_samples": 0}
    whole = make_trainer(joint_recipe(**changes, output_dir=str(tmp_path / "whole")), recordings)
    whole.train()
    parts = {"save_steps": 2, "save_total_limit": None, "output_dir": str(tmp_path / "parts")}
    make_trainer(joint_recipe(**changes, **parts), recordings).train()
    resumed = make_trainer(joint_recipe(**changes, **parts), recordings)
    torch.rand(7)
    resumed.train(str(tmp_path / "parts" / "checkpoint-00000004"))
    expected = [entry for entry in entries_of(whole) if "loss" in entry]
    assert [entry for entry in entries_of(resumed) if "loss" in entry] == expected
    assert any("eval_prediction" in entry for entry in entries_of(whole))


def test_what_is_saved_are_two_models(joint_recipe, tmp_path, recordings, audio_folder):
    recipe = joint_recipe(max_steps=2, data={"train": str(audio_folder), "segment_seconds": 0.25})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    trainer = train_from_recipe(str(path))
    final = trainer.output_dir / "final"
    tokenizer = CSTModel.from_pretrained(final)
    language_model = LatentLanguageModel.from_pretrained(final / "language_model")
    model = trainer.unwrapped_model.eval()
    audio = torch.from_numpy(recordings[0])[None, None]
    latents = tokenizer.encode(audio).latents
    assert torch.equal(latents, model.tokenizer.encode(audio).latents)
    assert torch.equal(language_model(latents).loss, model.language_model(latents).loss)
    assert not list(final.rglob("*.pt")) + list(final.rglob("*.bin"))
    assert json.loads((final / "language_model" / "config.json").read_text())["head"] == "mse"


def test_a_text_model_may_begin(joint_recipe, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {name: JOINT["language_model"][name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size")}
    text_model = LlamaForCausalLM(LlamaConfig(vocab_size=9, num_attention_heads=2, **sizes))
    text_model.save_pretrained(tmp_path / "text")
    joint = {"pretrained": str(tmp_path / "text"), "language_model": {}}
    model = build_model(build_section(CodecTrainingArguments, joint_recipe(joint), ""))
    for name, value in text_model.model.state_dict().items():
        assert torch.equal(model.language_model.language_model.state_dict()[name], value), name


def test_contradictions_are_refused(joint_recipe, tiny_checkpoint):
    with pytest.raises(ValueError, match="exclude each other"):
        JointArguments(pretrained="x", language_model={"model_type": "llama"})
    for model, message in (
        ({"preset": "cst-fast-16khz"}, "Stage 2 needs a trained tokenizer"),
        ({"pretrained": str(tiny_checkpoint)}, "stage 2 is for continuous tokens"),
        ({"pretrained": "x", "warm_start": True}, "`model.warm_start` and `joint` exclude each other"),
        ({"pretrained": "x", "warm_start": True, "preset": "cst-fast-16khz"}, "exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(build_section(CodecTrainingArguments, joint_recipe(model=model), ""))


def test_the_recipe_is_the_papers_in_its_rates(trained_tokenizer):
    args = load_codec_recipe("cst_joint_16khz", [f"model.pretrained={trained_tokenizer}"])
    model = build_model(args)
    assert args.optimizer.learning_rate_scales == {"tokenizer": 0.05, "tokenizer.decoder": 0.0}
    names = {"mel", "waveform", "kl", "prediction"}
    assert set(args.loss_weights) == names | {
        loss for objective in build_objectives(args) for loss in objective.loss_names
    }
    assert model.stop_gradient
