# SPDX-License-Identifier: Apache-2.0
"""Truths about the layouts with frames: the delay grid and continuous latents, with all heads."""

import math
import types

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel, LogitsProcessorList

from helpers.tiny_speaking_lm import tiny_codec, tiny_lm, tiny_processor, tiny_row, tiny_speech_lm
from speech_tokenizers.modeling.audio_logits import AudioOnly, RowSampling
from speech_tokenizers.modeling.configuration_latent_lm import LatentLMConfig
from speech_tokenizers.modeling.configuration_speech_lm import SpeechLMConfig
from speech_tokenizers.modeling.modeling_latent_lm import LatentLanguageModel
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.speech_lm_frames import CodeFrames, LatentFrames
from speech_tokenizers.modeling.speech_lm_layouts import (
    delay_labels,
    from_delay_grid,
    sequence_length,
    to_continuous,
    to_delay_grid,
)
from speech_tokenizers.modeling.speech_lm_sequences import pad_sequences
from speech_tokenizers.modeling.speech_lm_writers import DelayWriter, LatentWriter, write_ids


HEADS = {
    "mse": {},
    "gaussian": {"num_layers": 1, "hidden_size": 24},
    "flow": {"num_layers": 1, "hidden_size": 24, "num_steps": 4},
    "energy": {"num_layers": 1, "hidden_size": 24, "noise_dim": 8},
}
# Each layout, the continuous one with each head.
KINDS = ["delay", *HEADS]


def speaking(kind, alignment="none", **changes):
    """A model and its processor: the delay layout of three codebooks, or the continuous one with a head."""
    if kind == "delay":
        return tiny_speech_lm(layout="delay", text_alignment=alignment, num_quantizers=3, **changes)
    fields = {"head": kind, "head_options": HEADS[kind], **changes.pop("fields", {})}
    model, processor = tiny_speech_lm(layout="continuous", text_alignment=alignment, fields=fields, **changes)
    latents = processor.codec.dequantize(torch.randint(16, (1, 2, 200), generator=torch.Generator().manual_seed(0)))[0]
    model.frames.set_statistics(latents.mean(0), latents.var(0))
    return model, processor


def rows_of(processor, texts=("hi tim", "die")):
    sizes = zip(texts, (7, 5, 6), strict=False)
    return [tiny_row(text, seed, size, processor.codec) for seed, (text, size) in enumerate(sizes)]


def batch_of(processor, rows, side="right", task="tts"):
    return pad_sequences([processor.row_inputs(row, task) for row in rows], processor.pad_token_id, side)


def written(spoken, row=0):
    """What a model said in a row: codes `(num_codebooks, num_frames)` or latents `(latent_dim, num_frames)`."""
    frames = spoken.audio_codes if spoken.audio_codes is not None else spoken.audio_latents.transpose(1, 2)
    return frames[row, :, : int(spoken.audio_codes_mask[row].sum())]


# --- Targets ---


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("alignment", ["none", "phone"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_condition_reads_its_own_target(kind, alignment, side):
    model, processor = speaking(kind, alignment)
    if kind != "delay":
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.frames.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))  # some begin at zero, where no gradient comes from
    batch = batch_of(processor, rows_of(processor), side)
    read = []

    def keep(module, args, kwargs):
        kwargs["inputs_embeds"].retain_grad()
        read.append(kwargs["inputs_embeds"])

    model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    for row in range(2):
        for kind_of_target in range(batch["labels"].shape[1]):
            targets = batch["labels"][row, kind_of_target].ne(-100).nonzero()[:, 0].tolist()
            for position in {targets[0], targets[len(targets) // 2], targets[-1]}:
                labels = torch.full_like(batch["labels"], -100)
                labels[row, kind_of_target, position] = batch["labels"][row, kind_of_target, position]
                model(**{**batch, "labels": labels}).loss.backward()
                moved = read.pop().grad[row].abs().sum(-1) > 0
                assert not moved[position:].any()
                assert moved[position - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_before_a_frame_does_not_change_with_it(kind):
    model, processor = speaking(kind)
    batch = batch_of(processor, rows_of(processor))
    del batch["labels"]
    name = "audio_codes" if kind == "delay" else "audio_latents"
    position = int(model.config.speech_ids.is_unit(batch["input_ids"])[0].nonzero()[3])
    changed = {**batch, name: batch[name].clone()}
    place = (0, slice(None), position) if kind == "delay" else (0, position)
    changed[name][place] = (changed[name][place] + 1) % 16
    for field in ("logits", "audio_logits" if kind == "delay" else "frame_states"):
        before, after = model(**batch)[field], model(**changed)[field]
        assert torch.equal(before[:, :position], after[:, :position])
        assert torch.equal(before[1], after[1])
        assert not torch.allclose(before[0, position], after[0, position], atol=1e-6)


def test_the_loss_of_a_perfect_oracle_is_zero():
    grid = to_delay_grid(torch.randint(5, (2, 3, 6)), torch.tensor([6, 4]), [0, 1, 2], 5)
    labels = delay_labels(grid, 5)
    oracle = torch.zeros(2, grid.shape[2], 3, 7)
    oracle[:, :-1].scatter_(3, grid.transpose(1, 2)[:, 1:, :, None], 100.0)
    frames = CodeFrames(3, 5, 4, 21)
    with torch.no_grad():
        frames.head.weight.copy_(torch.eye(21))
    losses = frames.entropies(oracle.flatten(2), labels)
    assert float(losses.max()) < 1e-6
    late = frames.entropies(oracle.flatten(2).roll(1, 1), labels)
    assert float(late.sum(1).max()) > 10

    config = SpeechLMConfig(layout="continuous", latent_dim=4, head="mse")
    latents, _, stops = to_continuous([torch.randn(5, 4), torch.randn(3, 4)])
    frames = LatentFrames(config, 4, 4)
    with torch.no_grad():
        frames.head.network.weight.copy_(torch.eye(4))
        frames.head.network.bias.zero_()
    assert float(frames.losses(latents.roll(-1, 1), latents, stops)[0]) < 1e-12
    assert float(frames.losses(latents, latents, stops)[0]) > 0.1


def test_first_eos_of_every_codebook_is_a_target_and_bos_is_none():
    _, processor = speaking("delay", "phone")
    rows = rows_of(processor)
    labels = batch_of(processor, rows)["labels"]
    for row, told in zip(rows, labels, strict=True):
        for codebook in told[1:]:
            kept = codebook[codebook != -100]
            assert kept[-1] == 17  # EOS
            assert len(kept) == row["num_frames"] + 1
            assert (kept[:-1] < 16).all()


def test_shifting_by_hand_is_refused():
    model, processor = speaking("delay")
    batch = batch_of(processor, rows_of(processor))
    shifted = torch.full_like(batch["labels"], -100)
    shifted[..., :-1] = batch["labels"][..., 1:]
    with pytest.raises(ValueError, match="shifted by hand by one"):
        model(**{**batch, "labels": shifted})
    codes_alone = batch["labels"].clone()
    codes_alone[:, 1:] = shifted[:, 1:]
    with pytest.raises(ValueError, match="label of codebook 0 .* shifted by hand by one"):
        model(**{**batch, "labels": codes_alone})


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_over_all_targets_of_a_step(kind):
    # As `Trainer` counts them, over micro-batches of different lengths. Noise differs from batch to batch.
    model, processor = speaking(kind, "phone")
    rows = rows_of(processor)
    whole = batch_of(processor, rows)
    number = int(whole["labels"][..., 1:].ne(-100).sum())
    parts = [model(**batch_of(processor, [row]), num_items_in_batch=number).loss for row in rows]
    if kind in ("delay", "mse", "gaussian"):
        torch.testing.assert_close(sum(parts), model(**whole).loss)
    assert float(model(**whole).loss) == pytest.approx(float(sum(parts)), rel=0.2)


def test_the_weight_of_a_codebook_counts_in_the_loss_alone():
    plain, processor = speaking("delay")
    batch = batch_of(processor, rows_of(processor))
    first = plain(**batch)
    plain.config.codebook_weights = [1.0, 0.0, 0.0]
    second = plain(**batch)
    torch.testing.assert_close(first.codebook_losses, second.codebook_losses)
    text = second.target_losses[:, 0].sum()
    number = (batch["labels"][..., 1:] != -100).sum()
    torch.testing.assert_close(second.loss.detach() * number, text + second.target_losses[:, 1].sum())
    scores, counts = plain.score(**batch)
    torch.testing.assert_close(scores.sum(), -first.target_losses.sum())
    assert int(counts.sum()) == int(number)


# --- Parity ---


@pytest.mark.parametrize("head", sorted(HEADS))
def test_the_latent_language_model_is_the_case_without_text(head):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    options = {"head": head, "head_options": HEADS[head], "stop_pos_weight": 10.0}
    text = {"model_type": "llama", "vocab_size": 1, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    old = LatentLanguageModel(LatentLMConfig(text_config=text | sizes, latent_dim=8, **options)).eval()
    with torch.no_grad():
        for parameter in old.head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # some begin at zero
    old.set_statistics(torch.randn(8), torch.rand(8) + 0.5)
    new, processor = tiny_speech_lm(layout="continuous", fields=options, tied=False)
    weights = {f"language_model.model.{name}": part for name, part in old.language_model.state_dict().items()}
    weights |= {f"frames.{name}": part for name, part in old.state_dict().items() if not name.startswith("language")}
    weights = {name.replace("latent_input.", "input."): part for name, part in weights.items()}
    begin = weights.pop("frames.input.begin")
    del weights["language_model.model.embed_tokens.weight"]
    missing, unexpected = new.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) == {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
    ids = new.config.speech_ids
    with torch.no_grad():
        new.get_input_embeddings().weight[ids.audio_start] = old.latent_input.projection(begin)
    clips = [torch.randn(7, 8), torch.randn(4, 8)]
    latents, mask, stops = to_continuous(clips)
    input_ids = torch.where(mask == 1, processor.audio_token_id, torch.where(stops == 1, ids.audio_end, 0))
    input_ids[:, 0] = ids.audio_start
    labels = torch.stack([torch.full_like(stops, -100), stops], dim=1)
    # The same positions, so that the noise is the same.
    told = new(input_ids=input_ids, audio_latents=latents, labels=labels)
    expected = old(latents[:, 1:-1], latents_mask=mask[:, 1:-1], ended=torch.tensor([True, True]))
    torch.testing.assert_close(told.audio_loss, expected.prediction_loss.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(told.stop_loss, expected.stop_loss.detach(), atol=1e-6, rtol=1e-6)
    states = new(input_ids=input_ids, audio_latents=latents).frame_states[:, :-1]
    torch.testing.assert_close(states[0], expected.hidden_states[0], atol=1e-5, rtol=1e-5)
    # And the same frames, by the same draws.
    new.generation_config.eos_token_id = None
    drawn = new.generate(
        input_ids[:1, :4],
        audio_latents=latents[:1, :4],
        max_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([no_end(ids.audio_end)]),
    )
    frames, _ = old.generate_latents(latents[:1, 1:4], max_frames=6, temperature=0.0, stop_threshold=None)
    torch.testing.assert_close(drawn.audio_latents, frames, atol=1e-4, rtol=1e-4)


def no_end(end):
    def forbid(ids, scores):
        return scores.index_fill(1, torch.tensor([end]), -torch.inf)

    return forbid


@pytest.mark.parametrize("alignment", ["none", "phone"])
@pytest.mark.parametrize("kind", ["delay", "mse"])
def test_sequences_are_as_long_as_is_told(kind, alignment):
    _, processor = speaking(kind, alignment)
    row = rows_of(processor)[0]
    ids = processor.row_inputs(row)["input_ids"]
    speech = ids[int((ids == processor.speech_ids.audio_start).nonzero()[-1]) : -1]
    pieces = len(row["phones"]) if alignment == "phone" else 0
    told = sequence_length(row["num_frames"], processor.num_codebooks, processor.layout, pieces)
    assert len(speech) == told


# --- Learning ---


def train(model, batch, steps, rate=1e-2):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    model.eval()


@pytest.mark.parametrize("alignment", ["none", "phone"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_is_overfitted_and_ends_by_itself(kind, alignment):
    torch.manual_seed(0)
    model, processor = speaking(kind, alignment)
    rows = rows_of(processor)
    train(model, batch_of(processor, rows), 150 if kind == "delay" else 250)
    texts = [row["text"] for row in rows]
    spoken = model.generate_speech(texts, processor, temperature=0)
    assert spoken.ended.all()
    for number, row in enumerate(rows):
        alone = model.generate_speech(row["text"], processor, temperature=0)
        assert int(alone.audio_mask.sum()) == row["num_frames"] * 16
        codes = torch.tensor(row["audio_codes"]).reshape(processor.codec.num_quantizers, -1)
        if kind == "delay":
            assert torch.equal(written(spoken, number), codes)
            assert torch.equal(written(alone), codes)
        else:
            latents = processor.codec.dequantize(codes[None])[0].T
            error = (written(spoken, number) - latents).square().mean() / latents.var()
            assert float(error) < {"mse": 0.02, "gaussian": 0.1, "flow": 0.3, "energy": 0.3}[kind]
            torch.testing.assert_close(written(spoken, number), written(alone), atol=1e-4, rtol=1e-4)
    if alignment == "phone":
        assert spoken.pieces[0] == ["pau", "hh", "ay", "t", "ay", "m", "pau"]
        assert spoken.piece_times[0][-1, 1] == pytest.approx(7 / 50)


@pytest.mark.parametrize("kind", ["delay", "mse"])
def test_speech_is_read_and_text_is_written(kind):
    torch.manual_seed(0)
    model, processor = speaking(kind)
    rows = rows_of(processor)
    train(model, batch_of(processor, rows, task="asr"), 80)
    prompt = processor.task_prompt("asr")
    if kind == "delay":
        clips = {"audio_codes": [torch.tensor(row["audio_codes"]).reshape(3, -1) for row in rows]}
    else:
        codes = [torch.tensor(row["audio_codes"]).reshape(2, -1) for row in rows]
        clips = {"audio_latents": [processor.codec.dequantize(part[None])[0] for part in codes]}
    inputs = processor(text=[prompt, prompt], padding_side="left", **clips)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    answers = [processor.decode(row[inputs["input_ids"].shape[1] :]) for row in ids]
    assert [answer.strip() for answer in answers] == ["hi tim", "die"]


# --- Generation ---


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


# --- Files and bad input ---


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["delay", "flow"])
def test_wrapper_round_trips(kind, tied, tmp_path):
    model, processor = speaking(kind, tied=tied)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    loaded = type(processor).from_pretrained(tmp_path)
    loaded.attach_codec(processor.codec)
    again.attach_codec(processor.codec)
    batch = batch_of(loaded, rows_of(processor))
    first, second = model(**batch), again(**batch)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.logits, second.logits)
    spoken = [each.generate_speech("hi", loaded, temperature=0, max_frames=5) for each in (model, again)]
    assert torch.equal(written(spoken[0]), written(spoken[1]))
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    if kind == "flow":
        assert half.frames.statistics.mean.dtype == torch.float32
        assert half.generation_config is not None


def test_columns_begin_as_the_codes_sound():
    model, _ = speaking("delay")
    rows = model.frames.embedding.weight.view(3, 18, -1)[0, :16].detach()
    vectors = model.codec.codebook_vectors()[0]
    true = torch.nn.functional.pdist((vectors - vectors.mean(0)) / vectors.std(0))
    assert float(torch.corrcoef(torch.stack([torch.nn.functional.pdist(rows), true]))[0, 1]) > 0.9


def test_fields_of_another_layout_and_unknown_ones_are_refused():
    codec = tiny_codec()
    processor = tiny_processor(codec, layout="delay")
    lm = tiny_lm(vocab_size=processor.audio_offset)
    with pytest.raises(ValueError, match="`head` belongs to the layout 'continuous', but the processor's is 'delay'"):
        SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, processor, head="flow")
    with pytest.raises(TypeError, match="knows no field 'codebook_weight'"):
        SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, processor, codebook_weight=[1.0, 1.0])


def test_latents_that_are_no_numbers_are_refused():
    model, processor = speaking("mse")
    batch = batch_of(processor, rows_of(processor))
    batch["audio_latents"][0, int(batch["audio_mask"][0].argmax())] = torch.nan
    with pytest.raises(ValueError, match="must be finite"):
        model(**batch)
    with pytest.raises(ValueError, match="must have shape"):
        model(**{**batch, "audio_latents": batch["audio_latents"].transpose(1, 2)})


def test_frames_in_the_wrong_place_are_refused():
    model, processor = speaking("delay")
    batch = batch_of(processor, rows_of(processor))
    del batch["labels"]
    with pytest.raises(ValueError, match="`audio_codes` with the frames is missing"):
        model(input_ids=batch["input_ids"])
    moved = {**batch, "audio_codes": batch["audio_codes"].roll(1, 2)}
    with pytest.raises(ValueError, match="A frame must be given where .* and nowhere else"):
        model(**moved)
    with pytest.raises(ValueError, match="belongs to the layout 'continuous'"):
        model(input_ids=batch["input_ids"], audio_latents=torch.zeros(*batch["input_ids"].shape, 8))
    flat, _ = tiny_speech_lm()
    with pytest.raises(ValueError, match="belongs to the layout 'delay', but the model's is 'flat'"):
        flat(**batch)
    with pytest.raises(ValueError, match=r"must have shape \(batch, 4, num_positions\)"):
        model(**batch, labels=batch["input_ids"])


def test_a_clip_without_a_frame_is_refused():
    for kind, clip in (
        ("delay", {"audio_codes": [torch.zeros(3, 0, dtype=torch.long)]}),
        ("mse", {"audio_latents": [torch.zeros(0, 8)]}),
    ):
        _, processor = speaking(kind)
        with pytest.raises(ValueError, match="at least one frame"):
            processor(text="<|audio|>", **clip)


def test_layouts_and_codecs_that_do_not_fit_are_refused():
    codec = tiny_codec()
    row = tiny_row(codec=tiny_codec(1))
    with pytest.raises(ValueError, match="has 1 codebooks, but 2 make the latents here"):
        tiny_processor(codec, layout="continuous").row_inputs({**row, "codec_fingerprint": codec.fingerprint()})
    first = tiny_processor(codec, num_codebooks=1, layout="continuous").row_inputs(tiny_row(codec=codec))
    codes = torch.tensor(tiny_row(codec=codec)["audio_codes"]).reshape(2, -1)
    latents = first["audio_latents"][first["audio_mask"].bool()]
    torch.testing.assert_close(latents, codec.dequantize(codes[None, :1])[0])
    with pytest.raises(ValueError, match="`layout` must be one of flat, delay, continuous"):
        tiny_processor(codec, layout="diagonal")
    delay, flat = tiny_processor(codec, layout="delay"), tiny_processor(codec)
    lm = tiny_lm(vocab_size=delay.audio_offset)
    model = SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, delay)
    with pytest.raises(ValueError, match="`layout` 'delay', but the processor 'flat'"):
        model.generate_speech("hi", flat)
    with pytest.raises(StrictDataclassClassValidationError, match="The first codebook must not be late"):
        SpeechLMConfig(layout="delay", num_codebooks=2, delays=[1, 0])
    with pytest.raises(StrictDataclassClassValidationError, match="`latent_dim` must be at least 1"):
        SpeechLMConfig(layout="continuous")
    with pytest.raises(ValueError, match="`audio_latents` need `layout='continuous'`"):
        delay(text="<|audio|>", audio_latents=[torch.zeros(3, 8)])
