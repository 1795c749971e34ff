"""Where the latents come from that a decoder learns to read: a whole model, or a tower alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

import torch
from torch import nn

from unimm.checkpoint import load_model, read_config, save_checkpoint
from unimm.checkpoints.component import save_component
from unimm.checkpoints.rae_autoencoder import KIND, read_tower_space
from unimm.config_io import to_dict
from unimm.errors import CheckpointError
from unimm.latents import RAEDecoder
from unimm.latents.tower import TowerLatents
from unimm.scenes import Grammar
from unimm.tokenizer import load_tokenizer

from .rae_decoder_config import DecoderShape


@dataclass(frozen=True, slots=True)
class LatentSource:
    """A latent space with a decoder to train.

    Args:
        model: All of which the latent space is a part.
        space: The latent space.
        save: Writes the model.
        grammar: The miniature world that the model belongs to, if it does.
    """

    model: nn.Module
    space: TowerLatents
    save: Callable[[Path], None]
    grammar: Grammar | None = None


def from_model(directory: Path, shape: DecoderShape | None) -> LatentSource:
    """Return the latent space of a model directory, with a fresh decoder where one is named.

    Raises:
        CheckpointError: It has no tower, or no decoder to go on with.
    """
    config, _ = read_config(directory)
    model = load_model(directory, config, device=torch.device("cpu"), dtype=torch.float32)
    space = model.latents
    if not isinstance(space, TowerLatents):
        kind = config.latents.kind
        raise CheckpointError(f"{directory} has latents of kind {kind!r}, which has no decoder")
    if shape is not None:
        replace_decoder(space, shape)
        model.config = replace(config, latents=space.config)
    elif space.decoder is None:
        raise CheckpointError(f"{directory} has no pixel decoder; give the size of one as decoder")
    tokenizer = load_tokenizer(directory)

    def save(destination: Path) -> None:
        save_checkpoint(
            destination, model, tokenizer, readme="RAE decoder stage: see the stages before.\n"
        )

    grammar = None if config.grammar is None else Grammar.from_dict(config.grammar)
    return LatentSource(model, space, save, grammar)


def from_tower(
    tower: str, shape: DecoderShape, *, image_size: int, encoder_size: int | None
) -> LatentSource:
    """Return the latent space of a Hugging Face tower with a fresh decoder.

    Raises:
        CheckpointError: The tower is missing, corrupt or of an unknown kind.
    """
    space = read_tower_space(tower, image_size=image_size, encoder_size=encoder_size)
    replace_decoder(space, shape)

    def save(destination: Path) -> None:
        save_component(
            destination, kind=KIND, config=to_dict(space.config), module=space, source=Path(tower)
        )

    return LatentSource(space, space, save)


def replace_decoder(space: TowerLatents, shape: DecoderShape) -> None:
    """Give a latent space a decoder of fresh weights."""
    decoder = shape.config(latent_dim=space.dim, grid_size=isqrt(space.num_tokens))
    space.config = replace(space.config, decoder=decoder)
    space.decoder = RAEDecoder(decoder)
