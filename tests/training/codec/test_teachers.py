# SPDX-License-Identifier: Apache-2.0
"""Teachers' vectors belong to the right words and times."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from speech_tokenizers.modeling.speech_encoders import WaveformEncoder
from speech_tokenizers.processing.timed_labels import TimedWord
from speech_tokenizers.training.codec.arguments import LanguageTeacherArguments, SpeechTeacherArguments
from speech_tokenizers.training.codec.teachers import (
    LanguageTeacher,
    SpeechTeacher,
    Utterance,
    place_on_frames,
)


WORDS = [TimedWord("One,", 0.1, 0.3), TimedWord("fourteen", 0.3, 0.55), TimedWord("two", 0.7, 0.8)]


def say(words=WORDS, seconds=1.0) -> Utterance:
    samples = np.zeros(round(16000 * seconds), np.float32)
    return Utterance(samples, 16000, lambda: " ".join(word.word for word in words), lambda: words)


@pytest.fixture
def language_teacher(language_teacher_folder):
    def make(**options):
        return LanguageTeacher(LanguageTeacherArguments(str(language_teacher_folder), **options), frame_rate=50)

    return make


def hidden_states(folder, text, layer):
    # (tokens, dim), special ones included, from the plain use of transformers.
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    outputs = AutoModel.from_pretrained(folder).eval()(**inputs, output_hidden_states=True)
    if layer == "average":
        return torch.stack(outputs.hidden_states).mean(0)[0]
    return outputs.last_hidden_state[0] if layer == "last" else outputs.hidden_states[layer][0]


@pytest.mark.parametrize("layer", ["average", "last", 1])
def test_word_has_the_mean_of_its_tokens_vectors(language_teacher, language_teacher_folder, layer):
    timed = language_teacher(layer=layer).features(say())
    # [CLS] one , four ##teen two [SEP]
    tokens = hidden_states(language_teacher_folder, "One, fourteen two", layer)
    expected = torch.stack([tokens[1:3].mean(0), tokens[3:5].mean(0), tokens[5]])
    torch.testing.assert_close(timed.features, expected)
    torch.testing.assert_close(timed.times, torch.tensor([[0.1, 0.3], [0.3, 0.55], [0.7, 0.8]]))


def test_frames_get_the_vector_of_the_word_in_which_they_lie(language_teacher):
    timed = language_teacher().features(say())
    times = torch.tensor([0.05, 0.1, 0.29, 0.3, 0.54, 0.6, 0.75, 0.9, 1.1])
    word_of_frame = [None, 0, 0, 1, 1, None, 2, None, None]
    for silence, fill in (("zero", torch.zeros(12)), ("mean", timed.features.mean(0))):
        targets, mask = place_on_frames(timed, times, 1.0, interpolated=False, silence=silence)
        expected = torch.stack([fill if word is None else timed.features[word] for word in word_of_frame])
        expected[-1] = 0  # after the recording's end
        torch.testing.assert_close(targets, expected)
        assert mask.tolist() == [1] * 8 + [0]
    _, mask = place_on_frames(timed, times, 1.0, interpolated=False, silence="ignore")
    assert mask.tolist() == [0, 1, 1, 1, 1, 0, 1, 0, 0]


def test_a_recording_without_words_counts_nowhere(language_teacher):
    timed = language_teacher().features(say(words=[]))
    targets, mask = place_on_frames(timed, torch.tensor([0.1, 0.2]), 1.0, interpolated=False)
    assert targets.shape == (2, 12)
    assert not targets.any()
    assert not mask.any()


def test_interpolated_tokens_are_spread_over_the_recording(language_teacher, language_teacher_folder):
    timed = language_teacher(alignment="interpolate").features(say())
    tokens = hidden_states(language_teacher_folder, "One, fourteen two", "average")[1:-1]
    torch.testing.assert_close(timed.features, tokens)
    targets, mask = place_on_frames(timed, torch.tensor([0.0, 0.1, 0.2, 0.3, 0.95]), 1.0, interpolated=True)
    # Five tokens have their centres at 0.1, 0.3, ...
    expected = torch.stack([tokens[0], tokens[0], (tokens[0] + tokens[1]) / 2, tokens[1], tokens[4]])
    torch.testing.assert_close(targets, expected)
    assert mask.all()


def test_padding_puts_token_k_at_frame_k(language_teacher, language_teacher_folder):
    timed = language_teacher(alignment="pad").features(say(seconds=0.3))
    tokenizer = AutoTokenizer.from_pretrained(language_teacher_folder)
    inputs = tokenizer("One, fourteen two", padding="max_length", max_length=15, return_tensors="pt")
    outputs = AutoModel.from_pretrained(language_teacher_folder).eval()(**inputs, output_hidden_states=True)
    expected = torch.stack(outputs.hidden_states).mean(0)[0]
    frames = (torch.arange(15) + 0.5) / 50
    targets, mask = place_on_frames(timed, frames, 0.3, interpolated=False)
    torch.testing.assert_close(targets, expected.detach())
    assert mask.all()


def test_a_text_longer_than_the_model_is_read_in_parts(language_teacher):
    words = [TimedWord("one", 0.01 * k, 0.01 * k + 0.01) for k in range(40)]
    timed = language_teacher().features(say(words))
    assert timed.features.shape == (40, 12)
    assert timed.features.abs().sum(-1).min() > 0


def test_every_alignment_names_what_it_lacks(language_teacher):
    silent = Utterance(np.zeros(1600, np.float32), 16000)
    with pytest.raises(ValueError, match="no transcript"):
        language_teacher().features(silent)
    with pytest.raises(ValueError, match="no word times"):
        language_teacher().features(Utterance(silent.waveform, 16000, lambda: "one"))


@pytest.mark.parametrize("layer", [3, -1, "first"])
def test_a_layer_that_is_not_there_is_an_error(language_teacher, layer):
    with pytest.raises(ValueError, match="`layer` must"):
        language_teacher(layer=layer)


def test_speech_features_are_the_encoder_s_and_know_their_time(speech_teacher_folder):
    waveform = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 0.1
    teacher = SpeechTeacher(SpeechTeacherArguments(str(speech_teacher_folder), layer=2))
    features, times = teacher.features(Utterance(waveform.numpy(), 16000))
    model = AutoModel.from_pretrained(speech_teacher_folder).eval()
    normalised = (waveform - waveform.mean()) / torch.sqrt(waveform.var(unbiased=False) + 1e-7)
    expected = model(normalised[None], output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    # Frames are 160 samples apart; the first hears samples 0 to 153.
    torch.testing.assert_close(times[:, 0], (76.5 + 160 * torch.arange(len(times))) / 16000)


def test_speech_features_do_not_depend_on_the_sample_format(speech_teacher_folder):
    samples = (3000 * np.sin(np.arange(8000) / 7)).astype(np.int16)
    teacher = SpeechTeacher(SpeechTeacherArguments(str(speech_teacher_folder)))
    of_integers = teacher.features(Utterance(samples, 16000)).features
    of_floats = teacher.features(Utterance(samples.astype(np.float32) / 32767, 16000)).features
    torch.testing.assert_close(of_integers, of_floats)


@pytest.mark.parametrize("window", ["padded", "tight"])
def test_whisper_gives_a_frame_for_each_20_ms_however_long(whisper_folder, window):
    encoder = WaveformEncoder.from_pretrained(str(whisper_folder), window=window)
    waveform = torch.randn(1, 16000 * 3, generator=torch.Generator().manual_seed(0)) * 0.1
    features, centres = encoder(waveform, "average")
    assert features.shape == (1, 150, 16)
    torch.testing.assert_close(centres, torch.arange(150) * 0.02)
    assert encoder.encoder.config.max_source_positions == 100


def test_tight_whisper_equals_padded_where_nothing_is_padded(whisper_folder):
    waveform = torch.randn(1, 32000, generator=torch.Generator().manual_seed(0)) * 0.1
    padded, tight = (
        WaveformEncoder.from_pretrained(str(whisper_folder), window=w)(waveform)[0] for w in ("padded", "tight")
    )
    torch.testing.assert_close(padded, tight)
