# SPDX-License-Identifier: Apache-2.0
"""Swapped prediction: what does not depend on chunks, processes or precision. Its numbers: test_parity_dc_spin.py."""

import time
import weakref
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.processes import run_ranks
from speech_tokenizers.modeling.swapped_prediction import SwappedPrediction, sinkhorn


def unit_vectors(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive_sinkhorn(logits, epsilon, iterations):
    """As published, in double precision: scale rows and columns of a matrix in turn."""
    matrix = (logits.double() / epsilon).exp().T
    matrix = matrix / matrix.sum()
    num_codes, num_frames = matrix.shape
    for _ in range(iterations):
        matrix = matrix / (matrix.sum(1, keepdim=True) * num_codes)
        matrix = matrix / (matrix.sum(0, keepdim=True) * num_frames)
    return (matrix * num_frames).T


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_sinkhorn_is_the_published_algorithm(iterations):
    logits = unit_vectors(90, 8) @ unit_vectors(30, 8, seed=1).T
    target = sinkhorn(logits, 0.02, iterations)
    torch.testing.assert_close(target.double(), naive_sinkhorn(logits, 0.02, iterations), rtol=0, atol=1e-5)


def test_sinkhorn_uses_codes_equally_in_the_end():
    target = sinkhorn(unit_vectors(90, 8) @ unit_vectors(30, 8, seed=1).T, 0.1, 200)
    torch.testing.assert_close(target.sum(1), torch.ones(90), rtol=0, atol=1e-4)
    torch.testing.assert_close(target.sum(0), torch.full((30,), 3.0), rtol=0, atol=1e-3)


def test_sinkhorn_does_not_overflow_where_the_plain_form_does():
    logits = unit_vectors(90, 8) @ unit_vectors(30, 8, seed=1).T
    assert not (logits / 0.005).exp().isfinite().all()
    target = sinkhorn(logits, 0.005, 3)
    torch.testing.assert_close(target.double(), naive_sinkhorn(logits, 0.005, 3), rtol=0, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(logits, 0.005, 3), target)


def loss_and_gradients(logits_at_once, **fields):
    torch.manual_seed(0)
    module = SwappedPrediction(40, 8, logits_at_once=logits_at_once, **fields)
    views = [unit_vectors(77, 8, seed=seed).requires_grad_() for seed in (1, 2)]
    outputs = module(*views)
    outputs.loss.backward()
    return [*outputs, views[0].grad, views[1].grad, module.codebook.grad]


@pytest.mark.parametrize("fields", [{}, {"hard_target": True}, {"target_mix": 0.7}], ids=str)
@pytest.mark.parametrize("logits_at_once", [1, 40 * 10, 40 * 76])
def test_chunks_change_nothing(logits_at_once, fields):
    expected = loss_and_gradients(2**24, **fields)
    for ours, its in zip(loss_and_gradients(logits_at_once, **fields), expected, strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-4, atol=1e-6)


def test_the_target_is_constant():
    """The gradient of the loss is that of a cross-entropy whose targets do not move."""
    torch.manual_seed(0)
    module = SwappedPrediction(20, 8)
    first, second = (unit_vectors(50, 8, seed=seed) for seed in (1, 2))
    targets = [sinkhorn(module.logits(view), 0.02, 3) for view in (first, second)]
    projected = [view.clone().requires_grad_() for view in (first, second)]
    module(*projected).loss.backward()
    again = [view.clone().requires_grad_() for view in (first, second)]
    predictions = [(module.logits(module.latents(view)) / 0.1).log_softmax(-1) for view in again]
    loss = -(targets[0] * predictions[1] + targets[1] * predictions[0]).sum(-1).mean() / 2
    loss.backward()
    for ours, expected in zip(projected, again, strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=0, atol=1e-6)


def test_views_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="must have the same frames"):
        SwappedPrediction(4, 8)(torch.zeros(3, 8), torch.zeros(2, 8))
    with pytest.raises(ValueError, match="at least one"):
        SwappedPrediction(4, 8)(torch.zeros(0, 8), torch.zeros(0, 8))


def test_two_processes_learn_what_one_does(tmp_path):
    """Also where they hold unequally many frames."""
    run_ranks(Path(__file__).with_name("swap_and_dump.py"), tmp_path / "two.pt")
    loss, gradient = torch.load(tmp_path / "two.pt")
    torch.manual_seed(0)
    module = SwappedPrediction(20, 8)
    outputs = module(*(unit_vectors(77, 8, seed=seed) for seed in (1, 2)))
    outputs.loss.backward()
    torch.testing.assert_close(loss, outputs.loss.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, module.codebook.grad, rtol=0, atol=1e-6)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while they live, and the most at once."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.counted = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for output in pytree.tree_leaves(outputs):
            if isinstance(output, torch.Tensor):
                self._count(output.untyped_storage())
        return outputs

    def _count(self, storage):
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self.counted or not size:
            return
        self.counted.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address, size):
        self.counted.discard(address)
        self.live -= size


def peak_of_a_step(num_frames, codebook_size, codebook_dim, **fields):
    """Most bytes that a step, forward and backward, holds beyond its inputs and weights."""
    module = SwappedPrediction(codebook_size, codebook_dim, **fields)
    views = [unit_vectors(num_frames, codebook_dim, seed=seed).requires_grad_() for seed in (1, 2)]
    with LiveBytes() as counted:
        module(*views).loss.backward()
    return counted.peak


def test_memory_is_bounded_by_chunks():
    """The similarities of a view to all codes are 8 MB, and are held several times over if all are made at once."""
    at_once = peak_of_a_step(4096, 512, 16)
    chunks = peak_of_a_step(4096, 512, 16, logits_at_once=2**16)
    assert at_once > 4 * 8e6
    assert chunks < 8e6


@pytest.mark.slow
def test_a_full_size_step(capsys):
    """12,800 frames of each view and 4,096 codes: the similarities of a view are 210 MB."""
    start = time.perf_counter()
    peak = peak_of_a_step(12800, 4096, 256)
    with capsys.disabled():
        print(
            f"\n12,800 frames, 4,096 codes: {peak / 2**20:.0f} MB, {time.perf_counter() - start:.1f} s on one thread"
        )
    assert peak < 1000 * 2**20
