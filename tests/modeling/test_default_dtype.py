# SPDX-License-Identifier: Apache-2.0
"""What a model computes does not depend on PyTorch's default type, which scripts of language models change."""

import pytest
import torch

from helpers.tiny_codecs import OURS
from speech_tokenizers import load


@pytest.fixture
def default_dtype():
    """Function: change PyTorch's default type until the test has ended."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*OURS, "kmeans-vocoder"])
@torch.no_grad()
def test_a_model_is_the_same_under_any_default_type(name, dtype, make_model, signal, tmp_path, default_dtype):
    model = make_model(name)
    model.save_pretrained(tmp_path)
    waveforms = signal(1, 8000)
    expected = model.encode(waveforms)
    tokens = "audio_codes" if model.kind == "codes" else "latents"
    default_dtype(dtype)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    found = loaded.encode(waveforms)
    assert torch.equal(found[tokens], expected[tokens])
    if model.decodable_kinds:
        decoded = [each.decode(**{tokens: expected[tokens]}).audio_values for each in (model, loaded)]
        assert torch.equal(*decoded)
    buffers = dict(loaded.named_buffers())
    for key, buffer in model.named_buffers():
        assert buffers[key].dtype == buffer.dtype, key
        assert torch.equal(buffers[key], buffer), key


def test_load_is_the_same_under_any_default_type(tiny_checkpoint, signal, default_dtype):
    waveforms = signal(1, 8000)
    expected = load(tiny_checkpoint)[0].encode(waveforms).audio_codes
    default_dtype(torch.bfloat16)
    model, _ = load(tiny_checkpoint)
    assert model.dtype == torch.float32
    assert torch.equal(model.encode(waveforms).audio_codes, expected)
