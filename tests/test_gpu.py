# SPDX-License-Identifier: Apache-2.0
"""
Every family computes on a CUDA device what it computes on the CPU, and a codec learns there in bfloat16.

`make test-gpu` runs these tests. With `SPEECH_TOKENIZERS_TEST_DEVICE=cpu` they run without CUDA. The CPU is then
compared with itself, which shows only that the tests run.
"""

import copy
import math
import os
from collections.abc import Callable

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from transformers import LlamaConfig

from helpers.tiny_models import tiny_hubert
from speech_tokenizers import (
    CSTConfig,
    CSTModel,
    DCSpinConfig,
    DCSpinModel,
    DMCodecConfig,
    DMCodecModel,
    HubertForMaskedPrediction,
    HubertMaskedPredictionConfig,
    KMeansUnitsConfig,
    KMeansUnitsModel,
    LatentLanguageModel,
    LatentLMConfig,
    RVQCodecConfig,
    RVQCodecModel,
    SpeechEncoderCTCConfig,
    SpeechEncoderForCTC,
    UnitVocoderConfig,
    UnitVocoderModel,
)
from speech_tokenizers.cli import main
from speech_tokenizers.training.common.reporting import read_log


pytestmark = pytest.mark.gpu

# Largest difference, relative to the largest value: float32 without TF32 adds some hundred products in another order.
TOLERANCE = 1e-4

Outputs = dict[str, torch.Tensor]


@pytest.fixture
def device():
    """The device that is compared with the CPU, with float32 as precise as there."""
    chosen = torch.device(os.environ.get("SPEECH_TOKENIZERS_TEST_DEVICE", "cuda"))
    torch.zeros(1, device=chosen)  # an error where there is no such device, since training would take another
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield chosen
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def waveforms() -> torch.Tensor:
    """(2, 1, 1600), in [-1, 1]: tones in noise."""
    generator = torch.Generator().manual_seed(0)
    tones = 0.3 * torch.sin(torch.tensor([[[0.1]], [[0.17]]]) * torch.arange(1600))
    return tones + 0.05 * torch.randn(2, 1, 1600, generator=generator)


def padding_mask(device: torch.device) -> torch.Tensor:
    mask = torch.ones(2, 1600, dtype=torch.long, device=device)
    mask[1, 1200:] = 0
    return mask


def codec(model_class: type, config_class: type, **fields):
    """A tiny codec whose codebooks, if it has any, were fitted to its latents."""
    sizes = {"num_filters": 4, "hidden_size": 16, "encoder_hidden_size": 16, "decoder_hidden_size": 16}
    sizes |= {"encoder_num_layers": 2, "decoder_num_layers": 2, "downsampling_ratios": (2, 4, 5)}
    model = model_class(config_class(**sizes | fields)).train()
    model(waveforms())
    return model.eval()


def codes_and_audio(model: RVQCodecModel, device: torch.device) -> Outputs:
    encoded = model.encode(waveforms().to(device), padding_mask(device))
    decoded = model.decode(encoded.audio_codes)
    return {"codes": encoded.audio_codes, "latents": encoded.latents, "audio": decoded.audio_values}


def latents_and_audio(model: CSTModel, device: torch.device) -> Outputs:
    latents = model.encode(waveforms().to(device), padding_mask(device)).latents
    return {"latents": latents, "audio": model.decode(latents).audio_values}


def units_and_speech(model: KMeansUnitsModel | DCSpinModel, device: torch.device) -> Outputs:
    encoded = model.encode(waveforms().to(device), padding_mask(device))
    outputs = {"codes": encoded.audio_codes, "latents": encoded.latents}
    if model.vocoder is not None:
        outputs["audio"] = model.decode(encoded.audio_codes).audio_values
    return outputs


def speech(model: UnitVocoderModel, device: torch.device) -> Outputs:
    codes = torch.arange(2 * 2 * 9, device=device).view(2, 2, 9) % 12
    return {"audio": model.decode(codes).audio_values}


def logits(model: HubertForMaskedPrediction | SpeechEncoderForCTC, device: torch.device) -> Outputs:
    inputs = {"input_values": waveforms()[:, 0].to(device), "attention_mask": padding_mask(device)}
    inputs["labels"] = torch.arange(2 * 79, device=device).view(2, 79) % 10 + 1
    if isinstance(model, HubertForMaskedPrediction):
        inputs["mask_time_indices"] = inputs["labels"] % 3 == 0
    else:
        inputs["labels"] = inputs["labels"][:, ::5]
    outputs = model(**inputs)
    return {"loss": outputs.loss, "logits": outputs.logits}


def states_and_continuation(model: LatentLanguageModel, device: torch.device) -> Outputs:
    latents = torch.sin(torch.arange(2 * 6 * 4.0)).view(2, 6, 4).to(device)
    states = model.hidden_states(latents)
    # Without noise, which every device draws for itself.
    continued = model.generate_latents(latents, max_frames=3, stop_threshold=None, temperature=0.0)
    return {"states": states, "latents": continued.latents}


def kmeans_units() -> KMeansUnitsModel:
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=tiny_hubert(), layers=[1, 2], codebook_size=12))
    features, _ = model.features(waveforms())
    model.set_centroids(features[0, :, 5:77:6])
    model.attach_vocoder(unit_vocoder())
    return model


def unit_vocoder() -> UnitVocoderModel:
    sizes = {"hidden_size": 8, "decoder_hidden_size": 16, "decoder_num_layers": 2, "hop_length": 20}
    return UnitVocoderModel(UnitVocoderConfig(num_quantizers=2, codebook_size=12, **sizes))


def latent_lm(head: str) -> LatentLanguageModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    text_config = LlamaConfig(vocab_size=1, bos_token_id=0, eos_token_id=0, **sizes)
    options = {"num_layers": 1, "hidden_size": 16}
    model = LatentLanguageModel(LatentLMConfig(text_config=text_config, latent_dim=4, head=head, head_options=options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # a new head draws zeros
    return model


LSTM = {"encoder_lstm": "bidirectional"}
CODEBOOKS = {"num_quantizers": 3, "codebook_size": 16, "kmeans_iterations": 3}
SPECTRAL = {"encoder_type": "stft", "decoder_type": "istft"}
SPIN = {"encoder_layer": 2, "trainable_layers": 1, "projection_dim": 8, "primary_codebook_size": 12}
# Family -> (function that builds a tiny model, function that runs it on a device).
FAMILIES: dict[str, tuple[Callable, Callable[..., Outputs]]] = {
    "rvq-codec": (lambda: codec(RVQCodecModel, RVQCodecConfig, **CODEBOOKS), codes_and_audio),
    "spectral-rvq-codec": (lambda: codec(RVQCodecModel, RVQCodecConfig, **CODEBOOKS, **SPECTRAL), codes_and_audio),
    "dm-codec": (lambda: codec(DMCodecModel, DMCodecConfig, **CODEBOOKS, **LSTM), codes_and_audio),
    "cst": (lambda: codec(CSTModel, CSTConfig, latent_stride=2), latents_and_audio),
    "kmeans-units": (kmeans_units, units_and_speech),
    "dc-spin": (lambda: DCSpinModel(DCSpinConfig(encoder_config=tiny_hubert(), **SPIN)), units_and_speech),
    "unit-vocoder": (unit_vocoder, speech),
    "hubert": (
        lambda: HubertForMaskedPrediction(tiny_hubert(HubertMaskedPredictionConfig, label_vocab_size=12)),
        logits,
    ),
    "ctc": (lambda: SpeechEncoderForCTC(SpeechEncoderCTCConfig(encoder_config=tiny_hubert(), vocab_size=12)), logits),
    "latent-lm-gaussian": (lambda: latent_lm("gaussian"), states_and_continuation),
    "latent-lm-flow": (lambda: latent_lm("flow"), states_and_continuation),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_what_it_computes_on_the_cpu(family, device):
    build, run = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
    with torch.no_grad():
        expected = run(model, torch.device("cpu"))
        found = run(copy.deepcopy(model).to(device), device)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.device.type == device.type, name
        if value.is_floating_point():
            largest = float(expected[name].abs().max())
            assert largest > 0, name
            torch.testing.assert_close(value.cpu(), expected[name], rtol=0, atol=TOLERANCE * largest, msg=name)
        else:
            assert len(expected[name].unique()) > 2, name
            assert torch.equal(value.cpu(), expected[name]), name


def test_a_codec_learns_in_bfloat16(device, audio_folder, tmp_path, monkeypatch):
    """Its first losses are those of float32 within 5 %, and its last are lower than its first."""
    if device.type == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    sizes = {"hidden_size": 16, "encoder_hidden_size": 16, "decoder_hidden_size": 16, "encoder_num_layers": 1}
    recipe = {
        "seed": 3,
        "model": {
            "preset": "fast-16khz",
            "overrides": sizes | {"decoder_num_layers": 1, "num_quantizers": 2, "codebook_size": 16},
        },
        "data": {"train": str(audio_folder), "cache_dir": str(tmp_path / "cache"), "segment_seconds": 0.2},
        "loss_weights": {"mel": 15.0, "waveform": 1.0, "commitment": 0.25},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1},
        "global_batch_size": 4,
        "logging_steps": 1,
        "eval_steps": 0,
        "save_steps": 0,
        "max_steps": 20,
    }
    logs = {}
    for precision in ("no", "bf16"):
        folder = tmp_path / precision
        path = tmp_path / f"{precision}.yaml"
        path.write_text(yaml.safe_dump(recipe | {"output_dir": str(folder), "mixed_precision": precision}))
        AcceleratorState._reset_state(reset_partial_state=True)  # which keeps the precision of the last training
        assert main(["train", str(path)]) == 0
        logs[precision] = read_log(folder / "training_log.jsonl")
        final = RVQCodecModel.from_pretrained(folder / "final")
        assert {parameter.dtype for parameter in final.parameters()} == {torch.float32}
    for name in ("mel", "waveform"):
        first = {precision: log[0][name] for precision, log in logs.items()}
        assert math.isclose(first["bf16"], first["no"], rel_tol=0.05), (name, first)
        assert first["bf16"] != first["no"], name
    mel = [entry["mel"] for entry in logs["bf16"]]
    assert sum(mel[-3:]) < 0.95 * sum(mel[:3])
