# SPDX-License-Identifier: Apache-2.0
"""Padding, on either side, changes a code only where two entries are equally near up to rounding."""

import pytest
import torch


# Difference of two squared distances, relative to the larger, up to which rounding may decide.
ROUNDING = 1e-5


def distances(model, residual: torch.Tensor, stage: int) -> torch.Tensor:
    """Squared distances of a residual (dim,) to all entries of a codebook, in float64."""
    return (model.quantizer.quantizers[stage].codebook.double() - residual.double()).square().sum(-1)


def margins_of_changed_codes(model, latents, codes, other_codes) -> list[float]:
    """How equally near the two entries are, for each frame whose codes differ, at the first such stage."""
    margins = []
    for frame in (codes != other_codes).any(0).nonzero()[:, 0].tolist():
        residual = model.quantizer.project_in(latents[frame])
        for stage, (code, other) in enumerate(zip(codes[:, frame], other_codes[:, frame], strict=True)):
            if code != other:
                near = distances(model, residual, stage)[[int(code), int(other)]]
                margins.append(float((near[0] - near[1]).abs() / near.max()))
                break
            residual = residual - model.quantizer.quantizers[stage].decode(code)
    return margins


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("overrides", [{}, {"codebook_dim": 4}, {"encoder_type": "stft"}], ids=str)
@torch.no_grad()
def test_padding_changes_a_code_only_where_two_entries_are_equally_near(new_codec, signal, overrides, side):
    lengths, num_frames, num_changed = (8000, 5003, 2741, 39), 0, 0
    for seed in range(4):
        model = new_codec(codebook_size=256, **overrides)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.encoder.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
        items = [signal(1, length, seed=length + seed) for length in lengths]
        batch, mask = torch.full((len(items), 1, max(lengths)), 0.9), torch.zeros(len(items), max(lengths))
        for row, item in enumerate(items):
            place = slice(max(lengths) - lengths[row], None) if side == "left" else slice(0, lengths[row])
            batch[row, :, place], mask[row, place] = item[0], 1
        together = model.encode(batch, padding_mask=mask)
        for row, item in enumerate(items):
            alone = model.encode(item)
            codes = together.audio_codes[row][:, together.audio_codes_mask[row].bool()]
            margins = margins_of_changed_codes(model, alone.latents[0], alone.audio_codes[0], codes)
            assert all(margin < ROUNDING for margin in margins), margins
            num_frames, num_changed = num_frames + codes.shape[1], num_changed + len(margins)
    assert num_changed <= 0.02 * num_frames


@torch.no_grad()
def test_a_margin_is_that_of_the_first_stage_that_differs(codec, signal):
    model = codec()
    encoded = model.encode(signal(1, 400))
    other = encoded.audio_codes[0].clone()
    other[1:, 3] = (other[1:, 3] + 1) % 32
    (margin,) = margins_of_changed_codes(model, encoded.latents[0], encoded.audio_codes[0], other)
    residual = encoded.latents[0, 3] - model.quantizer.quantizers[0].decode(encoded.audio_codes[0, 0, 3])
    near = distances(model, residual, 1)[[int(encoded.audio_codes[0, 1, 3]), int(other[1, 3])]]
    assert margin == pytest.approx(float((near[1] - near[0]) / near[1]), rel=1e-6)
    assert margin > ROUNDING
