"""A new model of released parts: a language model, a vision tower and, to see, a pixel decoder.

Queries, projector, connector and DiT are new and random: what Scale-RAE's first stage begins with
(arXiv:2601.16208).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any, get_args

from metaquery.connector import ConnectorKind
from metaquery.dit_config import DiTConfig
from metaquery.generator import GeneratorConfig
from unimm.chat_style import ChatStyle
from unimm.config import UniMMConfig
from unimm.config_io import from_dict, read_tree
from unimm.errors import ConfigError, UserError
from unimm.latents import LatentSpaceConfig
from unimm.options import SamplingDefaults

DIT_SIZES: dict[str, tuple[int, int, int]] = {
    "0.5B": (1280, 16, 20),
    "2.4B": (2048, 32, 32),
    "3.1B": (2304, 32, 36),
    "5.5B": (3072, 32, 48),
    "9.8B": (4096, 32, 64),
}
"""Width, depth and heads of Scale-RAE's DiTs.

Only those of 2.4B are published beyond doubt. The others are the widths and depths whose number of
parameters is the published one, with heads of 64 channels as in 2.4B.
"""

_QWEN = {"model_type": "qwen2", "num_hidden_layers": 28, "rms_norm_eps": 1e-6}
_SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-1.5B-Instruct": {
        **_QWEN,
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        **_QWEN,
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
"""Sizes by hub id, for planning a run before anything is downloaded."""

TOWERS: dict[str, LatentSpaceConfig] = {
    "google/siglip2-so400m-patch14-224": LatentSpaceConfig(tower=_SIGLIP),
    "facebook/webssl-dino300m-full2b-224": LatentSpaceConfig(
        kind="dinov2",
        tower={"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
        affine_norm=True,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    ),
}
"""Latent spaces by hub id of their tower, without a pixel decoder."""

AUTOENCODERS: dict[str, dict[str, Any]] = {
    "black-forest-labs/FLUX.1-dev": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
"""Configurations of autoencoders by hub id, as far as they are not diffusers' defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly:
    """What ``unimm assemble`` makes a model of.

    Args:
        language: Language model: a Hugging Face folder, hub id or GGUF file.
        tower: Vision tower: a Hugging Face folder or hub id.
        decoder: Pixel decoder: a folder or hub id of Scale-RAE, or the model of a run of the
            stage ``rae_decoder``; None for a model that draws latents alone.
        vae: Instead of a decoder, an AutoencoderKL whose latents are drawn while the tower sees:
            a folder of diffusers or hub id (extra ``vae``). The paper's baseline.
        generator: Size of the DiT by name (:data:`DIT_SIZES`), or a YAML file with keys of
            :class:`metaquery.generator.GeneratorConfig`.
        connector: From hidden states to the DiT's condition: ``linear`` is Scale-RAE's,
            ``encoder24`` MetaQuery's; a YAML file may say otherwise.
        queries: Learnable queries of a picture, one for each latent token: a square number.
    """

    language: str
    tower: str
    decoder: str | None = None
    vae: str | None = None
    generator: str = "2.4B"
    connector: ConnectorKind = "linear"
    queries: int = 256

    def __post_init__(self) -> None:
        if self.queries < 1 or isqrt(self.queries) ** 2 != self.queries:
            raise ValueError(
                f"queries must be a square number, one for each latent token, got {self.queries}"
            )
        if self.vae is not None and self.decoder is not None:
            raise ValueError(
                f"a VAE decodes what it encodes: give decoder ({self.decoder}) or vae ({self.vae})"
            )
        if self.connector not in get_args(ConnectorKind):
            raise ValueError(
                f"connector must be one of {', '.join(get_args(ConnectorKind))}, "
                f"got {self.connector!r}"
            )
        if self.generator not in DIT_SIZES and not self.generator.endswith((".yaml", ".yml")):
            raise ValueError(
                f"generator must be one of {', '.join(DIT_SIZES)} or a YAML file, "
                f"got {self.generator!r}"
            )

    def command(self, out: Path) -> str:
        """Return the command line that writes this model."""
        words = [f"unimm assemble {out} --language {self.language} --tower {self.tower}"]
        if self.decoder:
            words.append(f"--decoder {self.decoder}")
        if self.vae:
            words.append(f"--vae {self.vae}")
        words.append(f"--generator {self.generator}")
        if self.connector != "linear":
            words.append(f"--connector {self.connector}")
        if self.queries != 256:
            words.append(f"--queries {self.queries}")
        return " ".join(words)


def published_config(assembly: Assembly) -> UniMMConfig:
    """Return the configuration of a model whose parts are known by hub id, nothing downloaded.

    The pixel decoder is left out.

    Raises:
        UserError: The sizes of a part are not known.
    """
    if assembly.language not in LANGUAGE_MODELS:
        known = ", ".join(LANGUAGE_MODELS)
        raise UserError(f"the sizes of {assembly.language} are not built in; known: {known}")
    if assembly.tower not in TOWERS:
        raise UserError(
            f"the sizes of {assembly.tower} are not built in; known: {', '.join(TOWERS)}"
        )
    side, tower, language = isqrt(assembly.queries), TOWERS[assembly.tower], assembly.language
    tower = replace(tower, image_size=side * tower.patch_size)
    if assembly.vae is None:
        return assembled_config(assembly, LANGUAGE_MODELS[language], tower)
    if assembly.vae not in AUTOENCODERS:
        known = ", ".join(AUTOENCODERS)
        raise UserError(f"the sizes of {assembly.vae} are not built in; known: {known}")
    drawn = LatentSpaceConfig(
        kind="flux_vae", image_size=16 * side, patch_size=16, tower=AUTOENCODERS[assembly.vae]
    )
    return assembled_config(assembly, LANGUAGE_MODELS[language], drawn, vision=tower)


def assembled_config(
    assembly: Assembly,
    language: Mapping[str, Any],
    latents: LatentSpaceConfig,
    *,
    vision: LatentSpaceConfig | None = None,
) -> UniMMConfig:
    """Return the configuration of a model over given parts.

    Args:
        assembly: Names the generator.
        language: Configuration of the language model.
        latents: What is drawn.
        vision: What is seen, if that is another space.

    Raises:
        UserError: The generator's description does not fit them.
    """
    width = int(language["hidden_size"])
    try:
        return UniMMConfig(
            language=dict(language),
            latents=latents,
            vision=vision,
            generator=generator_config(assembly, width=width, latents=latents),
            num_queries=assembly.queries,
            chat=ChatStyle.scale_rae(),
            sampling=SamplingDefaults(num_steps=50),
        )
    except ConfigError:
        raise
    except ValueError as error:
        drawn = assembly.vae or assembly.tower
        raise UserError(f"{assembly.generator} does not fit {drawn}: {error}") from None


def generator_config(
    assembly: Assembly, *, width: int, latents: LatentSpaceConfig
) -> GeneratorConfig:
    """Return the generator over given parts.

    Args:
        assembly: Names its size or file.
        width: Of the language model.
        latents: What is drawn.

    Raises:
        ConfigError: The file has an unknown key or a wrong value.
    """
    name, tree = assembly.generator, _tree(assembly.generator)
    dit = _dit(tree, latents)
    connector = {
        "kind": assembly.connector,
        "in_dim": width,
        "out_dim": dit["cond_dim"],
        "num_queries": assembly.queries,
        **_section(tree, "connector"),
    }
    try:
        return from_dict(GeneratorConfig, {**tree, "dit": dit, "connector": connector})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def check_dit(assembly: Assembly, latents: LatentSpaceConfig) -> None:
    """Check, before a language model is read, that the DiT is one and fits the latents.

    Raises:
        ConfigError: Otherwise.
    """
    try:
        from_dict(DiTConfig, _dit(_tree(assembly.generator), latents))
    except ConfigError as error:
        raise ConfigError(f"{assembly.generator}: dit: {error}") from None


def _tree(name: str) -> dict[str, Any]:
    if name not in DIT_SIZES:
        return read_tree(Path(name))
    hidden_dim, depth, num_heads = DIT_SIZES[name]
    return {"dit": {"hidden_dim": hidden_dim, "depth": depth, "num_heads": num_heads}}


def _dit(tree: Mapping[str, Any], latents: LatentSpaceConfig) -> dict[str, Any]:
    sizes = {"num_latent_tokens": latents.num_tokens, "latent_dim": latents.dim}
    dit: dict[str, Any] = {**sizes, **_section(tree, "dit")}
    dit.setdefault("cond_dim", dit.get("hidden_dim", 2048))
    return dit


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = tree.get(name) or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name} must be a section of keys and values, got {section!r:.60}")
    return section
