# SPDX-License-Identifier: Apache-2.0
"""The quantizers against their formulas, the original code, and drifting data."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speech_tokenizers.modeling.vector_quantization import (
    ResidualVectorQuantizer,
    VectorQuantizer,
    kmeans,
    nearest_entries,
)


FIXTURE = Path(__file__).parents[1] / "fixtures" / "speechtokenizer_quantizer.safetensors"
NUM_QUANTIZERS, CODEBOOK_SIZE, DIM = 4, 16, 8


def make_quantizer(seed: int = 0, **options) -> ResidualVectorQuantizer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"codebook_dim": DIM, "hidden_size": DIM, "kmeans_iterations": 10, **options}
        return ResidualVectorQuantizer(NUM_QUANTIZERS, CODEBOOK_SIZE, **options)


def make_latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def quantizer():
    """Trained by one batch, in evaluation mode."""
    quantizer = make_quantizer()
    quantizer.train()
    quantizer(make_latents(4, 50))
    return quantizer.eval()


def original() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE)


def test_the_nearest_entry_is_the_nearest_in_euclidean_distance():
    vectors, codebook = make_latents(5, 40), make_latents(100, seed=1)
    distances = (vectors.unsqueeze(-2) - codebook).square().sum(dim=-1)
    assert torch.equal(nearest_entries(vectors, codebook), distances.argmin(dim=-1))


def test_each_stage_codes_what_the_stages_before_left(quantizer):
    latents = make_latents(2, 30, seed=3)
    audio_codes = quantizer.encode(latents)
    residual = latents.clone()
    for k, stage in enumerate(quantizer.quantizers):
        distances = (residual.unsqueeze(-2) - stage.codebook).square().sum(dim=-1)
        assert torch.equal(audio_codes[:, k], distances.argmin(dim=-1))
        residual = residual - stage.codebook[audio_codes[:, k]]
    torch.testing.assert_close(quantizer.decode(audio_codes), latents - residual)

    outputs = quantizer(latents)
    assert torch.equal(outputs.audio_codes, audio_codes)
    assert torch.equal(outputs.quantized_latents, quantizer.decode(audio_codes))


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_commitment_reaches_the_encoder_from_every_stage(quantizer, stage):
    def sum_of_stages(num_quantizers: int) -> tuple[torch.Tensor, torch.Tensor]:
        latents = make_latents(2, 30, seed=3).requires_grad_()
        outputs = quantizer(latents, num_quantizers)
        (outputs.commitment_loss * num_quantizers).backward()
        return latents.grad, latents.detach() - outputs.quantized_latents.detach()

    gradient, error = sum_of_stages(stage)
    if stage > 1:
        gradient = gradient - sum_of_stages(stage - 1)[0]
    # d mean((r - e)^2) / dz, where r is z less entries that have no gradient
    torch.testing.assert_close(gradient, 2 * error / error.numel())
    assert gradient.abs().max() > 0


def test_the_commitment_loss_is_the_mean_over_stages_of_the_mean_squared_residual(quantizer):
    latents = make_latents(2, 30, seed=3)
    audio_codes = quantizer.encode(latents)
    residuals = [latents - quantizer.decode(audio_codes[:, :k]) for k in (1, 2, 3, 4)]
    expected = torch.stack([residual.square().mean() for residual in residuals]).mean()
    torch.testing.assert_close(quantizer(latents).commitment_loss, expected)


def test_the_gradient_passes_straight_through(quantizer):
    latents, weights = make_latents(2, 30, seed=3).requires_grad_(), make_latents(2, 30, seed=4)
    (quantizer(latents).quantized_latents * weights).sum().backward()
    assert torch.equal(latents.grad, weights)


def test_masked_frames_count_for_nothing():
    latents = make_latents(2, 30)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, 11:] = 0
    latents[1, 11:] = 1e3
    masked, plain = make_quantizer(), make_quantizer()
    for _ in range(3):
        with_mask = masked(latents, mask=mask)
        without = plain(torch.cat([latents[0], latents[1, :11]]).unsqueeze(0))
        assert torch.equal(with_mask.audio_codes[1, :, :11], without.audio_codes[0, :, 30:])
        torch.testing.assert_close(with_mask.commitment_loss, without.commitment_loss)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(masked.get_buffer(name), value)


def test_moving_averages_are_the_original_s():
    expected = original()
    quantizer = VectorQuantizer(CODEBOOK_SIZE, DIM, ema_decay=0.99, dead_code_threshold=0.0)
    quantizer.codebook.copy_(expected["ema.embed0"])
    quantizer.codebook_sum.copy_(expected["ema.embed_avg0"])
    quantizer.cluster_size.copy_(expected["ema.cluster_size0"])
    for step in range(3):
        vectors = expected[f"ema.x.{step}"]
        codes = quantizer.encode(vectors)
        assert torch.equal(codes, expected[f"ema.indices.{step}"])
        torch.testing.assert_close(quantizer.decode(codes), expected[f"ema.quantize.{step}"])
        quantizer.update(vectors.flatten(0, 1), codes.flatten(), torch.Generator())
        torch.testing.assert_close(quantizer.cluster_size, expected[f"ema.cluster_size_after.{step}"])
        torch.testing.assert_close(quantizer.codebook_sum, expected[f"ema.embed_avg_after.{step}"])
        torch.testing.assert_close(quantizer.codebook, expected[f"ema.embed_after.{step}"])


def test_moving_averages_follow_their_formula():
    decay, vectors = 0.9, make_latents(200)
    quantizer = VectorQuantizer(CODEBOOK_SIZE, DIM, ema_decay=decay, dead_code_threshold=0.0)
    size, total = quantizer.cluster_size.double(), quantizer.codebook_sum.double()
    for _ in range(5):
        codes = quantizer.encode(vectors)
        for k in range(CODEBOOK_SIZE):
            members = vectors[codes == k].double()
            size[k] = decay * size[k] + (1 - decay) * len(members)
            total[k] = decay * total[k] + (1 - decay) * members.sum(dim=0)
        quantizer.update(vectors, codes, torch.Generator())
        torch.testing.assert_close(quantizer.cluster_size.double(), size, rtol=1e-5, atol=1e-6)
        smoothed = (size + 1e-5) / (size.sum() + CODEBOOK_SIZE * 1e-5) * size.sum()
        torch.testing.assert_close(quantizer.codebook.double(), total / smoothed[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("iterations", "name"), [(10, "kmeans.means_10iters"), (50, "kmeans.means")])
def test_kmeans_is_the_original_s(iterations, name):
    expected = original()
    samples = expected["kmeans.samples"]
    means, counts = kmeans(samples, samples[expected["kmeans.init_indices"]], iterations)
    torch.testing.assert_close(means, expected[name])
    if iterations == 50:
        assert torch.equal(counts.long(), expected["kmeans.bins"])


def test_kmeans_finds_clusters_and_keeps_empty_ones_in_place():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = torch.cat(
        [centre + 0.1 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) for centre in centres]
    )
    start = torch.tensor([[1.0, 1.0], [8.0, 1.0], [1.0, 8.0], [99.0, 99.0]])
    means, counts = kmeans(vectors, start, 5)
    torch.testing.assert_close(means[:3], vectors.view(3, 50, 2).mean(dim=1))
    assert torch.equal(means[3], start[3])
    assert counts.tolist() == [50, 50, 50, 0]


def test_the_first_training_batch_initialises_every_codebook():
    quantizer, latents = make_quantizer(), make_latents(8, 50)
    before = [stage.codebook.clone() for stage in quantizer.quantizers]
    outputs = quantizer.train()(latents)
    for k, stage in enumerate(quantizer.quantizers):
        assert stage.initialized
        assert not torch.equal(stage.codebook, before[k])
        assert len(outputs.audio_codes[:, k].unique()) > 0.9 * CODEBOOK_SIZE
    error = (latents - quantizer.decode(outputs.audio_codes)).square().mean()
    assert error < 0.3 * latents.square().mean()


def test_a_first_batch_smaller_than_the_codebook_initialises_it_too():
    quantizer = make_quantizer().train()
    outputs = quantizer(make_latents(1, 3))
    assert all(stage.codebook.isfinite().all() for stage in quantizer.quantizers)
    assert outputs.audio_codes.shape == (1, NUM_QUANTIZERS, 3)


@pytest.mark.parametrize("threshold", [0.1, 0.0])
def test_codes_stay_in_use_when_the_data_drifts(threshold):
    quantizer = make_quantizer(dead_code_threshold=threshold, ema_decay=0.95).train()
    for step in range(250):
        drift = 0.03 * step * torch.linspace(-1, 1, DIM)
        latents = make_latents(4, 100, seed=step) + drift
        quantizer(latents)
    audio_codes = quantizer.eval()(make_latents(40, 100, seed=999) + drift).audio_codes
    used = [len(audio_codes[:, k].unique()) / CODEBOOK_SIZE for k in range(NUM_QUANTIZERS)]
    if threshold:
        assert min(used) >= 0.9, used
    else:  # the drift is one that kills codes
        assert min(used) < 0.6, used


def test_a_revived_entry_lies_on_a_vector_of_the_batch_and_survives_the_next_update():
    quantizer = VectorQuantizer(CODEBOOK_SIZE, DIM, dead_code_threshold=0.1)
    quantizer.codebook[5] = 1e3
    quantizer.codebook_sum[5] = 1e1
    quantizer.cluster_size[5] = 1e-2
    vectors = make_latents(60)
    quantizer.update(vectors, quantizer.encode(vectors), torch.Generator().manual_seed(0))
    distances = (vectors - quantizer.codebook[5]).abs().amax(dim=-1)
    assert distances.min() < 1e-4
    revived = quantizer.codebook[5].clone()

    # A batch of which it codes nothing leaves it there; averages that were not reset would pull it back.
    others = quantizer.codebook[torch.arange(60) % 5].clone()
    codes = quantizer.encode(others)
    assert not (codes == 5).any()
    quantizer.update(others, codes, torch.Generator().manual_seed(0))
    torch.testing.assert_close(quantizer.codebook[5], revived, rtol=1e-3, atol=1e-3)


def test_training_leaves_the_global_generator_alone_and_repeats_itself():
    quantizers = [make_quantizer(quantizer_dropout=0.5).train() for _ in range(2)]
    shapes = []
    for step in range(20):
        latents = make_latents(2, 40, seed=step)
        state = torch.get_rng_state()
        outputs = [quantizer(latents).audio_codes for quantizer in quantizers]
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(*outputs)
        shapes.append(outputs[0].shape[1])
        torch.rand(7)  # whatever else a training step draws
    assert 3 <= sum(shape < NUM_QUANTIZERS for shape in shapes) <= 15
    assert len(set(shapes)) > 2

    state = torch.get_rng_state()
    resumed = make_quantizer(seed=5, quantizer_dropout=0.5).train()
    resumed.load_state_dict(quantizers[0].state_dict())
    latents = make_latents(2, 40, seed=99)
    for _ in range(5):
        assert torch.equal(resumed(latents).audio_codes, quantizers[0](latents).audio_codes)


def test_evaluation_changes_no_buffer(quantizer):
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(make_latents(2, 30, seed=7))
    quantizer.decode(quantizer.encode(make_latents(2, 30, seed=7)))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_factorised_codes_have_their_own_dimension():
    quantizer = make_quantizer(codebook_dim=3).train()
    latents = make_latents(2, 30).requires_grad_()
    outputs = quantizer(latents)
    assert quantizer.quantizers[0].codebook.shape == (CODEBOOK_SIZE, 3)
    assert outputs.quantized_latents.shape == latents.shape
    outputs.quantized_latents.square().sum().backward()
    assert quantizer.project_in.weight.grad.abs().sum() > 0
    assert quantizer.project_out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("num_quantizers", [5, -1])
def test_a_wrong_number_of_quantizers_is_an_error(quantizer, num_quantizers):
    with pytest.raises(ValueError, match="must lie between 0 and 4, but got"):
        quantizer(make_latents(1, 3), num_quantizers)


@pytest.mark.parametrize("num_quantizers", [0, 5, -1])
def test_nothing_is_encoded_by_a_wrong_number_of_quantizers(quantizer, num_quantizers):
    with pytest.raises(ValueError, match="must lie between 1 and 4, but got"):
        quantizer.encode(make_latents(1, 3), num_quantizers)


def test_without_quantizers_latents_pass_and_nothing_is_updated():
    quantizer = make_quantizer(quantizer_dropout=0.5).train()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    latents = make_latents(2, 30)
    outputs = quantizer(latents, 0)
    assert torch.equal(outputs.quantized_latents, latents)
    assert outputs.audio_codes.shape == (2, 0, 30)
    assert outputs.commitment_loss == 0
    assert outputs.stage_quantized == ()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_codebooks_that_start_from_many_frames_follow_batches_as_ever():
    quantizer, frames = make_quantizer(), make_latents(400)
    quantizer.fit(frames, torch.Generator().manual_seed(0), batch_size=100)
    first = quantizer.quantizers[0]
    drawn = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:CODEBOOK_SIZE]
    means, counts = kmeans(frames, frames[drawn], 10)
    torch.testing.assert_close(first.codebook, means)
    torch.testing.assert_close(first.cluster_size, counts / 4)
    assert first.cluster_size.sum() == 100
    residual = frames - first.codebook[first.encode(frames)]
    assert residual.square().mean() < 0.8 * frames.square().mean()
    # The averages stand for the entries: an update by the same frames moves them nowhere far.
    torch.testing.assert_close(first.codebook_sum / first.cluster_size.unsqueeze(-1), means)
    assert all(stage.initialized for stage in quantizer.quantizers)


def test_autocast_does_not_touch_the_codes(quantizer):
    latents = make_latents(4, 100, seed=3)
    expected = quantizer.encode(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(latents), expected)
        assert torch.equal(quantizer(latents).audio_codes, expected)


def test_a_frame_that_is_not_finite_teaches_the_codebooks_nothing():
    quantizer = ResidualVectorQuantizer(2, 8, 4, 4, kmeans_iterations=5).train()
    latents = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0))
    quantizer(latents)
    before = [entry.codebook.clone() for entry in quantizer.quantizers]

    quantizer(torch.full_like(latents, float("nan")))
    assert all(entry.codebook.isfinite().all() for entry in quantizer.quantizers)

    quantizer(latents)
    for entry, codebook in zip(quantizer.quantizers, before, strict=True):
        assert entry.codebook.isfinite().all()
        assert not torch.equal(entry.codebook, codebook)
