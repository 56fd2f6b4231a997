# SPDX-License-Identifier: Apache-2.0
"""Speech language models by name: with their processor, and with the codec that they were trained with."""

import pytest
import torch

from helpers.tiny_speaking_lm import tiny_codec, tiny_speech_lm
from speech_tokenizers import load, load_speech_lm
from speech_tokenizers.coding.speech_lm_loading import load_any_causal_lm
from speech_tokenizers.evaluation.speech_lm.synthesis import load_voice
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


def save_codec(codec, folder):
    codec.save_pretrained(folder)
    RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate).save_pretrained(folder)


@pytest.fixture
def saved(tmp_path):
    """Function: a saved voice, without its codec, that names a folder as it."""

    def save(codec_name):
        model, processor = tiny_speech_lm(text_alignment="phone")
        model.config.codec_name = processor.codec_name = str(codec_name)
        model.save_pretrained(tmp_path / "voice")
        processor.save_pretrained(tmp_path / "voice")
        return tmp_path / "voice"

    return save


def test_a_codec_is_found_by_its_name(saved, tmp_path):
    save_codec(tiny_codec(), tmp_path / "named")
    model, processor = load_speech_lm(saved(tmp_path / "named"))
    assert processor.codec is model.codec
    assert model.codec.fingerprint() == tiny_codec().fingerprint()
    spoken = model.generate_speech("hi tim", processor, temperature=0)
    assert spoken.audio_values.shape[-1] == 16 * spoken.audio_codes.shape[-1]
    assert spoken.pieces[0][1:3] == ["hh", "ay"]
    voice = load_voice(str(tmp_path / "voice"))
    assert voice.codec.fingerprint() == model.codec.fingerprint()


def test_a_codec_in_the_folder_comes_first(saved, tmp_path):
    folder = saved("no-such-codec")
    save_codec(tiny_codec(), folder / "codec")
    assert load_speech_lm(folder)[0].codec.fingerprint() == tiny_codec().fingerprint()


def test_a_codec_that_is_passed_is_taken(saved, tmp_path):
    codec = tiny_codec()
    model, _ = load_speech_lm(saved("no-such-codec"), codec=codec)
    assert model.codec is codec


def test_a_codec_that_is_not_there_is_told(saved):
    with pytest.raises(ValueError, match=r"no-such-codec, cannot be loaded: .* Pass it as `codec`"):
        load_speech_lm(saved("no-such-codec"))


def test_another_codec_is_refused(saved, tmp_path):
    other = tiny_codec()
    with torch.no_grad():
        for name, buffer in other.named_buffers():
            if "codebook" in name and buffer.is_floating_point():
                buffer.add_(torch.randn_like(buffer))
    save_codec(other, tmp_path / "other")
    with pytest.raises(ValueError, match="its codes would mean other sounds"):
        load_speech_lm(saved(tmp_path / "other"))


def test_a_codec_is_no_speech_language_model(tmp_path):
    save_codec(tiny_codec(), tmp_path / "codec")
    with pytest.raises(ValueError, match="not a speech language model"):
        load_speech_lm(tmp_path / "codec")


def test_load_tells_where_voices_are_loaded(saved, tmp_path):
    save_codec(tiny_codec(), tmp_path / "named")
    folder = saved(tmp_path / "named")
    with pytest.raises(ValueError, match="load_speech_lm"):
        load(folder)


def test_any_causal_language_model_is_loaded_without_a_processor(tmp_path):
    from helpers.tiny_speaking_lm import tiny_lm

    tiny_lm().save_pretrained(tmp_path)
    model, processor = load_any_causal_lm(tmp_path)
    assert processor is None
    assert not model.training
