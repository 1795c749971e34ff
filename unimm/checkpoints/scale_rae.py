"""Scale-RAE's released models: ``config.json`` and shards of safetensors or pickles.

The vision tower and the pixel decoder are not in these files: :mod:`unimm.checkpoints.parts` finds
them. Sizes come from ``config.json`` and must agree with the tensors: the published table of sizes
has an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaquery.connector import ConnectorConfig
from metaquery.dit import DiTConfig
from metaquery.generator import GeneratorConfig
from unimm.chat_style import ChatStyle
from unimm.checkpoints.keymap import Rule, below, scale_rae_dit
from unimm.checkpoints.tensors import Shape, TensorFolder, read_json
from unimm.config import UniMMConfig
from unimm.errors import CheckpointError
from unimm.latents import LatentSpaceConfig
from unimm.options import SamplingDefaults

MODEL_TYPES = ("cambrian_qwen", "scale_rae_qwen")
PREFIXES = ("_fsdp_wrapped_module.", "_fpw_module.", "_orig_module.")
"""What wrappers of training leave inside keys."""

OPTIONAL = ("generator.dit.null_condition", "generator.dit.time_embed.frequencies")
"""Ours, and not in every file: the null condition of a model trained without dropout (zero), and
the Fourier frequencies, which no file has (regenerated from their seed)."""

_DIT = "diff_head.model."
_LANGUAGE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
    "hidden_act",
)


def model_rules(depth: int, ddt_depth: int = 0, *, tied: bool) -> tuple[Rule, ...]:
    """Return the key map of a whole model.

    Args:
        depth: Blocks of the DiT's backbone.
        ddt_depth: Blocks of its head.
        tied: Whether the output embedding is the input embedding; a stored copy is then dropped,
            as the released code does.
    """
    return (
        Rule(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", None),  # fixed: recomputed
        Rule(r"model\.((?:embed_tokens|norm)\.weight|layers\..+)", r"language.model.\1"),
        Rule(r"lm_head\.weight", None if tied else "language.lm_head.weight"),
        Rule(r"model\.latent_queries", "queries.embeddings"),
        Rule(r"model\.mm_projector\.0\.(weight|bias)", r"projector.fc1.\1"),
        Rule(r"model\.mm_projector\.2\.(weight|bias)", r"projector.fc2.\1"),
        Rule(r"diff_head_projector\.(weight|bias)", r"generator.connector.project.\1"),
        *below(_DIT, "generator.dit.", scale_rae_dit(depth, ddt_depth)),
        Rule(r"diff_head\.data_(mean|std)", None),  # becomes the latent space's statistics
        Rule(r"(model\.)?(aux_)?vision_head\..+", None),  # regression heads of older trainings
    )


@dataclass(frozen=True, slots=True)
class ScaleRAESource:
    """A released model, read as far as its shapes.

    Args:
        directory: Its folder.
        tree: Its config.json.
        weights: Its tensors.
        shapes: Of the tensors, by cleaned key.
    """

    directory: Path
    tree: Mapping[str, Any]
    weights: TensorFolder
    shapes: Mapping[str, Shape]

    @classmethod
    def open(cls, directory: Path) -> "ScaleRAESource":
        """Return the model in a folder.

        Raises:
            CheckpointError: A file is missing or corrupt, or the model is of a kind that cannot
                be read.
        """
        tree = read_json(directory / "config.json")
        source = cls(directory, tree, *_weights(directory))
        source.refuse_other_kinds()
        return source

    @property
    def where(self) -> Path:
        """The configuration file, for messages."""
        return self.directory / "config.json"

    def refuse_other_kinds(self) -> None:
        """Raise CheckpointError if the model has parts that cannot be read."""
        loss = self.tree.get("vision_loss", "diffusion-loss")
        kind = self.tree.get("dit_cls", "DiT")
        if loss not in ("diffusion-loss", "ddt-loss") or kind not in ("DiT", "DDT"):
            raise CheckpointError(
                f"{self.where}: vision_loss {loss!r} with dit_cls {kind!r} is no architecture "
                f"that can be read; known: diffusion-loss and ddt-loss with DiT or DDT"
            )

    def shape(self, key: str) -> Shape:
        """Return a tensor's shape, or raise CheckpointError."""
        if key not in self.shapes:
            raise CheckpointError(f"{self.directory} has no tensor {key!r}; it is incomplete")
        return self.shapes[key]

    def stated(self, name: str, found: int) -> int:
        """Return ``found`` unless config.json states another size.

        Raises:
            CheckpointError: It does.
        """
        value = self.tree.get(name)
        if value is not None and value != found:
            raise CheckpointError(f"{self.where}: {name} is {value}, but the tensors say {found}")
        return found

    @property
    def tied(self) -> bool:
        """Whether the output embedding is the input embedding."""
        stated = self.tree.get("tie_word_embeddings")
        stored = "lm_head.weight" in self.shapes
        if stated is False and not stored:
            raise CheckpointError(
                f"{self.directory} has no tensor 'lm_head.weight', though config.json says "
                f"tie_word_embeddings is false"
            )
        return bool(stated) if stored else True

    @property
    def tower_name(self) -> str:
        """Hub id of the vision tower, without the suffixes that give its resolution."""
        names = self.tree.get("mm_vision_tower_aux_list") or ["google/siglip2-so400m-patch14-224"]
        return re.sub(r"-(res|interp)\d+", "", str(names[0]))

    @property
    def vae_name(self) -> str | None:
        """Hub id, with a suffix for the resolution, of the VAE whose latents are drawn."""
        name = self.tree.get("generation_alignment_tower")
        return str(name) if name else None

    @property
    def num_seen_tokens(self) -> int:
        """Tokens of a picture that is read."""
        stated = self.tree.get("mm_vision_tower_aux_token_len_list")
        return int(stated[0]) if stated else self.shape("model.latent_queries")[0]


def _weights(directory: Path) -> tuple[TensorFolder, dict[str, Shape]]:
    weights = TensorFolder.open(directory)
    shapes = {}
    for key, shape in weights.shapes.items():
        shapes[re.sub("|".join(map(re.escape, PREFIXES)), "", key)] = shape
    return weights, shapes


def model_config(
    source: ScaleRAESource, latents: LatentSpaceConfig, *, vision: LatentSpaceConfig | None = None
) -> UniMMConfig:
    """Return our configuration of a released model over a latent space, or two.

    Raises:
        CheckpointError: config.json and the tensors disagree, or the model and the latent space do.
    """
    dit = dit_config(source)
    width = source.shape("model.embed_tokens.weight")[1]
    try:
        return UniMMConfig(
            language=language_config(source),
            latents=latents,
            vision=vision,
            generator=GeneratorConfig(
                connector=ConnectorConfig(kind="linear", in_dim=width, out_dim=dit.cond_dim),
                dit=dit,
                condition_dropout=source.tree.get("diffusion_class_dropout_prob") or 0.0,
                base_dim=source.tree.get("diffusion_base_dim") or 4096,
            ),
            num_queries=source.shape("model.latent_queries")[0],
            chat=ChatStyle.scale_rae(),
            sampling=SamplingDefaults(num_steps=50),
        )
    except ValueError as error:
        raise CheckpointError(f"{source.where}: {error}") from None


def language_config(source: ScaleRAESource) -> dict[str, Any]:
    """Return the Qwen2 configuration of a released model."""
    tree = source.tree
    missing = [key for key in _LANGUAGE_KEYS[:5] if key not in tree]
    if missing:
        raise CheckpointError(f"{source.where} lacks {', '.join(missing)}")
    rows, width = source.shape("model.embed_tokens.weight")
    source.stated("hidden_size", width)
    source.stated("vocab_size", rows)
    source.stated("num_hidden_layers", _count(source.shapes, r"model\.layers\.(\d+)\..+"))
    return {
        **{key: tree[key] for key in _LANGUAGE_KEYS if key in tree},
        "model_type": "qwen2",
        "vocab_size": rows,
        "tie_word_embeddings": source.tied,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _rope_theta(tree),
        },
    }


def _rope_theta(tree: Mapping[str, Any]) -> float:
    nested = tree.get("rope_parameters") or {}
    return float(nested.get("rope_theta", tree.get("rope_theta", 10_000.0)))


def dit_config(source: ScaleRAESource) -> DiTConfig:
    """Return the DiT's configuration, each size checked against the tensors."""
    (width, ddt_width), (depth, ddt_depth), (heads, ddt_heads) = _sizes(source)
    cond_dim = source.shape(f"{_DIT}t_embedder.mlp.2.weight")[0]
    if source.tree.get("diffusion_model_z_channels"):
        source.stated("diffusion_model_z_channels", cond_dim)
    in_width, latent_dim = source.shape(f"{_DIT}x_embedder.proj.weight")[:2]
    source.stated("diffusion_model_channels", latent_dim)
    _agree(source, "diffusion_model_hidden_size", width, in_width)
    blocks = _count(source.shapes, re.escape(_DIT) + r"dit_blocks\.(\d+)\..+")
    _agree(source, "diffusion_model_depth", depth + ddt_depth, blocks)
    _check_heads(source, {"feat_rope": (width, heads), "enc_rope": (width, heads)})
    _check_heads(source, {"dec_rope": (ddt_width, ddt_heads)})
    try:
        return DiTConfig(
            num_latent_tokens=source.shape("model.latent_queries")[0],
            latent_dim=latent_dim,
            cond_dim=cond_dim,
            hidden_dim=width,
            depth=depth,
            num_heads=heads,
            ddt_dim=ddt_width,
            ddt_depth=ddt_depth,
            ddt_heads=ddt_heads,
            qk_norm=f"{_DIT}dit_blocks.0.attn.q_norm.weight" in source.shapes,
        )
    except ValueError as error:
        raise CheckpointError(f"{source.where}: {error}") from None


Pair = tuple[int, int]


def _sizes(source: ScaleRAESource) -> tuple[Pair, Pair, Pair]:
    """Return width, depth and heads of backbone and head; no head has depth 0."""
    values: list[Pair] = []
    for name in ("hidden_size", "depth", "heads"):
        value = source.tree.get(f"diffusion_model_{name}")
        pair: list[Any] = value if isinstance(value, list) else [value, value]
        if len(pair) != 2 or any(type(size) is not int or size < 1 for size in pair):
            raise CheckpointError(
                f"{source.where}: diffusion_model_{name} must be a number or two, got {value!r}"
            )
        values.append((pair[0], pair[1]))
    widths, depths, heads = values
    if isinstance(source.tree.get("diffusion_model_depth"), list):
        return widths, depths, heads
    if source.tree.get("vision_loss") == "ddt-loss":
        split = source.tree.get("ddt_encoder_depth")
        if type(split) is not int or not 0 < split < depths[0]:
            raise CheckpointError(
                f"{source.where}: ddt_encoder_depth must be from 1 to {depths[0] - 1}, "
                f"got {split!r}"
            )
        return widths, (split, depths[0] - split), heads
    return widths, (depths[0], 0), heads


def _agree(source: ScaleRAESource, name: str, stated: int, found: int) -> None:
    if stated != found:
        raise CheckpointError(f"{source.where}: {name} gives {stated}, but the tensors say {found}")


def _check_heads(source: ScaleRAESource, tables: Mapping[str, Pair]) -> None:
    """Compare the heads with the stored rotary tables, the only tensors that depend on them."""
    for name, (width, heads) in tables.items():
        shape = source.shapes.get(f"{_DIT}{name}.freqs_cos")
        if shape is not None:
            _agree(source, "diffusion_model_heads", heads, width // shape[-1])


def _count(shapes: Mapping[str, Shape], pattern: str) -> int:
    """Return how many different numbers the first group of a pattern takes over all keys."""
    matches = (re.fullmatch(pattern, key) for key in shapes)
    return len({match[1] for match in matches if match})
