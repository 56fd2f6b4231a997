# SPDX-License-Identifier: Apache-2.0
"""DC-Spin units are equal in batches, alone, saved and loaded; and what should learn, and only that, does."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioTokenization,
    HubertConfig,
    HubertModel,
    Trainer,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.modeling.padding_invariance import frame_mask
from speech_tokenizers.processing.feature_extraction_dc_spin import DCSpinFeatureExtractor


LENGTHS = torch.tensor([9000, 5005, 7400, 400])
TINY = {"encoder_layer": 3, "projection_dim": 16, "primary_codebook_size": 20, "auxiliary_codebook_size": 64}
ENCODERS = {
    "hubert": (HubertConfig, HubertModel, False),
    "hubert-pre-norm": (HubertConfig, HubertModel, True),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model, False),
    "wavlm": (WavLMConfig, WavLMModel, False),
}


@pytest.fixture(scope="module")
def encoder_folders(tmp_path_factory, make_encoder):
    """Folders of tiny pretrained encoders, with dropout, SpecAugment and layer drop at work."""
    folder = tmp_path_factory.mktemp("encoders")
    for name, (config_class, model_class, pre_norm) in ENCODERS.items():
        encoder = make_encoder(config_class, model_class, pre_norm, layerdrop=0.5, mask_time_prob=0.9)
        encoder.save_pretrained(folder / name)
        Wav2Vec2FeatureExtractor(do_normalize=pre_norm).save_pretrained(folder / name)
    sizes = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    config = WhisperConfig(**sizes, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, dropout=0.1)
    torch.manual_seed(0)
    WhisperModel(config).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    return folder


@pytest.fixture(scope="module")
def units(encoder_folders):
    """Function: untrained DC-Spin on a tiny encoder."""

    def make(encoder: str = "hubert", **fields) -> DCSpinModel:
        torch.manual_seed(1)
        return DCSpinModel.from_encoder(str(encoder_folders / encoder), **{**TINY, **fields})

    return make


def padded(signal, lengths=LENGTHS, seed=0):
    waveforms = signal(len(lengths), int(lengths.max()), seed=seed)
    mask = frame_mask(lengths, waveforms.shape[-1])
    return waveforms * mask[:, None], mask.long()


@pytest.mark.parametrize("fields", [{"encoder": "whisper", "window": "tight"}, *({"encoder": n} for n in ENCODERS)])
def test_units_of_a_padded_batch_are_those_of_each_recording_alone(units, signal, fields):
    model = units(**fields)
    waveforms, mask = padded(signal)
    for codebook in ("primary", "auxiliary"):
        batch = model.encode(waveforms, mask, codebook=codebook)
        for row, length in enumerate(LENGTHS.tolist()):
            alone = model.encode(waveforms[row : row + 1, :, :length], codebook=codebook)
            num_frames = alone.audio_codes.shape[2]
            assert num_frames == model.get_encoded_length(length) == int(batch.audio_codes_mask[row].sum())
            assert torch.equal(batch.audio_codes[row, :, :num_frames], alone.audio_codes[0])
            assert not batch.audio_codes[row, :, num_frames:].any()
            torch.testing.assert_close(batch.latents[row, :num_frames], alone.latents[0], rtol=0, atol=1e-4)
            assert not batch.latents[row, num_frames:].any()


def test_padded_frames_have_no_part_in_the_loss(units, signal):
    """The rows alone, in one call after another, have the same frames as the padded batch."""
    model = units().eval()
    (views, mask), (others, _) = padded(signal), padded(signal, seed=5)
    expected = model(views, others, mask)
    frames = [
        [model.features(values[row : row + 1, :, :length])[0][0] for row, length in enumerate(LENGTHS.tolist())]
        for values in (views, others)
    ]
    first, second = (torch.cat(rows) for rows in frames)
    for name in ("primary", "auxiliary"):
        projection = getattr(model, f"{name}_projection")
        alone = getattr(model, name)(projection(first), projection(second))
        torch.testing.assert_close(expected[f"{name}_swapped_prediction_loss"], alone.loss, rtol=0, atol=1e-4)


@pytest.mark.parametrize("codebook", ["primary", "auxiliary"])
def test_a_unit_is_the_nearest_code(units, signal, codebook):
    model = units()
    outputs = model.encode(signal(2, 8000), codebook=codebook)
    torch.testing.assert_close(outputs.latents.norm(dim=-1), torch.ones(outputs.latents.shape[:2]))
    distances = torch.cdist(outputs.latents, getattr(model, codebook).codebook)
    assert torch.equal(outputs.audio_codes[:, 0], distances.argmin(-1))
    nearest = model.dequantize(outputs.audio_codes, codebook=codebook)
    torch.testing.assert_close((nearest - outputs.latents).norm(dim=-1), distances.amin(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoder", [*ENCODERS, "whisper"])
@pytest.mark.parametrize("trainable_layers", [0, 2, 3])
def test_the_top_layers_and_the_codebooks_learn_and_nothing_else(units, signal, encoder, trainable_layers):
    fields = {"window": "tight"} if encoder == "whisper" else {}
    model = units(encoder, trainable_layers=trainable_layers, **fields).train()
    loss = model(signal(2, 8000), signal(2, 8000, seed=5)).loss
    loss.backward()
    learnt = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learnt == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {name for name in learnt if not name.startswith("encoder.")}
    assert own == {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}
    layers = {name.split("layers.")[1].split(".")[0] for name in learnt - own}
    assert layers == {str(index) for index in range(3 - trainable_layers, 3)}


def test_a_pre_trained_layer_above_the_one_that_is_read_is_dropped(units):
    model = units(encoder_layer=2)
    assert model.config.encoder_config.num_hidden_layers == len(model.encoder.encoder.layers) == 2
    assert len(model.trained_layers) == 2


@pytest.mark.parametrize("encoder", ["hubert", "hubert-pre-norm", "wavlm", "whisper"])
def test_training_has_neither_spec_augment_nor_layer_drop(units, signal, encoder):
    """With its dropout at 0, training mode computes what evaluation mode does."""
    model = units(encoder)
    expected = model.encode(signal(2, 8000)).latents
    model.train()
    for module in model.trained_layers.modules():
        for name in ("dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for _ in range(3):
        torch.testing.assert_close(model.encode(signal(2, 8000)).latents, expected, rtol=0, atol=1e-6)


def test_dropout_is_that_of_the_trained_layers_alone(units, signal):
    model = units().train()
    frozen = units(trainable_layers=0).train()
    waveforms = signal(2, 8000)
    assert torch.equal(frozen.encode(waveforms).latents, frozen.encode(waveforms).latents)
    assert not torch.equal(model.encode(waveforms).latents, model.encode(waveforms).latents)
    assert model.encoder.encoder.layers[2].training
    assert not model.encoder.encoder.layers[0].training
    model.eval()
    assert torch.equal(model.encode(waveforms).latents, model.encode(waveforms).latents)


def test_without_an_auxiliary_codebook_it_is_spin(units, signal):
    """The same loss as of the primary codebook beside an auxiliary one."""
    both, plain = units(), units(auxiliary_codebook_size=None)
    state = {name: value for name, value in both.state_dict().items() if not name.startswith("auxiliary")}
    plain.load_state_dict(state)
    views = signal(2, 8000), signal(2, 8000, seed=5)
    outputs, expected = plain(*views), both(*views)
    assert torch.equal(outputs.loss, expected.primary_swapped_prediction_loss)
    assert outputs.auxiliary_swapped_prediction_loss is None
    torch.testing.assert_close(expected.loss - outputs.loss, expected.auxiliary_swapped_prediction_loss)
    assert both.bits_per_second == plain.bits_per_second
    with pytest.raises(ValueError, match="must be 'primary', but got 'auxiliary'"):
        plain.encode(views[0], codebook="auxiliary")


def test_the_auxiliary_loss_counts_by_its_weight(units, signal):
    model = units(auxiliary_loss_weight=0.25)
    outputs = model(signal(2, 8000), signal(2, 8000, seed=5))
    expected = outputs.primary_swapped_prediction_loss + 0.25 * outputs.auxiliary_swapped_prediction_loss
    torch.testing.assert_close(outputs.loss, expected)


def test_a_loss_under_bfloat16_is_near_that_in_float32(units, signal):
    model = units().train(False)
    views = signal(2, 16000), signal(2, 16000, seed=5)
    expected = model(*views).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*views).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_one_batch_is_overfitted_by_the_trainer(units, signal, tmp_path):
    """Two views of the same speech get the same units, once the model has learnt them."""
    model = units(trainable_layers=1)
    waveforms = signal(4, 8000)
    views = [{"input_values": row, "perturbed_values": 0.5 * row} for row in waveforms]
    untrained = model(waveforms, 0.5 * waveforms)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=40,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=views, eval_dataset=views)
    trainer.train()
    evaluation = trainer.evaluate()
    trained = model(waveforms, 0.5 * waveforms)
    assert evaluation["eval_loss"] == pytest.approx(trained.loss.item(), abs=1e-4)
    assert trained.loss < 0.7 * untrained.loss
    assert trained.primary_accuracy > 0.9
    frozen = units(trainable_layers=1).encoder.encoder.layers[1].state_dict()
    for name, value in model.encoder.encoder.layers[1].state_dict().items():
        assert torch.equal(value, frozen[name])


def test_deduplicated_units_expand_to_the_frames(units, signal):
    model = units(primary_codebook_size=3)
    waveforms, mask = padded(signal)
    frames = model.encode(waveforms, mask)
    merged = model.encode(waveforms, mask, deduplicate=True)
    assert merged.latents is None
    assert int(merged.audio_codes_mask.sum()) < int(frames.audio_codes_mask.sum())
    for row in range(len(waveforms)):
        expanded = merged.audio_codes[row].repeat_interleave(merged.durations[row], dim=1)
        assert torch.equal(expanded, frames.audio_codes[row][:, frames.audio_codes_mask[row].bool()])


@pytest.mark.parametrize("encoder", ["hubert", "wavlm", "whisper"])
def test_saved_and_loaded_units_are_the_same(units, signal, tmp_path, encoder):
    model = units(encoder)
    model.save_pretrained(tmp_path)
    DCSpinFeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path)
    waveforms, mask = padded(signal)
    expected = model.encode(waveforms, mask)
    for auto_class in (AutoModel, AutoModelForAudioTokenization):
        loaded = auto_class.from_pretrained(tmp_path)
        assert isinstance(loaded, DCSpinModel)
        assert torch.equal(loaded.encode(waveforms, mask).audio_codes, expected.audio_codes)
        trained = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
        assert trained == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), DCSpinFeatureExtractor)


def test_codebooks_stay_in_full_precision(units, signal, tmp_path):
    model = units()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.encoder.dtype == torch.bfloat16
    for name, parameter in loaded.named_parameters():
        if not name.startswith("encoder."):
            assert torch.equal(parameter, model.get_parameter(name)), name
    outputs = loaded.encode(signal(1, 8000))
    assert outputs.latents.dtype == torch.float32


def test_codes_begin_as_directions_and_are_brought_back_to_unit_length(units):
    model = units()
    for codebook in (model.primary, model.auxiliary):
        torch.testing.assert_close(codebook.codebook.norm(dim=1), torch.ones(len(codebook.codebook)))
        codebook.codebook.data.mul_(3)
    before = copy.deepcopy(model.auxiliary.codebook)
    model.normalize_codebooks()
    torch.testing.assert_close(3 * model.auxiliary.codebook, before)
    plain = units(normalize_latents=False)
    plain.primary.codebook.data.mul_(3)
    plain.normalize_codebooks()
    torch.testing.assert_close(plain.primary.codebook.norm(dim=1), torch.full((20,), 3.0))


def test_decode_speaks_by_the_attached_vocoder(units, signal, tmp_path):
    model = units()
    codes = model.encode(signal(1, 9001)).audio_codes
    with pytest.raises(ValueError, match="no vocoder"):
        model.decode(codes)
    vocoder = UnitVocoderModel(UnitVocoderConfig(num_quantizers=1, codebook_size=20, hop_length=320)).eval()
    model.attach_vocoder(vocoder)
    audio = model.decode(codes, num_samples=9001).audio_values
    assert torch.equal(audio, vocoder.decode(codes, num_samples=9001).audio_values)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).decode(codes, num_samples=9001).audio_values, audio)


def test_facts_of_the_interface(units):
    model = units(primary_codebook_size=64)
    assert (model.sampling_rate, model.hop_length, model.frame_rate) == (16000, 320, 50.0)
    assert model.bits_per_second == 50 * 6
    assert (model.config.codebook_size, model.config.num_quantizers) == (64, 1)
    assert model.frame_centres(2).tolist() == [199 / 16000, 519 / 16000]


def test_what_cannot_be_encoded_or_learnt_is_refused(units, signal):
    model = units()
    with pytest.raises(ValueError, match="a frame needs 400"):
        model.encode(signal(1, 399))
    with pytest.raises(ValueError, match="pad on the right"):
        model.encode(signal(1, 800), torch.tensor([[0] * 100 + [1] * 700]))
    with pytest.raises(ValueError, match="must be 'primary' or 'auxiliary', but got 'both'"):
        model.encode(signal(1, 800), codebook="both")
    with pytest.raises(ValueError, match="between 0 and 19"):
        model.dequantize(torch.full((1, 1, 3), 20))
    with pytest.raises(ValueError, match=r"must have the shape of `input_values`, \(1, 1, 800\), but has \(1, 1, 801"):
        model(signal(1, 800), signal(1, 801))
    with pytest.raises(ValueError, match="mono"):
        model(signal(1, 800), torch.zeros(1, 2, 800))
    with pytest.raises(TypeError, match="no argument peturbed_values"):
        model(signal(1, 800), peturbed_values=signal(1, 800))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_layer": 13}, "between 1 and 12"),
        ({"encoder_layer": 0}, "between 1 and 12"),
        ({"trainable_layers": 13}, r"`encoder_layer` \(12\)"),
        ({"primary_codebook_size": 1}, "at least 2"),
        ({"auxiliary_codebook_size": 1}, "at least 2"),
        ({"projection_dim": 0}, "at least 1"),
        ({"sinkhorn_iterations": 0}, "at least 1"),
        ({"temperature": 0.0}, "positive"),
        ({"sinkhorn_epsilon": -1.0}, "positive"),
        ({"auxiliary_loss_weight": -1.0}, "not be negative"),
        ({"target_mix": 1.5}, "between 0 and 1"),
        ({"frame_rule": "hf"}, "'conv' or 'fairseq'"),
    ],
    ids=str,
)
def test_contradictory_configurations_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        DCSpinConfig(**fields)
