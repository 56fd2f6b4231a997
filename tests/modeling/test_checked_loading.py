# SPDX-License-Identifier: Apache-2.0
"""A damaged model is refused when it is loaded, by whichever road, with the file and the reason."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, LlamaConfig

from helpers.tiny_models import tiny_hubert
from speech_tokenizers import (
    CSTFeatureExtractor,
    DCSpinConfig,
    DCSpinFeatureExtractor,
    DCSpinModel,
    KMeansUnitsConfig,
    KMeansUnitsFeatureExtractor,
    KMeansUnitsModel,
    LatentLanguageModel,
    LatentLMConfig,
    RVQCodecModel,
    UnitVocoderConfig,
    UnitVocoderModel,
    load,
)
from speech_tokenizers.cli import main
from speech_tokenizers.modeling.checked_loading import ModelFilesError, describe_damage, is_finite


CODEBOOK = "quantizer.quantizers.1.codebook"


@pytest.fixture
def folder(tmp_path, tiny_checkpoint) -> Path:
    """A copy of the tiny codec, to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def change_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path, capsys, message: str, write_audio) -> None:
    """Check that each road to the model refuses it, and that the command line does so in one line."""
    for road in (AutoModel.from_pretrained, RVQCodecModel.from_pretrained, load):
        with pytest.raises(ModelFilesError, match=message):
            road(folder)
    capsys.readouterr()
    recording = write_audio(folder.parent / "a.wav", 0.1)
    output = folder.parent / "out"
    assert main(["encode", str(recording), "--model", str(folder), "-o", str(output), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error
    assert "--device" not in error
    assert not list(output.glob("*"))


def spoil(weights: dict, name: str, value: float) -> None:
    weights[name].view(-1)[-1] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(CODEBOOK), rf"lacks 1 of \d+ tensors .*{CODEBOOK}.* drawn at random"),
        (lambda weights: weights.pop("encoder.layers.1.layers.0.weight", None) or weights.popitem(), "lacks 1 of"),
        (lambda weights: weights.pop("quantizer.num_updates"), r"lacks 1 of .*quantizer\.num_updates"),
        (lambda weights: [weights.pop(name) for name in list(weights)[1:]], "lacks .* drawn at random"),
        (lambda weights: weights.update(other=torch.zeros(2)), r"holds 1 tensors that .* does not have \(other\)"),
        (lambda weights: weights.update(other=weights.pop(CODEBOOK)), "lacks 1 of"),
        (lambda weights: spoil(weights, CODEBOOK, torch.nan), rf"`{CODEBOOK}` holds 1 values that are not finite"),
        (lambda weights: spoil(weights, CODEBOOK, -torch.inf), "holds 1 values that are not finite"),
        (
            lambda weights: weights.update({CODEBOOK: weights[CODEBOOK][:, :-1].contiguous()}),
            rf"`{CODEBOOK}` has shape \(32, 15\), but the configuration implies \(32, 16\)",
        ),
        (lambda weights: weights.update({CODEBOOK: weights[CODEBOOK].to(torch.int8)}), "stored as I8"),
        (lambda weights: weights.update({CODEBOOK: weights[CODEBOOK].to(torch.complex64)}), "stored as C64"),
        (lambda weights: weights.update({CODEBOOK: weights[CODEBOOK].to(torch.float8_e4m3fn)}), "stored as F8_E4M3"),
        (lambda weights: weights.clear(), "holds no tensors"),
    ],
)
def test_weights_that_are_not_all_there_are_refused(folder, change, message, capsys, write_audio):
    change_weights(folder, change)
    refused(folder, capsys, message, write_audio)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: b"", "is empty"),
        (lambda whole: whole[: len(whole) // 2], "is no complete safetensors file"),
        (lambda whole: whole[:-1], "is no complete safetensors file"),
        (lambda whole: whole + b"more", "is no complete safetensors file"),
        (lambda whole: whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2), "holds nothing but zeros from"),
        (lambda whole: whole[:-999] + bytes(999), "holds nothing but zeros from byte .* in the middle of"),
        (lambda whole: b"\xff" * 8 + whole[8:], "is no complete safetensors file"),
        (lambda whole: b"no weights at all", "is no complete safetensors file"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (lambda whole: b"<!DOCTYPE html><html>", "is a web page"),
    ],
)
def test_a_file_that_is_no_whole_safetensors_file_is_refused(folder, content, message, capsys, write_audio):
    path = folder / "model.safetensors"
    path.write_bytes(content(path.read_bytes()))
    refused(folder, capsys, rf"model\.safetensors: {message}", write_audio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("first_row", [0, 1, 7])
def test_rows_and_tensors_of_zeros_at_the_end_are_weights(first_row, dtype, tmp_path):
    # Such as entries of a codebook that were never used.
    path = tmp_path / "model.safetensors"
    rows = 1 + torch.rand(8, 256)
    rows[first_row:] = 0
    save_file({"a": 1 + torch.rand(4).to(dtype), "b": rows.to(dtype)}, path)
    assert not any(path.read_bytes()[-512:])
    assert describe_damage(path) is None


def test_pickled_weights_are_never_read(folder, capsys, write_audio):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    refused(folder, capsys, r"holds pytorch_model\.bin, but no model\.safetensors\. .* convert it", write_audio)
    with pytest.raises(ValueError, match="could run code"):
        RVQCodecModel.from_pretrained(folder, use_safetensors=False)


def test_missing_weights_are_named(folder, capsys, write_audio):
    (folder / "model.safetensors").unlink()
    refused(folder, capsys, r"holds no model\.safetensors", write_audio)


@pytest.mark.parametrize("damage", ["missing", "truncated", "index", "list"])
def test_a_damaged_part_of_weights_in_several_files_is_named(folder, damage, capsys, write_audio):
    model = RVQCodecModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    index = folder / "model.safetensors.index.json"
    assert len(shards) > 1
    load(folder)
    if damage == "missing":
        shards[1].unlink()
        message = rf"index\.json: names {shards[1].name}, which is missing"
    elif damage == "truncated":
        shards[1].write_bytes(shards[1].read_bytes()[:-4])
        message = rf"{shards[1].name}: is no complete safetensors file"
    else:
        index.write_text("{" if damage == "index" else "[]")
        message = r"index\.json: is no index of weights"
    refused(folder, capsys, message, write_audio)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_quantizer": 4}, "has the field num_quantizer, which a RVQCodecConfig does not have"),
        ({"architectures": ["DMCodecModel"]}, "describes a DMCodecModel"),
        ({"num_quantizers": 1_000_000}, "`num_quantizers` is 1000000, but the weights are"),
        ({"encoder_num_layers": 10**9}, "`encoder_num_layers` is 1000000000, but the weights are"),
        # Half a petabyte, if it were allocated.
        ({"codebook_size": 10**13}, r"has shape \(32, 16\), but the configuration implies \(10000000000000, 16\)"),
        ({"hidden_size": 10**9}, "has shape"),
        ({"quantization_config": {"load_in_8bit": True}}, "asks for quantized weights"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "asks for quantized weights"),
        ({"num_quantizers": 3}, None),
        ({"num_quantizers": 5}, "lacks"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(folder, fields, message, capsys, write_audio):
    change_config(folder, **fields)
    refused(folder, capsys, message or "does not have", write_audio)


def test_what_the_caller_adds_or_leaves_out_is_no_damage(folder, caplog):
    """`num_quantizers=3` of 4 leaves tensors in the file; a CTC head that is asked for is new."""
    assert RVQCodecModel.from_pretrained(folder, num_quantizers=3).num_quantizers == 3
    assert AutoModel.from_pretrained(folder, num_quantizers=5).num_quantizers == 5
    change_weights(folder, lambda weights: weights.pop(CODEBOOK))
    with pytest.raises(ModelFilesError, match=f"lacks 1 of .*{CODEBOOK}"):
        RVQCodecModel.from_pretrained(folder, num_quantizers=5)


def units(kind: str):
    torch.manual_seed(0)
    if kind == "kmeans":
        model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=tiny_hubert(), layers=[1], codebook_size=16))
        return model.eval(), KMeansUnitsFeatureExtractor()
    config = DCSpinConfig(
        encoder_config=tiny_hubert(),
        encoder_layer=1,
        trainable_layers=1,
        projection_dim=8,
        primary_codebook_size=16,
        auxiliary_codebook_size=32,
    )
    return DCSpinModel(config).eval(), DCSpinFeatureExtractor()


def vocoder() -> UnitVocoderModel:
    sizes = {"hidden_size": 8, "decoder_hidden_size": 8, "decoder_num_layers": 1, "hop_length": 20}
    return UnitVocoderModel(UnitVocoderConfig(codebook_size=4, **sizes))


def language_model() -> LatentLanguageModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return LatentLanguageModel(
        LatentLMConfig(text_config=LlamaConfig(vocab_size=1, **sizes), latent_dim=4, head="mse")
    )


@pytest.mark.parametrize("kind", ["kmeans", "dc-spin", "cst", "vocoder", "latent-lm"])
def test_every_family_refuses_what_is_missing_or_not_finite(tmp_path, kind, make_cst):
    makers = {"cst": lambda: make_cst()[0], "vocoder": vocoder, "latent-lm": language_model}
    model = makers[kind]() if kind in makers else units(kind)[0]
    model.save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    weights = load_file(tmp_path / "model.safetensors")
    AutoModel.from_pretrained(tmp_path)
    for name in (min(weights), max(weights)):
        change_weights(tmp_path, lambda weights, name=name: weights.pop(name))
        with pytest.raises(ModelFilesError, match=f"lacks 1 of .*{name}"):
            AutoModel.from_pretrained(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(whole)
    name = max(name for name, value in weights.items() if value.is_floating_point())
    change_weights(tmp_path, lambda weights: spoil(weights, name, torch.nan))
    with pytest.raises(ModelFilesError, match=f"`{name}` holds 1 values that are not finite"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["rvq", "cst", "kmeans", "dc-spin"])
@pytest.mark.parametrize("split", ["disk", "cpu and disk", "limited"])
def test_a_model_that_would_be_split_is_refused_at_loading(tmp_path, folder, kind, split, make_cst):
    """Parts on disk gave a traceback in the encoder, and other units where the codebook lay there."""
    if kind != "rvq":
        folder = tmp_path / "other"
        parts = make_cst() if kind == "cst" else units(kind)
        for part in parts:
            part.save_pretrained(folder)
        if kind == "cst":
            CSTFeatureExtractor().save_pretrained(folder)
    parts = [name for name, _ in AutoModel.from_pretrained(folder).named_children()]
    places = dict.fromkeys(parts, "cpu") | {parts[0]: "disk"}
    device_map = {"disk": {"": "disk"}, "cpu and disk": places, "limited": "auto"}[split]
    limits = {"max_memory": {"cpu": "1KB"}} if split == "limited" else {}
    for road in (load, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match="has to lie on one device as a whole"):
            road(folder, device_map=device_map, offload_folder=str(tmp_path / "offload"), **limits)


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential", "cpu", {"": "cpu"}, torch.device("cpu")])
def test_a_model_on_one_device_gives_the_codes_of_the_model_in_memory(folder, tmp_path, device_map):
    if device_map in ("auto", "balanced", "sequential") and torch.cuda.is_available():
        pytest.skip("the codes of a GPU are compared in tests/test_gpu.py")
    waveform = 0.1 * torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0))
    model, _ = load(folder, device_map=device_map, offload_folder=str(tmp_path / "offload"))
    assert torch.equal(model.encode(waveform).audio_codes, load(folder)[0].encode(waveform).audio_codes)


def warnings_of(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if "tokens are others" in str(warning.message)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_half_precision_that_is_asked_for_is_given_with_one_warning(folder, dtype, name):
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    loaded = []
    assert len(warnings_of(lambda: loaded.append(load(folder, **{name: dtype})[0]))) == 1
    assert loaded[0].dtype == wanted
    assert warnings_of(lambda: loaded[0].to("cpu").eval().encode(torch.zeros(1, 1, 400))) == []


@pytest.mark.parametrize(
    "change",
    [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16), lambda m: m.to("cpu", torch.half)],
)
def test_a_model_made_half_warns_and_one_made_double_does_not(folder, change):
    model = RVQCodecModel.from_pretrained(folder)
    assert warnings_of(lambda: model.double().float().to("cpu")) == []
    assert len(warnings_of(lambda: change(model))) == 1


def test_a_sum_that_overflows_is_no_infinity():
    assert is_finite(torch.full((8,), 3e38))
    assert not is_finite(torch.tensor([torch.inf, -torch.inf]))
    assert is_finite(torch.full((8,), 6e4, dtype=torch.float16))
    assert not is_finite(torch.tensor([1.0, torch.nan], dtype=torch.bfloat16))
    assert is_finite(torch.empty(10**9, 10**6, device="meta"))
