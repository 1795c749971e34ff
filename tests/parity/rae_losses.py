"""What RAE trains its decoder by, against fixtures of the official code."""

import re
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.harness import FORWARD, Check, Fixture, assert_close
from training.config import OptimizerConfig
from training.losses.adversarial import (
    adaptive_weight,
    generator_loss,
    hinge_loss,
    vanilla_loss,
)
from training.losses.augment import NUM_DRAWS, augment_by
from training.losses.dino import DinoConfig, DinoFeatures, dino_state
from training.losses.discriminator import DinoDiscriminator
from training.losses.perceptual import LPIPS, lpips_state
from training.optimizer import lr_factor

DEEP = 1e-4
"""Relative tolerance behind a discriminator, whose norms divide by small deviations."""


@torch.no_grad()
def check_lpips(fixture: Fixture) -> None:
    model = LPIPS(fixture.config["channels"])
    assert_close(model.shift, fixture.weights["scaling_layer.shift"][0], 1e-6)
    assert_close(model.scale, fixture.weights["scaling_layer.scale"][0], 1e-6)
    model.load_state_dict(lpips_state(fixture.weights), strict=True)
    distances = model(fixture.input("a"), fixture.input("b"))
    assert_close(distances, fixture.output("per_sample").flatten(), FORWARD)
    assert_close(distances.mean(), fixture.output("mean"), FORWARD)


HEAD_KEYS = (
    (r"heads\.(\d+)\.0\.0\.(\w+)", r"\1.first.\2"),
    (r"heads\.(\d+)\.0\.1\.(\w+)", r"\1.first_norm.\2"),
    (r"heads\.(\d+)\.1\.fn\.0\.(\w+)", r"\1.second.\2"),
    (r"heads\.(\d+)\.1\.fn\.1\.(\w+)", r"\1.second_norm.\2"),
    (r"heads\.(\d+)\.2\.(\w+)", r"\1.logit.\2"),
)
SPECTRAL = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}


def _head_key(official: str) -> str:
    for pattern, ours in HEAD_KEYS:
        if match := re.fullmatch(pattern, official):
            stem, _, leaf = match.expand(ours).rpartition(".")
            return f"{stem}.{SPECTRAL.get(leaf, leaf)}"
    raise AssertionError(official)


def _discriminator(fixture: Fixture) -> DinoDiscriminator:
    recipe = fixture.config["recipe"]
    assert fixture.config["norm_type"] == "bn"
    assert fixture.config["spec"]
    config = DinoConfig(
        patch_size=recipe["patch_size"],
        hidden_dim=recipe["embed_dim"],
        depth=recipe["depth"],
        num_heads=recipe["num_heads"],
        mlp_ratio=recipe["mlp_ratio"],
        taps=tuple(recipe["key_depths"]),
    )
    features = DinoFeatures(config)
    stored = fixture.under("weight.dino.")
    scale, shift = stored.pop("x_scale")[0], stored.pop("x_shift")[0]
    assert_close(1 / features.std, scale, 1e-6)
    assert_close(-features.mean / features.std, shift, 1e-5)
    features.load_state_dict(dino_state(stored), strict=True)
    critic = DinoDiscriminator(features, kernel_size=fixture.config["ks"])
    heads = fixture.under("weight.heads_module.")
    critic.heads.load_state_dict({_head_key(k): t for k, t in heads.items()}, strict=True)
    return critic


@torch.no_grad()
def check_dino_disc(fixture: Fixture) -> None:
    critic = _discriminator(fixture).eval()
    real, fake = critic(fixture.input("real")), critic(fixture.input("fake"))
    assert_close(real, fixture.output("logits_real_eval"), DEEP)
    assert_close(fake, fixture.output("logits_fake_eval"), DEEP)
    critic.train()
    fake, real = critic(fixture.input("fake")), critic(fixture.input("real"))
    assert_close(fake, fixture.output("logits_fake_train"), DEEP)
    assert_close(real, fixture.output("logits_real_train"), DEEP)
    critic = _discriminator(fixture).eval()
    real, fake = critic(fixture.input("real")), critic(fixture.input("fake"))
    assert_close(hinge_loss(real, fake), fixture.output("d_hinge"), DEEP)
    assert_close(vanilla_loss(real, fake), fixture.output("d_vanilla"), DEEP)
    assert_close(generator_loss(fake), fixture.output("g_loss"), DEEP)


def check_diffaug(fixture: Fixture) -> None:
    assert fixture.config == {"prob": 1.0, "cutout": 0.0}
    draws = fixture.input("param_uniform").flatten(1)[:NUM_DRAWS]  # the others place a cutout
    assert_close(augment_by(fixture.input("image"), draws), fixture.output("image"), FORWARD)


def check_adaptive_weight(fixture: Fixture) -> None:
    config, weights = fixture.config, fixture.weights
    last = weights["last.weight"].requires_grad_()

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    y = linear("last", linear("body", fixture.input("x")).tanh())
    rec = (y - fixture.input("target")).abs().mean()
    gan = generator_loss(linear("critic", y.tanh()) * config["gan_gain"])
    weight = adaptive_weight(rec, gan, last, largest=config["max_d_weight"])
    total = rec + config["disc_weight"] * weight * gan
    for name, value in (("rec", rec), ("gan", gan), ("total", total), ("adaptive_weight", weight)):
        assert_close(value, fixture.output(name), FORWARD)
    gradient = torch.autograd.grad(total, last)[0]
    assert_close(gradient, fixture.output("grad_last_layer"), FORWARD)


def check_lr_schedule(fixture: Fixture) -> None:
    schedule, per_epoch = fixture.config["cfg"]["scheduler"], fixture.config["steps_per_epoch"]
    num_steps = schedule["decay_end_epoch"] * per_epoch
    warmup = schedule["warmup_epochs"] * per_epoch
    config = OptimizerConfig(
        lr=schedule["base_lr"],
        warmup_steps=warmup,
        decay_share=1 - warmup / num_steps,
        decay_shape="cosine",
        final_lr_ratio=schedule["final_lr"] / schedule["base_lr"],
    )
    factor = partial(lr_factor, num_steps=num_steps, config=config)
    rates = [config.lr * factor(step) for step in fixture.input("steps").tolist()]
    assert_close(torch.tensor(rates, dtype=torch.float64), fixture.output("lr"), 1e-9)


CHECKS: dict[str, Check] = {
    "lpips": check_lpips,
    "dino_disc": check_dino_disc,
    "diffaug": check_diffaug,
    "adaptive_weight": check_adaptive_weight,
    "lr_schedule": check_lr_schedule,
}
