"""RAE's pixel decoder, as Scale-RAE and RAE release it: ``config.json`` and ``model.pt``.

The official loaders accept any mixture of keys in silence; this one is strict both ways.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from unimm.checkpoints.keymap import Rule
from unimm.checkpoints.tensors import Shape, TensorFolder, read_json
from unimm.errors import CheckpointError
from unimm.latents import RAEDecoderConfig

_LAYER_PARTS = (
    (r"attention\.attention\.query\.(weight|bias)", "qkv", (0, 3)),
    (r"attention\.attention\.key\.(weight|bias)", "qkv", (1, 3)),
    (r"attention\.attention\.value\.(weight|bias)", "qkv", (2, 3)),
    (r"attention\.output\.dense\.(weight|bias)", "out", None),
    # diffusers' names of the same four.
    (r"attention\.to_q\.(weight|bias)", "qkv", (0, 3)),
    (r"attention\.to_k\.(weight|bias)", "qkv", (1, 3)),
    (r"attention\.to_v\.(weight|bias)", "qkv", (2, 3)),
    (r"attention\.to_out\.0\.(weight|bias)", "out", None),
    (r"intermediate\.dense\.(weight|bias)", "fc1", None),
    (r"output\.dense\.(weight|bias)", "fc2", None),
    (r"layernorm_before\.(weight|bias)", "norm1", None),
    (r"layernorm_after\.(weight|bias)", "norm2", None),
)

DECODER_RULES: tuple[Rule, ...] = (
    Rule(r"decoder_embed\.(weight|bias)", r"embed.\1"),
    Rule(r"decoder_pos_embed", "positions"),
    Rule(r"trainable_cls_token", "class_token"),
    Rule(r"decoder_norm\.(weight|bias)", r"norm.\1"),
    Rule(r"decoder_pred\.(weight|bias)", r"to_pixels.\1"),
    *(
        Rule(rf"decoder_layers\.(\d+)\.{pattern}", rf"blocks.\1.{ours}.\2", None, rows)
        for pattern, ours, rows in _LAYER_PARTS
    ),
)

OPTIONAL = ("positions",)
"""Keys of ours that a file may leave out: fixed, and computed by the module itself."""

_SIZES = {
    "hidden_dim": "decoder_hidden_size",
    "depth": "decoder_num_hidden_layers",
    "num_heads": "decoder_num_attention_heads",
    "mlp_dim": "decoder_intermediate_size",
}


@dataclass(frozen=True, slots=True)
class DecoderSource:
    """A decoder's configuration and where its weights are.

    Args:
        config: Ours.
        weights: The file that holds them.
        prefix: What its keys begin with.
    """

    config: RAEDecoderConfig
    weights: TensorFolder
    prefix: str = ""


def read_decoder(directory: Path, *, latent_dim: int | None = None) -> DecoderSource:
    """Return the decoder of a folder with ``config.json`` and ``model.pt``.

    Args:
        directory: The folder.
        latent_dim: Channels that the encoder gives; a decoder of others is refused.

    Raises:
        CheckpointError: A file is missing or unreadable, sizes and tensors disagree, or the
            decoder belongs to another encoder.
    """
    tree = read_json(directory / "config.json")
    if tree.get("model_type") != "vit_mae":
        raise CheckpointError(
            f"{directory / 'config.json'}: model_type must be 'vit_mae' for a pixel decoder, "
            f"got {tree.get('model_type')!r}"
        )
    weights = TensorFolder.open(directory, names=("model.pt", "model.safetensors"))
    config = decoder_config(tree, weights.shapes, where=directory)
    if latent_dim is not None and config.latent_dim != latent_dim:
        raise CheckpointError(
            f"{weights.where('decoder_embed.weight')}: decoder_embed.weight reads "
            f"{config.latent_dim} channels, but the encoder gives {latent_dim}; this decoder "
            f"belongs to another encoder"
        )
    return DecoderSource(config, weights)


def decoder_config(
    tree: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    *,
    where: Path,
    prefix: str = "",
) -> RAEDecoderConfig:
    """Return our configuration, read from the tensors and checked against ``config.json``.

    Input width, patch and picture size come from the tensors alone: the released code overwrites
    what its ``config.json`` says about them.
    """

    def shape(key: str) -> Shape:
        if prefix + key not in shapes:
            raise CheckpointError(f"{where} has no tensor {prefix + key!r}; it is no RAE decoder")
        return shapes[prefix + key]

    hidden_dim, latent_dim = shape("decoder_embed.weight")
    layers = {key.split("decoder_layers.")[1].split(".")[0] for key in shapes if _is_layer(key)}
    found = {
        "hidden_dim": hidden_dim,
        "depth": len(layers),
        "mlp_dim": shape("decoder_layers.0.intermediate.dense.weight")[0],
        "num_heads": _integer(tree, "decoder_num_attention_heads", where),
    }
    for ours, theirs in _SIZES.items():
        stated = tree.get(theirs)
        if stated is not None and stated != found[ours]:
            raise CheckpointError(
                f"{where / 'config.json'}: {theirs} is {stated}, but the tensors say {found[ours]}"
            )
    patch_size = isqrt(shape("decoder_pred.weight")[0] // 3)
    grid_size = isqrt(shape("decoder_pos_embed")[1] - 1)
    return RAEDecoderConfig(
        latent_dim=latent_dim,
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        layer_norm_eps=tree.get("layer_norm_eps", 1e-12),
        **found,
    )


def _is_layer(key: str) -> bool:
    return "decoder_layers." in key


def _integer(tree: Mapping[str, Any], key: str, where: Path) -> int:
    value = tree.get(key)
    if type(value) is not int:
        raise CheckpointError(f"{where / 'config.json'}: {key} must be a number, got {value!r}")
    return value
