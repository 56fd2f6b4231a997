# SPDX-License-Identifier: Apache-2.0
"""Recipes: overriding, and refusing what is misspelt or of the wrong type."""

import pytest

from speech_tokenizers.training.codec.arguments import load_codec_recipe
from speech_tokenizers.training.codec.codec_building import build_model
from speech_tokenizers.training.codec.discriminators import DiscriminatorEnsemble
from speech_tokenizers.training.codec.losses import parse_mel_scales
from speech_tokenizers.training.common.recipe_files import recipe_names


def test_recipes_of_the_package_are_complete():
    assert {"rvq_codec_16khz_4kbps", "rvq_codec_16khz_4kbps_gpu", "speechtokenizer_16khz"} <= set(recipe_names())


@pytest.mark.parametrize("name", ["rvq_codec_16khz_4kbps", "rvq_codec_16khz_4kbps_gpu", "speechtokenizer_16khz"])
def test_every_recipe_builds_its_codec_and_discriminators(name):
    import torch

    args = load_codec_recipe(name, ["data.train=recordings"])
    assert args.data.train == "recordings"
    with torch.device("meta"):
        model = build_model(args)
        DiscriminatorEnsemble(**args.adversarial.discriminators)
    assert model.sampling_rate == 16000
    assert model.bits_per_second == 4000
    parse_mel_scales(args.mel_scales)


def test_a_no_that_yaml_takes_for_false_is_a_no(recipe_file):
    assert load_codec_recipe(str(recipe_file()), ["mixed_precision=no"]).mixed_precision == "no"


def test_overrides_reach_sections_and_are_yaml(recipe_file):
    args = load_codec_recipe(
        str(recipe_file()),
        ["max_steps=7", "optimizer.learning_rate=1e-4", "data.train_filter={split: [a, b]}", "weight_ema_decay=null"],
    )
    assert args.max_steps == 7
    assert args.optimizer.learning_rate == 1e-4
    assert args.data.train_filter == {"split": ["a", "b"]}
    assert args.weight_ema_decay is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_stesp=3", "`max_stesp` is unknown; did you mean `max_steps`"),
        ("data.trian=x", "`data.trian` is unknown; did you mean `data.train`"),
        ("optimizer.lr=1", "`optimizer.lr` is unknown"),
        ("max_steps=many", "`max_steps` must be of type int, but got 'many'"),
        ("max_steps=true", "`max_steps` must be of type int"),
        ("optimizer.learning_rate=fast", "`optimizer.learning_rate` must be a number"),
        ("optimizer.learning_rate=-1", "`learning_rate` must be positive"),
        ("data=3", "`data` must be a mapping"),
        ("loss_weights.mel=much", "`loss_weights.mel` must be a number"),
        ("loss_weights.mel=.nan", "`loss_weights.mel` must be a number"),
        ("loss_weights.mel=.inf", "`loss_weights.mel` must be a number"),
        ("adversarial.objective=wgan", "`objective` must be 'hinge' or 'least_squares'"),
        ("optimizer.schedule=linear", "`schedule` must be"),
        ("max_steps", "must read `key=value`"),
        ("max_steps=[", "must be of type int"),
        ("data.gain_db=[3.0, 0.0]", r"`gain_db` must be a pair"),
        ("model.pretrained=x", "either `preset` or `pretrained`"),
        ("max_steps=0", "`max_steps` must be at least 1"),
        ("latent_health.revival_steps=[6]", "`latent_health.revival_steps` has 6, but the run ends at `max_steps` 6"),
        ("mixed_precision=bf8", "`mixed_precision` must be 'no', 'bf16', 'fp16' or 'auto', but got 'bf8'"),
        ("weight_ema_decay=1.0", "strictly between 0 and 1"),
        ("optimizer.betas=[0.8]", "`betas` must be two numbers"),
        ("optimizer.warmup_steps=-5", "`warmup_steps` must not be negative"),
        ("eval_steps=-1", "`eval_steps` must not be negative"),
        (
            "latent_health.quantizer_start_step=6",
            "is 6, but `max_steps` 6, so that the codebooks would never start",
        ),
    ],
)
def test_wrong_overrides_are_errors(recipe_file, override, message):
    with pytest.raises(ValueError, match=message):
        load_codec_recipe(str(recipe_file()), [override])


def test_missing_recipe_names_those_there_are():
    with pytest.raises(ValueError, match="speechtokenizer_16khz"):
        load_codec_recipe("speechtokeniser_16khz")


def test_recipe_without_a_required_key(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("output_dir: x\nmodel: {preset: fast-16khz}\ndata: {}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks `loss_weights`"):
        load_codec_recipe(str(path))
