# SPDX-License-Identifier: Apache-2.0
"""Tests of what a model claims of attention, for classes of transformers' common tests."""

from unittest import mock

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class AttentionTests:
    """
    The claim `_supports_sdpa`, of a model whose attention is all in one part of it.

    The common tests compare the states of layers and look at class names; our models return no states of layers, and
    their parts come from transformers.
    """

    num_attention_layers = 2

    def padded_batch(self) -> tuple[object, dict[str, torch.Tensor]]:
        """Configuration, and arguments of `forward` of which one row is padded."""
        raise NotImplementedError

    def test_sdpa_computes_what_eager_attention_computes(self):
        eager, sdpa = self._outputs("eager"), self._outputs("sdpa")
        assert eager.keys() == sdpa.keys()
        for name, expected in eager.items():
            if not isinstance(expected, torch.Tensor):
                continue  # a cache
            if expected.is_floating_point():
                assert expected.abs().max() > 0, name
                torch.testing.assert_close(sdpa[name], expected, atol=1e-5, rtol=1e-4, msg=name)
            else:
                assert torch.equal(sdpa[name], expected), name

    def test_the_attention_that_was_asked_for_is_computed(self):
        for attention, calls in (("eager", 0), ("sdpa", self.num_attention_layers)):
            counted = mock.Mock(wraps=sdpa_attention_forward)
            with mock.patch.dict(ALL_ATTENTION_FUNCTIONS._global_mapping, {"sdpa": counted}):
                self._outputs(attention)
            assert counted.call_count == calls, attention

    def _outputs(self, attention: str) -> dict[str, torch.Tensor]:
        # The same weights whatever the attention.
        config, inputs = self.padded_batch()
        torch.manual_seed(0)
        model = self.all_model_classes[0]._from_config(config, attn_implementation=attention).eval()
        with torch.no_grad():
            return dict(model(**inputs))
