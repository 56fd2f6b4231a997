# SPDX-License-Identifier: Apache-2.0
"""K-means units are equal in batches, alone, saved and loaded, and equal to the original encoder's."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioTokenization,
    Data2VecAudioConfig,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel, nearest_centroids
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.modeling.padding_invariance import frame_mask
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor


LENGTHS = torch.tensor([9000, 5005, 7400, 400])
TINY_WHISPER = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
}


@pytest.fixture(scope="module")
def encoder_folders(tmp_path_factory, make_encoder):
    """Folders of tiny pretrained encoders."""
    folder = tmp_path_factory.mktemp("encoders")
    for name, config_class, model_class, pre_norm in (
        ("hubert", HubertConfig, HubertModel, False),
        ("hubert-pre-norm", HubertConfig, HubertModel, True),
        ("wavlm", WavLMConfig, WavLMModel, False),
    ):
        make_encoder(config_class, model_class, pre_norm).save_pretrained(folder / name)
        Wav2Vec2FeatureExtractor(do_normalize=pre_norm).save_pretrained(folder / name)
    torch.manual_seed(0)
    WhisperModel(WhisperConfig(**TINY_WHISPER)).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    return folder


@pytest.fixture(scope="module")
def units(encoder_folders, signal):
    """Function: units on an encoder, whose centroids are some of its frames; with a residual stage, random ones."""

    def make(encoder: str = "hubert", **fields) -> KMeansUnitsModel:
        model = KMeansUnitsModel.from_encoder(encoder_folders / encoder, **{"layers": [2], **fields})
        set_some_centroids(model, signal)
        return model

    return make


def set_some_centroids(model, signal):
    frames = model.features(signal(4, 16000, seed=3))[0]  # (B, S, F, D)
    generator = torch.Generator().manual_seed(0)
    tables = []
    for stream in range(model.config.num_streams):
        own = frames[:, stream].flatten(0, 1)
        for stage in range(model.config.num_stages):
            chosen = own[torch.randperm(len(own), generator=generator)[: model.config.codebook_size]]
            tables.append(chosen * 0.2**stage)
    model.set_centroids(torch.stack(tables))


def padded(signal, lengths=LENGTHS):
    waveforms = signal(len(lengths), int(lengths.max()))
    mask = frame_mask(lengths, waveforms.shape[-1])
    return waveforms * mask[:, None], mask.long()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"encoder": "hubert-pre-norm"},
        {"encoder": "wavlm", "layers": [1, 3]},
        {"encoder": "whisper"},
        {"encoder": "whisper", "window": "tight"},
        {"layers": [1, 2], "layer_weights": [0.25, 0.75], "normalization": "layer_norm"},
        {"layers": [1, 3], "num_stages": 2},
    ],
    ids=str,
)
def test_units_of_a_padded_batch_are_those_of_each_recording_alone(units, signal, fields):
    model = units(**fields)
    waveforms, mask = padded(signal)
    batch = model.encode(waveforms, mask)
    assert batch.audio_codes.shape[1] == model.config.num_quantizers
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model.encode(waveforms[row : row + 1, :, :length])
        num_frames = alone.audio_codes.shape[2]
        assert num_frames == model.get_encoded_length(length) == int(batch.audio_codes_mask[row].sum())
        assert torch.equal(batch.audio_codes[row, :, :num_frames], alone.audio_codes[0])
        assert not batch.audio_codes[row, :, num_frames:].any()
        torch.testing.assert_close(batch.latents[row, :num_frames], alone.latents[0], rtol=0, atol=1e-4)
        assert not batch.latents[row, num_frames:].any()


def test_an_encoder_that_hears_its_padding_is_given_rows_one_by_one(signal):
    """data2vec's positional convolutions carry the padding into the frames."""
    config = Data2VecAudioConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[24] * 7,
        num_conv_pos_embedding_groups=4,
    )
    torch.manual_seed(0)
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=config, layers=[2], codebook_size=50)).eval()
    set_some_centroids(model, signal)
    waveforms, mask = padded(signal)
    batch = model.encode(waveforms, mask)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model.encode(waveforms[row : row + 1, :, :length]).audio_codes[0]
        assert torch.equal(batch.audio_codes[row, :, : alone.shape[1]], alone)


@pytest.mark.parametrize("layers", [[0], [1], [2], [3], [1, 3]], ids=str)
@pytest.mark.parametrize("encoder", ["hubert", "hubert-pre-norm", "whisper"])
def test_layers_are_those_of_transformers(encoder_folders, signal, encoder, layers):
    """Also where the layers above have been dropped."""
    model = KMeansUnitsModel.from_encoder(encoder_folders / encoder, layers=layers, do_normalize=False)
    waveforms = signal(2, 8000)
    full = AutoModel.from_pretrained(encoder_folders / encoder)
    inputs = waveforms[:, 0]
    if encoder == "whisper":
        full = full.get_encoder()
        inputs = WhisperFeatureExtractor()(
            list(inputs.numpy()), sampling_rate=16000, return_tensors="pt"
        ).input_features
    with torch.no_grad():
        expected = full(inputs, output_hidden_states=True).hidden_states
    features, _ = model.features(waveforms)
    if encoder == "whisper" and 3 in layers:
        # transformers gives the last layer of Whisper's encoder after its final layer norm.
        features[:, layers.index(3)] = full.layer_norm(features[:, layers.index(3)]).detach()
    for stream, layer in enumerate(layers):
        torch.testing.assert_close(features[:, stream], expected[layer][:, : features.shape[2]], rtol=0, atol=1e-5)


def test_normalization_of_the_waveform_is_the_feature_extractor_s(encoder_folders, signal):
    model = KMeansUnitsModel.from_encoder(encoder_folders / "hubert-pre-norm", layers=[2])
    assert model.config.do_normalize
    waveforms, mask = padded(signal)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    rows = [row[0, :length].numpy() for row, length in zip(waveforms, LENGTHS.tolist(), strict=True)]
    inputs = extractor(rows, sampling_rate=16000, padding=True, return_tensors="pt")
    torch.testing.assert_close(model._normalized(waveforms[:, 0], LENGTHS), inputs.input_values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_stages", [1, 3])
def test_a_code_is_the_nearest_centroid_of_what_is_left_over(units, signal, num_stages):
    model = units(layers=[1, 3], num_stages=num_stages, codebook_size=30)
    outputs = model.encode(signal(2, 8000))
    streams = outputs.latents.unflatten(2, (2, -1)).unbind(2)
    quantized = model.dequantize(outputs.audio_codes).unflatten(2, (2, -1)).unbind(2)
    for stream, (frames, sums) in enumerate(zip(streams, quantized, strict=True)):
        residual = frames
        for stage in range(num_stages):
            table = model.centroids[stream * num_stages + stage]
            codes = torch.cdist(residual.double(), table.double()).argmin(-1)
            assert torch.equal(outputs.audio_codes[:, stream * num_stages + stage], codes)
            residual = residual - table[codes]
        torch.testing.assert_close(frames - residual, sums, rtol=0, atol=1e-5)


def test_of_equally_near_centroids_the_first_is_taken():
    centroids = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_centroids(torch.tensor([[0.0, 3.0], [2.0, 0.0]]), centroids).tolist() == [0, 0]


def test_deduplicated_units_expand_to_the_frames(units, signal):
    model = units(codebook_size=5)
    waveforms, mask = padded(signal)
    frames = model.encode(waveforms, mask)
    merged = model.encode(waveforms, mask, deduplicate=True)
    assert int(merged.audio_codes_mask.sum()) < int(frames.audio_codes_mask.sum())
    for row in range(len(waveforms)):
        expanded = merged.audio_codes[row].repeat_interleave(merged.durations[row], dim=1)
        assert torch.equal(expanded, frames.audio_codes[row][:, frames.audio_codes_mask[row].bool()])


def test_standardized_features_have_zero_mean_and_unit_deviation(units, signal):
    plain = units()
    model = units(normalization="standardize")
    waveforms = signal(4, 16000)
    frames = plain.features(waveforms)[0].transpose(1, 2).flatten(0, 1)  # (N, S, D)
    model.set_statistics(frames.mean(0), frames.std(0, correction=0))
    normalised = model.features(waveforms)[0].transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(1, 32), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(1, 32), rtol=0, atol=1e-4)


@pytest.mark.parametrize("encoder", ["hubert", "whisper"])
def test_saved_and_loaded_units_are_the_same(units, signal, tmp_path, encoder):
    model = units(encoder, layers=[1, 2])
    model.save_pretrained(tmp_path)
    KMeansUnitsFeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path)
    waveforms, mask = padded(signal)
    expected = model.encode(waveforms, mask)
    for auto_class in (AutoModel, AutoModelForAudioTokenization):
        loaded = auto_class.from_pretrained(tmp_path)
        assert isinstance(loaded, KMeansUnitsModel)
        assert torch.equal(loaded.encode(waveforms, mask).audio_codes, expected.audio_codes)
        assert not loaded.encoder.training
        assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), KMeansUnitsFeatureExtractor)


def test_training_mode_changes_no_unit(units, signal):
    model = units()
    waveforms = signal(2, 8000)
    expected = model.encode(waveforms).audio_codes
    assert torch.equal(model.train().encode(waveforms).audio_codes, expected)


def test_centroids_stay_in_full_precision(units, signal, tmp_path):
    model = units()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.encoder.dtype == torch.bfloat16
    assert torch.equal(loaded.centroids, model.centroids)
    outputs = loaded.encode(signal(1, 8000))
    assert outputs.latents.dtype == torch.float32


def test_facts_of_the_interface(units):
    model = units(layers=[1, 2], num_stages=2, codebook_size=64)
    assert (model.sampling_rate, model.hop_length, model.frame_rate) == (16000, 320, 50.0)
    assert model.bits_per_second == 50 * 4 * 6
    assert model.frame_centres(2).tolist() == [199 / 16000, 519 / 16000]
    assert units("whisper").frame_centres(2).tolist() == [0, 0.02]


def map_name(name: str) -> str:
    # The original's names to those of transformers.
    for old, new in (
        ("self_attn_layer_norm", "layer_norm"),
        ("self_attn", "attention"),
        ("fc1", "feed_forward.intermediate_dense"),
        ("fc2", "feed_forward.output_dense"),
        ("post_extract_proj", "feature_projection.projection"),
        ("pos_conv.0.weight_g", "pos_conv_embed.conv.parametrizations.weight.original0"),
        ("pos_conv.0.weight_v", "pos_conv_embed.conv.parametrizations.weight.original1"),
        ("pos_conv.0", "pos_conv_embed.conv"),
        ("mask_emb", "masked_spec_embed"),
    ):
        name = name.replace(old, new)
    if name.startswith("layer_norm"):
        name = f"feature_projection.{name}"
    if name.startswith("feature_extractor"):
        name = name.replace(".0.weight", ".conv.weight").replace(".0.2.", ".0.layer_norm.")
    return name


@pytest.fixture(scope="module")
def spin_model(spin_encoder):
    """Function: all layers of the original Spin's encoder."""

    def make(**fields):
        config = HubertConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=spin_encoder["param.encoder.model.encoder.layer_norm.weight"].numel() // 8,
            intermediate_size=spin_encoder["param.encoder.model.encoder.layers.0.fc1.weight"].shape[0],
            conv_dim=[24] * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        )
        model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=config, layers=[1, 2, 3], **fields))
        prefix = "param.encoder.model."
        state = {map_name(k.removeprefix(prefix)): v for k, v in spin_encoder.items() if k.startswith(prefix)}
        model.encoder.load_state_dict(state)
        return model.eval()

    return make


def test_padded_batches_of_the_original_are_met_by_its_frame_rule(spin_model, spin_encoder):
    model = spin_model(frame_rule="fairseq", padding_invariant=False)
    waveforms = spin_encoder["wavs"]
    mask = frame_mask(spin_encoder["wav_lens"], waveforms.shape[1])
    features, frames = model.features(waveforms, mask.long())
    assert torch.equal(frames, ~spin_encoder["eval.frame_padding_mask"])
    for stream in range(3):
        expected = spin_encoder[f"eval.layer{stream + 1}"][frames]
        torch.testing.assert_close(features[:, stream][frames], expected, rtol=0, atol=1e-5)


def test_our_batches_give_what_the_original_gives_each_recording_alone(spin_model, spin_encoder):
    model = spin_model()
    waveforms = spin_encoder["wavs"]
    mask = frame_mask(spin_encoder["wav_lens"], waveforms.shape[1])
    features, frames = model.features(waveforms, mask.long())
    for row in range(len(waveforms)):
        expected = spin_encoder[f"single{row}.layer3"][0]
        assert int(frames[row].sum()) == len(expected)
        torch.testing.assert_close(features[row, 2, : len(expected)], expected, rtol=0, atol=1e-5)


def test_decode_needs_a_vocoder_and_gives_the_length_back(units, signal):
    model = units(codebook_size=50)
    waveforms = signal(1, 9001)
    codes = model.encode(waveforms).audio_codes
    with pytest.raises(ValueError, match="no vocoder"):
        model.decode(codes)
    with pytest.raises(ValueError, match="codebook_size"):
        model.attach_vocoder(UnitVocoderModel(UnitVocoderConfig(num_quantizers=1, codebook_size=49, hop_length=320)))
    assert model.config.vocoder_config is None
    vocoder = UnitVocoderModel(UnitVocoderConfig(num_quantizers=1, codebook_size=50, hop_length=320)).eval()
    model.attach_vocoder(vocoder)
    audio = model.decode(codes, num_samples=9001).audio_values
    assert audio.shape == waveforms.shape
    assert torch.equal(audio, vocoder.decode(codes, num_samples=9001).audio_values)


def test_an_attached_vocoder_is_saved_with_the_units(units, signal, tmp_path):
    model = units(codebook_size=50)
    model.attach_vocoder(
        UnitVocoderModel(UnitVocoderConfig(num_quantizers=1, codebook_size=50, hop_length=320)).eval()
    )
    model.save_pretrained(tmp_path)
    codes = model.encode(signal(1, 8000)).audio_codes
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode(codes).audio_values, model.decode(codes).audio_values)


def test_what_cannot_be_encoded_is_refused(units, signal):
    model = units()
    with pytest.raises(ValueError, match="a frame needs 400"):
        model.encode(signal(1, 399))
    with pytest.raises(ValueError, match="pad on the right"):
        model.encode(signal(1, 800), torch.tensor([[0] * 100 + [1] * 700]))
    with pytest.raises(ValueError, match="mono"):
        model.encode(torch.zeros(1, 2, 800))
    with pytest.raises(ValueError, match="between 0 and 99"):
        model.dequantize(torch.full((1, 1, 3), 100))
    with pytest.raises(ValueError, match="all 2 codebooks"):
        units(layers=[1, 2]).dequantize(torch.zeros(1, 1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="in windows"):
        units("whisper").encode(torch.zeros(1, 1, 16000 * 31))


def test_a_model_without_centroids_says_so(encoder_folders, signal):
    model = KMeansUnitsModel.from_encoder(encoder_folders / "hubert", layers=[1])
    with pytest.raises(ValueError, match="no centroids yet"):
        model.encode(signal(1, 8000))
    with pytest.raises(ValueError, match="finite, of shape"):
        model.set_centroids(torch.zeros(1, 100, 31))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": [13]}, "between 0 and 12"),
        ({"layers": []}, "between 0 and 12"),
        ({"layers": [1, 2], "layer_weights": [1.0]}, "a weight for each of the 2 layers"),
        ({"codebook_size": 1}, "at least 2"),
        ({"normalization": "batch"}, "'layer_norm', 'standardize' or None"),
        ({"frame_rule": "hf"}, "'conv' or 'fairseq'"),
        ({"window": "loose"}, "'padded' or 'tight'"),
        ({"encoder_config": {"model_type": "bert"}}, "times of frames"),
        (
            {"encoder_config": {"model_type": "whisper"}, "layers": [4], "frame_rule": "fairseq"},
            "convolutional front end",
        ),
    ],
    ids=str,
)
def test_contradictory_configurations_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        KMeansUnitsConfig(**fields)


def test_an_encoder_that_is_nowhere_is_said_without_asking_the_network():
    with pytest.raises(ValueError, match="is 'dc-spin', but there is no such file or folder"):
        KMeansUnitsModel.from_encoder("dc-spin", layers=[1])
