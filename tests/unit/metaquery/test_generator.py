"""Connector, DiT and flow together: training, sampling and a candidate's identity."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaquery.connector import ConnectorConfig
from metaquery.dit import DiTConfig
from metaquery.generator import GeneratorConfig, LatentGenerator
from metaquery.sampler import EvaluationCounter, Solver, steps

CONFIG = GeneratorConfig(
    connector=ConnectorConfig(kind="linear", in_dim=12, out_dim=32, num_queries=16),
    dit=DiTConfig.tiny(),
)


def build(config: GeneratorConfig = CONFIG) -> LatentGenerator:
    torch.manual_seed(0)
    generator = LatentGenerator(config)
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.2)
    return generator.eval()


def draws(batch: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(batch, 16, 12, generator=rng), torch.randn(batch, 16, 8, generator=rng)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_a_candidate_has_the_same_bits_in_any_batch(solver: Solver, guidance_scale: float) -> None:
    generator = build()
    states, noise = draws(6)

    def sample(rows: slice) -> Tensor:
        return generator.sample(
            states[rows],
            noise=noise[rows],
            num_steps=4,
            solver=solver,
            guidance_scale=guidance_scale,
        )

    together = sample(slice(None))
    assert torch.equal(sample(slice(2, 3)), together[2:3])
    assert torch.equal(sample(slice(1, 5)), together[1:5])


def test_candidates_can_be_dropped_half_way() -> None:
    generator = build()
    states, noise = draws(4)
    times = generator.times(6)
    kept = [0, 3]
    *_, half = steps(generator.velocity_fn(states), noise, times[:4])
    resumed = steps(generator.velocity_fn(states[kept]), half.x_t[kept], times[3:])
    *_, last = resumed
    assert torch.equal(last.x_t, generator.sample(states, noise=noise, num_steps=6)[kept])


def test_guidance_moves_away_from_the_learned_null() -> None:
    generator = build()
    states, noise = draws(2)
    t = torch.tensor([0.7, 0.3])
    condition = generator.condition(states)
    good = generator.velocity(noise, t, condition)
    bad = generator.dit(noise, t, None)
    guided = generator.velocity_fn(states, guidance_scale=3.0)(noise, t)
    torch.testing.assert_close(guided, bad + 3 * (good - bad), rtol=1e-4, atol=1e-5)


def test_guidance_may_start_from_other_states() -> None:
    generator = build()
    states, noise = draws(2)
    t = torch.tensor([0.7, 0.3])
    guided = generator.velocity_fn(states, uncond_states=-states, guidance_scale=0.0)(noise, t)
    torch.testing.assert_close(guided, generator.velocity_fn(-states)(noise, t))


def test_guided_evaluations_count_double() -> None:
    generator = build()
    states, noise = draws(3)
    counter = EvaluationCounter(generator.velocity)
    velocity_fn = generator.velocity_fn(
        states, guidance_scale=2.0, guidance_interval=(0.5, 1.0), model=counter
    )
    times = torch.tensor([1.0, 0.6, 0.4, 0.0])  # evaluated at 1, 0.6 and 0.4
    list(steps(velocity_fn, noise, times))
    assert counter.rows == 3 * (2 + 2 + 1)


def test_the_shift_follows_from_the_latents() -> None:
    assert CONFIG.timestep_shift == pytest.approx((16 * 8 / 4096) ** 0.5)
    released = replace(
        CONFIG,
        dit=DiTConfig(cond_dim=32, depth=1),
    )
    assert released.timestep_shift == pytest.approx(8.485, abs=1e-3)


def test_losses_repeat_with_the_seed_and_are_float32() -> None:
    generator = build().train()
    states, x_0 = draws(5)
    first, second = (
        generator.losses(states, x_0, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert first.shape == (5,)
    low = generator.to(torch.bfloat16)
    loss = low.loss(states.bfloat16(), x_0, generator=torch.Generator().manual_seed(7))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(first.mean().item(), rel=0.05)


def test_dropped_samples_do_not_train_the_language_model() -> None:
    generator = build()
    states, x_0 = draws(3)
    states.requires_grad_()
    drop = torch.tensor([True, False, True])
    torch.autograd.backward(generator.loss(states, x_0, drop=drop))
    assert states.grad is not None
    trained = states.grad.flatten(1).abs().sum(1) > 0
    assert trained.tolist() == [False, True, False]


def test_conditions_are_dropped_in_training_alone() -> None:
    config = replace(CONFIG, condition_dropout=0.5)
    generator = build(config)
    states, x_0 = draws(400)
    states.requires_grad_()
    for training, share in ((True, 0.5), (False, 0.0)):
        states.grad = None
        generator.train(training)
        rng = torch.Generator().manual_seed(0)
        torch.autograd.backward(generator.loss(states, x_0, generator=rng))
        assert states.grad is not None
        dropped = (states.grad.flatten(1).abs().sum(1) == 0).float().mean().item()
        # 5 standard errors of a share of 400.
        assert dropped == pytest.approx(share, abs=5 * (share * (1 - share) / 400) ** 0.5)


def test_several_times_per_sample_are_a_tiled_batch() -> None:
    generator = build()
    states, x_0 = draws(2)
    rng = torch.Generator().manual_seed(3)
    t, noise = torch.rand(6, generator=rng), torch.randn(6, 16, 8, generator=rng)
    tiled = generator.losses(
        states.repeat_interleave(3, 0), x_0.repeat_interleave(3, 0), t=t, noise=noise
    )
    for row in range(6):
        rows = slice(row // 3, row // 3 + 1)
        alone = generator.losses(
            states[rows], x_0[rows], t=t[row : row + 1], noise=noise[row : row + 1]
        )
        torch.testing.assert_close(tiled[row], alone[0])


def test_training_learns_what_the_condition_says() -> None:
    """At t = 1 latents are pure noise: blind to the condition, nobody gets below Var(x_0) = 1."""
    torch.manual_seed(0)
    config = replace(CONFIG, condition_dropout=0.0, base_dim=8)  # most times near noise
    generator = LatentGenerator(config)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2)
    rng = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        states = torch.randint(0, 2, (16, 16, 12), generator=rng) * 2.0 - 1
        return states, states[..., :8]

    for _ in range(60):
        loss = generator.loss(*batch(), generator=rng)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert generator.eval().loss(*batch(), t=torch.ones(16)).item() < 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition_dropout": 1.0}, r"condition_dropout must be in \[0, 1\), got 1.0"),
        ({"base_dim": 0}, "base_dim must be at least 1, got 0"),
        ({"time_distribution": "cosine"}, "must be one of logit_normal, uniform, got 'cosine'"),
        (
            {"connector": ConnectorConfig(in_dim=12, out_dim=8)},
            r"connector.out_dim \(8\) must equal dit.cond_dim \(32\)",
        ),
    ],
)
def test_impossible_generators_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)  # type: ignore[arg-type]


def test_queries_that_match_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden states of 5 queries.*its 16 latent tokens"):
        build().condition(torch.zeros(1, 5, 12))


def test_one_query_conditions_all_tokens() -> None:
    states, noise = draws(2)
    generator = build()
    one = generator.sample(states[:, :1], noise=noise, num_steps=2)
    repeated = generator.sample(states[:, :1].expand(2, 16, 12), noise=noise, num_steps=2)
    torch.testing.assert_close(one, repeated, rtol=1e-4, atol=1e-5)
