"""RAEv2's DiTs with an early exit: forward, losses, guidance and sampler."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaquery.alignment import feature_distances
from metaquery.dit import DiTConfig
from metaquery.dit_config import Prediction
from metaquery.flow import MIN_TIME, interpolate, shift_time, velocity_error, velocity_target
from metaquery.guidance import classifier_free, internal
from metaquery.in_context import InContextConfig, InContextDiT
from metaquery.sampler import integrate, time_grid
from tests.parity.harness import FORWARD, TRAJECTORY, Check, Fixture, assert_close, to_tokens
from unimm.checkpoints.keymap import Rule, apply_rules, conv_to_linear


def _block_rules(foreign: str, ours: str) -> tuple[Rule, ...]:
    return (
        *(
            Rule(rf"{foreign}\.attn\.{part}\.(\w+)", rf"{ours}.attention.qkv.\1", None, (row, 3))
            for row, part in enumerate("qkv")
        ),
        Rule(rf"{foreign}\.attn\.([qk]_norm)\.weight", rf"{ours}.attention.\1.weight"),
        Rule(rf"{foreign}\.attn\.proj\.(\w+)", rf"{ours}.attention.out.\1"),
        Rule(rf"{foreign}\.(norm[12])\.weight", rf"{ours}.\1.weight"),
        Rule(rf"{foreign}\.mlp\.w1\.(\w+)", rf"{ours}.mlp.gate_up.\1", None, (0, 2)),
        Rule(rf"{foreign}\.mlp\.w2\.(\w+)", rf"{ours}.mlp.gate_up.\1", None, (1, 2)),
        Rule(rf"{foreign}\.mlp\.w3\.(\w+)", rf"{ours}.mlp.down.\1"),
        Rule(rf"{foreign}\.adaln_modulation\.1\.(\w+)", rf"{ours}.modulation.\1"),
    )


def _final_rules(foreign: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{foreign}\.norm(_final)?\.weight", rf"{ours}.norm.weight"),
        Rule(rf"{foreign}\.linear\.(\w+)", rf"{ours}.out.\1"),
        Rule(rf"{foreign}\.adaln_modulation\.1\.(\w+)", rf"{ours}.modulation.\1"),
    )


def _rules(config: DiTConfig) -> tuple[Rule, ...]:
    backbone, head = ("s", "x") if config.ddt_depth else ("x", "s")
    return (
        Rule(r"((enc|dec)_)?rope\.freqs_(cos|sin)", None),
        Rule(rf"{backbone}_embedder\.proj\.weight", "latent_embed.weight", conv_to_linear),
        Rule(rf"{backbone}_embedder\.proj\.bias", "latent_embed.bias"),
        Rule(rf"{head}_embedder\.proj\.weight", "head.latent_embed.weight", conv_to_linear),
        Rule(rf"{head}_embedder\.proj\.bias", "head.latent_embed.bias"),
        Rule(r"s_projector\.(\w+)", r"head.project.\1"),
        Rule(r"t_embedder\.W", "time_embed.frequencies"),
        Rule(r"t_embedder\.mlp\.0\.(\w+)", r"time_embed.up.\1"),
        Rule(r"t_embedder\.mlp\.2\.(\w+)", r"time_embed.out.\1"),
        Rule(r"t_embedder\.learnable_tokens", "time_tokens"),
        Rule(r"ctx_embedder\.(.+)", r"classes.\1"),
        Rule(r"repa_projector\.(\w+)", r"repa.\1"),
        *_final_rules("base_final_layer", "exit"),
        *_final_rules("final_layer", "final"),
        *(
            rule
            for i in range(config.depth)
            for rule in _block_rules(rf"blocks\.{i}", f"blocks.{i}")
        ),
        *(
            rule
            for i in range(config.ddt_depth)
            for rule in _block_rules(rf"blocks\.{config.depth + i}", f"head.blocks.layers.{i}")
        ),
    )


def _config(model: dict[str, Any], prediction: Prediction) -> InContextConfig:
    params = model["params"]
    assert params["condition_type"] in ("label", "class")
    width, depth, heads = (params[key] for key in ("hidden_size", "depth", "num_heads"))
    sides: dict[str, Any] = {"ddt_depth": 0}
    if model["arch"] == "ditdh_ig":
        sides = {"ddt_dim": width[1], "ddt_depth": depth[1], "ddt_heads": heads[1]}
        width, depth, heads = width[0], depth[0], heads[0]
    dit = DiTConfig(
        num_latent_tokens=params["input_size"] ** 2,
        latent_dim=params["in_channels"],
        cond_dim=width,
        hidden_dim=width,
        depth=depth,
        num_heads=heads,
        qk_norm=True,
        exit_depth=params["base_model_depth"],
        repa_depth=params["repa_layer_depth"] if params["enable_repa"] else 0,
        repa_dim=params["z_dim"] if params["enable_repa"] else 0,
        prediction=prediction,
        **sides,
    )
    return InContextConfig(dit=dit, num_time_tokens=params["cond_arch"]["num_t_tokens"])


class ClassModel:
    """An in-context DiT and its class tokens: learned ones plus the class's embedding."""

    def __init__(self, fixture: Fixture, prediction: Prediction = "velocity") -> None:
        config = _config(fixture.config["model"], prediction)
        state = apply_rules(fixture.weights, _rules(config.dit))
        self.tokens = state.pop("classes.learnable_tokens")
        self.table = state.pop("classes.embedding_table.weight")
        self.dit = InContextDiT(config).eval()
        self.dit.load_state_dict(state, strict=True)

    def condition(self, labels: Tensor) -> Tensor:
        return self.tokens + self.table[labels][:, None]

    def heads(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        branches: dict[str, Tensor] = {}
        full = self.dit(x_t, t, condition, branches=branches)
        return torch.stack([full, branches["exit"]])


@torch.no_grad()
def check_forward(fixture: Fixture) -> None:
    model = ClassModel(fixture)
    branches: dict[str, Tensor] = {}
    condition = model.condition(fixture.input("context"))
    x, t = to_tokens(fixture.input("x")), fixture.input("t")
    full = model.dit(x, t, condition, branches=branches)
    assert_close(full, to_tokens(fixture.output("full")), FORWARD)
    assert_close(branches["exit"], to_tokens(fixture.output("base")), FORWARD)
    if fixture.has("output.repa"):
        assert_close(branches["repa"], fixture.output("repa"), FORWARD)


def check_repa_loss(fixture: Fixture) -> None:
    config, model = fixture.config, ClassModel(fixture, prediction="x_0")
    assert config["transport"]["t_eps"] == MIN_TIME
    x_0, noise = to_tokens(fixture.input("x1")), to_tokens(fixture.input("noise"))
    t = shift_time(fixture.input("time_normal").sigmoid(), config["transport"]["time_dist_shift"])
    labels = fixture.input("context").where(
        fixture.input("drop_uniform") >= 0.1, torch.tensor(len(model.table) - 1)
    )
    sample = interpolate(x_0, noise, t)
    assert_close(t, fixture.output("t"), FORWARD)
    assert_close(sample.x_t, to_tokens(fixture.output("xt")), FORWARD)
    branches: dict[str, Tensor] = {}
    full = model.dit(sample.x_t, t, model.condition(labels), branches=branches)
    target = velocity_target(sample, min_time=MIN_TIME)
    losses = velocity_error(full, target), velocity_error(branches["exit"], target)
    weight = config["base_model_coeff"]
    squares = (full - target).square() + weight * (branches["exit"] - target).square()
    repa = config["repa_coeff"] * feature_distances(branches["repa"], fixture.input("z_clean"))
    total = losses[0].mean() + weight * losses[1].mean() + repa.mean()
    assert_close(losses[0].mean(), fixture.output("loss_full_mean"), FORWARD)
    assert_close(losses[1].mean(), fixture.output("loss_base_mean"), FORWARD)
    assert_close(squares, to_tokens(fixture.output("loss_map_sum")), 10 * FORWARD)
    assert_close(repa.mean(), fixture.output("loss_repa"), FORWARD)
    assert_close(total, fixture.output("total"), FORWARD)
    torch.autograd.backward(total)
    _check_gradients(fixture, model.dit)


def _check_gradients(fixture: Fixture, dit: InContextDiT) -> None:
    rules = _rules(dit.config.dit)
    for name in fixture.config["grads"]:
        expected = fixture.output(f"grad.{name}")
        key = next(iter(apply_rules({name: expected}, _whole(rules))))
        gradient = dit.get_parameter(key).grad
        assert gradient is not None
        if key.endswith("qkv.weight"):
            row = "qkv".index(name.split(".")[-2])
            gradient = gradient.chunk(3)[row]
        assert_close(gradient, expected, 10 * FORWARD)


def _whole(rules: tuple[Rule, ...]) -> list[Rule]:
    """Return rules that take a single block of rows for the whole."""
    return [Rule(rule.pattern, rule.target, rule.convert) for rule in rules]


@torch.no_grad()
def check_guidance(fixture: Fixture) -> None:
    config, model = fixture.config, ClassModel(fixture)
    labels, null = fixture.input("context").chunk(2)
    x, t = to_tokens(fixture.input("x")).chunk(2)[0], fixture.input("t").chunk(2)[0]
    own, none = model.condition(labels), model.condition(null)
    on, cfg_on = tuple(config["ig_interval"]), tuple(config["cfg_interval"])
    plain: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, t, c: model.heads(x, t, c)[0]  # noqa: E731
    guided = {
        "cfg": classifier_free(plain, own, none, config["cfg"], interval=cfg_on),
        "ig": internal(model.heads, own, config["ig"], interval=on),
        "ig_cfg": internal(
            model.heads,
            own,
            config["ig"],
            interval=on,
            unconditional=none,
            unconditional_scale=config["uncond_ig"],
            guidance_scale=config["cfg"],
            guidance_interval=cfg_on,
        ),
    }
    for name, velocity_fn in guided.items():
        expected = to_tokens(fixture.output(name)).chunk(2)[0]
        assert_close(velocity_fn(x, t), expected, config["ig"] * config["cfg"] * FORWARD)


@torch.no_grad()
def check_ode(fixture: Fixture) -> None:
    config, model = fixture.config, ClassModel(fixture, prediction="x_0")
    grid = time_grid(config["num_steps"], config["shift"])
    assert_close(grid, fixture.output("time_grid"), 1e-6)
    labels = fixture.input("context")
    null = torch.full_like(labels, len(model.table) - 1)
    velocity_fn = internal(
        model.heads,
        model.condition(labels),
        config["ig"],
        interval=(config["ig_t_min"], 1.0),
        unconditional=model.condition(null),
        guidance_scale=config["cfg"],
    )
    sample = integrate(velocity_fn, to_tokens(fixture.input("noise")), grid)
    assert_close(sample, to_tokens(fixture.output("sample")), TRAJECTORY)


CHECKS: dict[str, Check] = {
    "ditdh_ig": check_forward,
    "lightningdit_ig": check_forward,
    "repa_loss": check_repa_loss,
    "guidance": check_guidance,
    "ode_ig": check_ode,
}
