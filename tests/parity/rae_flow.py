"""RAE's second stage: both DiTs, the transport loss, samplers and guidance."""

from typing import Any

import torch
from torch import Tensor

from metaquery.adaptive import integrate_adaptive
from metaquery.dit import DiT, DiTConfig
from metaquery.flow import (
    VelocityFn,
    flow_matching_losses,
    interpolate,
    shift_time,
    truncated_logit_normal,
)
from metaquery.guidance import autoguidance, classifier_free
from metaquery.sampler import Solver, euler_step, steps, time_grid
from metaquery.stochastic import (
    decreasing_diffusion,
    linear_diffusion,
    sde_euler_step,
    sde_heun_step,
    sde_mean_step,
)
from tests.parity.harness import FORWARD, TRAJECTORY, Check, Fixture, assert_close, to_tokens
from unimm.checkpoints.keymap import LABEL_TABLE, apply_rules, rae_dit

LAST_TIME = 1e-3
"""RAE stops here, before the shift, and returns what it has."""


def _config(model: dict[str, Any]) -> DiTConfig:
    """Translate the official constructor's arguments."""
    params = model["params"]
    with_head = model["arch"] == "ditdh"
    width, depth, heads = (params[key] for key in ("hidden_size", "depth", "num_heads"))
    return DiTConfig(
        num_latent_tokens=params["input_size"] ** 2,
        latent_dim=params["in_channels"],
        cond_dim=width[0] if with_head else width,
        hidden_dim=width[0] if with_head else width,
        depth=depth[0] if with_head else depth,
        num_heads=heads[0] if with_head else heads,
        mlp_ratio=params["mlp_ratio"],
        ddt_dim=width[1] if with_head else width,
        ddt_depth=depth[1] if with_head else 0,
        ddt_heads=heads[1] if with_head else heads,
        ddt_time=with_head,
        cond_silu=with_head,
        qk_norm=params["use_qknorm"],
        rope=params["use_rope"],
        pos_embed=params.get("use_pos_embed", True),
        norm="rms" if params["use_rmsnorm"] else "layer",
        mlp="swiglu" if params["use_swiglu"] else "gelu",
    )


class ClassConditioned:
    """A DiT under one embedding a class; the last row of the official table is our null."""

    def __init__(self, model: dict[str, Any], weights: dict[str, Tensor]) -> None:
        config = _config(model)
        state = apply_rules(weights, rae_dit(config.depth, config.ddt_depth))
        table = state.pop(LABEL_TABLE)
        self.classes, state["null_condition"] = table[:-1], table[-1]
        if model["params"].get("learn_sigma"):
            for key in ("final.out.weight", "final.out.bias"):
                state[key] = state[key][: config.latent_dim]  # the other half is never read
        self.dit = DiT(config).eval()
        self.dit.load_state_dict(state, strict=True)

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        drop = labels == len(self.classes)
        condition = self.classes[labels.clamp(max=len(self.classes) - 1)]
        velocity: Tensor = self.dit(x_t, t, condition, drop)
        return velocity

    def bind(self, labels: Tensor) -> VelocityFn:
        return lambda x_t, t: self(x_t, t, labels)


def _model(fixture: Fixture) -> ClassConditioned:
    return ClassConditioned(fixture.config["model"], fixture.weights)


@torch.no_grad()
def check_forward(fixture: Fixture) -> None:
    model = ClassConditioned(fixture.config, fixture.weights)
    velocity = model(to_tokens(fixture.input("x")), fixture.input("t"), fixture.input("y"))
    assert_close(velocity, to_tokens(fixture.output("v")), FORWARD)


def _training_times(fixture: Fixture) -> Tensor:
    transport = fixture.config["transport"]
    uniform, end = fixture.input("time_uniform"), 1 - LAST_TIME
    kind, *numbers = transport["time_dist_type"].split("_")
    if kind == "uniform":
        t = uniform * end
    else:
        mean, std = map(float, numbers)
        t = truncated_logit_normal(uniform, mean=mean, std=std, end=end)
    return shift_time(t, transport["time_dist_shift"])


@torch.no_grad()
def check_transport_loss(fixture: Fixture) -> None:
    x_0, noise = to_tokens(fixture.input("x1")), to_tokens(fixture.input("noise"))
    t = _training_times(fixture)
    velocity_fn = _model(fixture).bind(fixture.input("y"))
    sample = interpolate(x_0, noise, t)
    losses = flow_matching_losses(velocity_fn, x_0, noise=noise, t=t)
    assert_close(t, fixture.output("t"), FORWARD)
    assert_close(sample.x_t, to_tokens(fixture.output("xt")), FORWARD)
    assert_close(sample.velocity, to_tokens(fixture.output("ut")), FORWARD)
    assert_close(velocity_fn(sample.x_t, t), to_tokens(fixture.output("pred")), FORWARD)
    assert_close(losses, fixture.output("loss_per_sample"), FORWARD)
    assert_close(losses.mean(), fixture.output("loss"), FORWARD)


SOLVERS: dict[str, Solver] = {"euler": "euler", "heun2": "heun", "midpoint": "midpoint"}


@torch.no_grad()
def check_ode(fixture: Fixture) -> None:
    sampler = fixture.config["sampler"]
    points, method = sampler["num_steps"], sampler["sampling_method"]
    shift = fixture.config["transport"]["time_dist_shift"]
    grid = time_grid(points - 1, shift, end=LAST_TIME)
    assert_close(grid, fixture.output("time_grid"), 1e-6)
    velocity_fn = _model(fixture).bind(fixture.input("y"))
    noise = to_tokens(fixture.input("noise"))
    if method == "dopri5":
        states = integrate_adaptive(
            velocity_fn, noise, grid, atol=sampler["atol"], rtol=sampler["rtol"]
        )
    else:
        path = steps(velocity_fn, noise, grid, solver=SOLVERS[method])
        states = torch.stack([noise, *(step.x_t for step in path)])
    assert_close(states[points // 2], to_tokens(fixture.output("mid")), TRAJECTORY)
    assert_close(states[-1], to_tokens(fixture.output("sample")), TRAJECTORY)


SDE_STEPS = {"euler": sde_euler_step, "heun": sde_heun_step}
DIFFUSIONS = {
    "linear": linear_diffusion,
    "sigma": linear_diffusion,
    "decreasing": decreasing_diffusion,
}


def _last_step(velocity_fn: VelocityFn, x: Tensor, sampler: dict[str, Any]) -> Tensor:
    """Repeat RAE's last step, which takes the state to be at the unshifted last time."""
    if sampler["last_step"] is None:
        return x
    t = x.new_full((len(x),), sampler["last_step_size"])
    if sampler["last_step"] == "Mean":
        diffusion = DIFFUSIONS[sampler["diffusion_form"]]
        return sde_mean_step(velocity_fn, x, t, torch.zeros_like(t), diffusion=diffusion)
    return euler_step(velocity_fn, x, t, torch.zeros_like(t))[0]  # Tweedie's is the same step


@torch.no_grad()
def check_sde(fixture: Fixture) -> None:
    sampler = fixture.config["sampler"]
    assert sampler["diffusion_norm"] == 1.0
    points = sampler["num_steps"]
    shift = fixture.config["transport"]["time_dist_shift"]
    grid = time_grid(points - 1, shift, end=sampler["last_step_size"])
    velocity_fn = _model(fixture).bind(fixture.input("y"))
    x, states = to_tokens(fixture.input("noise")), []
    for t, t_next, draw in zip(grid[:-1], grid[1:], fixture.input("wiener"), strict=True):
        x = SDE_STEPS[sampler["sampling_method"]](
            velocity_fn,
            x,
            t.expand(len(x)),
            t_next.expand(len(x)),
            draw=to_tokens(draw),
            diffusion=DIFFUSIONS[sampler["diffusion_form"]],
        )
        states.append(x)
    states.append(_last_step(velocity_fn, x, sampler))
    assert_close(states[points // 2], to_tokens(fixture.output("mid")), TRAJECTORY)
    assert_close(states[-2], to_tokens(fixture.output("before_last_step")), TRAJECTORY)
    assert_close(states[-1], to_tokens(fixture.output("sample")), TRAJECTORY)


def _halves(fixture: Fixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, t, labels and null labels of a doubled batch."""
    half = len(fixture.input("x")) // 2
    x, t = to_tokens(fixture.input("x"))[:half], fixture.input("t")[:half]
    return x, t, fixture.input("y")[:half], fixture.input("y")[half:]


@torch.no_grad()
def check_cfg(fixture: Fixture) -> None:
    x, t, labels, null = _halves(fixture)
    low, high = fixture.config["cfg_interval"]
    scale = fixture.config["cfg_scale"]
    guided = classifier_free(_model(fixture), labels, null, scale, interval=(low, high))(x, t)
    # Guidance multiplies the rounding error by its scale.
    assert_close(torch.cat([guided, guided]), to_tokens(fixture.output("v")), scale * FORWARD)


@torch.no_grad()
def check_cfg_lightningdit(fixture: Fixture) -> None:
    """Its intervals say where guidance is off, or has another scale, for the whole batch."""
    x, t, labels, null = _halves(fixture)
    scale = fixture.config["cfg_scale"]
    if any(low <= t[0] < high for low, high in fixture.config["cfg_interval"]):
        scale = max(1.0, fixture.config["extra"]["interval_cfg"])
    guided = classifier_free(_model(fixture), labels, null, scale)(x, t)
    assert_close(torch.cat([guided, guided]), to_tokens(fixture.output("v")), scale * FORWARD)


@torch.no_grad()
def check_autoguidance(fixture: Fixture) -> None:
    config, labels = fixture.config, fixture.input("y")
    main = ClassConditioned(config["model"], fixture.under("weight.main.")).bind(labels)
    guide = ClassConditioned(config["guide"], fixture.under("weight.guide.")).bind(labels)
    low, high = config["cfg_interval"]
    guided = autoguidance(main, guide, config["cfg_scale"], interval=(low, high))
    velocity = guided(to_tokens(fixture.input("x")), fixture.input("t"))
    assert_close(velocity, to_tokens(fixture.output("v")), FORWARD)


CHECKS: dict[str, Check] = {
    "ditdh": check_forward,
    "lightningdit": check_forward,
    "transport_loss": check_transport_loss,
    "ode_euler": check_ode,
    "ode_heun": check_ode,
    "ode_dopri5": check_ode,
    "sde": check_sde,
    "cfg": check_cfg,
    "cfg_lightningdit": check_cfg_lightningdit,
    "autoguidance": check_autoguidance,
}
