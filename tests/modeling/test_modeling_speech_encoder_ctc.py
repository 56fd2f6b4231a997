# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from helpers.tiny_models import tiny_hubert
from speech_tokenizers import SpeechEncoderCTCConfig, SpeechEncoderForCTC
from speech_tokenizers.modeling.hub_export import find_code_files


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory):
    """A tiny Whisper that hears one second: 50 frames of 320 samples."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=20,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        max_source_positions=50,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    )
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hubert_folder(tmp_path_factory):
    """A tiny HuBERT with attention masks and 50 frames a second."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    config = tiny_hubert(
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(40, 16),
        conv_stride=(20, 16),
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(params=["padded", "tight", "hubert"])
def recogniser(request, whisper_folder, hubert_folder):
    """Model and feature extractor, of each kind, and how recordings are padded."""
    torch.manual_seed(0)
    if request.param == "hubert":
        return *SpeechEncoderForCTC.from_encoder(str(hubert_folder), vocab_size=5, kernel_size=3), True
    model_and_features = SpeechEncoderForCTC.from_encoder(
        str(whisper_folder), vocab_size=5, kernel_size=3, window=request.param
    )
    return *model_and_features, "max_length"


def recordings(*lengths: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.standard_normal(length).astype(np.float32) for length in lengths]


def test_a_padded_batch_equals_its_items_and_is_blank_beyond_them(recogniser):
    model, features, padding = recogniser
    audio = recordings(16000, 9000, 1700)
    with torch.no_grad():
        batch = model(**features(audio, sampling_rate=16000, return_tensors="pt", padding=padding)).logits
        for item, together in zip(audio, batch, strict=True):
            alone = model(**features(item, sampling_rate=16000, return_tensors="pt")).logits[0]
            torch.testing.assert_close(together[: len(alone)], alone, atol=1e-4, rtol=1e-4)
            assert (together[len(alone) :].argmax(-1) == model.config.pad_token_id).all()
            assert abs(len(alone) - len(item) / model.config.inputs_to_logits_ratio) <= 1


def test_it_loads_by_its_folder_and_computes_the_same(recogniser, tmp_path):
    model, features, _ = recogniser
    model.save_pretrained(tmp_path)
    features.save_pretrained(tmp_path)
    loaded = AutoModelForCTC.from_pretrained(tmp_path)
    assert isinstance(loaded, SpeechEncoderForCTC)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SpeechEncoderCTCConfig)
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path)(recordings(8000), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-6, rtol=1e-6)
    assert not any("decoder" in name for name in loaded.state_dict())
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())


def test_states_stand_for_the_recording_and_only_the_map_learns(recogniser):
    model, features, padding = recogniser
    inputs = features(recordings(8000, 6000), sampling_rate=16000, return_tensors="pt", padding=padding)
    labels = torch.tensor([[1, 2, 3], [4, -100, -100]])
    states, mask = model.encode(inputs[model.main_input_name], inputs["attention_mask"])
    model.train()
    loss = model(**inputs, labels=labels).loss
    torch.testing.assert_close(model(encoder_states=states, attention_mask=mask, labels=labels).loss, loss)
    loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        "layer_weights",
        "head.weight",
        "head.bias",
    }
    assert not model.encoder.training


def test_the_loss_is_that_of_torch_for_each_label(whisper_folder):
    model, features = SpeechEncoderForCTC.from_encoder(str(whisper_folder), vocab_size=5, layer="last")
    inputs = features(recordings(8000), sampling_rate=16000, return_tensors="pt")
    outputs = model(**inputs, labels=torch.tensor([[1, 2, 2]]))
    log_probs = outputs.logits.log_softmax(-1).transpose(0, 1)
    expected = torch.nn.functional.ctc_loss(log_probs, torch.tensor([[1, 2, 2]]), (25,), (3,), reduction="sum") / 3
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize("layer", ["average", "last", 0, 1, 2])
def test_single_layers_have_no_weights_to_learn(layer, whisper_folder):
    model, features = SpeechEncoderForCTC.from_encoder(str(whisper_folder), vocab_size=5, layer=layer)
    inputs = features(recordings(4000), sampling_rate=16000, return_tensors="pt")
    states, _ = model.encode(inputs["input_features"], inputs["attention_mask"])
    assert states.shape == (1, 1, 13, 16)
    assert not hasattr(model, "layer_weights")


def test_times_of_frames_are_those_of_the_encoder(whisper_folder, hubert_folder):
    whisper, _ = SpeechEncoderForCTC.from_encoder(str(whisper_folder))
    assert (whisper.config.inputs_to_logits_ratio, whisper.config.first_frame_centre) == (320, 0)
    hubert, _ = SpeechEncoderForCTC.from_encoder(str(hubert_folder))
    # Its first frame hears 40 + 15 * 20 samples.
    assert (hubert.config.inputs_to_logits_ratio, hubert.config.first_frame_centre) == (320, 169)


@pytest.mark.parametrize(
    ("field", "value"),
    [("layer", "first"), ("layer", 13), ("window", "wide"), ("kernel_size", 2), ("pad_token_id", 32)],
)
def test_contradictory_fields_are_refused(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        SpeechEncoderCTCConfig(**{field: value})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((1, 3), 99), "`labels` must"),
        (torch.full((1, 3), -5000), "`labels` must"),
        (torch.full((1, 3), 1.5), "`labels` must"),
        (torch.full((2, 3), 1), "must have shape"),
        (torch.full((1, 60), 1), "60 labels in row 0, but there are 50 frames"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(labels, message, whisper_folder):
    model, extractor = SpeechEncoderForCTC.from_encoder(str(whisper_folder), vocab_size=5)
    inputs = extractor(recordings(16000), sampling_rate=16000, return_tensors="pt")
    with pytest.raises(ValueError, match=message):
        model(**inputs, labels=labels)


def test_exactly_one_input_is_needed(whisper_folder):
    model, _ = SpeechEncoderForCTC.from_encoder(str(whisper_folder))
    with pytest.raises(ValueError, match="`input_features` or `encoder_states`"):
        model()
    with pytest.raises(ValueError, match="`input_features` or `encoder_states` must be given, .* got input_values"):
        model(input_values=torch.zeros(1, 16000))


@pytest.mark.parametrize("shape", [(2, 1, 16000), (16000,), (0, 16000), (2, 0)])
def test_samples_have_a_row_for_each_recording(shape, hubert_folder):
    model, _ = SpeechEncoderForCTC.from_encoder(str(hubert_folder), vocab_size=5)
    with pytest.raises(ValueError, match=r"`input_values` must have shape \(batch, num_samples\)"):
        model(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 9, 100), (8, 100), (2, 1, 16000)])
def test_spectra_have_the_bins_of_the_encoder(shape, whisper_folder):
    model, _ = SpeechEncoderForCTC.from_encoder(str(whisper_folder), vocab_size=5)
    with pytest.raises(ValueError, match=r"`input_features` must have shape \(batch, 8, num_steps\)"):
        model(input_features=torch.zeros(shape))


@pytest.mark.parametrize("layer", ["weighted", "last"])
def test_states_are_those_of_the_layers_that_are_read(layer, hubert_folder):
    model, _ = SpeechEncoderForCTC.from_encoder(str(hubert_folder), vocab_size=5, layer=layer)
    num_layers, size = len(model.states_mean), model.config.hidden_size
    assert model(encoder_states=torch.zeros(2, num_layers, 10, size)).logits.shape == (2, 10, 5)
    wrong = 1 if num_layers > 1 else 3
    for shape in ((2, wrong, 10, size), (2, 10, size), (2, num_layers, 0, size), (2, num_layers, 10, size + 1)):
        with pytest.raises(ValueError, match=rf"`encoder_states` must have shape \(batch, {num_layers}, num_frames"):
            model(encoder_states=torch.zeros(shape))


@pytest.mark.parametrize("length", [100, 8000, 16001])
def test_a_mask_of_samples_is_as_long_as_the_samples(length, hubert_folder):
    model, _ = SpeechEncoderForCTC.from_encoder(str(hubert_folder), vocab_size=5)
    with pytest.raises(ValueError, match=r"`attention_mask` must have shape \(2, 16000\)"):
        model(torch.zeros(2, 16000), attention_mask=torch.ones(2, length))


def test_its_code_can_travel_to_the_hub():
    assert set(find_code_files([SpeechEncoderCTCConfig, SpeechEncoderForCTC])) == {
        "checked_loading.py",
        "configuration_speech_encoder_ctc.py",
        "encoder_geometry.py",
        "input_checks.py",
        "mixed_precision.py",
        "model_names.py",
        "modeling_speech_encoder_ctc.py",
        "padding_invariance.py",
        "speech_encoders.py",
    }
