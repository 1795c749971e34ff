"""Pixel decoders and RAE's autoencoders, against fixtures of the official codes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from tests.parity.harness import FORWARD, Check, Fixture, assert_close, to_tokens
from unimm.checkpoints import dinov3
from unimm.checkpoints.keymap import apply_rules
from unimm.checkpoints.names import canonical
from unimm.checkpoints.rae import autoencoder_rules, statistics
from unimm.checkpoints.rae_decoder import DECODER_RULES, decoder_config
from unimm.latents import LatentSpaceConfig, RAEDecoder, build_latent_space
from unimm.latents.decoder import truncate_to_bytes
from unimm.latents.tower import TowerLatents

Shapes = dict[str, tuple[int, ...]]


def _shapes(weights: dict[str, Tensor]) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in weights.items()}


def _decoder(config: dict[str, Any], weights: dict[str, Tensor]) -> RAEDecoder:
    decoder = RAEDecoder(decoder_config(config, _shapes(weights), where=Path("fixture"))).eval()
    state = apply_rules(weights, DECODER_RULES)
    assert_close(decoder.positions, state["positions"], 1e-6)
    decoder.load_state_dict(state, strict=True)
    return decoder


def _patches(pictures: Tensor, patch_size: int) -> Tensor:
    """Undo the decoder's last step: patches of (row, column, channel)."""
    grid = pictures.shape[-1] // patch_size
    cells = pictures.view(len(pictures), 3, grid, patch_size, grid, patch_size)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(len(pictures), grid**2, -1)


@torch.no_grad()
def check_decoder(fixture: Fixture) -> None:
    decoder = _decoder(fixture.config, fixture.weights)
    pictures = decoder(fixture.input("latent"))
    patches = _patches(pictures, decoder.config.patch_size)
    assert_close(patches, fixture.output("logits"), FORWARD)
    mean, std = (fixture.input(f"image_{name}").view(3, 1, 1) for name in ("mean", "std"))
    pixels = pictures * std + mean
    assert_close(pixels, fixture.output("pixels"), FORWARD)
    stored = truncate_to_bytes(pixels).permute(0, 2, 3, 1)
    assert torch.equal(stored, fixture.output("uint8_hwc"))


@torch.no_grad()
def check_vit_decoder(fixture: Fixture) -> None:
    decoder = _decoder(fixture.config["config"], fixture.weights)
    pictures = decoder(fixture.input("tokens"))
    patches = _patches(pictures, decoder.config.patch_size)
    assert_close(patches, fixture.output("logits"), FORWARD)
    assert_close(pictures, fixture.output("image"), FORWARD)


KINDS = {"dinov2": "dinov2_with_registers", "siglip2": "siglip2", "mae": "mae"}


def _triple(values: list[float]) -> tuple[float, float, float]:
    return values[0], values[1], values[2]


def _space(fixture: Fixture) -> TowerLatents:
    config, weights = fixture.config, fixture.weights
    tower = config["hf_config"].get("vision_config", config["hf_config"])
    decoder = decoder_config(
        {key: v for key, v in config["decoder_config"].items() if key.startswith("decoder_")},
        _shapes(weights),
        where=Path("fixture"),
        prefix="decoder.",
    )
    space_config = LatentSpaceConfig(
        kind=KINDS[config["encoder"]],  # type: ignore[arg-type]
        image_size=fixture.input("image").shape[-1],
        encoder_size=config["encoder_input_size"],
        patch_size=config["patch"],
        tower={key: value for key, value in tower.items() if key != "patch_size"},
        image_mean=_triple(config["image_mean"]),
        image_std=_triple(config["image_std"]),
        statistics=True,
        decoder=decoder,
    )
    space = build_latent_space(space_config)
    assert isinstance(space, TowerLatents)
    stored = {key: weights.pop(key) for key in list(weights) if key.startswith("stat.")}
    mean, scale = statistics(
        stored.get("stat.latent_mean"), stored["stat.latent_var"], num_tokens=space.num_tokens
    )
    state = apply_rules(weights, autoencoder_rules(space_config.kind))
    state |= {"latent_mean": mean, "latent_scale": scale}
    installed = {canonical(name): name for name in space.state_dict()}
    state = {installed[name]: tensor for name, tensor in state.items()}
    missing = set(space.state_dict()) - set(state)
    assert missing <= {"tower.post_layernorm.weight", "tower.post_layernorm.bias"}
    space.load_state_dict(state, strict=not missing)
    return space.eval()


@torch.no_grad()
def check_rae(fixture: Fixture) -> None:
    space, image = _space(fixture), fixture.input("image")
    raw = space.features(space.normalise(image))
    assert_close(raw, fixture.output("encoder_tokens"), FORWARD)
    latents = space.encode(image)
    assert_close(latents, to_tokens(fixture.output("latent")), FORWARD)
    noise = fixture.config["noise_tau"] * fixture.input("train_sigma_uniform")
    noised = space.standardise(raw + noise * fixture.input("train_noise"))
    assert_close(noised, to_tokens(fixture.output("latent_train_noised")), FORWARD)
    decoded = space.decode_unclamped(to_tokens(fixture.output("latent")))
    assert_close(decoded, fixture.output("recon"), FORWARD)


@torch.no_grad()
def check_dinov3(fixture: Fixture) -> None:
    """DINOv3 is transformers' own model; only the official file format is ours to read."""
    params = fixture.config["params"]
    image = fixture.input("image")
    sizes = dinov3.hf_config(
        fixture.weights, num_heads=params["num_heads"], image_size=image.shape[-1]
    )
    model: nn.Module = DINOv3ViTModel(DINOv3ViTConfig(**sizes))
    model.load_state_dict(dinov3.convert_state(fixture.weights), strict=True)
    tokens = model.eval()(image).last_hidden_state
    registers = sizes["num_register_tokens"]
    assert_close(tokens[:, 0], fixture.output("x_norm_clstoken"), FORWARD)
    assert_close(tokens[:, 1 : 1 + registers], fixture.output("x_storage_tokens"), FORWARD)
    assert_close(tokens[:, 1 + registers :], fixture.output("x_norm_patchtokens"), FORWARD)


CHECKS: dict[str, Check] = {
    "decoder": check_decoder,
    "vit_decoder": check_vit_decoder,
    "rae_dinov2": check_rae,
    "rae_siglip2": check_rae,
    "rae_mae": check_rae,
    "dinov3_vit": check_dinov3,
}
