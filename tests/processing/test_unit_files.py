# SPDX-License-Identifier: Apache-2.0
"""The verbs of codecs with units: files of codes, and speech from them where a vocoder is attached."""

import pytest
import soundfile
import torch
from transformers import AutoModel

from helpers.tiny_models import tiny_hubert
from speech_tokenizers import (
    DCSpinConfig,
    DCSpinFeatureExtractor,
    DCSpinModel,
    KMeansUnitsConfig,
    KMeansUnitsFeatureExtractor,
    KMeansUnitsModel,
    UnitVocoderConfig,
    UnitVocoderModel,
    load_audio,
    load_codes,
)
from speech_tokenizers.cli import main
from speech_tokenizers.coding import file_coding


@pytest.fixture(scope="module", params=["kmeans-silent", "kmeans-audible", "dc_spin-silent", "dc_spin-audible"])
def checkpoint(request, tmp_path_factory):
    """Whether it is audible, and folder of a model with 8 random units a frame of 20 ms, with a vocoder or without."""
    family, kind = request.param.split("-")
    encoder_config = tiny_hubert(num_hidden_layers=1, intermediate_size=16, conv_dim=(8,) * 7)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "dc_spin":
            sizes = {"encoder_layer": 1, "trainable_layers": 1, "projection_dim": 8, "primary_codebook_size": 8}
            model = DCSpinModel(DCSpinConfig(encoder_config=encoder_config, **sizes)).eval()
        else:
            model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder_config, layers=[1], codebook_size=8))
            frames = model.eval().features(torch.randn(1, 1, 16000))[0][0, 0]
            model.set_centroids(frames[:: len(frames) // 8][:8][None])
        if kind == "audible":
            config = UnitVocoderConfig(codebook_size=8, hidden_size=8, decoder_hidden_size=16, decoder_num_layers=1)
            model.attach_vocoder(UnitVocoderModel(config).eval())
    folder = tmp_path_factory.mktemp("units") / request.param
    model.save_pretrained(folder)
    (DCSpinFeatureExtractor if family == "dc_spin" else KMeansUnitsFeatureExtractor)().save_pretrained(folder)
    return kind, folder


def test_units_are_files_of_codes_like_those_of_codecs(checkpoint, tmp_path, write_audio, capsys):
    kind, folder = checkpoint
    path = write_audio(tmp_path / "a.wav", 1.23)
    codes_path = tmp_path / "a.safetensors"
    model = ["--model", str(folder), "--device", "cpu"]
    assert main(["encode", str(path), "-o", str(codes_path), *model]) == 0
    recorded = load_audio(path, 16000)
    encoded = AutoModel.from_pretrained(folder).encode(torch.from_numpy(recorded)[None, None])
    codes = load_codes(codes_path)
    assert codes.audio_codes.tolist() == encoded.audio_codes[0].tolist()
    assert codes.num_samples == len(recorded)

    capsys.readouterr()
    status = main(["decode", str(codes_path), "-o", str(tmp_path / "decoded.wav")])
    if kind == "audible":
        assert status == 0
        assert soundfile.info(tmp_path / "decoded.wav").frames == len(recorded)
    else:
        assert status == 1
        assert "no vocoder" in capsys.readouterr().err
        assert not (tmp_path / "decoded.wav").exists()

    assert main(["info", str(folder)]) == 0
    decodes = "codes" if kind == "audible" else "nothing, for want of a vocoder"
    assert f"decodes        {decodes}\n" in capsys.readouterr().out


@pytest.mark.parametrize("extra_samples", [-321, 0, 333])
def test_blocks_are_spoken_like_the_whole(extra_samples, checkpoint, monkeypatch):
    kind, folder = checkpoint
    if kind == "silent":
        pytest.skip("needs a vocoder")
    model = AutoModel.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 8, (1, 1, 103), generator=generator)
    num_samples = 103 * 320 + extra_samples
    whole = model.decode(codes, num_samples=num_samples).audio_values[0, 0]
    for frames_per_block in (1, 7, 50, 200):
        monkeypatch.setattr(file_coding, "_BLOCK_SECONDS", frames_per_block / 50)
        blocks = list(file_coding.decode_blocks(model, codes[0].numpy(), num_samples))
        torch.testing.assert_close(torch.cat(blocks), whole, rtol=0, atol=1e-5)


def test_the_context_of_the_vocoder_is_what_a_hop_hears(checkpoint):
    kind, folder = checkpoint
    if kind == "silent":
        pytest.skip("needs a vocoder")
    vocoder = AutoModel.from_pretrained(folder).eval().vocoder
    before, after = vocoder.decoder_context
    codes = torch.zeros(1, 1, 61, dtype=torch.long)
    changed = codes.clone()
    changed[..., 30] = 1
    difference = (vocoder.decode(codes).audio_values - vocoder.decode(changed).audio_values)[0, 0].abs()
    hops = (difference.unflatten(0, (61, 320)).amax(-1) > 0).nonzero()[:, 0]
    assert (int(hops[0]), int(hops[-1])) == (30 - after, 30 + before)
