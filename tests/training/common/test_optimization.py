# SPDX-License-Identifier: Apache-2.0
"""Parts of a codec learn at their own rates or not at all, in this package's trainer and in transformers'."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, Trainer, TrainingArguments

from speech_tokenizers.conversion.speechtokenizer import convert_checkpoint
from speech_tokenizers.modeling.configuration_dm_codec import DMCodecConfig
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel
from speech_tokenizers.training.codec.crops import AudioCropDataset
from speech_tokenizers.training.common.optimization import OptimizerArguments, make_optimizer, set_learning_rate


DECODER_ONLY = {"encoder": 0.0, "quantizer": 0.0}
QUANTIZER_ONLY = {"encoder": 0.0, "decoder": 0.0}


@pytest.fixture(scope="module")
def converted(load_original, tmp_path_factory):
    """Folder of a codec converted from a checkpoint of the original code."""
    folder = tmp_path_factory.mktemp("converted")
    _, state, fields, _ = load_original("elu_small")
    save_file(state, folder / "original.safetensors")
    (folder / "config.json").write_text(json.dumps(fields))
    convert_checkpoint(folder / "original.safetensors", folder / "codec")
    return folder / "codec"


@pytest.fixture
def model(converted):
    return AutoModel.from_pretrained(converted)


@pytest.fixture
def tiny_codec():
    """Factorised, so that the quantizer has parameters besides its codebooks."""
    torch.manual_seed(0)
    sizes = {"num_filters": 2, "hidden_size": 8, "downsampling_ratios": (4, 5), "num_quantizers": 2}
    return DMCodecModel(DMCodecConfig(**sizes, codebook_size=8, codebook_dim=4, semantic_dimension=5))


def changed_parts(model, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the submodules in which a parameter or a codebook changed."""
    state = model.state_dict()
    changed = [name for name, value in state.items() if not torch.equal(value, before[name])]
    return {name.split(".")[0] for name in changed if not name.endswith("num_updates")}


def copy_state(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_each_part_has_its_learning_rate(tiny_codec):
    scales = {"encoder": 0.1, "quantizer": 0.5, "quantizer.project_in": 2.0, "encoder.layers.0": 0.0}
    args = OptimizerArguments(learning_rate=1e-3, weight_decay=0.1, learning_rate_scales=scales)
    optimizer = make_optimizer(tiny_codec, args)
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    decays = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    expected = {
        "encoder.layers.0": 0.0,
        "encoder.layers.1": 1e-4,
        "quantizer.project_in": 2e-3,
        "quantizer.project_out": 5e-4,
        "decoder.layers.0": 1e-3,
        "semantic_projection": 1e-3,
    }
    for part, rate in expected.items():
        for parameter in tiny_codec.get_submodule(part).parameters():
            assert parameter.requires_grad == (rate > 0)
            assert rates.get(parameter, 0.0) == pytest.approx(rate)
            assert decays.get(parameter, 0.1) == (0.1 if parameter.dim() > 1 else 0.0) or rate == 0
    assert set(rates) == {parameter for parameter in tiny_codec.parameters() if parameter.requires_grad}

    set_learning_rate(optimizer, args, step=0, total_steps=10)
    before = [group["lr"] for group in optimizer.param_groups]
    set_learning_rate(optimizer, args, step=5, total_steps=10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * rate for rate in before])


def test_without_scales_all_parts_learn_at_one_rate(tiny_codec):
    optimizer = make_optimizer(tiny_codec, OptimizerArguments(learning_rate=1e-3))
    # First matrices, then vectors: the order that checkpoints of earlier versions have.
    assert [min(parameter.dim() for parameter in group["params"]) > 1 for group in optimizer.param_groups] == [
        True,
        False,
    ]
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(tiny_codec.parameters()))


def test_wrong_scales_are_refused(tiny_codec):
    with pytest.raises(ValueError, match=r"`learning_rate_scales` `decodr` is unknown; did you mean `decoder`"):
        make_optimizer(tiny_codec, OptimizerArguments(learning_rate_scales={"decodr": 0.0}))
    with pytest.raises(ValueError, match="`learning_rate_scales` must not be negative"):
        OptimizerArguments(learning_rate_scales={"decoder": -1.0})


def fine_tune(model, recordings, folder, scales: dict[str, float]) -> list[float]:
    """A few steps of transformers' Trainer; returns its losses."""
    args = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    optimizer = make_optimizer(model, OptimizerArguments(learning_rate=3e-3, learning_rate_scales=scales))
    crops = AudioCropDataset(recordings[:2], 1600)
    trainer = Trainer(model, args, train_dataset=crops, optimizers=(optimizer, None))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("scales", "learning"),
    [
        # Distillation is no part of the loss of `forward`, so its projection stays as it is.
        ({}, {"encoder", "quantizer", "decoder"}),
        ({"decoder": 0.1}, {"encoder", "quantizer", "decoder"}),
        (DECODER_ONLY, {"decoder"}),
        (QUANTIZER_ONLY, {"quantizer"}),
    ],
    ids=["all", "slow decoder", "decoder only", "quantizer only"],
)
def test_transformers_trainer_fine_tunes_a_converted_codec(model, recordings, tmp_path, scales, learning):
    before = copy_state(model)
    losses = fine_tune(model, recordings, tmp_path, scales)
    assert changed_parts(model, before) == learning
    if "decoder" in learning and "decoder" not in scales:
        assert sum(losses[-3:]) < sum(losses[:3]), losses
    # It is still the codec that was converted: it saves and loads as such.
    model.save_pretrained(tmp_path / "tuned")
    loaded = AutoModel.from_pretrained(tmp_path / "tuned")
    assert type(loaded) is DMCodecModel
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_training_continues_the_moving_averages_of_the_original(model):
    first = model.quantizer.quantizers[0]
    first.dead_code_threshold = 0.0
    total = first.cluster_size.sum()
    num_frames = 2 * 10
    model.train()(torch.rand(2, 1, 3200) - 0.5, return_loss=False)
    torch.testing.assert_close(first.cluster_size.sum(), 0.99 * total + 0.01 * num_frames)


def test_a_frozen_encoder_and_quantizer_keep_every_code(model, recordings, tmp_path):
    waveform = torch.from_numpy(recordings[5])[None, None]
    with torch.no_grad():
        before = model.encode(waveform).audio_codes
    fine_tune(model, recordings, tmp_path, DECODER_ONLY)
    with torch.no_grad():
        assert torch.equal(model.eval().encode(waveform).audio_codes, before)


@pytest.mark.parametrize(
    ("scales", "learning"),
    [(DECODER_ONLY, {"decoder"}), ({"encoder": 0.0, "decoder": 0.0}, {"quantizer"})],
    ids=["decoder only", "quantizer only"],
)
def test_the_codec_trainer_fine_tunes_parts(make_trainer, scales, learning):
    trainer = make_trainer(optimizer={"learning_rate_scales": scales}, max_steps=4)
    with torch.no_grad():
        trainer.unwrapped_model.train()(torch.rand(4, 1, 1600) - 0.5)  # initialises frozen codebooks no more
    before = copy_state(trainer.unwrapped_model)
    trainer.train()
    assert changed_parts(trainer.unwrapped_model, before) == learning


def test_quantizer_dropout_goes_on_beside_frozen_codebooks(tiny_codec):
    tiny_codec.quantizer.quantizer_dropout = 1.0
    make_optimizer(tiny_codec, OptimizerArguments(learning_rate_scales=DECODER_ONLY))
    tiny_codec.train()
    counts = {tiny_codec(torch.zeros(1, 1, 100), return_loss=False).audio_codes.shape[1] for _ in range(20)}
    assert counts == {1, 2}
