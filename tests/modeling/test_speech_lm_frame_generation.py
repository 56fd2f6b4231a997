# SPDX-License-Identifier: Apache-2.0
"""What models of the layouts with frames write: batches, draws, limits, guidance."""

import math
import types

import pytest
import torch
from transformers import LogitsProcessorList

from helpers.speaking_frames import KINDS, batch_of, rows_of, speaking, written
from helpers.tiny_speaking_lm import tiny_speech_lm
from speech_tokenizers.modeling.audio_logits import AudioOnly, RowSampling
from speech_tokenizers.modeling.configuration_speech_lm import SpeechLMConfig
from speech_tokenizers.modeling.speech_lm_layouts import delay_legal_mask, from_delay_grid, to_delay_grid
from speech_tokenizers.modeling.speech_lm_writers import DelayWriter, LatentWriter, write_ids


@pytest.mark.parametrize("alignment", ["none", "phone"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_single_texts_give(kind, alignment):
    model, processor = speaking(kind, alignment)
    texts = ["hi tim", "die", "lime lime hi"]
    for temperature in (0.0, 1.0):

        def generators(chosen, temperature=temperature):
            return [torch.Generator().manual_seed(number) for number in chosen] if temperature else None

        options = {"temperature": temperature, "max_frames": 9}
        spoken = model.generate_speech(texts, processor, generators=generators(range(3)), **options)
        for number, text in enumerate(texts):
            alone = model.generate_speech(text, processor, generators=generators([number]), **options)
            if kind == "delay":
                assert torch.equal(written(spoken, number), written(alone))
            else:
                torch.testing.assert_close(written(spoken, number), written(alone), atol=1e-4, rtol=1e-4)
            assert spoken.ended[number] == alone.ended[0]


@pytest.mark.parametrize("delays", [[0], [0, 1, 2], [0, 0, 1], [0, 3, 1], [0, 0, 0]], ids=str)
def test_random_scores_never_give_an_invalid_frame(delays):
    size = 4
    config = SpeechLMConfig(layout="delay", num_codebooks=len(delays), codebook_size=size, delays=delays)
    model = types.SimpleNamespace(config=config, device=torch.device("cpu"))
    prompts = torch.full((8, 1), config.audio_start_token_id)
    inputs = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}

    class RandomModel:
        def __call__(self, input_ids, **kwargs):
            rows = config.text_config.vocab_size
            return types.SimpleNamespace(
                logits=torch.randn(len(input_ids), 1, rows),
                audio_logits=torch.randn(len(input_ids), 1, len(delays), size + 2),
                past_key_values=None,
            )

    for seed in range(25):
        torch.manual_seed(seed)
        sampling = RowSampling(1.0)
        writer = DelayWriter(model, sampling)
        processors = LogitsProcessorList([AudioOnly(config.written_ids), sampling])
        limits = [1, 2, 3, 5, 8, 13, 13, 13]
        *_, writing = write_ids(
            RandomModel(),
            inputs,
            writer,
            processors,
            14,
            [config.audio_end_token_id],
            codes=config.written_ids,
            max_codes=limits,
        )
        chosen = config.written_ids.is_unit(writing.ids).sum(1)  # frames of the first codebook
        clips = writer.clips(8)
        assert torch.equal(clips["audio_codes_mask"].sum(1), chosen)
        assert (chosen <= torch.tensor(limits)).all()
        for row in range(8):
            length = int(chosen[row])
            codes = clips["audio_codes"][row : row + 1, :, :length]
            assert codes.numel() == 0 or int(codes.max()) < size
            columns = torch.stack(writer.columns, dim=2)[row]
            grid = columns[:, columns[0] >= 0]
            whole = to_delay_grid(codes, torch.tensor([length]), delays, size)[0]
            assert torch.equal(whole[:, : grid.shape[1]], grid)
            for width in range(grid.shape[1]):
                legal = delay_legal_mask(grid[None, :, :width], delays, size)[0]
                is_legal = legal.gather(1, grid[:, width : width + 1])[:, 0]
                # The mask draws a second codebook without a delay beside the end; the writer knows it, and ends both.
                known_end = torch.tensor(
                    [late == 0 and width == length and book > 0 for book, late in enumerate(delays)]
                )
                assert (is_legal | known_end).all()
            assert torch.equal(from_delay_grid(grid[None], delays, size)[0], codes)


@pytest.mark.parametrize("kind", ["delay", "mse"])
def test_generate_writes_what_generate_speech_writes(kind):
    model, processor = speaking(kind)
    inputs = processor(text=[processor.speech_prompt(text) for text in ("hi tim", "die")], padding_side="left")
    options = {"do_sample": False, "return_dict_in_generate": True}
    late = 2 if kind == "delay" else 0
    found = model.generate(**inputs, max_new_tokens=8 + late, **options)
    spoken = model.generate_speech(["hi tim", "die"], processor, temperature=0, max_frames=8)
    name = "audio_codes" if kind == "delay" else "audio_latents"
    assert torch.equal(found.audio_codes_mask, spoken.audio_codes_mask)
    torch.testing.assert_close(found[name], spoken[name])
    plain = model.generate(**inputs, max_new_tokens=8 + late, do_sample=False)
    assert torch.equal(plain, found.sequences)
    assert plain.shape[1] <= inputs["input_ids"].shape[1] + 8 + late
    assert torch.equal(plain[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    with pytest.raises(ValueError, match="not searched over beams"):
        model.generate(**inputs, max_new_tokens=8, num_beams=2)


@pytest.mark.parametrize("kind", ["delay", "mse"])
def test_generate_draws_and_refuses_what_it_does_not_take(kind):
    model, processor = speaking(kind)
    prompts = [processor.speech_prompt(text) for text in ("hi tim", "die")]
    both, alone = processor(text=prompts, padding_side="left"), processor(text=prompts[1:])
    options = {"max_new_tokens": 9, "do_sample": True, "return_dict_in_generate": True}
    name = "audio_codes" if kind == "delay" else "audio_latents"

    def draws(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    several = model.generate(**both, generators=draws(0, 1), **options)
    single = model.generate(**alone, generators=draws(1), **options)
    length = int(single.audio_codes_mask.sum())
    assert int(several.audio_codes_mask[1].sum()) == length
    time = -1 if kind == "delay" else 1
    torch.testing.assert_close(several[name][1:].narrow(time, 0, length), single[name], atol=1e-4, rtol=1e-4)
    if kind == "delay":
        likeliest = model.generate(**alone, max_new_tokens=9, do_sample=False, return_dict_in_generate=True)
        assert torch.equal(model.generate(**alone, top_k=1, **options).audio_codes, likeliest.audio_codes)
    with pytest.raises(ValueError, match="one a row \\(2\\), but has 1"):
        model.generate(**both, generators=draws(0), **options)
    with pytest.raises(ValueError, match="`min_p` is 0.5, but frames are drawn"):
        model.generate(**both, min_p=0.5, **options)
    with pytest.raises(ValueError, match="`cfg_scale`"):
        model.generate(**both, cfg_scale=2.0, **options)
    with pytest.raises(ValueError, match="use `stream_speech`"):
        model.generate(**both, streamer=object(), **options)
    with pytest.raises(ValueError, match="does not stop frames"):
        model.generate(**both, max_time=1.0, **options)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_is_late_stays_within_the_context(kind):
    size = {"n_positions": 40} if kind == "gpt2" else {"max_position_embeddings": 40}
    model, processor = tiny_speech_lm(kind, layout="delay", num_quantizers=3, **size)
    spoken = model.generate_speech("hi", processor, temperature=1.0, max_frames=200)
    assert spoken.sequences.shape[1] <= 40
    inputs = processor(text=processor.speech_prompt("hi"))
    assert model.generate(**inputs, max_length=40, do_sample=False).shape[1] <= 40
    with pytest.raises(ValueError, match="at least 3 new ones are needed"):
        model.generate(**inputs, max_new_tokens=2)


def test_a_prompt_that_ends_within_a_clip_is_refused():
    model, processor = speaking("delay")
    batch = batch_of(processor, rows_of(processor)[:1])
    start = int((batch["input_ids"][0] == processor.speech_ids.audio_start).nonzero()[-1])
    cut = {name: batch[name][..., : start + 4] for name in ("input_ids", "attention_mask", "audio_codes")}
    with pytest.raises(ValueError, match="ends within a clip"):
        model.generate(**cut, max_new_tokens=8)


def test_the_end_has_the_probability_that_its_loss_taught():
    # At a weight w of ends, the loss is least at the logit of the true probability plus log w.
    model, processor = speaking("mse", fields={"stop_pos_weight": 8.0})
    with torch.no_grad():
        model.frames.stop_head.projection.weight.zero_()
        model.frames.stop_head.projection.bias.fill_(math.log(8.0) + math.log(0.05 / 0.95))
    writer = LatentWriter(model)
    outputs = model(**processor(text=processor.speech_prompt("hi")))
    scores = writer.scores(outputs, torch.ones(1, dtype=torch.bool))
    assert float(scores[0, writer.end].exp()) == pytest.approx(0.05, rel=1e-4)


def test_statistics_stay_in_single_precision():
    model, _ = speaking("mse")
    model.frames.set_statistics(torch.full((8,), 3.14159), torch.full((8,), 2.71828))
    for dtype in (torch.bfloat16, torch.float16):
        model.to(dtype)
        assert model.frames.head.network.weight.dtype == dtype
        assert torch.equal(model.frames.statistics.mean, torch.full((8,), 3.14159))
        assert torch.equal(model.frames.statistics.variance, torch.full((8,), 2.71828))


@pytest.mark.parametrize("kind", KINDS)
def test_random_weights_say_each_phone_once_in_order_and_end(kind):
    model, processor = speaking(kind, "phone")
    model.set_piece_frames([[1, 4]] * len(model.config.piece_labels))
    for seed in range(3):
        draws = [torch.Generator().manual_seed(seed + n) for n in (0, 9)]
        spoken = model.generate_speech(["tim die", "hi"], processor, generators=draws)
        assert spoken.ended.all()
        assert spoken.pieces[0] == ["pau", "t", "ay", "m", "d", "ay", "pau"]
        lengths = spoken.piece_times[0].diff(dim=-1).flatten() * 50
        assert ((lengths > 0.5) & (lengths < 4.5)).all()
        assert spoken.audio_codes_mask[0].sum() == round(float(lengths.sum()))
    spoken = model.generate_speech("hi", processor, durations=[[2, 3, 1, 2]])
    assert (spoken.piece_times[0].diff(dim=-1).flatten() * 50).round().tolist() == [2, 3, 1, 2]
    assert int(spoken.audio_codes_mask.sum()) == 8


def test_guidance_reads_the_text_and_goes_without():
    model, processor = speaking("mse", "phone", fields={"condition_dropout": 0.5})
    plain = model.generate_speech(["hi tim", "die"], processor, temperature=0, max_frames=6)
    guided = model.generate_speech(["hi tim", "die"], processor, temperature=0, max_frames=6, cfg_scale=3.0)
    alone = model.generate_speech("die", processor, temperature=0, max_frames=6, cfg_scale=3.0)
    torch.testing.assert_close(written(guided, 1), written(alone), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(written(plain, 1)[:, 0], written(guided, 1)[:, 0])
    # At a scale of 0 nothing depends on the text but how long its pieces last.
    options = {"temperature": 0, "durations": [[2, 3, 1, 2]]}
    none = [model.generate_speech(text, processor, cfg_scale=0.0, **options) for text in ("hi", "die")]
    torch.testing.assert_close(written(none[0]), written(none[1]), atol=1e-5, rtol=1e-5)
    some = [model.generate_speech(text, processor, cfg_scale=0.1, **options) for text in ("hi", "die")]
    assert not torch.allclose(written(some[0]), written(some[1]), atol=1e-4)
    model, processor = speaking("mse")
    with pytest.raises(ValueError, match="never learnt to speak without its text"):
        model.generate_speech("hi", processor, cfg_scale=2.0)
    model, processor = speaking("delay")
    with pytest.raises(ValueError, match="belong to the continuous layout"):
        model.generate_speech("hi", processor, cfg_scale=2.0)
