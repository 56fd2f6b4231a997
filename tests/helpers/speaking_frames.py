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
