"""RAE's released files: autoencoders, statistics, class-conditional DiTs; and diffusers' format.

An autoencoder is a Hugging Face tower, a decoder (:mod:`unimm.checkpoints.rae_decoder`) and a
statistics file. diffusers keeps all three in one ``AutoencoderRAE``, with another epsilon rule.
"""

from math import isqrt
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from unimm.checkpoints.keymap import Rule, below
from unimm.checkpoints.rae_decoder import DECODER_RULES
from unimm.checkpoints.tensors import load_pickle
from unimm.checkpoints.towers import tower_rules
from unimm.errors import CheckpointError
from unimm.latents import LatentKind

EPS = 1e-5
"""RAE divides by sqrt(variance + EPS); diffusers by deviation + EPS."""


def autoencoder_rules(kind: LatentKind) -> tuple[Rule, ...]:
    """Return the key map of a whole autoencoder, in RAE's own naming and in diffusers'."""
    tower = tower_rules(kind, affine_norm=False)
    return (
        *below("encoder.encoder.", "tower.", tower),
        *below("encoder.model.vision_model.", "tower.", tower),
        *below("encoder.model.", "tower.", tower),
        *below("decoder.", "decoder.", DECODER_RULES),
        Rule(r"encoder_(mean|std)|_latents_(mean|std)", None),  # read into our configuration
    )


def statistics(
    mean: Tensor | None, variance: Tensor, *, num_tokens: int
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """Return the mean and scale of latents from RAE's tensors, (D, h, w) or (D, 1, 1).

    A mean of None is zero, on purpose: released DiTs were trained so.
    """
    scale = _as_tokens((variance.float() + EPS).sqrt(), num_tokens)
    return torch.zeros_like(scale) if mean is None else _as_tokens(mean, num_tokens), scale


def diffusers_statistics(
    mean: Tensor, std: Tensor, *, num_tokens: int, dim: int, scaling_factor: float = 1.0
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """Return the mean and scale of latents from diffusers' buffers, which may be one number."""
    side = isqrt(num_tokens)
    grid = (dim, side, side)
    scale = (std.float() + EPS) / scaling_factor
    return (
        _as_tokens(_to_grid(mean.float(), grid), num_tokens),
        _as_tokens(_to_grid(scale, grid), num_tokens),
    )


def _to_grid(values: Tensor, grid: tuple[int, int, int]) -> Tensor:
    while values.ndim > 3:
        values = values.squeeze(0)
    return values.expand(grid)


def _as_tokens(values: Tensor, num_tokens: int) -> Float[Tensor, "N D"]:
    side = isqrt(num_tokens)
    if values.ndim != 3 or values.shape[1:] not in ((side, side), (1, 1)):
        raise CheckpointError(
            f"latent statistics must have shape (channels, {side}, {side}), "
            f"got {tuple(values.shape)}; they belong to another autoencoder"
        )
    grid = values.float().expand(-1, side, side)
    return grid.flatten(1).mT.contiguous()


def read_statistics(path: Path) -> tuple[Tensor | None, Tensor]:
    """Return mean (or None) and variance of a ``stat.pt``.

    Raises:
        CheckpointError: The file is unreadable or holds something else.
    """
    content = load_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("var"), Tensor):
        raise CheckpointError(f"{path} has no tensor 'var'; it is no statistics file of RAE")
    mean = content.get("mean")
    if mean is not None and not isinstance(mean, Tensor):
        raise CheckpointError(f"{path}: 'mean' must be a tensor or None, got {mean!r:.40}")
    return mean, content["var"]
