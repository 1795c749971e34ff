"""Vision towers of Hugging Face, by folder or id: SigLIP-2, DINOv2, WebSSL, MAE."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimm.checkpoints.keymap import Rule, below
from unimm.checkpoints.tensors import TensorFolder, read_json
from unimm.errors import CheckpointError
from unimm.latents import LatentKind, LatentSpaceConfig, RAEDecoderConfig

_KINDS: dict[str, LatentKind] = {
    "siglip": "siglip2",
    "siglip_vision_model": "siglip2",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2_with_registers",
    "vit_mae": "mae",
}
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "layer_norm_eps",
    "hidden_act",
    "mlp_ratio",
    "layerscale_value",
    "num_register_tokens",
    "use_swiglu_ffn",
    "qkv_bias",
)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

Triple = tuple[float, float, float]


def _renamed(attention: str, layer: str) -> tuple[Rule, ...]:
    """Return rules from the names of older files to those of today's transformers."""
    return (
        Rule(rf"{layer}\.attention\.attention\.query\.(\w+)", rf"{attention}.attention.q_proj.\2"),
        Rule(rf"{layer}\.attention\.attention\.key\.(\w+)", rf"{attention}.attention.k_proj.\2"),
        Rule(rf"{layer}\.attention\.attention\.value\.(\w+)", rf"{attention}.attention.v_proj.\2"),
        Rule(rf"{layer}\.attention\.output\.dense\.(\w+)", rf"{attention}.attention.o_proj.\2"),
    )


_DINO_RULES = (
    *_renamed(r"encoder.layer.\1", r"encoder\.layer\.(\d+)"),
    Rule(r"((?:embeddings|encoder)\..+)", r"\1"),
)
_MAE_RULES = (
    *_renamed(r"layers.\1", r"encoder\.layer\.(\d+)"),
    Rule(r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"layers.\1.mlp.fc1.\2"),
    Rule(r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"layers.\1.mlp.fc2.\2"),
    Rule(r"encoder\.layer\.(\d+)\.(layernorm_(?:before|after)\.\w+)", r"layers.\1.\2"),
    Rule(r"((?:embeddings|layers)\..+)", r"\1"),
)
_SIGLIP_RULES = (
    Rule(r"embeddings\.position_ids", None),
    Rule(r"head\..+", None),  # the pooling head: latents are patch tokens
    Rule(r"((?:embeddings|encoder|post_layernorm)\..+)", r"\1"),
)


def tower_rules(kind: LatentKind, *, affine_norm: bool) -> tuple[Rule, ...]:
    """Return the rules of a tower's own keys."""
    if kind == "siglip2":
        return _SIGLIP_RULES
    norm = Rule(r"(layernorm\.\w+)", r"\1" if affine_norm else None)
    return (norm, *(_MAE_RULES if kind == "mae" else _DINO_RULES))


def file_rules(kind: LatentKind, *, affine_norm: bool) -> tuple[Rule, ...]:
    """Return the rules of a tower's file on the hub, which may hold other halves of the model."""
    rules = tower_rules(kind, affine_norm=affine_norm)
    if kind == "siglip2":
        others = (Rule(r"text_model\..+|logit_(scale|bias)", None),)
        return (*others, *below("vision_model.", "", rules), *rules)
    if kind == "mae":
        return (Rule(r"decoder\..+|mask_token", None), *below("vit.", "", rules), *rules)
    return (Rule(r"classifier\..+", None), *below("dinov2.", "", rules), *rules)


def optional_keys(kind: LatentKind) -> tuple[str, ...]:
    """Return keys of the tower that files may leave out: no latent depends on them."""
    if kind == "siglip2":
        return ("post_layernorm.weight", "post_layernorm.bias")
    return ("embeddings.mask_token",) if kind.startswith("dinov2") else ()


@dataclass(frozen=True, slots=True)
class TowerSource:
    """A tower's sizes and where its weights are.

    Args:
        kind: Its architecture.
        config: What :class:`unimm.latents.LatentSpaceConfig` takes as ``tower``.
        patch_size: Side of a patch.
        image_mean: Of its processor.
        image_std: Of its processor.
        weights: Its file or shards.
    """

    kind: LatentKind
    config: dict[str, Any]
    patch_size: int
    image_mean: Triple
    image_std: Triple
    weights: TensorFolder

    def latent_space(
        self, *, num_tokens: int, decoder: RAEDecoderConfig | None, statistics: bool = False
    ) -> LatentSpaceConfig:
        """Return the latent space of this tower's last layer.

        Args:
            num_tokens: Of a picture, a square number; gives the picture's size.
            decoder: What inverts the tower.
            statistics: Whether features are standardised by stored statistics.

        Raises:
            ValueError: Tower and decoder do not fit.
        """
        return LatentSpaceConfig(
            kind=self.kind,
            image_size=round(num_tokens**0.5) * self.patch_size,
            patch_size=self.patch_size,
            tower=self.config,
            # WebSSL latents are the tower's own last norm; SigLIP-2's get one without weights.
            affine_norm=self.kind != "siglip2",
            image_mean=self.image_mean,
            image_std=self.image_std,
            statistics=statistics,
            decoder=decoder,
        )


def read_tower(directory: Path) -> TowerSource:
    """Return the tower in a Hugging Face folder.

    Raises:
        CheckpointError: A file is missing or corrupt, or the architecture is another.
    """
    path = directory / "config.json"
    tree = read_json(path)
    kind = _KINDS.get(str(tree.get("model_type")))
    if kind is None:
        raise CheckpointError(
            f"{path}: model_type {tree.get('model_type')!r} is no vision tower that can be read; "
            f"known: {', '.join(_KINDS)}"
        )
    sizes = tree.get("vision_config", tree)
    tower = {key: sizes[key] for key in _SIZES if sizes.get(key) is not None}
    weights = TensorFolder.open(directory)
    mean, std = _processor(directory, kind)
    patch_size = _patch_size(weights, where=path)
    if kind == "siglip2":
        _complete_siglip(tower, weights, patch_size)
    return TowerSource(kind, tower, patch_size, mean, std, weights)


def _patch_size(weights: TensorFolder, *, where: Path) -> int:
    for key, shape in weights.shapes.items():
        if key.endswith(("patch_embedding.weight", "patch_embeddings.projection.weight")):
            return shape[-1]
    raise CheckpointError(f"{where.parent} holds no patch embedding; it is no vision tower")


def _complete_siglip(tower: dict[str, Any], weights: TensorFolder, patch_size: int) -> None:
    """Read from the tensors what SigLIP's config leaves to its defaults."""
    for key, shape in weights.shapes.items():
        if key.endswith("position_embedding.weight") and "text_model" not in key:
            tower["hidden_size"] = shape[1]
            tower["image_size"] = round(shape[0] ** 0.5) * patch_size
        if key.endswith("encoder.layers.0.mlp.fc1.weight") and "text_model" not in key:
            tower["intermediate_size"] = shape[0]


def _processor(directory: Path, kind: LatentKind) -> tuple[Triple, Triple]:
    mean, std = _HALF if kind == "siglip2" else _IMAGENET
    path = directory / "preprocessor_config.json"
    tree: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    return _triple(tree.get("image_mean", mean), path), _triple(tree.get("image_std", std), path)


def _triple(value: Any, path: Path) -> Triple:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise CheckpointError(f"{path}: image_mean and image_std must be three numbers: {value!r}")
    return float(value[0]), float(value[1]), float(value[2])
