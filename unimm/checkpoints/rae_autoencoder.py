"""RAE's released autoencoders, in its own files or in diffusers', as latent spaces of ours."""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimm.checkpoints.assemble import Slots, Source, empty_parameters, fill
from unimm.checkpoints.component import CPU, component_config, restore_component, save_component
from unimm.checkpoints.keymap import below
from unimm.checkpoints.parts import PATTERNS, find_part
from unimm.checkpoints.rae import (
    autoencoder_rules,
    diffusers_statistics,
    read_statistics,
    statistics,
)
from unimm.checkpoints.rae_decoder import DECODER_RULES, decoder_config, read_decoder
from unimm.checkpoints.rae_decoder import OPTIONAL as DECODER_OPTIONAL
from unimm.checkpoints.tensors import Shape, TensorFolder, read_json
from unimm.checkpoints.towers import file_rules, optional_keys, read_tower
from unimm.config_io import to_dict
from unimm.errors import CheckpointError
from unimm.latents import LatentKind, LatentSpaceConfig, build_latent_space
from unimm.latents.tower import TowerLatents
from unimm.locate import locate_model

KIND = "unimm_latents"
_PIXELS_PER_TOKEN = 16
"""RAE encodes pictures of 16 pixels a token, whatever the tower's patch: 256 for 16 x 16."""

_DIFFUSERS_KINDS: dict[str, LatentKind] = {
    "dinov2": "dinov2_with_registers",
    "siglip2": "siglip2",
    "mae": "mae",
}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@torch.no_grad()
def read_autoencoder(
    directory: Path, *, dtype: torch.dtype = torch.float32, tower: str | Path | None = None
) -> TowerLatents:
    """Return RAE's autoencoder in a folder, in its own files or in diffusers'.

    RAE's own files are a decoder (``config.json``, ``model.pt``), maybe a ``stat.pt``, and a
    tower: a Hugging Face folder or hub id, ``encoder`` inside the folder when None.

    Raises:
        CheckpointError: A file is missing, corrupt or of another model.
    """
    tree = read_json(directory / "config.json")
    if tree.get("_class_name") == "AutoencoderRAE":
        return _read_diffusers(directory, tree, dtype)
    eyes = read_tower(
        find_part(directory, tower, folder="encoder", repository="RAE/encoder", option="tower")
    )
    paint = read_decoder(directory, latent_dim=int(eyes.config["hidden_size"]))
    side = paint.config.grid_size
    stored = directory / "stat.pt"
    config = _space_config(
        directory,
        kind=eyes.kind,
        image_size=side * _PIXELS_PER_TOKEN,
        encoder_size=side * eyes.patch_size,
        patch_size=eyes.patch_size,
        tower=eyes.config,
        image_mean=eyes.image_mean,
        image_std=eyes.image_std,
        statistics=stored.is_file(),
        decoder=paint.config,
    )
    sources = [
        Source(eyes.weights, below("", "tower.", file_rules(eyes.kind, affine_norm=False))),
        Source(paint.weights, below("", "decoder.", DECODER_RULES)),
    ]
    values = None
    if stored.is_file():
        mean, variance = read_statistics(stored)
        values = statistics(mean, variance, num_tokens=config.num_tokens)
    return _fill_space(directory, config, sources, values, dtype)


@torch.no_grad()
def read_tower_space(
    tower: str | Path, *, image_size: int, encoder_size: int | None = None
) -> TowerLatents:
    """Return a Hugging Face tower as a latent space without decoder and statistics.

    Args:
        tower: A folder or hub id.
        image_size: Side of the pictures to encode, in pixels.
        encoder_size: Side to which they are scaled first; None for ``image_size``.

    Raises:
        CheckpointError: A file is missing or corrupt, or the architecture is another.
    """
    directory = locate_model(tower, patterns=PATTERNS)
    eyes = read_tower(directory)
    config = _space_config(
        directory,
        kind=eyes.kind,
        image_size=image_size,
        encoder_size=encoder_size,
        patch_size=eyes.patch_size,
        tower=eyes.config,
        image_mean=eyes.image_mean,
        image_std=eyes.image_std,
    )
    rules = below("", "tower.", file_rules(eyes.kind, affine_norm=False))
    return _fill_space(directory, config, [Source(eyes.weights, rules)], None, torch.float32)


def _read_diffusers(directory: Path, tree: Mapping[str, Any], dtype: torch.dtype) -> TowerLatents:
    where = directory / "config.json"
    kind = _DIFFUSERS_KINDS.get(str(tree.get("encoder_type", "dinov2")))
    if kind is None:
        raise CheckpointError(
            f"{where}: encoder_type must be one of {', '.join(_DIFFUSERS_KINDS)}, "
            f"got {tree['encoder_type']!r}"
        )
    weights = TensorFolder.open(directory, names=("diffusion_pytorch_model.safetensors",))
    patch_size = int(tree.get("encoder_patch_size", 14))
    decoder = decoder_config(tree, weights.shapes, where=directory, prefix="decoder.")
    config = _space_config(
        directory,
        kind=kind,
        image_size=decoder.grid_size * _PIXELS_PER_TOKEN,
        encoder_size=int(tree.get("encoder_input_size", 224)),
        patch_size=patch_size,
        tower=_diffusers_tower(weights.shapes, kind, patch_size, where),
        image_mean=tuple(tree.get("encoder_norm_mean") or _IMAGENET[0]),
        image_std=tuple(tree.get("encoder_norm_std") or _IMAGENET[1]),
        statistics=True,
        decoder=decoder,
    )
    values = diffusers_statistics(
        weights.get("_latents_mean"),
        weights.get("_latents_std"),
        num_tokens=config.num_tokens,
        dim=config.dim,
        scaling_factor=float(tree.get("scaling_factor", 1.0)),
    )
    return _fill_space(directory, config, [Source(weights, autoencoder_rules(kind))], values, dtype)


def _diffusers_tower(
    shapes: Mapping[str, Shape], kind: LatentKind, patch_size: int, where: Path
) -> dict[str, Any]:
    """Read the tower's sizes from its tensors; diffusers leaves most to fixed rules."""

    def first(*endings: str) -> Shape:
        for key, shape in shapes.items():
            if key.startswith("encoder.") and key.endswith(endings):
                return shape
        raise CheckpointError(f"{where.parent} has no tensor encoder...{endings[0]}")

    positions = first("position_embedding.weight", "position_embeddings")
    tokens = positions[-2] - (0 if kind == "siglip2" else 1)
    layers = {
        part
        for key in shapes
        if key.startswith("encoder.")
        for part in [key.partition(".layer.")[2] or key.partition(".layers.")[2]]
        if part
    }
    return {
        "hidden_size": positions[-1],
        "intermediate_size": first("fc1.weight", "intermediate.dense.weight")[0],
        "num_hidden_layers": len({part.split(".")[0] for part in layers}),
        "num_attention_heads": max(1, positions[-1] // 64),
        "image_size": isqrt(tokens) * patch_size,
    }


def _space_config(where: Path, **settings: Any) -> LatentSpaceConfig:
    if settings["kind"].startswith("dinov2"):
        # DINOv2 states its feed-forward width as a ratio.
        tower = dict(settings["tower"])
        width = tower.pop("intermediate_size", None)
        if width is not None:
            tower.setdefault("mlp_ratio", width // tower["hidden_size"])
        settings["tower"] = tower
    try:
        return LatentSpaceConfig(**settings)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _fill_space(
    directory: Path,
    config: LatentSpaceConfig,
    sources: list[Source],
    values: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
) -> TowerLatents:
    with empty_parameters():
        space = build_latent_space(config)
    assert isinstance(space, TowerLatents)
    slots = Slots(space, device=CPU, dtype=dtype)
    fill(slots, sources)
    for name, tensor in zip(("latent_mean", "latent_scale"), values or (), strict=False):
        slots.put(name, tensor, where=f"{directory}: its statistics")
    optional = (
        *(f"tower.{key}" for key in optional_keys(config.kind)),
        *(f"decoder.{key}" for key in DECODER_OPTIONAL),
    )
    slots.finish(where=directory, optional=optional)
    return space.eval()


def convert_autoencoder(
    source: Path, destination: Path, *, dtype: torch.dtype, tower: str | Path | None = None
) -> None:
    """Write RAE's autoencoder as a directory of ours."""
    space = read_autoencoder(source, dtype=dtype, tower=tower)
    config = to_dict(space.config)
    save_component(destination, kind=KIND, config=config, module=space, source=source)


def load_autoencoder(directory: Path) -> TowerLatents:
    """Return an autoencoder that :func:`convert_autoencoder` wrote."""
    config = component_config(directory, kind=KIND, cls=LatentSpaceConfig)
    with empty_parameters():
        space = build_latent_space(config)
    assert isinstance(space, TowerLatents)
    return restore_component(space, directory)
