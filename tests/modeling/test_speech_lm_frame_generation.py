# SPDX-License-Identifier: Apache-2.0
"""What models of the layouts with frames write: batches, draws, limits, guidance."""

import math
import types

import pytest
import torch
from transformers import LogitsProcessorList

from helpers.speaking_frames import EVERY_KIND, HEADS, KINDS, batch_of, layout_of, rows_of, speaking, wake, written
from helpers.tiny_speaking_lm import ARCHITECTURES, tiny_speech_lm
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


class RandomStates:
    """Stands for a language model of which nothing is known: any states and any scores."""

    def __init__(self, model, scale):
        self.model, self.scale = model, scale

    def __call__(self, input_ids, **kwargs):
        sizes = self.model.language_model.get_output_embeddings().weight.shape
        states = self.scale * torch.randn(len(input_ids), 1, sizes[1])
        logits = self.scale * torch.randn(len(input_ids), 1, sizes[0])
        return types.SimpleNamespace(logits=logits, frame_states=states, past_key_values=None)


@pytest.mark.parametrize("alignment", ["none", "phone"])
@pytest.mark.parametrize("head", sorted(HEADS))
def test_random_states_never_give_an_invalid_frame(head, alignment):
    model, _ = speaking(head, alignment)
    wake(model)
    ids = model.config.written_ids
    prompts = torch.full((8, 1), ids.audio_start)
    inputs = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}
    limits = [1, 2, 3, 5, 8, 13, 13, 13]
    for seed in range(25):
        torch.manual_seed(seed)
        writer = LatentWriter(model)
        states = RandomStates(model, scale=(0.1, 1.0, 30.0)[seed % 3])
        processors = LogitsProcessorList([AudioOnly(ids), RowSampling(1.0)])
        *_, writing = write_ids(states, inputs, writer, processors, 14, [ids.audio_end], codes=ids, max_codes=limits)
        clips, answers = writer.clips(8), writing.ids[:, 1:]
        mask = clips["audio_codes_mask"].bool()
        assert torch.equal(mask.sum(1), ids.is_unit(answers).sum(1))
        assert (mask.sum(1) <= torch.tensor(limits)).all()
        assert torch.equal(mask.long(), mask.long().sort(dim=1, descending=True).values)
        assert clips["audio_latents"].isfinite().all()
        assert (clips["audio_latents"][~mask] == 0).all()
        assert (clips["audio_latents"][mask] != 0).any(-1).all()
        # Frames, then the end and nothing else.
        frames_first = ids.is_unit(answers).long()
        assert torch.equal(frames_first, frames_first.sort(dim=1, descending=True).values)
        assert (ids.is_unit(answers) | (answers == ids.audio_end)).all()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_reading_a_text_twice_gives_the_same(kind):
    model, processor = speaking(kind)

    def said(seed=None):
        draws = None if seed is None else [torch.Generator().manual_seed(seed)]
        spoken = model.generate_speech(
            "hi tim", processor, temperature=float(seed is not None), generators=draws, min_frames=6, max_frames=9
        )
        return written(spoken)

    for seed in (None, 0):
        first = said(seed)
        torch.rand(3)  # nothing depends on the global generator
        assert torch.equal(said(seed), first)
    if kind != "mse":  # which draws nothing
        assert said(0).shape != said(1).shape or not torch.equal(said(0), said(1))


# --- The loop, and the one that anyone would write ---


@torch.no_grad()
def read_again_and_again(model, ids, num_frames):
    """The likeliest frames behind a prompt, by reading all of it at each step: without cache, padding or a batch."""
    frames, config = model.frames, model.config
    written, num_given = [], ids.shape[1]
    end = None
    while end is None or len(written) < end + max(config.codebook_delays):
        mask = torch.tensor([[0] * num_given + [1] * len(written)])
        read = torch.where(mask == 1, config.audio_token_id, torch.nn.functional.pad(ids, (0, len(written))))
        if config.layout == "delay":
            grid = torch.full((1, config.num_codebooks, read.shape[1]), -1)
            if written:
                grid[0, :, num_given:] = torch.stack(written, dim=1)
            scores = model(input_ids=read, audio_codes=grid).audio_logits[0, -1]
            scores[:, config.codebook_size] = -torch.inf
            if end is None and (len(written) == num_frames or scores[0].argmax() == config.codebook_size + 1):
                end = len(written)
                continue
            column = scores[:, : config.codebook_size].argmax(-1)
            for codebook, late in enumerate(config.codebook_delays):
                if len(written) < late:
                    column[codebook] = config.codebook_size
                elif end is not None and len(written) - late >= end:
                    column[codebook] = config.codebook_size + 1
            written.append(column)
        else:
            latents = torch.zeros(1, read.shape[1], config.latent_dim)
            if written:
                latents[0, num_given:] = torch.stack(written)
            state = model(input_ids=read, audio_latents=latents, audio_mask=mask).frame_states[:, -1]
            if len(written) == num_frames or float(frames.stop_head(state)) > math.log(frames.stop_head.pos_weight):
                end = len(written)
                continue
            written.append(frames.statistics.denormalize(frames.head.sample(state, temperature=0.0))[0])
    columns = torch.stack(written, dim=1)
    return torch.stack(
        [row[late : late + end] for row, late in zip(columns, config.codebook_delays, strict=False)]
        if config.layout == "delay"
        else list(columns)
    )


LOOPS = [(kind, name) for kind in ("delay", "flow") for name in sorted(ARCHITECTURES)]
LOOPS += [(kind, "llama") for kind in KINDS if kind not in ("delay", "flow")]


@pytest.mark.parametrize(("kind", "architecture"), LOOPS)
def test_custom_loop_equals_reading_all_again(kind, architecture):
    model, processor = speaking(kind, kind=architecture)
    wake(model)
    if kind != "delay":
        with torch.no_grad():
            model.frames.stop_head.projection.bias.fill_(-4.0)  # some frames come
    texts = ("hi tim die", "die")
    prompts = [processor.speech_prompt(text) for text in texts]
    late = max(model.config.codebook_delays)
    found = model.generate(
        **processor(text=prompts, padding_side="left"),
        max_new_tokens=8 + late,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert int(found.audio_codes_mask.sum()) > 0
    for row, prompt in enumerate(prompts):
        expected = read_again_and_again(model, processor(text=prompt)["input_ids"], 8)
        if layout_of(kind) == "continuous":
            torch.testing.assert_close(written(found, row), expected, atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(written(found, row), expected)


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


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_random_weights_say_each_word_once_in_order_and_end(kind):
    model, processor = speaking(kind, "word")
    model.config.frames_per_character = [1.0, 2.0]
    for seed in range(3):
        draws = [torch.Generator().manual_seed(seed + n) for n in (0, 9)]
        spoken = model.generate_speech(["tim die hi", "hi"], processor, generators=draws)
        assert spoken.ended.all()
        for times, words in zip(spoken.word_times, (["tim", "die", "hi"], ["hi"]), strict=True):
            assert [word for word, _, _ in times] == words
            starts, ends = [start for _, start, _ in times], [end for _, _, end in times]
            assert starts[0] == 0
            assert starts[1:] == pytest.approx(ends[:-1])
            for word, start, end in times:
                assert 0.5 < (end - start) * 50 < 2 * len(word) + 0.5
        assert int(spoken.audio_codes_mask[0].sum()) == round(spoken.word_times[0][-1][2] * 50)


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
