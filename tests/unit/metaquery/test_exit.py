"""The branches of a DiT: an early exit that guides, and a projection to other features."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaquery.alignment import feature_distances
from metaquery.connector import ConnectorConfig
from metaquery.dit import DiT, DiTConfig
from metaquery.flow import (
    MIN_TIME,
    flow_matching_losses,
    interpolate,
    velocity_error,
    x_0_to_velocity,
)
from metaquery.generator import GeneratorConfig, LatentGenerator
from metaquery.guidance import autoguidance, classifier_free, internal
from metaquery.sampler import EvaluationCounter, integrate

TINY = DiTConfig.tiny()
WITH_EXIT = replace(TINY, exit_depth=1)
WITH_HEAD = replace(WITH_EXIT, ddt_depth=1, ddt_dim=64, ddt_heads=4, prediction="x_0")


def connector() -> ConnectorConfig:
    return ConnectorConfig(kind="linear", in_dim=12, out_dim=32, num_queries=16)


def loud(module: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def generator(dit: DiTConfig = WITH_EXIT, **changes: object) -> LatentGenerator:
    config = GeneratorConfig(connector=connector(), dit=dit, **changes)  # type: ignore[arg-type]
    built = loud(LatentGenerator(config))
    assert isinstance(built, LatentGenerator)
    return built


def draws(batch: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, data, noise and times."""
    rng = torch.Generator().manual_seed(1)
    states = torch.randn(batch, 16, 12, generator=rng)
    x_0, noise = torch.randn(2, batch, 16, 8, generator=rng)
    return states, x_0, noise, torch.rand(batch, generator=rng)


def test_a_seed_gives_the_same_weights_under_the_same_keys_without_branches() -> None:
    plain, with_exit = DiT(TINY).state_dict(), DiT(WITH_EXIT).state_dict()
    added = set(with_exit) - set(plain)
    assert added == {
        f"exit.{name}"
        for name in (
            "norm.weight",
            "modulation.weight",
            "modulation.bias",
            "out.weight",
            "out.bias",
        )
    }
    assert set(plain) <= set(with_exit)


@pytest.mark.parametrize("config", [WITH_EXIT, WITH_HEAD])
def test_an_exit_changes_nothing_for_the_last_layer_and_starts_at_zero(config: DiTConfig) -> None:
    torch.manual_seed(0)
    fresh = DiT(replace(config, prediction="velocity"))
    _, x_t, _, t = draws()
    condition = torch.randn(3, 16, 32)
    assert not fresh(x_t, t, condition, head="exit").any()
    dit = DiT(config)
    loud(dit)
    plain = DiT(replace(config, exit_depth=0)).eval()
    kept = {k: v for k, v in dit.state_dict().items() if not k.startswith("exit.")}
    plain.load_state_dict(kept, strict=True)
    branches: dict[str, Tensor] = {}
    final = dit(x_t, t, condition, branches=branches)
    assert torch.equal(final, plain(x_t, t, condition))
    assert torch.equal(branches["exit"], dit(x_t, t, condition, head="exit"))
    assert (final - branches["exit"]).abs().max() > 0.01
    nn.init.zeros_(dit.get_parameter("blocks.layers.1.attention.out.weight"))
    assert torch.equal(branches["exit"], dit(x_t, t, condition, head="exit"))


def test_the_loss_is_that_of_both_heads() -> None:
    states, x_0, noise, t = draws()
    model = generator(exit_weight=0.5)
    sample = interpolate(x_0, noise, t)
    full, early = model.velocities(sample.x_t, t, model.condition(states))
    expected = velocity_error(full, sample.velocity) + 0.5 * velocity_error(early, sample.velocity)
    torch.testing.assert_close(model.losses(states, x_0, t=t, noise=noise), expected)


def test_an_exit_can_be_trained_alone() -> None:
    states, x_0, noise, t = draws()
    states.requires_grad_()
    model = generator(exit_only=True).train()
    model.train_exit_only()
    loss = model.loss(states, x_0, t=t, noise=noise, drop=torch.zeros(3, dtype=torch.bool))
    torch.autograd.backward(loss)
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if ".exit." in name}
    assert states.grad is None
    sample = interpolate(x_0, noise, t)
    early = model.velocities(sample.x_t, t, model.condition(states))[1]
    torch.testing.assert_close(loss, velocity_error(early, sample.velocity).mean())
    with pytest.raises(ValueError, match="exit_only needs an early exit"):
        GeneratorConfig(connector=connector(), dit=TINY, exit_only=True)


@torch.no_grad()
def test_exit_guidance_of_one_is_the_model_and_of_zero_the_exit() -> None:
    states, _, noise, _ = draws()
    model = generator()
    plain = model.sample(states, noise=noise, num_steps=4)
    assert torch.equal(model.sample(states, noise=noise, num_steps=4, exit_scale=1.0), plain)
    nothing = model.sample(states, noise=noise, num_steps=4, exit_scale=0.0)
    condition = model.condition(states)
    early = integrate(lambda x, t: model.dit(x, t, condition, head="exit"), noise, model.times(4))
    torch.testing.assert_close(nothing, early, rtol=1e-4, atol=1e-4)
    assert (plain - early).abs().max() > 0.01
    with pytest.raises(ValueError, match=r"without an early exit, got 2\.0"):
        generator(TINY).velocity_fn(states, exit_scale=2.0)


@torch.no_grad()
def test_internal_guidance_is_autoguidance_by_the_exit_then_classifier_free() -> None:
    states, x_t, _, _ = draws()
    model, t = generator(), torch.tensor([0.1, 0.5, 1.0])
    own = model.condition(states)
    none = model.null_condition(3).expand_as(own)
    on = (0.1, 0.5)  # closed at both ends

    def auto(condition: Tensor) -> Tensor:
        return autoguidance(
            lambda x, t: model.dit(x, t, condition),
            lambda x, t: model.dit(x, t, condition, head="exit"),
            1.7,
            interval=on,
        )(x_t, t)

    count = EvaluationCounter(model.velocities)
    once = internal(count, own, 1.7, interval=on)(x_t, t)
    torch.testing.assert_close(once, auto(own), rtol=1e-4, atol=1e-4)
    assert count.rows == 3
    assert torch.equal(once[2], model.velocities(x_t, t, own)[0][2])
    both = internal(count, own, 1.7, interval=on, unconditional=none, guidance_scale=3.0)(x_t, t)
    expected = auto(none) + 3.0 * (auto(own) - auto(none))
    torch.testing.assert_close(both, expected, rtol=1e-3, atol=1e-3)
    assert count.rows == 9
    plain = internal(count, own, 1.0, unconditional=none, guidance_scale=3.0)(x_t, t)
    known = classifier_free(model.velocity, own, none, 3.0)(x_t, t)
    torch.testing.assert_close(plain, known, rtol=1e-3, atol=1e-3)


def test_repa_adds_the_distance_to_the_features_of_the_true_image() -> None:
    states, x_0, noise, t = draws()
    features = torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(2))
    dit = replace(TINY, repa_depth=2, repa_dim=5)
    model = generator(dit, repa_weight=0.5)
    plain = generator(dit, repa_weight=0.0).losses(states, x_0, t=t, noise=noise, features=features)
    added = model.losses(states, x_0, t=t, noise=noise, features=features) - plain
    branches: dict[str, Tensor] = {}
    sample = interpolate(x_0, noise, t)
    model.dit(sample.x_t, t, model.condition(states), branches=branches)
    expected = 0.5 * (branches["repa"] - features).square().mean(dim=(1, 2))
    torch.testing.assert_close(added, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"set dit\.repa_dim"):
        model.losses(states, x_0, t=t, noise=noise)  # of 8 channels


def test_the_cosine_does_not_see_lengths() -> None:
    features = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    same = feature_distances(3 * features, features, distance="cosine")
    torch.testing.assert_close(same, torch.zeros(2), rtol=0, atol=1e-6)
    opposite = feature_distances(-features, features, distance="cosine")
    torch.testing.assert_close(opposite, torch.full((2,), 2.0))


@pytest.mark.parametrize("t", [0.01, MIN_TIME, 0.7])
def test_the_perfect_x_0_has_no_error_at_any_time(t: float) -> None:
    _, x_0, noise, _ = draws()
    times = torch.full((3,), t)
    losses = flow_matching_losses(
        lambda x_t, t: x_0_to_velocity(x_t, x_0, t), x_0, noise=noise, t=times, min_time=MIN_TIME
    )
    torch.testing.assert_close(losses, torch.zeros(3), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_depth": 3}, r"exit_depth must be from 0 to depth \(2\), got 3"),
        ({"exit_depth": 2}, r"exit_depth \(2\) must be below depth"),
        ({"repa_depth": 1}, r"repa_depth \(1\) and repa_dim \(0\) go together"),
    ],
)
def test_branches_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_the_usual_exit_is_after_about_three_tenths() -> None:
    assert [DiTConfig.usual_exit_depth(depth) for depth in (1, 5, 28, 32)] == [1, 1, 8, 9]
