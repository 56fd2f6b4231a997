# SPDX-License-Identifier: Apache-2.0
"""Models of the layouts with frames, and their rows, small enough for a test."""

import torch

from helpers.tiny_speaking_lm import tiny_row, tiny_speech_lm
from speech_tokenizers.modeling.speech_lm_sequences import pad_sequences


HEADS = {
    "mse": {},
    "gaussian": {"num_layers": 1, "hidden_size": 24},
    "flow": {"num_layers": 1, "hidden_size": 24, "num_steps": 4},
    "energy": {"num_layers": 1, "hidden_size": 24, "noise_dim": 8},
}
# Each layout with frames, the continuous one with each head.
KINDS = ["delay", *HEADS]
EVERY_KIND = ["flat", *KINDS]


def fields_of(kind):
    """Fields of a model of the continuous layout with a head; `"melle"` is the normal distribution with its losses."""
    if kind == "melle":
        return {"head": "gaussian", "head_options": {"objective": "melle", **HEADS["gaussian"]}}
    return {"head": kind, "head_options": HEADS[kind]}


def layout_of(kind):
    return kind if kind in ("flat", "delay") else "continuous"


def speaking(kind, alignment="none", /, **changes):
    """A model and its processor: flat, the delay layout of three codebooks, or the continuous one with a head."""
    if kind == "flat":
        return tiny_speech_lm(text_alignment=alignment, **changes)
    if kind == "delay":
        return tiny_speech_lm(layout="delay", text_alignment=alignment, **{"num_quantizers": 3, **changes})
    arguments = {**changes, "fields": {**fields_of(kind), **changes.get("fields", {})}}
    model, processor = tiny_speech_lm(layout="continuous", text_alignment=alignment, **arguments)
    codes = torch.randint(16, (1, processor.codec.num_quantizers, 200), generator=torch.Generator().manual_seed(0))
    latents = processor.codec.dequantize(codes)[0]
    model.frames.set_statistics(latents.mean(0), latents.var(0))
    return model, processor


def wake(model):
    """Move all weights of the frames a little; some begin at zero, where no gradient comes from."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.frames.parameters() if model.frames is not None else ():
            parameter.add_(0.1 * torch.randn_like(parameter))


def steady_noise(monkeypatch):
    """From here on heads draw the same noise for each token, so that its loss does not depend on its batch."""
    randn = torch.randn

    def same(shape, generator=None, device=None):
        # (draws, batch, frames, n) or (batch, frames, n)
        own = randn((*shape[:-3], 1, 1, shape[-1]), generator=torch.Generator().manual_seed(0))
        return own.expand(shape).to(device)

    monkeypatch.setattr(torch, "randn", same)


def rows_of(processor, texts=("hi tim", "die")):
    sizes = zip(texts, (7, 5, 6), strict=False)
    return [tiny_row(text, seed, size, processor.codec) for seed, (text, size) in enumerate(sizes)]


def batch_of(processor, rows, side="right", task="tts"):
    return pad_sequences([processor.row_inputs(row, task) for row in rows], processor.pad_token_id, side)


def written(spoken, row=0):
    """What a model said in a row: codes `(num_codebooks, num_frames)` or latents `(latent_dim, num_frames)`."""
    frames = spoken.audio_codes if spoken.audio_codes is not None else spoken.audio_latents.transpose(1, 2)
    return frames[row, :, : int(spoken.audio_codes_mask[row].sum())]
