# SPDX-License-Identifier: Apache-2.0
"""`encode`, `decode`, `reconstruct` and `info` of continuous tokens, and of a codec without its quantizer."""

import numpy as np
import pytest
import soundfile
import torch

from speech_tokenizers import (
    CodeFileError,
    CSTConfig,
    CSTFeatureExtractor,
    CSTModel,
    decode_file,
    encode_file,
    load,
    load_audio,
    load_latents,
)
from speech_tokenizers.cli import main


@pytest.fixture(scope="module", params=["causal", "windows"])
def tokens(request, tmp_path_factory):
    """Folder of continuous tokens that have seen a little noise: 80 samples a latent of 6 numbers."""
    folder = tmp_path_factory.mktemp("tokens") / request.param
    config = CSTConfig(
        encoder_type="stft",
        decoder_type="istft",
        encoder_lstm="none",
        decoder_lstm="none",
        downsampling_ratios=(2, 4, 5),
        latent_stride=2,
        hidden_size=6,
        network_hidden_size=12,
        encoder_hidden_size=16,
        decoder_hidden_size=16,
        encoder_num_layers=1,
        decoder_num_layers=1,
        use_weight_norm=False,
        causal=request.param == "causal",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CSTModel(config).train()
        model(0.1 * torch.randn(2, 1, 4000), return_loss=False)
    model.eval().save_pretrained(folder)
    CSTFeatureExtractor(hop_length=80).save_pretrained(folder)
    return folder


def test_files_of_latents_are_those_of_the_model_and_decode_to_their_own_length(tmp_path, write_audio, tokens):
    write_audio(tmp_path / "in" / "a.wav", 0.5)
    write_audio(tmp_path / "in" / "deep" / "b.flac", 0.333, 44100, channels=2)
    model, extractor = load(tokens)
    assert main(["encode", str(tmp_path / "in"), "-o", str(tmp_path / "l"), "--model", str(tokens)]) == 0
    assert main(["decode", str(tmp_path / "l"), "-o", str(tmp_path / "out")]) == 0
    for name in ("a.wav", "deep/b.flac"):
        stem = name.rsplit(".", 1)[0]
        recorded = load_audio(tmp_path / "in" / name, 16000)
        found = load_latents(tmp_path / "l" / f"{stem}.safetensors")
        inputs = extractor(recorded, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            expected = model.encode(**inputs).latents
            waveform = model.decode(expected, num_samples=len(recorded)).audio_values[0, 0].numpy()
        assert found.latents == pytest.approx(expected[0].numpy(), abs=2e-5)
        assert (found.num_samples, found.hop_length, found.hidden_size) == (len(recorded), 80, 6)
        assert found.model_name == str(tokens)
        decoded = load_audio(tmp_path / "out" / f"{stem}.wav", 16000)
        assert len(decoded) == len(recorded)
        assert np.abs(decoded - waveform.clip(-1, 1)).max() < 1e-4  # 16 bits


def test_long_files_equal_the_whole(tmp_path, write_audio, tokens):
    path = write_audio(tmp_path / "a.wav", 25.0)  # three blocks
    model, _ = load(tokens)
    found = encode_file(model, path)
    recorded = torch.from_numpy(load_audio(path, 16000))[None, None]
    with torch.no_grad():
        whole = model.encode(recorded).latents
        waveform = model.decode(whole).audio_values[0, 0].numpy()
    assert found.latents == pytest.approx(whole[0].numpy(), abs=5e-5)
    assert decode_file(model, found, tmp_path / "b.flac") == 25 * 16000
    assert np.abs(load_audio(tmp_path / "b.flac", 16000) - waveform.clip(-1, 1)).max() < 1e-3


def test_half_precision_halves_the_file_and_reconstruct_is_encode_and_decode(tmp_path, write_audio, tokens, capsys):
    path = str(write_audio(tmp_path / "a.wav", 0.5))
    model = ["--model", str(tokens)]
    for dtype in ("float32", "float16"):
        assert main(["encode", path, "-o", str(tmp_path / f"{dtype}.safetensors"), "--dtype", dtype, *model]) == 0
    full, half = (load_latents(tmp_path / f"{dtype}.safetensors") for dtype in ("float32", "float16"))
    assert half.latents.dtype == np.float16
    assert np.abs(half.latents.astype(np.float32) - full.latents).max() < 4e-3
    capsys.readouterr()
    assert main(["info", str(tmp_path / "float16.safetensors")]) == 0
    shown = capsys.readouterr().out
    for wanted in ("6 numbers a frame, float16", "100 of 80 samples", "19.200 kbit/s", "0.500 s (8000 samples"):
        assert wanted in shown
    assert main(["info", str(tokens)]) == 0
    shown = capsys.readouterr().out
    for wanted in ("CSTModel", "6 numbers a frame", "19.2 kbit/s in half precision"):
        assert wanted in shown
    assert "codebook" not in shown
    assert main(["decode", str(tmp_path / "float32.safetensors"), "-o", str(tmp_path / "b.wav")]) == 0
    assert main(["reconstruct", path, "-o", str(tmp_path / "c.wav"), *model]) == 0
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "c.wav").read_bytes()


def test_a_codec_passes_its_quantizer_over_when_told(tmp_path, write_audio, tiny_checkpoint):
    path = write_audio(tmp_path / "a.wav", 0.5)
    model, _ = load(tiny_checkpoint)
    named = ["--model", str(tiny_checkpoint), "--device", "cpu"]
    target = tmp_path / "a.safetensors"
    assert main(["encode", str(path), "-o", str(target), "--latents", *named]) == 0
    recorded = torch.from_numpy(load_audio(path, 16000))[None, None]
    with torch.no_grad():
        frames = model.encoder(recorded).mT
        waveform = model.decode(latents=frames).audio_values[0, 0].numpy()
    assert load_latents(target).latents == pytest.approx(frames[0].numpy(), abs=2e-5)
    assert main(["decode", str(target), "-o", str(tmp_path / "b.wav")]) == 0
    assert np.abs(load_audio(tmp_path / "b.wav", 16000) - waveform.clip(-1, 1)).max() < 1e-4
    assert main(["reconstruct", str(path), "-o", str(tmp_path / "c.wav"), "--latents", *named]) == 0
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "c.wav").read_bytes()
    assert soundfile.info(tmp_path / "c.wav").frames == 8000


def test_latents_of_another_model_are_refused(tmp_path, write_audio, tokens, tiny_checkpoint):
    model, _ = load(tokens)
    codec, _ = load(tiny_checkpoint)
    path = write_audio(tmp_path / "a.wav", 0.1)
    encode_file(model, path, tmp_path / "l.safetensors")
    encode_file(codec, path, tmp_path / "c.safetensors")
    with pytest.raises(CodeFileError, match="has `hop_length` 80, but this codec has 40"):
        decode_file(codec, tmp_path / "l.safetensors", tmp_path / "b.wav")
    with pytest.raises(CodeFileError, match="holds codes, but a CSTModel decodes latents"):
        decode_file(model, tmp_path / "c.safetensors", tmp_path / "b.wav")
    known = model.fingerprint()
    model.statistics.mean += 0.01
    assert model.fingerprint() != known
    with pytest.raises(CodeFileError, match="made by a codec with other latents"):
        decode_file(model, tmp_path / "l.safetensors", tmp_path / "b.wav")
    # What has seen no speech cannot be told from another.
    model.statistics.num_updates.zero_()
    assert model.fingerprint() == ""
    assert decode_file(model, tmp_path / "l.safetensors", tmp_path / "b.wav") == 1600
    assert load(tokens, dtype=torch.float16)[0].fingerprint() == known


def test_codebooks_of_latents_cannot_be_chosen(tmp_path, write_audio, tokens, tiny_checkpoint, capsys):
    path = str(write_audio(tmp_path / "a.wav", 0.1))
    for model, more in ((tokens, []), (tiny_checkpoint, ["--latents"])):
        arguments = ["encode", path, "-o", str(tmp_path / "out"), "--model", str(model), "--num-quantizers", "2"]
        assert main([*arguments, *more]) == 2
        assert "`num_quantizers` chooses among codebooks, of which latents have none" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`num_quantizers` chooses among codebooks"):
        encode_file(load(tokens)[0], path, num_quantizers=2)


def test_the_demo_shows_latents(tmp_path, write_audio, tokens, capsys):
    path = write_audio(tmp_path / "a.wav", 1.0)
    assert main(["demo", "--model", str(tokens), "--audio", str(path), "-o", str(tmp_path / "out")]) == 0
    assert "200 frames/s, 6 numbers in float32" in capsys.readouterr().out
    assert load_latents(tmp_path / "out" / "codes.safetensors").num_samples == 16000
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
