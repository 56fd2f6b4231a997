# SPDX-License-Identifier: Apache-2.0
"""Heads of continuous tokens: formulas by hand, distributions, guidance, and a language model without leaks."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from helpers.speaking_frames import steady_noise
from speech_tokenizers.modeling.checked_loading import CheckedLoading
from speech_tokenizers.modeling.configuration_latent_lm import LatentLMConfig
from speech_tokenizers.modeling.continuous_heads import HeadLinear, LatentInput, StopHead, build_head
from speech_tokenizers.modeling.modeling_latent_lm import LatentLanguageModel


WIDTH, DIM = 12, 3
OPTIONS = {
    "mse": {},
    "gaussian": {"num_layers": 1, "hidden_size": 16},
    "melle": {"objective": "melle", "num_layers": 1, "hidden_size": 16},
    "flow": {"num_layers": 2, "hidden_size": 16},
    "energy": {"num_layers": 2, "hidden_size": 16, "noise_dim": 8},
}
DROPOUT = {"condition_dropout": 0.0}
every_head = pytest.mark.parametrize("kind", OPTIONS)


def class_of(kind: str) -> str:
    """Name in `HEADS`."""
    return "gaussian" if kind == "melle" else kind


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_head(kind: str, **options):
    """A head none of whose parameters is zero, so that nothing hides behind a gate that is closed at first."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        head = build_head(class_of(kind), WIDTH, DIM, **OPTIONS[kind], **options)
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


def make_model(kind: str, **fields) -> LatentLanguageModel:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    text = {"model_type": "llama", "vocab_size": 1, "bos_token_id": 0, "eos_token_id": 0, **sizes}
    config = LatentLMConfig(
        text_config=text, latent_dim=DIM, head=class_of(kind), head_options=OPTIONS[kind], **fields
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = LatentLanguageModel(config)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.set_statistics(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 4.0, 0.25]))
    return model.eval()


@every_head
@pytest.mark.parametrize("shape", [(4,), (2, 5)])
def test_losses_are_scalars_and_samples_have_the_shape_of_targets(kind, shape):
    head = make_head(kind)
    hidden, target = torch.randn(*shape, WIDTH), torch.randn(*shape, DIM)
    loss = head.loss(hidden, target)
    assert loss.shape == ()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters())
    assert head.sample(hidden).shape == target.shape
    assert head.sample(hidden, 0.5, 3, 2.0).shape == target.shape


@every_head
def test_what_is_masked_does_not_count(kind):
    head = make_head(kind).eval()
    hidden, target = torch.randn(2, 6, WIDTH), torch.randn(2, 6, DIM)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    loss = head.loss(hidden, target, mask, seeded())
    changed_hidden, changed_target = hidden.clone(), target.clone()
    changed_hidden[0, 4:], changed_target[0, 4:] = 7.0, -9.0
    assert torch.equal(head.loss(changed_hidden, changed_target, mask, seeded()), loss)
    assert not torch.equal(head.loss(changed_hidden, changed_target, None, seeded()), loss)
    everywhere = head.loss(hidden, target, torch.ones(2, 6), seeded())
    torch.testing.assert_close(everywhere, head.loss(hidden, target, None, seeded()))
    assert head.loss(hidden, target, torch.zeros(2, 6), seeded()) == 0


@every_head
def test_the_loss_of_a_batch_is_the_mean_over_its_tokens(kind, monkeypatch):
    """However long its rows are: what accumulates batches weighs them by their numbers of tokens."""
    head = make_head(kind, **DROPOUT)
    hidden, target = torch.randn(3, 6, WIDTH), torch.randn(3, 6, DIM)
    lengths = torch.tensor([6, 1, 3])
    mask = (torch.arange(6) < lengths[:, None]).long()
    steady_noise(monkeypatch)
    parts = [head.loss(hidden[row : row + 1, :size], target[row : row + 1, :size]) for row, size in enumerate(lengths)]
    whole = head.loss(hidden, target, mask)
    torch.testing.assert_close((torch.stack(parts) * lengths).sum() / lengths.sum(), whole)


@every_head
def test_generators_make_draws_reproducible(kind):
    head = make_head(kind)
    hidden, target = torch.randn(2, 5, WIDTH), torch.randn(2, 5, DIM)
    assert torch.equal(head.sample(hidden, generator=seeded()), head.sample(hidden, generator=seeded()))
    head.condition_dropout = 0.5
    assert torch.equal(head.loss(hidden, target, None, seeded()), head.loss(hidden, target, None, seeded()))
    # At temperature 0 there is nothing to draw.
    cold = head.sample(hidden, temperature=0.0, generator=seeded(1))
    torch.testing.assert_close(cold, head.sample(hidden, temperature=0.0, generator=seeded(2)))
    if kind != "mse":
        assert not torch.allclose(head.sample(hidden, generator=seeded(1)), head.sample(hidden, generator=seeded(2)))


@every_head
def test_losses_in_half_precision_are_computed_in_float32(kind):
    head, hidden, target = make_head(kind), torch.randn(64, WIDTH), torch.randn(64, DIM)
    expected = head.loss(hidden, target, None, seeded())
    half = copy.deepcopy(head).to(torch.bfloat16)
    loss = half.loss(hidden.bfloat16(), target, None, seeded())
    assert loss.dtype == torch.float32
    # Dropout draws alike; what differs is the rounding of the network.
    torch.testing.assert_close(loss, expected, rtol=0.03, atol=0.02)
    assert half.sample(hidden.bfloat16()).dtype == torch.bfloat16


@every_head
def test_guidance_is_linear_between_none_and_the_state(kind):
    head = make_head(kind)
    hidden = torch.randn(3, WIDTH)
    steps = 1  # further Euler steps begin at points that differ
    with_state = head.sample(hidden, steps=steps, generator=seeded())
    without = head.sample(torch.zeros_like(hidden), steps=steps, generator=seeded())
    guided = head.sample(hidden, steps=steps, cfg_scale=2.5, generator=seeded())
    if kind in ("gaussian", "melle"):  # its moments are guided, not what the network makes of the draw
        assert not torch.allclose(guided, with_state)
    else:
        expected = without + 2.5 * (with_state - without)
        torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    nothing = head.sample(hidden, cfg_scale=0.0, generator=seeded())
    torch.testing.assert_close(nothing, head.sample(torch.zeros_like(hidden), generator=seeded()))
    other = torch.randn(3, WIDTH)
    chosen = head.sample(hidden, cfg_scale=0.0, generator=seeded(), unconditional=other)
    torch.testing.assert_close(chosen, head.sample(other, generator=seeded()))


@every_head
def test_dropout_hides_the_state_in_training_alone(kind):
    head = make_head(kind, condition_dropout=0.999999)
    hidden, target = torch.randn(8, WIDTH, requires_grad=True), torch.randn(8, DIM)
    (gradient,) = torch.autograd.grad(head.loss(hidden, target), hidden)
    assert not gradient.any()
    head.eval()
    (gradient,) = torch.autograd.grad(head.loss(hidden, target), hidden)
    assert gradient.abs().sum(-1).all()


def test_mean_square_by_hand():
    head = build_head("mse", 2, 2)
    nn.init.eye_(head.network.weight)
    nn.init.zeros_(head.network.bias)
    hidden, target = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    assert head.loss(hidden, target).item() == pytest.approx(((1 + 4) / 2 + 1) / 2)
    assert torch.equal(head.sample(hidden), hidden)


def test_likelihood_by_hand():
    head = make_head("gaussian")
    hidden, target = torch.randn(4, WIDTH), torch.randn(4, DIM)
    mean, log_variance = head.moments(hidden).chunk(2, dim=-1)
    density = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(target)
    constant = 0.5 * torch.tensor(2 * torch.pi).log()
    torch.testing.assert_close(head.loss(hidden, target), -density.mean() - constant)


def test_melle_by_hand():
    # Its network starts as the identity.
    head = build_head("gaussian", 2, 1, objective="melle", num_layers=0, hidden_size=4)
    nn.init.zeros_(head.moments.weight)
    with torch.no_grad():
        head.moments.bias.copy_(torch.tensor([0.5, 0.0]))  # mean 0.5, variance 1
    target = torch.tensor([[[2.0], [-1.0], [1.0]]])
    hidden = torch.zeros(1, 3, 2)
    noise = torch.randn(1, 3, 1, generator=seeded())
    errors = 0.5 + noise - target
    divergence = 0.5 * (0.5 - target).square()
    flux = torch.tensor([0.0, 1.5, 1.5]).mean()  # none, |0.5 - 2|, |0.5 + 1|
    expected = (errors.abs() + errors.square() + 0.1 * divergence).mean() - 0.5 * flux
    torch.testing.assert_close(head.loss(hidden, target, None, seeded()), expected)
    # Two frames are real: one change.
    mask = torch.tensor([[1, 1, 0]])
    terms = (errors.abs() + errors.square() + 0.1 * divergence)[0, :2, 0]
    torch.testing.assert_close(head.loss(hidden, target, mask, seeded()), terms.mean() - 0.5 * 1.5 / 2)


def test_energy_by_hand():
    head = make_head("energy", num_draws=3, condition_dropout=0.0)
    hidden, target = torch.randn(2, WIDTH), torch.randn(2, DIM)
    noise = torch.randn(3, 2, 8, generator=seeded())
    draws = torch.stack([head._draw(hidden, row) for row in noise])
    expected = 0.0
    for item in range(2):
        near = sum((draws[k, item] - target[item]).norm() for k in range(3)) / 3
        apart = sum((draws[j, item] - draws[k, item]).norm() for j in range(3) for k in range(j)) / 3
        expected = expected + (2 * near - apart) / 2
    torch.testing.assert_close(head.loss(hidden, target, None, seeded()), expected)


def test_flow_learns_the_straight_way():
    # Where the network is the true field of a single target, every number of steps ends at it.
    head = make_head("flow", **DROPOUT)
    target = torch.tensor([1.0, -2.0, 0.5])

    def velocity(mixed, time, states):
        return (target - mixed) / (1 - time)

    head._velocity = velocity
    hidden = torch.randn(5, WIDTH)
    for steps in (1, 4, 10):
        drawn = head.sample(hidden, steps=steps)
        torch.testing.assert_close(drawn, target.expand(5, -1), rtol=1e-4, atol=1e-4)
    assert head.loss(hidden, target.expand(5, -1)) < 1e-6


def trained_draws(kind: str, steps: int = 300) -> torch.Tensor:
    """The first number of 2000 draws, after training on targets where it is +1 or -1 by chance."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = build_head(class_of(kind), WIDTH, DIM, **OPTIONS[kind], condition_dropout=0.0)
        optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
        hidden = torch.ones(128, WIDTH)
        for _ in range(steps):
            target = torch.zeros(128, DIM)
            target[:, 0] = torch.randint(2, (128,)) * 2.0 - 1
            optimizer.zero_grad()
            head.loss(hidden, target).backward()
            optimizer.step()
    return head.eval().sample(torch.ones(2000, WIDTH), generator=seeded())[:, 0]


@pytest.mark.parametrize("kind", ["gaussian", "flow", "energy"])
def test_heads_learn_how_far_targets_spread(kind):
    drawn = trained_draws(kind)
    assert abs(drawn.mean()) < 0.2
    assert 0.6 < drawn.abs().mean() < 1.4


@pytest.mark.parametrize("kind", ["mse", "melle"])
def test_the_papers_heads_learn_what_lies_between_targets(kind):
    assert trained_draws(kind).abs().mean() < 0.2


def test_options_and_shapes_are_checked():
    with pytest.raises(ValueError, match="`head` must be one of mse, gaussian, flow, energy, but got 'diffusion'"):
        build_head("diffusion", WIDTH, DIM)
    with pytest.raises(TypeError):
        build_head("mse", WIDTH, DIM, num_draws=3)
    with pytest.raises(ValueError, match="`condition_dropout` must be at least 0 and below 1"):
        build_head("mse", WIDTH, DIM, condition_dropout=1.0)
    head = build_head("mse", WIDTH, DIM)
    with pytest.raises(ValueError, match=r"`target` must be of shape \(2, 5, 3\)"):
        head.loss(torch.zeros(2, 5, WIDTH), torch.zeros(2, 4, DIM))
    with pytest.raises(ValueError, match=r"`hidden` must be of shape"):
        head.sample(torch.zeros(2, 5, WIDTH + 1))


def test_input_is_shifted_and_noisy_in_training_alone():
    latent_input = LatentInput(DIM, WIDTH, noise_std=0.5)
    latents = torch.randn(2, 4000, DIM)
    latent_input.eval()
    inputs = latent_input(latents)
    assert inputs.shape == (2, 4001, WIDTH)
    torch.testing.assert_close(inputs[:, 1:], latent_input.projection(latents))
    torch.testing.assert_close(inputs[0, 0], latent_input.projection(latent_input.begin))
    latent_input.train()
    noise = torch.linalg.lstsq(
        latent_input.projection.weight, (latent_input(latents) - inputs)[:, 1:].flatten(0, 1).T
    ).solution
    assert noise.std().item() == pytest.approx(0.5, rel=0.05)
    torch.testing.assert_close(latent_input(latents)[:, 0], inputs[:, 0])  # but not on the learnt vector


def test_the_stop_head_weighs_ends():
    head = StopHead(2, pos_weight=10.0)
    nn.init.zeros_(head.projection.weight)
    nn.init.zeros_(head.projection.bias)
    loss = head.loss(torch.zeros(1, 3, 2), torch.tensor([[0, 0, 1]]), torch.tensor([[1, 0, 1]]))
    assert loss.item() == pytest.approx((1 + 10) * torch.tensor(2.0).log().item() / 2)


@every_head
def test_no_state_has_seen_its_target(kind):
    model = make_model(kind)
    latents = torch.randn(1, 7, DIM, requires_grad=True)
    for position in range(8):
        states = model.hidden_states(latents)[0, position]
        (gradient,) = torch.autograd.grad(states @ torch.randn(WIDTH), latents)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached[:position].all()  # all that went before, and nothing else
        assert not reached[position:].any()


@every_head
@pytest.mark.parametrize("training", [False, True])
def test_the_loss_does_not_leak(kind, training):
    # With targets apart from the inputs, the loss of the frames up to t depends on the inputs before t alone.
    model = make_model(kind, input_noise_std=0.3).train(training)
    latents = torch.randn(1, 6, DIM, requires_grad=True)
    for position in range(6):
        first = (torch.arange(6) <= position).long()[None]
        loss = model(latents, first, targets=torch.randn(1, 6, DIM), generator=seeded()).prediction_loss
        (gradient,) = torch.autograd.grad(loss, latents)
        assert not gradient[0, position:].any()
        if position and not (training and model.head.condition_dropout):
            assert gradient[0, :position].any(dim=-1).all()


@every_head
def test_streams_equal_what_is_computed_at_once(kind):
    model = make_model(kind)
    prompt = torch.randn(2, 4, DIM)
    streamed = model.generate_latents(prompt, 5, stop_threshold=None, generator=seeded())
    generator, known = seeded(), prompt
    for _ in range(5):
        hidden = model.hidden_states(known)[:, -1]
        frame = model.statistics.denormalize(model.head.sample(hidden, generator=generator))
        known = torch.cat([known, frame[:, None]], dim=1)
    torch.testing.assert_close(streamed.latents, known[:, 4:], rtol=1e-3, atol=1e-3)
    assert streamed.mask.all()


def test_items_end_where_the_stop_head_says():
    model = make_model("mse")
    steps = iter(torch.tensor([[-9.0, -9.0], [-9.0, 9.0], [-9.0, -9.0], [9.0, -9.0]]))
    model.stop_head.forward = lambda hidden: next(steps)
    latents, mask = model.generate_latents(batch_size=2, max_frames=9)
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert not latents[1, 1:].any()
    assert latents[0].any(dim=-1).all()
    with pytest.raises(RuntimeError, match="Call `eval\\(\\)`"):
        model.train().stream()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (-1.0, math.nan, math.inf, "1", None, True)),
        ("cfg_scale", (-1.0, math.nan, "2")),
        ("steps", (0, 1.5, "2")),
        ("max_frames", (-1, 2.5, "9")),
        ("min_frames", (-1, 2.5)),
        ("batch_size", (0, -1, 1.5)),
        ("stop_threshold", (-0.1, 1.1, math.nan, "0.5")),
        ("num_draws", (0, 1.5)),
    ],
)
def test_what_says_how_to_draw_is_checked_before_the_first_frame(name, values):
    model = make_model("mse")
    draw = partial(model.draw, torch.zeros(1, 4, DIM)) if name == "num_draws" else model.stream
    for value in values:
        with pytest.raises(ValueError, match=f"`{name}` must be a"):
            draw(**{name: value})


@pytest.mark.parametrize("prompt", [None, torch.zeros(2, 3, DIM)])
def test_no_frames_are_an_empty_row_for_each_item(prompt):
    latents, mask = make_model("mse").generate_latents(prompt, max_frames=0, batch_size=2)
    assert latents.shape == (2, 0, DIM)
    assert mask.shape == (2, 0)


def test_what_is_read_is_checked():
    model, latents = make_model("mse"), torch.zeros(2, 4, DIM)
    for call in (model, model.hidden_states, lambda value: model.draw(value, 1), model.stream):
        with pytest.raises(ValueError, match="NaN"):
            call(latents.index_fill(1, torch.tensor(2), torch.nan))
    for mask, problem in (([[1, 0, 1, 1]], "runs of ones"), ([[0, 1, 1, 1]], "pad on the right"), ([[0] * 4], "no 1")):
        with pytest.raises(ValueError, match=problem):
            model(latents[:1], torch.tensor(mask))
    for ended, problem in ((torch.ones(1), r"must have shape \(2,\)"), (torch.tensor([1, 2]), "1 and 0 alone")):
        with pytest.raises(ValueError, match=problem):
            model(latents, ended=ended)


def test_the_stop_loss_counts_ends_and_no_cuts():
    model = make_model("mse", stop_pos_weight=1.0)
    latents, mask = torch.randn(2, 5, DIM), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    outputs = model(latents, mask, ended=torch.tensor([True, False]))
    logits = model.stop_head(outputs.hidden_states)
    counted = torch.cat([logits[0, :3], -logits[0, 3:4], logits[1, :5]])
    torch.testing.assert_close(outputs.stop_loss, nn.functional.softplus(counted).mean())


@every_head
def test_saving_keeps_every_number(kind, tmp_path):
    model = make_model(kind)
    model.save_pretrained(tmp_path)
    loaded, report = LatentLanguageModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    latents = torch.randn(2, 6, DIM)
    assert torch.equal(loaded(latents).loss, model(latents).loss)
    assert torch.equal(loaded.statistics.variance, model.statistics.variance)
    assert LatentLanguageModel.from_pretrained(tmp_path, dtype=torch.bfloat16).statistics.mean.dtype == torch.float32


def test_weights_that_a_checkpoint_lacks_start_as_new_ones(tmp_path):
    # As when a text model is loaded into a model that has heads: everything was on the meta device before.
    from safetensors.torch import load_file, save_file

    model = make_model("flow")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in state.items() if name.startswith("language_model.")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    # Without our check, which refuses such a file.
    loaded = super(CheckedLoading, LatentLanguageModel).from_pretrained(tmp_path)
    for name, module in loaded.named_modules():
        if isinstance(module, HeadLinear):
            assert module.weight.any() != module.zero, name
            assert module.weight.abs().max() <= module.in_features**-0.5
    assert 0 < loaded.latent_input.begin.abs().max() < 0.2
    assert torch.equal(loaded.statistics.variance, torch.ones(DIM))
