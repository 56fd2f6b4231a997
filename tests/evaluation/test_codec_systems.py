# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from transformers import DacModel

from helpers.tiny_models import tiny_hubert
from speech_tokenizers import KMeansUnitsConfig, KMeansUnitsFeatureExtractor, KMeansUnitsModel
from speech_tokenizers.evaluation.codec_systems import EncodingSystem, LatentSystem, ModelSystem, load_system
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel


@pytest.fixture
def make_codec(request, make_rvq_codec, make_transformers_codec):
    return make_rvq_codec if request.param == "ours" else lambda: make_transformers_codec(request.param)


@pytest.mark.parametrize(
    ("make_codec", "kbps"),
    [
        ("ours", 50 * 4 * 5 / 1000),
        ("encodec", 2.0),
        ("dac", 50 * 4 * 6 / 1000),
        ("mimi", 12.5 * 4 * 6 / 1000),
    ],
    indirect=["make_codec"],
)
@pytest.mark.parametrize("num_quantizers", [None, 2])
def test_our_and_transformers_codecs_run_through_one_interface(make_codec, kbps, num_quantizers):
    model, feature_extractor = make_codec()
    system = ModelSystem(model, feature_extractor, "codec", num_quantizers)
    audio = 0.1 * np.random.default_rng(0).standard_normal(system.sampling_rate * 2 + 77).astype(np.float32)
    coded = system.code(audio)
    count = num_quantizers or 4
    assert coded.audio_values.shape == audio.shape
    assert np.isfinite(coded.audio_values).all()
    assert coded.audio_codes.shape[0] == count
    assert coded.num_bits == coded.audio_codes.size * math.log2(system.codebook_size)
    seconds = len(audio) / system.sampling_rate
    assert coded.num_bits / seconds / 1000 == pytest.approx(kbps * count / 4, rel=0.06)
    assert coded.audio_codes.shape[1] / seconds == pytest.approx(system.frame_rate, rel=0.06)


def test_the_key_changes_with_weights_and_codebooks(make_rvq_codec):
    keys = {
        ModelSystem(*make_rvq_codec(), "codec").key,
        ModelSystem(*make_rvq_codec(seed=1), "codec").key,
        ModelSystem(*make_rvq_codec(), "codec", 2).key,
    }
    model, feature_extractor = make_rvq_codec()
    with torch.no_grad():
        model.quantizer.quantizers[3].codebook[5, 0] += 1e-3
    keys.add(ModelSystem(model, feature_extractor, "codec").key)
    assert len(keys) == 4
    assert ModelSystem(*make_rvq_codec(), "codec").key in keys


def test_the_key_is_the_same_in_another_folder(tmp_path, monkeypatch):
    encoder = tiny_hubert(num_hidden_layers=1)
    encoder._name_or_path = "here"
    KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder, layers=[1], codebook_size=4)).save_pretrained(tmp_path)
    feature_extractor = KMeansUnitsFeatureExtractor()
    monkeypatch.chdir(tmp_path.parent)
    models = [KMeansUnitsModel.from_pretrained(folder) for folder in (str(tmp_path), tmp_path.name)]
    models[1].config.encoder_config._name_or_path = "there"
    one, other = (EncodingSystem(model, feature_extractor, "units").key for model in models)
    assert one == other
    models[1].config.sampling_rate = 8000
    assert EncodingSystem(models[1], feature_extractor, "units").key != one


def test_a_number_of_codebooks_that_a_codec_lacks_is_refused(make_rvq_codec, make_transformers_codec):
    with pytest.raises(ValueError, match="codec: `num_quantizers` must lie between 1 and 4"):
        ModelSystem(*make_rvq_codec(), "codec", 5)
    with pytest.raises(ValueError, match="offers 0.5, 1, 2 kbps"):
        ModelSystem(*make_transformers_codec("encodec"), "codec", 3)


@pytest.mark.parametrize("make_codec", ["ours", "encodec", "dac", "mimi"], indirect=True)
def test_codes_are_looked_up_as_the_decoder_does(make_codec):
    model, feature_extractor = make_codec()
    for name, buffer in model.named_buffers():
        if "embed" in name:  # zeros before they are trained
            buffer.normal_()
    system = ModelSystem(model, feature_extractor, "codec")
    audio = 0.1 * np.random.default_rng(0).standard_normal(system.sampling_rate).astype(np.float32)
    codes = system.encode(audio)
    assert (codes == system.code(audio).audio_codes).all()
    frames = system.dequantize(codes)
    assert frames.shape[0] == codes.shape[1]
    # A frame depends on its own codes alone, and one stage less is another frame.
    assert system.dequantize(codes[:, 3:5]) == pytest.approx(frames[3:5], abs=1e-6)
    assert system.dequantize(codes[:1]).shape == frames.shape
    assert np.abs(system.dequantize(codes[:1]) - frames).max() > 1e-4


@pytest.mark.parametrize("make_codec", ["ours", "encodec", "dac", "mimi"], indirect=True)
def test_features_are_what_was_quantized(make_codec):
    model, feature_extractor = make_codec()
    for name, buffer in model.named_buffers():
        if "embed" in name:  # zeros before they are trained
            buffer.normal_()
    system = EncodingSystem(model, feature_extractor, "codec")
    audio = 0.1 * np.random.default_rng(0).standard_normal(system.sampling_rate).astype(np.float32)
    encoded = system.encode_frames(audio)
    assert (encoded.audio_codes == system.encode(audio)).all()
    assert len(encoded.features) == encoded.audio_codes.shape[1]
    # Frames quantized once more give the codes.
    latents = torch.from_numpy(encoded.features[None])
    with torch.inference_mode():
        if isinstance(model, DacModel):
            codes = model.quantizer(latents.mT)[1]
        elif isinstance(model, RVQCodecModel):
            codes = model.quantizer.encode(latents)
        else:
            codes = model.quantizer.encode(latents.mT)
    assert (codes.reshape(4, -1).numpy() == encoded.audio_codes).all()


@pytest.fixture
def make_continuous(request, make_cst, make_rvq_codec, make_transformers_codec):
    makers = {"cst": make_cst, "rvq": make_rvq_codec}
    return makers.get(request.param) or (lambda: make_transformers_codec(request.param))


@pytest.mark.parametrize(
    ("make_continuous", "numbers_per_second"),
    [("cst", 25 * 6), ("rvq", 50 * 16), ("vibevoice", 75 * 8)],
    indirect=["make_continuous"],
)
def test_latents_of_ours_and_of_transformers_run_through_one_interface(make_continuous, numbers_per_second):
    system = LatentSystem(*make_continuous(), "tokens")
    audio = 0.1 * np.random.default_rng(0).standard_normal(system.sampling_rate * 2 + 77).astype(np.float32)
    coded = system.code(audio)
    assert coded.audio_values.shape == audio.shape
    assert np.isfinite(coded.audio_values).all()
    assert coded.audio_codes is None
    seconds = len(audio) / system.sampling_rate
    assert coded.num_bits / seconds == pytest.approx(
        16 * numbers_per_second, rel=0.07
    )  # the last frame is filled up, and VibeVoice fills ten
    # What can be drawn at random is not.
    assert (system.code(audio).audio_values == coded.audio_values).all()
    assert coded.encode_cpu_seconds > 0
    assert coded.decode_cpu_seconds > 0


def test_the_latents_of_a_codec_go_past_its_quantizer(make_rvq_codec):
    model, feature_extractor = make_rvq_codec()
    audio = 0.1 * np.random.default_rng(0).standard_normal(3210).astype(np.float32)
    system = LatentSystem(model, feature_extractor, "codec")
    assert system.name == "codec (latents)"
    assert system.key != ModelSystem(model, feature_extractor, "codec").key
    with torch.inference_mode():
        frames = model.encoder(torch.from_numpy(np.pad(audio, (0, 310)))[None, None])
        expected = model.decoder(frames)[0, 0, :3210].numpy()
    assert system.code(audio).audio_values == pytest.approx(expected, abs=1e-5)
    assert np.abs(ModelSystem(model, feature_extractor, "codec").code(audio).audio_values - expected).max() > 1e-3


def test_a_model_is_measured_as_what_it_is(make_cst, make_rvq_codec, tmp_path):
    for folder, parts in (("cst", make_cst()), ("rvq", make_rvq_codec())):
        for part in parts:
            part.save_pretrained(tmp_path / folder)
    assert isinstance(load_system(str(tmp_path / "rvq"), "a", 2), ModelSystem)
    assert isinstance(load_system(f"{tmp_path / 'rvq'}:latents", "a"), LatentSystem)
    for name in ("cst", "cst:latents"):
        system = load_system(str(tmp_path / name), "a")
        assert isinstance(system, LatentSystem)
        assert system.name == "a"
        with pytest.raises(ValueError, match="a is continuous"):
            load_system(str(tmp_path / name), "a", 2)
    with pytest.raises(ValueError, match="a: A CSTModel has no codebooks"):
        ModelSystem(*make_cst(), "a")


def test_a_codec_that_decodes_codes_alone_has_no_latents_to_decode(make_transformers_codec):
    with pytest.raises(ValueError, match="codec is a EncodecModel, which decodes no latents"):
        LatentSystem(*make_transformers_codec("encodec"), "codec")
