"""Scale-RAE: the DiT, its flow loss and its sampler, against fixtures of the official code."""

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from metaquery.dit import DiT, DiTConfig
from metaquery.flow import dimension_shift, flow_matching_losses, shift_time
from metaquery.guidance import classifier_free
from metaquery.official import official_grid, official_schedule, sample_official
from metaquery.rope import grid_rope, sincos_embedding
from metaquery.sampler import integrate
from tests.parity.harness import (
    FORWARD,
    TRAJECTORY,
    Check,
    Fixture,
    assert_close,
    to_tokens,
)
from unimm.checkpoints.keymap import apply_rules, scale_rae_dit


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, list) else (value, 0)


def _dit_config(config: dict[str, Any]) -> DiTConfig:
    """Translate the official constructor's arguments."""
    (width, ddt_dim), (depth, ddt_depth), (heads, ddt_heads) = (
        _pair(config[key]) for key in ("hidden_size", "depth", "num_heads")
    )
    if config.get("use_DDT"):
        ddt_depth = depth - config["DDT_encoder_depth"]
        depth, ddt_dim, ddt_heads = config["DDT_encoder_depth"], width, heads
    return DiTConfig(
        num_latent_tokens=config["input_size"] ** 2,
        latent_dim=config["in_channels"],
        cond_dim=config["z_channels"],
        hidden_dim=width,
        depth=depth,
        num_heads=heads,
        ddt_dim=ddt_dim or width,
        ddt_depth=ddt_depth,
        ddt_heads=ddt_heads or heads,
        cond_silu=config.get("cond_silu", True),
        qk_norm=config.get("use_qknorm", False),
        rope=config.get("use_rope", True),
        norm="rms" if config.get("use_rmsnorm", True) else "layer",
        mlp="swiglu" if config.get("use_swiglu", True) else "gelu",
        time_embedding="fourier" if config.get("use_gembed", True) else "sinusoidal",
    )


def _projector_config(config: dict[str, Any]) -> DiTConfig:
    """Translate the arguments of the flow fixtures."""
    return _dit_config(
        {
            "input_size": isqrt(config["tok"]),
            "in_channels": config["ch"],
            "hidden_size": config["hid"],
            "depth": config["depth"],
            "num_heads": config["heads"],
            "z_channels": config["z"],
        }
    )


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("model."): value for key, value in state.items()}


def build(fixture: Fixture, config: DiTConfig, weights: dict[str, Tensor]) -> DiT:
    """Load official weights strictly and compare the tables that we compute ourselves."""
    dit = DiT(config).eval()
    state = apply_rules(weights, scale_rae_dit(config.depth, config.ddt_depth))
    if config.time_embedding == "fourier":
        state["time_embed.frequencies"] = fixture.input("W")
        assert torch.equal(dit.time_embed.frequencies, fixture.input("W"))
    dit.load_state_dict(state, strict=True)
    _compare_tables(config, weights)
    return dit


def _compare_tables(config: DiTConfig, weights: dict[str, Tensor]) -> None:
    tokens = config.num_latent_tokens
    assert_close(sincos_embedding(tokens, config.hidden_dim), weights["pos_embed"][0], 1e-6)
    widths = {
        "feat_rope": config.hidden_dim // config.num_heads,
        "enc_rope": config.hidden_dim // config.num_heads,
        "dec_rope": config.ddt_dim // config.ddt_heads,
    }
    for name, head_dim in widths.items():
        if f"{name}.freqs_cos" in weights:
            cosine, signed_sine = grid_rope(tokens, head_dim)
            sine = signed_sine * torch.tensor([-1.0, 1.0]).repeat(head_dim // 2)
            assert_close(cosine, weights[f"{name}.freqs_cos"], 1e-6)
            assert_close(sine, weights[f"{name}.freqs_sin"], 1e-6)


@torch.no_grad()
def check_forward(fixture: Fixture) -> None:
    dit = build(fixture, _dit_config(fixture.config), fixture.weights)
    velocity = dit(to_tokens(fixture.input("x")), fixture.input("t"), fixture.input("y"))
    assert_close(velocity, to_tokens(fixture.output("v")), FORWARD)
    if fixture.has("output.t_emb"):
        assert_close(dit.time_embed(fixture.input("t")), fixture.output("t_emb"), FORWARD)


@torch.no_grad()
def check_cfg(fixture: Fixture) -> None:
    dit = build(fixture, _dit_config(fixture.config), fixture.weights)
    x, t, y = to_tokens(fixture.input("x")), fixture.input("t"), fixture.input("y")
    null = dit.null_condition.expand_as(y)
    guided = classifier_free(dit, y, null, fixture.facts["cfg_scale"])(x, t)
    assert_close(dit(x, t, y), to_tokens(fixture.output("v_cond")), FORWARD)
    assert_close(dit(x, t, None), to_tokens(fixture.output("v_uncond")), FORWARD)
    # Guidance multiplies the rounding error by its scale.
    tolerance = fixture.facts["cfg_scale"] * FORWARD
    assert_close(guided, to_tokens(fixture.output("v_cfg")), tolerance)
    # The official sampler switches guidance off everywhere.
    off = classifier_free(dit, y, null, fixture.facts["cfg_scale"], interval=(2.0, 2.0))
    assert_close(off(x, t), to_tokens(fixture.output("v_cfg_official_infer")), FORWARD)


def check_timestep_shift(fixture: Fixture) -> None:
    config = fixture.config
    shift = dimension_shift(
        config["diffusion_tokens"], config["diffusion_channels"], config["base_dim"]
    )
    assert abs(shift - config["shift"]) < 1e-12
    train = shift_time(fixture.input("u").sigmoid(), shift)
    assert_close(train, fixture.output("t_train"), 1e-6)
    for steps, suffix in ((config["inference_steps"], ""), (10, "_10"), (25, "_25")):
        if fixture.has(f"output.t_used{suffix}"):
            grid = official_grid(steps, shift)
            assert_close(grid, fixture.output(f"t_used{suffix}"), 1e-12)
        if fixture.has(f"output.steps_official{suffix}"):
            schedule = torch.tensor(official_schedule(steps, shift), dtype=torch.float64)
            assert_close(schedule, fixture.output(f"steps_official{suffix}"), 1e-12)


def check_rf_loss(fixture: Fixture) -> None:
    dit = build(fixture, _projector_config(fixture.config), _strip(fixture.weights))
    z = fixture.input("z").requires_grad_()
    # The fixtures of evaluation mode record a mask that nothing used.
    drop = fixture.input("drop") if "train" in fixture.facts["mode"] else None
    t = shift_time(fixture.input("u").sigmoid(), fixture.config["shift"])
    assert_close(t, fixture.input("t"), 1e-6)
    losses = flow_matching_losses(
        lambda x_t, t: dit(x_t, t, z, drop),
        fixture.input("x"),
        noise=fixture.input("noise"),
        t=fixture.input("t"),
    )
    assert_close(losses, fixture.output("loss_per_sample"), FORWARD)
    torch.autograd.backward(losses.mean())
    assert z.grad is not None
    assert_close(z.grad, fixture.output("grad_input.z"), FORWARD)
    theirs = apply_rules(_strip(fixture.under("output.grad.")), scale_rae_dit(dit.config.depth))
    ours = dict(dit.named_parameters())
    assert theirs
    for name, gradient in theirs.items():
        actual = ours[name].grad
        assert actual is not None
        assert_close(actual, gradient, FORWARD)


def _flow_shift(config: dict[str, Any]) -> float:
    return dimension_shift(config["tok"], config["ch"], config["base_dim"])


@torch.no_grad()
def check_official_ode(fixture: Fixture) -> None:
    config = fixture.config
    dit = build(fixture, _projector_config(config), _strip(fixture.weights))
    z, noise = fixture.input("z"), to_tokens(fixture.input("x_end"))
    shift, scale = _flow_shift(config), fixture.facts["cfg_scale"]
    states: list[Tensor] = []
    times: list[Tensor] = []

    def recorded(x_t: Tensor, t: Tensor) -> Tensor:
        states.append(x_t[0])
        times.append(t[0])
        velocity: Tensor = dit(x_t, t, z)
        return velocity

    samples = sample_official(recorded, noise, num_steps=config["steps"], shift=shift)
    assert_close(torch.stack(times), fixture.output("call_t"), 1e-6)
    trajectory = to_tokens(fixture.output("traj_x"))
    stride = 1 if len(trajectory) == len(states) else 7
    assert_close(torch.stack(states[::stride]), trajectory, TRAJECTORY)
    assert_close(samples, fixture.output("samples"), TRAJECTORY)
    assert_close(samples, fixture.output("samples_cfg_official"), TRAJECTORY)
    guided = classifier_free(dit, z, dit.null_condition.expand_as(z), scale)
    true_cfg = sample_official(guided, noise, num_steps=config["steps"], shift=shift)
    assert_close(true_cfg, fixture.output("samples_cfg_true"), TRAJECTORY)
    grid = official_grid(config["steps"], shift).flip(0)
    textbook = integrate(lambda x, t: dit(x, t, z), noise, torch.cat([grid, grid.new_zeros(1)]))
    assert_close(textbook, fixture.output("samples_textbook"), TRAJECTORY)


CHECKS: dict[str, Check] = {
    "dit_forward": check_forward,
    "ddt_forward": check_forward,
    "dit_useddt": check_forward,
    "dit_flags": check_forward,
    "dit_cfg": check_cfg,
    "timestep_shift": check_timestep_shift,
    "rf_loss": check_rf_loss,
    "ode10": check_official_ode,
    "ode50": check_official_ode,
}
