# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Voices as files: their prompts, their caches, and batches of several voices."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from helpers.speaking_frames import speaking
from helpers.tiny_speaking_lm import tiny_row, tiny_speech_lm
from helpers.tiny_speech_lm import bpe_tokenizer, tiny_processor
from speech_tokenizers import Voice
from speech_tokenizers.modeling.speech_lm_voices import model_fingerprint


LAYOUTS = ["flat", "delay", "continuous"]
SMALL_HEAD = {"head": "energy", "head_options": {"hidden_size": 16, "num_layers": 1}}


def speaker(layout="flat", alignment="none", **options):
    fields = SMALL_HEAD if layout == "continuous" else {}
    model, processor = tiny_speech_lm(text_alignment=alignment, layout=layout, fields=fields, **options)
    model.config.frames_per_character = [2.0, 3.0]
    return model, processor


def codes(processor, num_frames=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size, books = processor.codec.codebook_size, processor.codec.num_quantizers
    return torch.randint(size, (books, num_frames), generator=generator)


def frames(spoken, row=0):
    found = spoken.audio_codes if spoken.audio_codes is not None else spoken.audio_latents.transpose(1, 2)
    return found[row, :, : int(spoken.audio_codes_mask[row].sum())]


CACHED = [(kind, name) for kind in ("flat", "delay", "energy") for name in ("llama", "gpt2", "opt", "qwen2", "qwen3")]
CACHED += [(kind, "llama") for kind in ("mse", "gaussian", "flow")]


@pytest.mark.parametrize(("kind", "architecture"), CACHED)
def test_voice_cache_equals_prefill(kind, architecture, tmp_path):
    model, processor = speaking(kind, kind=architecture)
    model.config.frames_per_character = [2.0, 3.0]
    voice = model.make_voice("tim", processor, audio_codes=codes(processor), cache=True)
    voice.save(tmp_path / "voice.safetensors")
    voice = Voice.load(tmp_path / "voice.safetensors")
    read = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, outputs: read.append(outputs.shape[1]))
    whole = model.generate_speech("hi", processor, voice=voice.without_cache(), temperature=0)
    length, num_read = whole.sequences.shape[1], read[0]
    read.clear()
    for _ in range(2):  # the cache is as it was after a text was said
        cached = model.generate_speech("hi", processor, voice=voice, temperature=0)
        assert torch.equal(cached.sequences, whole.sequences)
        torch.testing.assert_close(frames(cached), frames(whole), atol=1e-5, rtol=0)
        torch.testing.assert_close(cached.audio_values, whole.audio_values, atol=1e-4, rtol=0)
    assert read[0] == num_read - len(voice.input_ids)
    assert voice.past[0][0].shape[2] == len(voice.input_ids) < length


@torch.no_grad()
def test_scores_behind_a_cache_are_those_of_the_whole_prompt():
    model, processor = speaker()
    voice = model.make_voice("tim", processor, audio_codes=codes(processor), cache=True)
    prompt = processor.speech_prompt("hi", voice=voice)
    inputs = processor(text=prompt, audio_codes=[voice.audio_codes])
    whole = model(input_ids=inputs["input_ids"]).logits[:, -1]
    rest = inputs["input_ids"][:, len(voice.input_ids) :]
    cached = model(input_ids=rest, past_key_values=voice.cache(model.device)).logits[:, -1]
    torch.testing.assert_close(cached, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("alignment", ["none", "word", "phone"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_are_those_of_the_whole_conversation(layout, alignment):
    model, processor = speaker(layout, alignment)
    row = tiny_row("tim")
    pieces = {"none": None, "word": row["words"], "phone": row["phones"]}[alignment]
    values = torch.tensor(row["audio_codes"]).view(row["num_quantizers"], -1)
    voice = model.make_voice("tim", processor, audio_codes=values, audio_pieces=pieces)
    learnt = processor.row_inputs(row)["input_ids"]
    assert torch.equal(voice.input_ids, learnt)  # the turn stands as in training
    spoken = model.generate_speech("hi", processor, voice=voice, temperature=0)
    asked = processor(text=processor.speech_prompt("hi"))["input_ids"][0]
    begins = [token for token in asked.tolist() if token != processor.tokenizer.bos_token_id]
    prompt = spoken.sequences[0].tolist()
    assert prompt[: len(learnt)] == learnt.tolist()
    assert prompt[len(learnt) : len(learnt) + len(begins)] == begins


def test_prompts_of_chat_models_are_those_of_the_whole_conversation():
    processor = tiny_processor(bpe_tokenizer())
    voice = Voice(
        "hello", torch.zeros(0), codes(processor), None, None, "tiny", processor.codec_fingerprint, "flat", 1
    )
    messages = [
        {"role": "user", "content": "Say the text.\nhello"},
        {"role": "assistant", "content": [{"type": "audio"}]},
        {"role": "user", "content": "Say the text.\nthere"},
    ]
    said = processor.speech_prompt("there")
    instruction = said.split("user\n")[1].split("\nthere")[0]
    for message in (messages[0], messages[2]):
        message["content"] = message["content"].replace("Say the text.", instruction)
    expected = processor.apply_chat_template(messages, add_generation_prompt=True) + "<|audio_start|>"
    assert processor.speech_prompt("there", voice=voice) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_with_voices_gives_what_single_texts_give(layout, temperature):
    model, processor = speaker(layout)
    voices = [
        model.make_voice("tim", processor, audio_codes=codes(processor), cache=True),
        None,
        model.make_voice("hi tim die", processor, audio_codes=codes(processor, 11, 1)),
    ]
    texts = ["hi", "lime die", "tim"]
    generators = [torch.Generator().manual_seed(number) for number in range(3)]
    spoken = model.generate_speech(texts, processor, voice=voices, temperature=temperature, generators=generators)
    assert spoken.audio_mask.shape == spoken.audio_values[:, 0].shape
    plain = model.generate_speech("tim", processor, temperature=0)
    for number, (text, voice) in enumerate(zip(texts, voices, strict=True)):
        alone = model.generate_speech(
            text,
            processor,
            voice=voice,
            temperature=temperature,
            generators=[torch.Generator().manual_seed(number)],
        )
        torch.testing.assert_close(frames(spoken, number), frames(alone), atol=1e-4, rtol=0)
        assert spoken.ended[number] == alone.ended[0]
    assert frames(spoken, 2).shape != frames(plain).shape or not torch.equal(frames(spoken, 2), frames(plain))


def test_a_stream_in_a_voice_equals_the_whole():
    model, processor = speaker(causal=True)
    voice = model.make_voice("tim", processor, audio=torch.rand(160) - 0.5, cache=True)
    assert voice.num_frames == 10
    whole = model.generate_speech("hi", processor, voice=voice, temperature=0)
    chunks = [chunk.audio_values for chunk in model.stream_speech("hi", processor, voice=voice, temperature=0)]
    torch.testing.assert_close(torch.cat(chunks, dim=-1), whole.audio_values, atol=1e-5, rtol=0)


def test_a_voice_comes_back_as_it_was_saved(tmp_path):
    model, processor = speaker("continuous", "word")
    latents = torch.rand(5, processor.latent_dim)
    words = [{"word": "tim", "start": 0.0, "end": 0.1}]
    voice = model.make_voice("tim", processor, audio_latents=latents, audio_pieces=words, cache=True)
    voice.save(tmp_path / "voice.safetensors")
    again = Voice.load(tmp_path / "voice.safetensors")
    for field in dataclasses.fields(Voice):
        before, after = getattr(voice, field.name), getattr(again, field.name)
        if field.name == "past":
            assert all(
                torch.equal(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)
            )
        else:
            assert torch.equal(before, after) if torch.is_tensor(before) else before == after
    assert [path.name for path in tmp_path.iterdir()] == ["voice.safetensors"]


# --- Bad input ---


def test_a_truncated_or_foreign_file_is_told(tmp_path):
    model, processor = speaker()
    path = tmp_path / "voice.safetensors"
    model.make_voice("tim", processor, audio_codes=codes(processor), cache=True).save(path)
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="no whole safetensors file.*cut short"):
            Voice.load(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is no voice of version 1, but 'another safetensors file'"):
        Voice.load(path)
    with pytest.raises(FileNotFoundError, match="`make-voice` makes a voice"):
        Voice.load(tmp_path / "missing.safetensors")
    save_file({"a": torch.zeros(2)}, path, {"format": "speech-tokenizers voice", "version": "1", "voice": "{}"})
    with pytest.raises(ValueError, match="is a damaged voice"):
        Voice.load(path)


def test_a_voice_of_another_codec_or_of_other_weights_is_told():
    model, processor = speaker()
    voice = model.make_voice("tim", processor, audio_codes=codes(processor), cache=True)
    with pytest.raises(ValueError, match="The voice is of the codec 'tiny-codec', fingerprint other"):
        model.generate_speech("hi", processor, voice=dataclasses.replace(voice, codec_fingerprint="other"))
    before = model_fingerprint(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[9] += 1
    assert model_fingerprint(model) != before
    with pytest.raises(ValueError, match="a cache of other weights.*without_cache"):
        model.generate_speech("hi", processor, voice=voice)
    assert model.generate_speech("hi", processor, voice=voice.without_cache()).ended.shape == (1,)
    model.to(torch.bfloat16)
    half = dataclasses.replace(voice, model_fingerprint=model_fingerprint(model))
    with pytest.raises(ValueError, match="a cache in torch.float32, but the model is in torch.bfloat16"):
        model.generate_speech("hi", processor, voice=half)


def test_a_cache_of_other_prompts_is_told():
    model, processor = speaker()
    voice = model.make_voice("tim", processor, audio_codes=codes(processor), cache=True)
    with pytest.raises(ValueError, match="a cache of other ids"):
        model.generate_speech("hi", processor, voice=dataclasses.replace(voice, text="die"))


def test_what_makes_no_voice_is_told():
    model, processor = speaker(max_position_embeddings=48)
    values = codes(processor)
    for given, message in (
        ({"audio_codes": values[:, :0]}, "at least one frame"),
        ({"audio": torch.zeros(0)}, "empty"),
        ({}, "one of `audio`, `audio_codes` and `audio_latents`, but none"),
        ({"audio": torch.zeros(99), "audio_codes": values}, "but `audio` and `audio_codes`"),
        ({"audio_latents": torch.zeros(3, 8)}, "need `layout='continuous'`"),
        ({"audio_codes": values + 99}, "they are of another codec, or padded"),
        ({"audio_codes": codes(processor, 40)}, "but the model has 48; take a shorter recording"),
    ):
        with pytest.raises(ValueError, match=message):
            model.make_voice("tim", processor, **given)
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        model.make_voice("tim \ud83d", processor, audio_codes=values)
    with pytest.raises(ValueError, match="one a text \\(2\\), but has 1"):
        model.generate_speech(["hi", "tim"], processor, voice=[None])
    with pytest.raises(TypeError, match="must be a `Voice`.*but is str"):
        model.generate_speech("hi", processor, voice="voice.safetensors")
    model, processor = speaker(kind="gemma3_text")
    with pytest.raises(ValueError, match="as with sliding windows; make the voice without `cache`"):
        model.make_voice("tim", processor, audio_codes=values, cache=True)


def test_a_voice_with_latents_serves_the_continuous_layout_alone():
    model, processor = speaker("continuous")
    voice = model.make_voice("tim", processor, audio_latents=torch.rand(5, processor.latent_dim))
    flat, its_processor = speaker()
    with pytest.raises(ValueError, match="has latents, but the model's layout, 'flat', needs codes"):
        flat.generate_speech("hi", its_processor, voice=voice)
