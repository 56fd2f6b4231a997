# SPDX-License-Identifier: Apache-2.0
import pytest
import torch


@pytest.fixture
def two_cores():
    """As many threads of torch as two cores have."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
