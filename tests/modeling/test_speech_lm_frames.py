# SPDX-License-Identifier: Apache-2.0
"""Truths about the layouts with frames: the delay grid and continuous latents, with all heads."""

import copy
import threading

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel, LogitsProcessorList

from helpers.speaking_frames import (
    EVERY_KIND,
    HEADS,
    KINDS,
    batch_of,
    layout_of,
    rows_of,
    speaking,
    steady_noise,
    wake,
    written,
)
from helpers.tiny_speaking_lm import ARCHITECTURES, tiny_codec, tiny_lm, tiny_processor, tiny_row, tiny_speech_lm
from speech_tokenizers.modeling.configuration_latent_lm import LatentLMConfig
from speech_tokenizers.modeling.configuration_speech_lm import SpeechLMConfig
from speech_tokenizers.modeling.modeling_latent_lm import LatentLanguageModel
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.speech_lm_frames import CodeFrames, LatentFrames
from speech_tokenizers.modeling.speech_lm_layouts import (
    delay_labels,
    sequence_length,
    to_continuous,
    to_delay_grid,
)


# --- Targets ---


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("alignment", ["none", "phone"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_condition_reads_its_own_target(kind, alignment, side):
    model, processor = speaking(kind, alignment)
    if kind != "delay":
        wake(model)
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


@pytest.mark.parametrize("kind", ["delay", "flow"])
def test_another_thread_that_runs_the_model_meanwhile_changes_nothing(kind):
    model, processor = speaking(kind)
    batch, other = batch_of(processor, rows_of(processor)), batch_of(processor, rows_of(processor)[:1])
    alone, main = model(**batch).loss, threading.current_thread()

    def run_another(module, args, output):
        if threading.current_thread() is main:
            thread = threading.Thread(target=lambda: model(**other))
            thread.start()
            thread.join()

    handle = model.get_output_embeddings().register_forward_hook(run_another)
    beside = model(**batch).loss
    handle.remove()
    torch.testing.assert_close(beside, alone)


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


def mse_oracle(head):
    torch.nn.init.eye_(head.network.weight)
    torch.nn.init.zeros_(head.network.bias)


def gaussian_oracle(head):  # log N(y; y, 1) without its constant is 0
    del head.moments
    head.moments = lambda states: torch.cat([states, torch.zeros_like(states)], dim=-1)


def flow_oracle(head):
    del head.state_projection
    head.state_projection = lambda states: states
    head._velocity = lambda mixed, time, states: (states - mixed) / (1 - time)


def energy_oracle(head):
    head._draw = lambda states, noise: states.expand(*noise.shape[:-1], -1)


ORACLES = {"mse": mse_oracle, "gaussian": gaussian_oracle, "flow": flow_oracle, "energy": energy_oracle}


@pytest.mark.parametrize("head", ORACLES)
def test_the_loss_of_an_oracle_of_latents_is_zero(head):
    options = {} if head == "mse" else {"num_layers": 1, "hidden_size": 4}
    frames = LatentFrames(SpeechLMConfig(layout="continuous", latent_dim=4, head=head, head_options=options), 4, 4)
    latents, _, stops = to_continuous([torch.randn(5, 4), torch.randn(3, 4)])
    with torch.no_grad():
        ORACLES[head](frames.head)
    assert abs(float(frames.losses(latents.roll(-1, 1), latents, stops)[0])) < 1e-6
    assert float(frames.losses(latents, latents, stops)[0]) > 0.1
    assert float(frames.losses(latents.roll(-2, 1), latents, stops)[0]) > 0.1


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


@pytest.mark.parametrize("alignment", ["none", "phone"])
def test_shifting_marks_of_latents_by_hand_is_refused(alignment):
    model, processor = speaking("mse", alignment)
    batch = batch_of(processor, rows_of(processor))
    shifted = torch.full_like(batch["labels"], -100)
    shifted[..., :-1] = batch["labels"][..., 1:]
    ids_alone, marks_alone = batch["labels"].clone(), batch["labels"].clone()
    ids_alone[:, 0], marks_alone[:, 1] = shifted[:, 0], shifted[:, 1]
    for labels, message in ((shifted, "label"), (ids_alone, "label"), (marks_alone, "label 0 .* the mark is 1")):
        with pytest.raises(ValueError, match=f"{message}.* shifted by hand by one"):
            model(**{**batch, "labels": labels})
    embedded = model.embed_inputs(batch["input_ids"], audio_latents=batch["audio_latents"])
    given = {**batch, "input_ids": None, "inputs_embeds": embedded}
    assert torch.equal(model(**given).loss, model(**batch).loss)
    with pytest.raises(ValueError, match="the mark is 1.* shifted by hand by one"):
        model(**{**given, "labels": marks_alone})
    reversed_marks = batch["labels"].clone()
    is_mark = reversed_marks[:, 1] != -100
    reversed_marks[:, 1][is_mark] = 1 - reversed_marks[:, 1][is_mark]
    with pytest.raises(ValueError, match="has label 1 at position .*, where the mark is 0.$"):
        model(**{**batch, "labels": reversed_marks})


@pytest.mark.parametrize("alignment", ["none", "word", "phone"])
@pytest.mark.parametrize("kind", [*EVERY_KIND, "melle"])
def test_the_loss_is_the_mean_over_all_targets_of_a_step(kind, alignment, monkeypatch):
    # As `Trainer` counts them, over micro-batches of different lengths, padded on either side.
    model, processor = speaking(kind, alignment)
    wake(model)
    rows = rows_of(processor, ("hi tim", "die", "lime"))
    whole = batch_of(processor, rows)
    number = int(whole["labels"][..., 1:].ne(-100).sum())
    steady_noise(monkeypatch)
    expected = model(**whole)
    for side in ("left", "right"):
        parts = [model(**batch_of(processor, part, side), num_items_in_batch=number) for part in (rows[:1], rows[1:])]
        torch.testing.assert_close(sum(part.loss for part in parts), expected.loss)
        torch.testing.assert_close(model(**batch_of(processor, rows, side)).loss, expected.loss)


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


@pytest.mark.parametrize(
    ("kind", "alignment"),
    [*((kind, alignment) for kind in KINDS for alignment in ("none", "phone")), ("delay", "word"), ("mse", "word")],
)
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
    if alignment == "word":
        assert [word for word, _, _ in spoken.word_times[0]] == ["hi", "tim"]


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


# --- Files and bad input ---


ROUND_TRIPS = [*((kind, name) for kind in ("delay", "flow") for name in sorted(ARCHITECTURES))]
ROUND_TRIPS += [(kind, "llama") for kind in KINDS if kind not in ("delay", "flow")]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("kind", "architecture"), ROUND_TRIPS)
def test_wrapper_round_trips(kind, architecture, tied, tmp_path):
    model, processor = speaking(kind, kind=architecture, tied=tied)
    wake(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    loaded = type(processor).from_pretrained(tmp_path)
    loaded.attach_codec(processor.codec)
    again.attach_codec(processor.codec)
    for each in (model, again):
        assert (each.get_input_embeddings().weight is each.get_output_embeddings().weight) == tied
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    batch = batch_of(loaded, rows_of(processor))
    first, second = model(**batch), again(**batch)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.logits, second.logits)
    spoken = [each.generate_speech("hi", loaded, temperature=0, max_frames=5) for each in (model, again)]
    assert torch.allclose(written(spoken[0]), written(spoken[1]), atol=1e-3)
    assert not any("codec" in name for name in model.state_dict())
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    if layout_of(kind) == "continuous":
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


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_another_codec_is_refused(kind):
    model, processor = speaking(kind)
    other = copy.deepcopy(processor.codec)
    with torch.no_grad():
        for name, buffer in other.named_buffers():
            if "codebook" in name and buffer.is_floating_point():
                buffer.add_(1.0)
    assert other.fingerprint() != processor.codec.fingerprint()
    for owner, message in ((model, "its codes would mean other sounds"), (processor, "attach that one")):
        with pytest.raises(ValueError, match=f"fingerprint.*{message}"):
            owner.attach_codec(other)
    row = rows_of(processor)[0]
    assert processor.row_inputs(row)
    foreign = {**row, "codec_fingerprint": other.fingerprint()}
    with pytest.raises(ValueError, match="'row-0' is of the codec 'tiny-codec', fingerprint .* encode the recordings"):
        processor.row_inputs(foreign)
    smaller = tiny_codec(model.codec.num_quantizers, codebook_size=8)
    with pytest.raises(ValueError, match="are needed|is needed"):
        model.attach_codec(smaller)


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
    with pytest.raises(StrictDataclassClassValidationError, match="`delays` belong to `layout='delay'`"):
        SpeechLMConfig(num_codebooks=2, delays=[0, 1])
    with pytest.raises(StrictDataclassClassValidationError, match="`stop_pos_weight` must be above 0"):
        SpeechLMConfig(layout="continuous", latent_dim=4, stop_pos_weight=0.0)
    with pytest.raises(StrictDataclassClassValidationError, match="`latent_dim` must be at least 1"):
        SpeechLMConfig(layout="continuous")
    with pytest.raises(ValueError, match="`audio_latents` need `layout='continuous'`"):
        delay(text="<|audio|>", audio_latents=[torch.zeros(3, 8)])
