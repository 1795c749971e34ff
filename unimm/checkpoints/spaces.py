"""What a released Scale-RAE model sees and draws in: parts in repositories of their own."""

from dataclasses import dataclass
from math import isqrt
from pathlib import Path

from unimm.checkpoints import vae
from unimm.checkpoints.assemble import Source
from unimm.checkpoints.keymap import below
from unimm.checkpoints.parts import DECODERS, find_part
from unimm.checkpoints.rae_decoder import DECODER_RULES, read_decoder
from unimm.checkpoints.rae_decoder import OPTIONAL as DECODER_OPTIONAL
from unimm.checkpoints.scale_rae import ScaleRAESource
from unimm.checkpoints.towers import TowerSource, file_rules, optional_keys, read_tower
from unimm.errors import CheckpointError
from unimm.latents import LatentSpaceConfig

Place = str | Path | None


@dataclass(frozen=True, slots=True)
class Spaces:
    """The latent spaces of a model, read as far as the headers of their files.

    Args:
        latents: What it draws in.
        vision: What it sees in, if that is another.
        sources: Their tensors, under names of the whole model.
        optional: Names that the files may leave out.
    """

    latents: LatentSpaceConfig
    vision: LatentSpaceConfig | None
    sources: list[Source]
    optional: tuple[str, ...]


def open_spaces(source: ScaleRAESource, tower: Place, decoder: Place) -> Spaces:
    """Return the latent spaces of a released model, no tensor read.

    Args:
        source: The model.
        tower: Folder or hub id of its vision tower; looked for when None.
        decoder: Of its pixel decoder, or of its autoencoder if it draws a VAE's latents.

    Raises:
        CheckpointError: A file is missing, corrupt or of another model.
    """
    eyes = read_tower(
        find_part(
            source.directory, tower, folder="tower", repository=source.tower_name, option="tower"
        )
    )
    if source.vae_name is not None:
        return _seen_and_drawn(source, eyes, source.vae_name, decoder)
    place = DECODERS.get(eyes.kind, DECODERS["siglip2"])
    paint = read_decoder(
        find_part(source.directory, decoder, folder="decoder", repository=place, option="decoder"),
        latent_dim=int(eyes.config["hidden_size"]),
    )
    try:
        latents = eyes.latent_space(
            num_tokens=source.shape("model.latent_queries")[0],
            decoder=paint.config,
            statistics="diff_head.data_mean" in source.shapes,
        )
    except ValueError as error:
        raise CheckpointError(f"{source.where}: {error}") from None
    sources = [
        _tower_source(eyes, latents, "latents"),
        Source(paint.weights, below("", "latents.decoder.", DECODER_RULES)),
    ]
    optional = [f"latents.decoder.{key}" for key in DECODER_OPTIONAL]
    return Spaces(latents, None, sources, (*_tower_optional(eyes, "latents"), *optional))


def _seen_and_drawn(source: ScaleRAESource, eyes: TowerSource, name: str, place: Place) -> Spaces:
    """Return the spaces of a model that sees by a tower and draws a VAE's latents."""
    if "diff_head.data_mean" in source.shapes:
        raise CheckpointError(f"{source.directory}: diff_head.data_mean of a VAE cannot be read")
    repository, _, rest = name.partition("-res")
    paint = vae.read_vae(
        find_part(
            source.directory,
            place,
            folder=vae.FOLDER,
            repository=repository,
            option="decoder",
            patterns=vae.PATTERNS,
        )
    )
    num_tokens = source.shape("model.latent_queries")[0]
    dim = source.shape("diff_head.model.x_embedder.proj.weight")[1]
    latents = paint.latent_space(num_tokens=num_tokens, dim=dim)
    stated = rest.partition("-")[0]
    if stated and stated != str(latents.image_size):
        raise CheckpointError(
            f"{source.where}: generation_alignment_tower {name!r} says pictures of {stated} "
            f"pixels, but {num_tokens} tokens of this autoencoder cover {latents.image_size}"
        )
    num_seen = source.num_seen_tokens
    if num_seen < 1 or isqrt(num_seen) ** 2 != num_seen:
        raise CheckpointError(
            f"{source.where}: mm_vision_tower_aux_token_len_list must be a square, got {num_seen}"
        )
    try:
        vision = eyes.latent_space(num_tokens=num_seen, decoder=None)
    except ValueError as error:
        raise CheckpointError(f"{source.where}: {error}") from None
    sources = [
        _tower_source(eyes, vision, "vision"),
        Source(paint.weights, below("", "latents.vae.", vae.VAE_RULES)),
    ]
    return Spaces(latents, vision, sources, _tower_optional(eyes, "vision"))


def _tower_source(eyes: TowerSource, space: LatentSpaceConfig, part: str) -> Source:
    rules = file_rules(eyes.kind, affine_norm=space.affine_norm)
    return Source(eyes.weights, below("", f"{part}.tower.", rules))


def _tower_optional(eyes: TowerSource, part: str) -> tuple[str, ...]:
    return tuple(f"{part}.tower.{key}" for key in optional_keys(eyes.kind))
