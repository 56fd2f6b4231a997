# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What each head of a speech language model knows: all that stands before its target, and nothing from there on."""

import pytest
import torch

from helpers.speaking_frames import EVERY_KIND, batch_of, rows_of, speaking


def states_of_heads(model, batch, embedded):
    """
    For each head its name and what it read, `{(row, position of the target): state}`.

    What words read is known at all positions. Other heads read a state where they have a target.
    """
    read = {}

    def keep(name):
        return lambda module, inputs: read.__setitem__(name, inputs[0])

    def keep_argument(name, loss):
        def called(hidden, *others):
            read[name] = hidden
            return loss(hidden, *others)

        return called

    handles = [model.get_output_embeddings().register_forward_pre_hook(keep("words"))]
    if model.config.layout == "delay":
        handles.append(model.frames.head.register_forward_pre_hook(keep("codes")))
    if model.config.layout == "continuous":
        for name, head in (("latents", model.frames.head), ("stop", model.frames.stop_head)):
            head.loss = keep_argument(name, head.loss)
    model(**{**batch, "inputs_embeds": embedded, "input_ids": None})
    for handle in handles:
        handle.remove()
    labels, is_real = batch["labels"], batch["attention_mask"].bool()
    found = {}
    for name, states in read.items():
        if name == "words":
            places = [(row, place + 1) for row, place in is_real[:, :-1].nonzero().tolist() if is_real[row, place + 1]]
            found[name] = {(row, place): states[row, place - 1] for row, place in places}
        elif name == "codes":  # (N, state_size), column by column
            places = (labels[:, 1:] != -100).any(1).nonzero().tolist()
            found[name] = {tuple(place): state for place, state in zip(places, states, strict=True)}
        elif name == "latents":  # (batch, num_frames, state_size), side by side
            for row, marks in enumerate(labels[:, 1]):
                places = (marks == 0).nonzero()[:, 0].tolist()
                told = {(row, place): states[row, number] for number, place in enumerate(places)}
                found[name] = {**found.get(name, {}), **told}
        else:
            places = (labels[:, 1] != -100).nonzero().tolist()
            found[name] = {(row, place): states[row, place - 1] for row, place in places}
    if model.config.layout == "continuous":
        for head in (model.frames.head, model.frames.stop_head):
            del head.loss
    return found


def with_another_frame(model, batch, row, place):
    """The batch with another code or latent at a position, and labels that say so."""
    changed = {name: part.clone() for name, part in batch.items()}
    if model.config.layout == "continuous":
        changed["audio_latents"][row, place] += 1.0
        return changed
    if model.config.layout == "delay":
        codes, labels = changed["audio_codes"][row, 0], changed["labels"][row, 1]
        codes[place] = (codes[place] + 1) % 16
        labels[place] = codes[place]
        return changed
    first = model.config.audio_offset
    ids, labels = changed["input_ids"][row], changed["labels"][row]
    ids[place] = first + (ids[place] - first) // 16 * 16 + (ids[place] - first + 1) % 16
    labels[place] = ids[place]
    return changed


def embedded_of(model, batch):
    frames = {name: batch[name] for name in ("audio_codes", "audio_latents", "audio_mask") if name in batch}
    return model.embed_inputs(batch["input_ids"], **frames).detach()


HEADS_OF = {"flat": {"words"}, "delay": {"words", "codes"}}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("alignment", ["none", "word", "phone"])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_no_head_reads_its_own_target(kind, alignment, side):
    model, processor = speaking(kind, alignment)
    batch = batch_of(processor, rows_of(processor), side)
    embedded = embedded_of(model, batch).requires_grad_()
    before = states_of_heads(model, batch, embedded)
    assert set(before) == HEADS_OF.get(kind, {"words", "latents", "stop"})

    # By gradient: each state depends on what stands right before its target, and on nothing behind that.
    for states in before.values():
        for row in range(2):
            targets = sorted(place for other, place in states if other == row)
            for place in {targets[0], targets[len(targets) // 2], targets[-1]}:
                (gradient,) = torch.autograd.grad(states[row, place].sum(), embedded, retain_graph=True)
                moved = gradient.abs().sum(-1) > 0
                assert not moved[row, place:].any()
                assert moved[row, place - 1]
                assert not moved[1 - row].any()

    # By difference: another frame changes only what is told behind it.
    is_unit = model.config.speech_ids.is_unit(batch["input_ids"])
    is_learnt = (batch["labels"] if kind == "flat" else batch["labels"][:, 1]) != -100
    frames = (is_unit & is_learnt)[0].nonzero()[:, 0].tolist()
    for place in (frames[0], frames[3]):
        changed = with_another_frame(model, batch, 0, place)
        after = states_of_heads(model, changed, embedded_of(model, changed))
        for name, states in before.items():
            for (row, target), state in states.items():
                if row == 1 or target <= place:
                    assert torch.equal(after[name][row, target], state)
                elif target == place + 1:
                    assert not torch.allclose(after[name][row, target], state, atol=1e-6)
