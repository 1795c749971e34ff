"""One step of optimisation: what float32 masters, clipping, skipping and averaging promise."""

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from training.config import OptimizerConfig
from training.engine import LocalEngine
from training.optimizer import parameter_groups
from unimm.errors import CheckpointError

STEADY = OptimizerConfig(lr=1e-4, warmup_steps=0, decay_share=0.0, weight_decay=0.0, grad_clip=0.0)
BOTH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])

LossOf = Callable[[nn.Module, int], Tensor]


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def engine_of(
    model: nn.Module, config: OptimizerConfig = STEADY, *, ema_decay: float = 0.0
) -> LocalEngine:
    groups = parameter_groups([("all", list(model.parameters()))], model)
    return LocalEngine(groups, config, num_steps=1000, ema_decay=ema_decay)


def loss_of(model: nn.Module, step: int) -> Tensor:
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
    outputs: Tensor = model(inputs.to(next(model.parameters()).dtype))
    return (outputs.float() - 1).square().mean()


def take(engine: LocalEngine, model: nn.Module, steps: range) -> None:
    for step in steps:
        engine.step(loss_of(model, step), step)


def test_updates_too_small_for_bfloat16_are_not_lost() -> None:
    """Adam moves a weight with a steady gradient by lr a step; 1 - 1e-4 rounds to 1 in bfloat16."""
    naive = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    adam = torch.optim.AdamW([naive], lr=1e-4, weight_decay=0.0)
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    engine = LocalEngine(parameter_groups([("all", [weight])]), STEADY, num_steps=100)
    for step in range(100):
        engine.step(weight.float().sum(), step)
        torch.autograd.backward(naive.float().sum())
        adam.step()
        adam.zero_grad()
    assert naive.item() == 1.0
    assert engine.masters[0].item() == pytest.approx(0.99, abs=1e-5)
    assert weight.item() == torch.tensor(0.99, dtype=torch.bfloat16).item() < 1.0


def test_a_float32_parameter_is_its_own_master() -> None:
    model = network(torch.float32)
    engine = engine_of(model)
    assert all(m is p for m, p in zip(engine.masters, model.parameters(), strict=True))


@BOTH
def test_gradients_are_clipped_to_the_largest_norm(dtype: torch.dtype) -> None:
    """What AdamW sees shows in its first moment, (1 - beta) * gradient after one step."""
    config = OptimizerConfig(grad_clip=0.5, warmup_steps=0, betas=(0.9, 0.99))
    for factor, expected in ((100.0, 0.5), (0.01, None)):
        model = network(dtype)
        engine = engine_of(model, config)
        report = engine.step(factor * loss_of(model, 0), 0)
        state = engine.optimizer.state_dict()["state"].values()
        seen = torch.cat([s["exp_avg"].flatten() for s in state]).norm().item() / (1 - 0.9)
        assert seen == pytest.approx(expected or report.grad_norm, rel=1e-4)
        assert (report.grad_norm > 0.5) == (expected is not None)


@BOTH
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_without_a_finite_gradient_changes_nothing(dtype: torch.dtype, bad: float) -> None:
    model = network(dtype)
    engine = engine_of(model, ema_decay=0.9)
    take(engine, model, range(3))
    before = copy.deepcopy((engine.state_dict(), list(model.parameters())))
    assert engine.step(bad * loss_of(model, 3), 3).skipped
    assert_equal((engine.state_dict(), list(model.parameters())), before)
    assert not engine.step(loss_of(model, 4), 4).skipped
    assert torch.isfinite(engine.masters[0]).all()


@BOTH
def test_the_moving_average_has_its_closed_form(dtype: torch.dtype) -> None:
    """After n steps: d^n w_0 + (1 - d) sum_k d^(n - k) w_k."""
    decay, model = 0.8, network(dtype)
    config = OptimizerConfig(lr=0.05, warmup_steps=0)
    engine = engine_of(model, config, ema_decay=decay)
    history = [[m.detach().double().clone() for m in engine.masters]]
    for step in range(12):
        engine.step(loss_of(model, step), step)
        history.append([m.detach().double().clone() for m in engine.masters])
    for i, average in enumerate(engine.averages):
        weights = [(1 - decay) * decay ** (12 - k) for k in range(13)]
        weights[0] = decay**12
        expected = sum((w * past[i] for w, past in zip(weights, history, strict=True)), Tensor([0]))
        torch.testing.assert_close(average.double(), expected, rtol=0, atol=1e-6)
        assert not torch.allclose(average, engine.masters[i], rtol=0, atol=1e-4)


@BOTH
def test_averaged_weights_are_in_place_for_a_while_only(dtype: torch.dtype) -> None:
    model = network(dtype)
    engine = engine_of(model, OptimizerConfig(lr=0.05, warmup_steps=0), ema_decay=0.9)
    take(engine, model, range(4))
    before = [p.detach().clone() for p in model.parameters()]
    with engine.averaged():
        inside = [p.detach().clone() for p in model.parameters()]
    assert_equal(list(model.parameters()), before)
    assert_equal(inside, [average.to(dtype) for average in engine.averages])
    with pytest.raises(KeyboardInterrupt), engine.averaged():
        raise KeyboardInterrupt
    assert_equal(list(model.parameters()), before)


@BOTH
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("hidden", ["adamw", "muon"])
def test_going_on_from_a_saved_state_is_bit_exact(
    dtype: torch.dtype, ema_decay: float, hidden: Literal["adamw", "muon"]
) -> None:
    config = OptimizerConfig(lr=0.02, warmup_steps=3, hidden=hidden)
    straight_model = network(dtype)
    straight = engine_of(straight_model, config, ema_decay=ema_decay)
    take(straight, straight_model, range(5))
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    take(straight, straight_model, range(5, 10))

    file.seek(0)
    resumed_model = network(dtype)
    resumed = engine_of(resumed_model, config, ema_decay=ema_decay)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    take(resumed, resumed_model, range(5, 10))
    assert_equal(resumed.state_dict(), straight.state_dict())
    assert_equal(list(resumed_model.parameters()), list(straight_model.parameters()))
    assert_equal(resumed.final_weights(), straight.final_weights())


@pytest.mark.parametrize("hidden", ["adamw", "muon"])
def test_a_resumed_run_may_change_its_learning_rate(hidden: Literal["adamw", "muon"]) -> None:
    model = network(torch.float32)
    engine = engine_of(model, replace(STEADY, hidden=hidden))
    take(engine, model, range(2))
    config = OptimizerConfig(lr=0.5, warmup_steps=0, weight_decay=0.25, hidden=hidden)
    changed = engine_of(model, config)
    changed.load_state_dict(copy.deepcopy(engine.state_dict()))
    assert changed.step(loss_of(model, 2), 2).lr == 0.5
    assert {g["weight_decay"] for g in changed.optimizer.param_groups} == {0.25, 0.0}


def test_a_resumed_run_may_not_change_its_optimiser() -> None:
    model = network(torch.float32)
    state = engine_of(model).state_dict()
    engine = engine_of(model, replace(STEADY, hidden="muon"))
    with pytest.raises(CheckpointError, match=r"not of optimizer\.hidden=muon"):
        engine.load_state_dict(state)


def assert_equal(left: Any, right: Any) -> None:
    """Compare nested containers of tensors bit by bit, and what else is in them."""
    torch.testing.assert_close(tensors_of(left), tensors_of(right), rtol=0, atol=0)
    assert tree_map_only(Tensor, lambda _: None, left) == tree_map_only(
        Tensor, lambda _: None, right
    )


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
