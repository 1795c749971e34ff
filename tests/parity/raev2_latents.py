"""RAEv2's latents of several layers, against fixtures of the official code."""

from typing import Any

import torch
from torch import Tensor

from tests.parity.harness import FORWARD, Check, Fixture, assert_close, to_tokens
from unimm.checkpoints import dinov3
from unimm.checkpoints.keymap import apply_rules
from unimm.checkpoints.rae import statistics
from unimm.checkpoints.towers import file_rules
from unimm.latents import LatentKind, LatentSpaceConfig, LayerMixConfig, build_latent_space
from unimm.latents.tower import TowerLatents

IMAGENET: dict[str, Any] = {
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}


def _space(fixture: Fixture, kind: LatentKind, tower: dict[str, Any], **mix: Any) -> TowerLatents:
    layers = LayerMixConfig(layers=tuple(fixture.config["layers"]), post_norm=False, **mix)
    config = LatentSpaceConfig(
        kind=kind,
        image_size=fixture.config["res"],
        patch_size=fixture.config["params"]["patch_size"],
        tower={key: value for key, value in tower.items() if key != "patch_size"},
        layers=layers,
        statistics=fixture.has("input.latent_var"),
        **IMAGENET,
    )
    space = build_latent_space(config)
    assert isinstance(space, TowerLatents)
    return space.eval()


def _load_tower(space: TowerLatents, state: dict[str, Tensor]) -> None:
    missing, unexpected = space.tower.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"norm.weight", "norm.bias"}


@torch.no_grad()
def check_dinov3(fixture: Fixture) -> None:
    heads = fixture.config["params"]["num_heads"]
    image = fixture.input("image")
    tower = dinov3.hf_config(fixture.weights, num_heads=heads, image_size=image.shape[-1])
    state = dinov3.convert_state(fixture.weights)
    layers = torch.stack(_dinov3_layers(fixture, tower, state, global_term=False)[1])
    assert_close(layers, fixture.output("layers_normed"), FORWARD)
    plain, _ = _dinov3_layers(fixture, tower, state, global_term=False)
    raw = plain.features(plain.normalise(image))
    assert_close(raw, fixture.output("tokens_without_global_term"), FORWARD)
    space, _ = _dinov3_layers(fixture, tower, state, global_term=True)
    raw = space.features(space.normalise(image))
    assert_close(raw, fixture.output("tokens"), FORWARD)
    mean, scale = statistics(
        fixture.input("latent_mean"), fixture.input("latent_var"), num_tokens=space.num_tokens
    )
    space.latent_mean.copy_(mean)
    space.latent_scale.copy_(scale)
    assert_close(space.encode(image), to_tokens(fixture.output("z")), FORWARD)
    sigma = (fixture.config["tau"] * fixture.input("noise_uniform")).view(-1, 1, 1)
    noised = space.standardise(raw + sigma * fixture.input("noise_normal"))
    assert_close(noised, to_tokens(fixture.output("z_noised")), FORWARD)


def _dinov3_layers(
    fixture: Fixture, tower: dict[str, Any], state: dict[str, Tensor], *, global_term: bool
) -> tuple[TowerLatents, list[Tensor]]:
    space = _space(fixture, "dinov3", tower, eps=1e-5, global_term=global_term)
    kept = {k: t for k, t in state.items() if not k.startswith("norm.")}  # replaced: no weights
    _load_tower(space, kept)
    return space, space.layer_features(space.normalise(fixture.input("image")))


@torch.no_grad()
def check_siglip2(fixture: Fixture) -> None:
    tower = {k: v for k, v in fixture.config["params"].items() if k != "vision_use_head"}
    state = apply_rules(fixture.weights, file_rules("siglip2", affine_norm=False))
    image = fixture.input("image")
    space = _space(fixture, "siglip2", tower, layer_norm="model", global_term=True)
    _load_tower(space, state)
    normalised = space.normalise(image)
    assert_close(normalised, fixture.output("pixel_values"), FORWARD)
    layers = torch.stack(space.layer_features(normalised))
    assert_close(layers, fixture.output("layers_post_ln"), FORWARD)
    assert_close(space.features(normalised), fixture.output("tokens"), FORWARD)
    free = _space(fixture, "siglip2", tower)
    _load_tower(free, state)
    inner = fixture.output("raw_inner_layers_affine_free_ln")
    ours = torch.stack(free.layer_features(normalised)[: len(inner)])
    assert_close(ours, inner, FORWARD)


CHECKS: dict[str, Check] = {
    "multilayer_dinov3": check_dinov3,
    "multilayer_siglip2": check_siglip2,
}
