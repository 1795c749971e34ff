"""What a DiT's output may and may not depend on, at every option."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaquery.dit import DiT, DiTConfig
from metaquery.flow import velocity_to_x_0

TINY = DiTConfig.tiny()
VARIANTS = {
    "scale_rae": TINY,
    "wide_head": replace(TINY, ddt_depth=1, ddt_dim=64, ddt_heads=4),
    "equal_head": replace(TINY, ddt_depth=1, ddt_dim=32, ddt_heads=2),
    "rae": replace(TINY, ddt_depth=1, ddt_dim=64, ddt_heads=4, ddt_time=True),
    "plain": replace(
        TINY,
        norm="layer",
        mlp="gelu",
        time_embedding="sinusoidal",
        rope=False,
        cond_silu=False,
    ),
    "qk_norm": replace(TINY, qk_norm=True, pos_embed=False),
}


def build(config: DiTConfig, seed: int = 0) -> DiT:
    """Return a model none of whose parts is silent."""
    torch.manual_seed(seed)
    dit = DiT(config)
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.2)
    return dit.eval()


def inputs(config: DiTConfig = TINY, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x_t = torch.randn(batch, config.num_latent_tokens, config.latent_dim, generator=rng)
    condition = torch.randn(batch, config.num_latent_tokens, config.cond_dim, generator=rng)
    return x_t, torch.rand(batch, generator=rng), condition


def assert_same_up_to_rounding(actual: Tensor, expected: Tensor) -> None:
    """Float32 rounds to 6e-8; some hundred operations stay below 1e-5 of the whole."""
    assert (actual - expected).norm() / expected.norm() < 1e-5


@pytest.fixture(params=VARIANTS.values(), ids=list(VARIANTS))
def dit(request: pytest.FixtureRequest) -> DiT:
    return build(request.param)


def test_a_fresh_model_predicts_zero() -> None:
    assert not DiT(TINY)(*inputs()).any()


@torch.no_grad()
def test_a_fresh_block_is_the_identity() -> None:
    dit = DiT(TINY)
    x = torch.randn(2, 16, 32)
    assert torch.equal(dit.blocks(x, torch.randn(2, 16, 32)), x)


@torch.no_grad()
def test_a_candidate_has_the_same_bits_in_any_batch(dit: DiT) -> None:
    x_t, t, condition = inputs(batch=7)
    together = dit(x_t, t, condition)
    for size in (1, 2, 5):
        rows = [slice(start, start + size) for start in range(0, 7, size)]
        parts = [dit(x_t[row], t[row], condition[row]) for row in rows]
        assert torch.equal(torch.cat(parts), together)


@torch.no_grad()
def test_rows_may_be_at_different_times_and_depend_on_them(dit: DiT) -> None:
    x_t, t, condition = inputs()
    moved = dit(x_t, torch.tensor([t[0], t[1] / 2, t[2]]), condition)
    same = (moved == dit(x_t, t, condition)).flatten(1).all(1)
    assert same.tolist() == [True, False, True]


@torch.no_grad()
def test_dropped_rows_see_the_null_condition_alone(dit: DiT) -> None:
    x_t, t, condition = inputs()
    velocity = dit(x_t, t, condition, torch.tensor([False, True, False]))
    assert_same_up_to_rounding(velocity[1], dit(x_t, t, None)[1])
    assert torch.equal(velocity[[0, 2]], dit(x_t, t, condition)[[0, 2]])


@torch.no_grad()
def test_a_pooled_condition_is_one_for_all_tokens(dit: DiT) -> None:
    x_t, t, condition = inputs()
    pooled = condition[:, 0]
    repeated = pooled.unsqueeze(1).expand_as(condition)
    assert_same_up_to_rounding(dit(x_t, t, pooled), dit(x_t, t, repeated))


@torch.no_grad()
def test_a_token_hears_of_another_tokens_condition_through_attention(dit: DiT) -> None:
    x_t, t, condition = inputs()
    changed = condition.clone()
    changed[:, 5] += 1
    difference = (dit(x_t, t, changed) - dit(x_t, t, condition)).abs().sum(-1)
    assert (difference > 0).all()


@pytest.mark.parametrize(("positions", "equivariant"), [(False, True), (True, False)])
@torch.no_grad()
def test_order_matters_through_positions_alone(positions: bool, equivariant: bool) -> None:
    dit = build(replace(TINY, rope=positions, pos_embed=positions))
    x_t, t, condition = inputs()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = dit(x_t[:, order], t, condition[:, order])
    straight = dit(x_t, t, condition)[:, order]
    change = ((shuffled - straight).norm() / straight.norm()).item()
    assert change < 1e-5 if equivariant else change > 1e-2


def test_every_parameter_is_trained(dit: DiT) -> None:
    drop = torch.tensor([False, True, False])
    torch.autograd.backward(dit(*inputs(), drop).square().mean())
    silent = [
        name for name, p in dit.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert silent == []


def test_the_null_condition_gets_a_gradient_even_if_nothing_is_dropped() -> None:
    """Gradient reducers of several processes wait for every parameter."""
    dit = build(TINY)
    torch.autograd.backward(dit(*inputs(), torch.zeros(3, dtype=torch.bool)).sum())
    assert dit.null_condition.grad is not None


def test_recomputing_activations_changes_nothing() -> None:
    gradients = []
    for checkpoint in (False, True):
        dit = build(replace(TINY, checkpoint_activations=checkpoint))
        torch.autograd.backward(dit(*inputs()).square().mean())
        gradients.append([p.grad for p in dit.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_bfloat16_is_close_and_autocast_closer(dit: DiT) -> None:
    x_t, t, condition = inputs()
    exact = dit(x_t, t, condition)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = dit(x_t, t, condition)
    low = dit.to(torch.bfloat16)(x_t.bfloat16(), t, condition.bfloat16())
    assert low.dtype == torch.bfloat16
    for velocity in (mixed, low):
        # Two blocks of a dozen roundings, each 2**-9.
        assert (velocity.float() - exact).norm() / exact.norm() < 0.05


@torch.no_grad()
def test_a_prediction_of_x_0_is_returned_as_a_velocity() -> None:
    x_t, _, condition = inputs()
    t = torch.tensor([0.2, 0.5, 1.0])
    as_velocity = build(TINY)
    as_x_0 = build(replace(TINY, prediction="x_0"))
    expected = as_velocity(x_t, t, condition)  # the same weights, read the other way
    x_0 = velocity_to_x_0(x_t, as_x_0(x_t, t, condition), t)
    torch.testing.assert_close(x_0, expected, rtol=1e-4, atol=1e-5)


def test_states_are_seen_after_every_block() -> None:
    dit = build(TINY)
    x, activated = torch.randn(1, 16, 32), torch.randn(1, 16, 32)
    states = list(dit.blocks.states(x, activated))
    assert len(states) == TINY.depth
    assert torch.equal(states[-1], dit.blocks(x, activated))


@pytest.mark.parametrize(
    ("width", "depth", "billions"), [(2048, 32, 2.436), (3072, 48, 8.19), (4096, 32, 9.73)]
)
def test_official_sizes_have_the_official_parameters(
    width: int, depth: int, billions: float
) -> None:
    with torch.device("meta"):
        dit = DiT(DiTConfig(cond_dim=width, hidden_dim=width, depth=depth))
    count = sum(parameter.numel() for parameter in dit.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 4, "num_heads": 1}, r"hidden_dim \(4\) must be at least latent_dim \(8\)"),
        (
            {"ddt_depth": 1, "ddt_dim": 4, "ddt_heads": 1},
            r"ddt_dim \(4\) must be at least latent_dim \(8\).*cannot represent its noise",
        ),
        ({"num_latent_tokens": 15}, "must be a square, got 15"),
        ({"num_heads": 3}, r"hidden_dim \(32\) must be divisible by num_heads \(3\)"),
        ({"num_heads": 16}, r"hidden_dim / num_heads \(2\) must be divisible by 4"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"norm": "batch"}, "norm must be one of rms, layer, got 'batch'"),
        ({"prediction": "noise"}, "prediction must be one of velocity, x_0, got 'noise'"),
        (
            {"ddt_depth": 1, "ddt_heads": 16, "ddt_time": True, "cond_dim": 8},
            "so the two must be equal",
        ),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)  # type: ignore[arg-type]


def test_a_backbone_may_be_narrower_than_a_latent_under_a_wide_head() -> None:
    """RAE's DiTDH-S: 384 wide for 768 channels, under a head of 2048."""
    config = replace(TINY, latent_dim=24, ddt_depth=1, ddt_dim=32, ddt_heads=4)
    assert build(config)(*inputs(config)).shape == (3, 16, 24)
