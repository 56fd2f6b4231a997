# SPDX-License-Identifier: Apache-2.0
"""`python swap_and_dump.py OUT`, in one of two processes: a part of the frames, the mean loss and the gradient."""

import sys

import torch

from speech_tokenizers.modeling.swapped_prediction import SwappedPrediction
from speech_tokenizers.training.common.processes import leave_together


def unit_vectors(count: int, dim: int, seed: int) -> torch.Tensor:
    """As the test's."""
    return torch.nn.functional.normalize(
        torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    module = SwappedPrediction(20, 8)
    parallel = torch.nn.parallel.DistributedDataParallel(module)
    is_first = torch.distributed.get_rank() == 0
    part = slice(0, 50) if is_first else slice(50, 77)
    outputs = parallel(*(unit_vectors(77, 8, seed=seed)[part] for seed in (1, 2)))
    outputs.loss.backward()
    losses = [torch.zeros(()) for _ in range(2)]
    torch.distributed.all_gather(losses, outputs.loss.detach())
    if is_first:
        torch.save((torch.stack(losses).mean(), module.codebook.grad), sys.argv[1])
        # A process alone may evaluate.
        module.eval()(torch.randn(3, 8), torch.randn(3, 8))
    del parallel
    leave_together()
