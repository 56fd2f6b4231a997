# SPDX-License-Identifier: Apache-2.0
"""The unit vocoder speaks any codes: as long as they last, a padded row like the row alone, by any voice."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel

from speech_tokenizers.modeling.configuration_unit_vocoder import UNIT_VOCODER_PRESETS, UnitVocoderConfig
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.modeling.unit_runs import deduplicate_codes


HOP = 40
LENGTHS = torch.tensor([23, 9, 1, 16])


def make_vocoder(**fields) -> UnitVocoderModel:
    """A tiny vocoder in evaluation mode, none of whose biases is 0."""
    sizes = {"codebook_size": 11, "hop_length": HOP, "hidden_size": 12, "decoder_hidden_size": 16}
    sizes |= {"decoder_num_layers": 2, "convnext_kernel_size": 3}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = UnitVocoderModel(UnitVocoderConfig(**{**sizes, **fields}))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
            elif name.endswith("scale"):
                parameter.fill_(0.5)
    return model.eval()


def make_codes(num_quantizers: int = 1, num_frames: int = 23, seed: int = 0, size: int = 11) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(size, (len(LENGTHS), num_quantizers, num_frames), generator=generator)


def mask_of(lengths: torch.Tensor) -> torch.Tensor:
    return (torch.arange(int(lengths.max())) < lengths[:, None]).long()


SPEAKERS = {
    "one voice": ({}, {}),
    "numbered": ({"num_speakers": 3}, {"speaker_ids": torch.tensor([2, 0, 1, 2])}),
    "named": ({"speaker_names": ["ann", "bob", "eve"]}, {"speaker_ids": torch.tensor([2, 0, 1, 2])}),
    "embedded": (
        {"speaker_embedding_dim": 5},
        {"speaker_embeddings": torch.randn(4, 5, generator=torch.Generator().manual_seed(1))},
    ),
}


def test_codes_beyond_a_smaller_codebook_are_refused(tmp_path):
    model = make_vocoder(num_quantizers=3, codebook_sizes=[11, 8, 4])
    codes = make_codes(3, size=4)
    spoken = model.decode(codes).audio_values
    assert torch.equal(make_vocoder(num_quantizers=3).decode(codes).audio_values, spoken)
    wrong = codes.clone()
    wrong[1, 2, 20] = 4
    with pytest.raises(ValueError, match="between 0 and 3 in codebook 2, .* but holds 4"):
        model.decode(wrong)
    with pytest.raises(ValueError, match="in codebook 2"):
        model(wrong)
    mask = torch.ones(len(codes), codes.shape[2])
    mask[1, 20:] = 0
    model.decode(wrong, mask)  # what is no frame does not matter
    make_vocoder(num_quantizers=3).decode(wrong)  # as before, where nothing is said of sizes
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="in codebook 2"):
        AutoModel.from_pretrained(tmp_path).decode(wrong)
    assert model.config.bits_per_second == pytest.approx(model.frame_rate * (math.log2(11) + 3 + 2))


@pytest.mark.parametrize("sizes", [[11, 8], [11, 8, 12], [11, 8, 0]], ids=str)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(StrictDataclassError, match="codebook_sizes"):
        UnitVocoderConfig(num_quantizers=3, codebook_size=11, codebook_sizes=sizes)


@pytest.mark.parametrize("num_quantizers", [1, 3])
@pytest.mark.parametrize("voices", SPEAKERS)
def test_a_padded_batch_speaks_each_row_like_the_row_alone(voices, num_quantizers):
    fields, speakers = SPEAKERS[voices]
    model, codes = make_vocoder(num_quantizers=num_quantizers, **fields), make_codes(num_quantizers)
    batch = model.decode(codes, mask_of(LENGTHS), **speakers).audio_values
    assert batch.shape == (4, 1, 23 * HOP)
    for row, length in enumerate(LENGTHS.tolist()):
        own = {name: value[row : row + 1] for name, value in speakers.items()}
        alone = model.decode(codes[row : row + 1, :, :length], **own).audio_values
        assert alone.shape == (1, 1, length * HOP)
        torch.testing.assert_close(batch[row, :, : length * HOP], alone[0], rtol=0, atol=1e-5)
        assert not batch[row, :, length * HOP :].any()
    assert batch.abs().max() > 1e-3


def test_what_stands_in_the_padding_is_not_heard():
    model, codes = make_vocoder(), make_codes()
    other = torch.where(mask_of(LENGTHS)[:, None].bool(), codes, 10 - codes)
    first, second = (model.decode(part, mask_of(LENGTHS)).audio_values for part in (codes, other))
    assert torch.equal(first, second)


@pytest.mark.parametrize("num_samples", range(23 * HOP - 2 * HOP, 23 * HOP + 2 * HOP + 1, 13))
def test_a_recording_gets_its_length_back(num_samples):
    model, codes = make_vocoder(), make_codes()[:1]
    audio = model.decode(codes, num_samples=num_samples).audio_values
    assert audio.shape == (1, 1, num_samples)
    # What is missing is the last frame, held.
    held = torch.cat([codes, codes[..., -1:], codes[..., -1:]], dim=-1)
    missing = max(0, -(-(num_samples - 23 * HOP) // HOP))
    expected = model.decode(held[..., : 23 + missing]).audio_values[..., :num_samples]
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-5)


def test_rows_have_lengths_of_their_own():
    model, codes, mask = make_vocoder(), make_codes(), mask_of(LENGTHS)
    ends = LENGTHS * HOP + torch.tensor([-7, 55, 3, 0])
    audio = model.decode(codes, mask, num_samples=ends).audio_values
    assert audio.shape == (4, 1, int(ends.max()))
    for row, (length, end) in enumerate(zip(LENGTHS.tolist(), ends.tolist(), strict=True)):
        alone = model.decode(codes[row : row + 1, :, :length], num_samples=end).audio_values[0]
        torch.testing.assert_close(audio[row, :, :end], alone, rtol=0, atol=1e-5)
        assert not audio[row, :, end:].any()
    # A number is for the rows without padding.
    assert model.decode(codes, mask, num_samples=23 * HOP - 7).audio_values.shape[-1] == 23 * HOP - 7


@pytest.mark.parametrize("num_quantizers", [1, 2])
def test_units_with_durations_are_their_frames(num_quantizers):
    model, codes = make_vocoder(num_quantizers=num_quantizers), make_codes(num_quantizers, size=2)
    units, unit_mask, durations = deduplicate_codes(codes, mask_of(LENGTHS))
    assert units.shape[-1] < 23
    frames = model.decode(codes, mask_of(LENGTHS)).audio_values
    assert torch.equal(model.decode(units, unit_mask, durations).audio_values, frames)
    assert torch.equal(model.decode(units, durations=durations).audio_values, frames)
    longer = model.decode(units, unit_mask, 2 * durations).audio_values
    assert longer.shape[-1] == 2 * frames.shape[-1]


def test_a_default_speaker_speaks_for_whoever_names_none(tmp_path):
    model, codes = make_vocoder(num_speakers=3, default_speaker=2, predicts_durations=True), make_codes()
    named = torch.full((4,), 2)
    assert torch.equal(model.decode(codes).audio_values, model.decode(codes, speaker_ids=named).audio_values)
    assert torch.equal(model.predict_durations(codes), model.predict_durations(codes, speaker_ids=named))
    others = model.decode(codes, speaker_ids=torch.zeros(4, dtype=torch.long)).audio_values
    assert not torch.equal(model.decode(codes).audio_values, others)
    model.save_pretrained(tmp_path)
    assert UnitVocoderModel.from_pretrained(tmp_path).config.default_speaker == 2
    voices = [{}, {"num_speakers": 3}, {"speaker_embedding_dim": 5}, {"num_speakers": 3, "default_speaker": 0}]
    assert [UnitVocoderConfig(**fields).has_default_voice for fields in voices] == [True, False, False, True]
    with pytest.raises(ValueError, match="several voices"):
        make_vocoder(num_speakers=3).decode(codes)
    for fields in ({"num_speakers": 3, "default_speaker": 3}, {"default_speaker": 0}):
        with pytest.raises(StrictDataclassError, match=r"`default_speaker` must lie below `num_speakers`"):
            UnitVocoderConfig(**fields)


def test_speakers_sound_different():
    for fields, speakers in (SPEAKERS["numbered"], SPEAKERS["embedded"]):
        model, codes = make_vocoder(**fields), make_codes()[:1].expand(4, -1, -1)
        audio = model.decode(codes, **speakers).audio_values
        assert not torch.allclose(audio[0], audio[1], atol=1e-3)
        others = {name: value.flip(0) for name, value in speakers.items()}
        torch.testing.assert_close(model.decode(codes, **others).audio_values, audio.flip(0), rtol=0, atol=1e-5)


def test_each_codebook_is_heard():
    model, codes = make_vocoder(num_quantizers=3), make_codes(3)
    audio = model.decode(codes).audio_values
    for stage in range(3):
        changed = codes.clone()
        changed[:, stage] = (changed[:, stage] + 1) % 11
        assert not torch.allclose(model.decode(changed).audio_values, audio, atol=1e-3)


def test_the_duration_loss_is_that_of_whole_runs():
    model = make_vocoder(predicts_durations=True)
    codes = torch.tensor([[[1, 1, 1, 2, 2, 3, 3, 3, 3, 4]], [[5, 6, 6, 7, 0, 0, 0, 0, 0, 0]]])
    mask = torch.tensor([[1] * 10, [1] * 4 + [0] * 6])
    loss = model(codes, mask).duration_loss
    # Runs that touch an end of a row may have been cut, so 2 and 3 count, and 6.
    errors = []
    for units, lasting in (([1, 2, 3, 4], [3, 2, 4, 1]), ([5, 6, 7], [1, 2, 1])):
        vectors = model.unit_embeddings[0](torch.tensor([units])).transpose(1, 2)
        predicted = model.duration_predictor(vectors)[0, 0]
        errors += [(predicted[i] - math.log(lasting[i])) ** 2 for i in range(1, len(units) - 1)]
    assert len(errors) == 3
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    units, unit_mask, durations = deduplicate_codes(codes, mask)
    torch.testing.assert_close(model(units, unit_mask, durations).duration_loss, loss)
    assert make_vocoder()(codes, mask).duration_loss is None
    with pytest.raises(TypeError, match="has no argument duration"):
        model(codes, mask, duration=durations)


def test_durations_do_not_pull_at_the_sound():
    model = make_vocoder(predicts_durations=True)
    model(make_codes(size=3)).duration_loss.backward()
    heard = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert heard
    assert all(name.startswith("duration_predictor.") for name in heard)


def test_predicted_durations_are_those_of_the_row_alone():
    model, codes = make_vocoder(predicts_durations=True, num_speakers=3), make_codes()
    with torch.no_grad():
        model.duration_predictor.layers[-1].conv.weight.mul_(6)
    speakers = torch.tensor([0, 1, 2, 0])
    durations = model.predict_durations(codes, mask_of(LENGTHS), speaker_ids=speakers)
    assert durations.dtype == torch.long
    assert torch.equal(durations > 0, mask_of(LENGTHS).bool())
    assert len(durations.unique()) > 3
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model.predict_durations(codes[row : row + 1, :, :length], speaker_ids=speakers[row : row + 1])
        assert torch.equal(alone[0], durations[row, :length])
    with pytest.raises(ValueError, match="predicts no durations"):
        make_vocoder().predict_durations(codes)


def test_a_batch_can_be_learnt_by_heart():
    """The gradient reaches all that the sound depends on."""
    fields = {"num_quantizers": 2, "num_speakers": 4, "predicts_durations": True, "decoder_hidden_size": 48}
    model = make_vocoder(**fields, hidden_size=32)
    codes, speakers, mask = make_codes(2, size=4), torch.arange(4), mask_of(LENGTHS)
    time = torch.arange(23 * HOP) / 8000
    waveforms = 0.3 * torch.sin(2 * torch.pi * torch.tensor([200.0, 300, 400, 500])[:, None] * time)[:, None]
    waveforms = waveforms * mask.repeat_interleave(HOP, dim=1)[:, None]
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(120):
        outputs = model.train()(codes, mask, speaker_ids=speakers)
        loss = (outputs.audio_values - waveforms).square().mean() / waveforms.square().mean()
        optimizer.zero_grad()
        (loss + outputs.duration_loss).backward()
        optimizer.step()
        losses.append((float(loss.detach()), float(outputs.duration_loss.detach())))
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1][0] < 0.05 < losses[0][0]
    assert losses[-1][1] < 0.05 * losses[0][1]


@pytest.mark.parametrize("voices", SPEAKERS)
def test_a_saved_vocoder_is_the_same(voices, tmp_path):
    fields, speakers = SPEAKERS[voices]
    model, codes = make_vocoder(num_quantizers=2, predicts_durations=True, **fields), make_codes(2)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is UnitVocoderModel
    assert loaded.config.to_dict() == {**model.config.to_dict(), "_name_or_path": loaded.config._name_or_path}
    assert torch.equal(loaded.decode(codes, **speakers).audio_values, model.decode(codes, **speakers).audio_values)
    assert type(AutoConfig.from_pretrained(tmp_path)) is UnitVocoderConfig


def test_facts_of_the_interface():
    model = make_vocoder(num_quantizers=3, codebook_size=16, hop_length=320)
    assert (model.sampling_rate, model.hop_length, model.frame_rate) == (16000, 320, 50.0)
    assert model.config.bits_per_second == 50 * 3 * 4
    assert UnitVocoderConfig(hop_length=100).n_fft == 400
    assert UnitVocoderConfig(speaker_names=["ann", "bob"]).num_speakers == 2
    for preset in UNIT_VOCODER_PRESETS.values():
        UnitVocoderConfig(**preset)


@pytest.mark.parametrize(
    ("codes", "kwargs", "error", "message"),
    [
        (torch.zeros(4, 23, dtype=torch.long), {}, ValueError, "audio_codes"),
        (torch.zeros(4, 1, 23), {}, TypeError, "integers"),
        (torch.zeros(4, 2, 23, dtype=torch.long), {}, ValueError, "audio_codes"),
        (torch.full((4, 1, 23), 11), {}, ValueError, "between 0 and 10"),
        (torch.full((4, 1, 23), -1), {}, ValueError, "between 0 and 10"),
        (None, {"audio_codes_mask": torch.ones(4, 22)}, ValueError, "must have shape"),
        (None, {"audio_codes_mask": torch.ones(4, 23).long().index_fill(1, torch.tensor(0), 0)}, ValueError, "right"),
        (None, {"durations": torch.ones(4, 22)}, ValueError, "`durations` must have shape"),
        (None, {"durations": torch.zeros(4, 23)}, ValueError, "at least one frame"),
        (None, {"durations": torch.full((4, 23), -1)}, ValueError, "durations"),
        (None, {"num_samples": 23 * HOP + 2 * HOP + 1}, ValueError, "must lie between 840 and 1000"),
        (None, {"num_samples": 23 * HOP - 2 * HOP - 1}, ValueError, "must lie between 840 and 1000"),
        (None, {"num_samples": torch.tensor([920, 920])}, ValueError, "`num_samples` must have shape"),
        (None, {"speaker_ids": torch.zeros(4).long()}, ValueError, "single voice"),
        (None, {"speaker_embeddings": torch.zeros(4, 5)}, ValueError, "single voice"),
    ],
    ids=str,
)
def test_what_cannot_be_spoken_is_refused(codes, kwargs, error, message):
    with pytest.raises(error, match=message):
        make_vocoder().decode(make_codes() if codes is None else codes, **kwargs)


@pytest.mark.parametrize(
    ("fields", "speakers", "message"),
    [
        ({"num_speakers": 3}, {}, "choose one with `speaker_ids`"),
        ({"num_speakers": 3}, {"speaker_ids": torch.tensor([0, 1, 2, 3])}, "must lie below 3"),
        ({"num_speakers": 3}, {"speaker_ids": torch.tensor([0, 1])}, "must have shape"),
        ({"num_speakers": 3}, {"speaker_embeddings": torch.zeros(4, 3)}, "expects `speaker_ids`"),
        ({"speaker_embedding_dim": 5}, {}, "choose one with `speaker_embeddings`"),
        ({"speaker_embedding_dim": 5}, {"speaker_embeddings": torch.zeros(4, 6)}, "must have shape"),
    ],
    ids=str,
)
def test_a_voice_that_is_not_there_is_refused(fields, speakers, message):
    with pytest.raises(ValueError, match=message):
        make_vocoder(**fields).decode(make_codes(), **speakers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hop_length": 0}, "`hop_length` must be at least 1"),
        ({"codebook_size": 1}, "`codebook_size` must be at least 2"),
        ({"num_quantizers": 0}, "`num_quantizers` must be at least 1"),
        ({"hop_length": 320, "n_fft": 1000}, "multiple of `hop_length`"),
        ({"hop_length": 41, "n_fft": 82}, "even number"),
        ({"num_speakers": 2, "speaker_embedding_dim": 4}, "exclude each other"),
        ({"speaker_names": ["ann", "ann"]}, "different names"),
        ({"speaker_names": ["ann"], "num_speakers": 2}, "different names"),
    ],
    ids=str,
)
def test_contradictory_configurations_are_refused(fields, message):
    with pytest.raises((StrictDataclassError, ValueError, ZeroDivisionError), match=message):
        UnitVocoderConfig(**fields)
