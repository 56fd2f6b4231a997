# SPDX-License-Identifier: Apache-2.0
"""Recognisers hear recordings of any length whole."""

import json
import math
import shutil

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from speech_tokenizers.cli import main
from speech_tokenizers.processing import speech_recognition
from speech_tokenizers.processing.speech_recognition import load_recognizer
from speech_tokenizers.processing.word_alignment import load_word_aligner


def noise(num_samples: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory) -> str:
    """An untrained Whisper that hears 30 s and writes bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[])
    names = ["<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.add_tokens([AddedToken(f"<|{0.02 * step:.2f}|>") for step in range(1501)])
    start, end, silent = map(
        tokenizer.convert_tokens_to_ids, ["<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"]
    )
    tokens = {"decoder_start_token_id": start, "eos_token_id": end, "bos_token_id": end, "pad_token_id": end}
    sizes = {f"{part}_{name}": 8 for part in ("encoder", "decoder") for name in ("ffn_dim",)}
    sizes |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=8, num_mel_bins=8, max_target_positions=32, **sizes, **tokens
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        no_timestamps_token_id=silent, max_length=12, is_multilingual=False, **tokens
    )
    folder = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=8), tokenizer).save_pretrained(folder)
    return str(folder)


def test_a_model_of_several_languages_is_told_one_that_it_knows(whisper_folder, tmp_path):
    folder = tmp_path / "several"
    shutil.copytree(whisper_folder, folder)
    fields = json.loads((folder / "generation_config.json").read_text())
    fields |= {"is_multilingual": True, "lang_to_id": {"<|en|>": 1, "<|de|>": 2}}
    (folder / "generation_config.json").write_text(json.dumps(fields))
    english, german, same = (load_recognizer(str(folder), language) for language in ("en", "de", "de"))
    assert english.key != german.key == same.key  # what one wrote is not what the other would
    assert german.generate_kwargs["language"] == "de"
    assert load_recognizer(str(folder), "German").generate_kwargs["language"] == "German"
    with pytest.raises(ValueError, match="knows no language 'xx'; it knows de, en"):
        load_recognizer(str(folder), "xx")


@pytest.mark.parametrize("seconds", [0.005, 0.02, 29.9, 30.1, 45.0])
def test_whisper_hears_a_recording_to_its_end(seconds, whisper_folder):
    recognizer = load_recognizer(whisper_folder)
    heard = []
    recognizer.model.get_encoder().register_forward_pre_hook(
        lambda module, args, kwargs: heard.append(kwargs["input_features"]), with_kwargs=True
    )
    audio = noise(round(16000 * seconds))
    assert isinstance(recognizer.transcribe(audio), str)
    whole = recognizer.features(audio, sampling_rate=16000, truncation=False, return_tensors="pt")["input_features"]
    for second in (0.0, seconds / 2, seconds - 0.01):
        step = whole[..., int(100 * second)][..., None]
        assert any((window - step).abs().amax(dim=1).min() < 1e-4 for window in heard), second


@pytest.mark.parametrize("num_samples", [1, 80, 319, 320])
def test_a_recording_shorter_than_a_frame_is_transcribed_with_silence_and_not_aligned(num_samples, ctc_folder):
    recognizer = load_recognizer(str(ctc_folder))
    audio = noise(num_samples)
    shortest = 10 + 7 * 20
    assert recognizer.logits(audio).shape[1] == max(1, (num_samples - shortest) // 320 + 1)
    assert isinstance(recognizer.transcribe(audio), str)
    aligner = load_word_aligner(str(ctc_folder))
    is_too_short = num_samples < shortest
    with pytest.raises(ValueError, match="is too short" if is_too_short else "`labels` need 3 frames"):
        aligner.align(audio, "abc")
    if not is_too_short:
        assert [word.word for word in aligner.align(audio, "a")] == ["a"]


def test_parts_of_a_long_recording_are_the_whole_of_it_and_end_where_it_is_quiet(monkeypatch):
    audio = noise(75 * 16000)
    audio[25 * 16000 : 25 * 16000 + 3200] = 0
    parts = list(speech_recognition._parts(audio))
    assert np.array_equal(np.concatenate(parts), audio)
    assert max(map(len, parts)) <= 28 * 16000
    assert 25.0 <= len(parts[0]) / 16000 <= 25.2
    assert len(parts) == math.ceil(75 / 28)
    assert [len(part) for part in speech_recognition._parts(audio[: 28 * 16000])] == [28 * 16000]


def test_a_model_that_writes_little_at_once_hears_a_long_recording_in_parts(whisper_folder, monkeypatch):
    recognizer = load_recognizer(whisper_folder)
    # A feature extractor without a window, as that of Moonshine.
    extractor = recognizer.features
    monkeypatch.setattr(recognizer, "features", lambda audio, **options: extractor(audio, **options))
    heard = []

    def generate(audio):
        heard.append(len(audio))
        return torch.tensor([[40]])

    monkeypatch.setattr(recognizer, "_generate", generate)
    monkeypatch.setattr(speech_recognition, "_WINDOW_SECONDS", 7)
    text = recognizer.transcribe(noise(20 * 16000))
    assert sum(heard) == 20 * 16000
    assert len(heard) == len(text.split()) >= 3


def test_align_names_recordings_that_are_too_short_for_their_text(ctc_folder, tmp_path, capsys):
    speech = tmp_path / "speech"
    speech.mkdir()
    for name, num_samples in (("tiny.wav", 80), ("short.wav", 320), ("long.wav", 45 * 16000)):
        soundfile.write(speech / name, noise(num_samples), 16000)
    rows = [{"file_name": path.name, "text": "abc cab"} for path in sorted(speech.glob("*.wav"))]
    (speech / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    output = tmp_path / "times.jsonl"
    assert main(["align", str(speech), "--aligner", str(ctc_folder), "-o", str(output)]) == 1
    assert [json.loads(line)["file_name"] for line in output.read_text(encoding="utf-8").splitlines()] == ["long.wav"]
    rejected = (tmp_path / "times.jsonl.rejected.jsonl").read_text(encoding="utf-8")
    assert {json.loads(line)["name"] for line in rejected.splitlines()} == {"tiny.wav", "short.wav"}
