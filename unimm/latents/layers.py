"""Latents of several layers of a tower at once (RAEv2, arXiv:2605.18324).

Shape legend:
    B batch      T tokens of the tower      N latent tokens      D latent channels
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LayerNormKind = Literal["affine_free", "model", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerMixConfig:
    """Which layers of a tower make a latent token, and how.

    RAEv2's latents are ``global_term=true, post_norm=false`` with stored statistics, and
    ``layer_norm=model`` for SigLIP-2.

    Args:
        layers: Blocks, from 0, in order; see :func:`strided_layers`.
        layer_norm: What each layer goes through first: a LayerNorm without weights, the tower's
            own last norm, or nothing (then the last layers dominate: their norms are larger).
        combine: Mean or sum over the layers.
        global_term: Add the mean over all tokens of the last listed layer to every token.
        post_norm: Give every token mean 0 and variance 1 again, as a single layer has, so that
            what reads and draws latents meets the same numbers. One layer alone needs none.
        eps: Of the LayerNorms without weights.
    """

    layers: tuple[int, ...]
    layer_norm: LayerNormKind = "affine_free"
    combine: Literal["mean", "sum"] = "mean"
    global_term: bool = False
    post_norm: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(
                f"layers must be increasing numbers of blocks from 0, got {list(self.layers)}"
            )


def strided_layers(depth: int, *, count: int, stride: int = 1) -> tuple[int, ...]:
    """Return ``count`` of ``depth`` blocks that end with the last: (14, 16, ... 26) of 27."""
    first = depth - 1 - (count - 1) * stride
    if count < 1 or stride < 1 or first < 0:
        raise ValueError(f"a tower of {depth} blocks has no {count} layers {stride} apart")
    return tuple(range(first, depth, stride))


def mix_layers(
    layers: Sequence[Float[Tensor, "B N D"]], config: LayerMixConfig
) -> Float[Tensor, "B N D"]:
    """Return one token of several layers' normed ones."""
    mixed = torch.stack(list(layers)).sum(dim=0)
    if config.combine == "mean":
        mixed = mixed / len(layers)
    if config.global_term:
        mixed = mixed + layers[-1].mean(dim=1, keepdim=True)
    if config.post_norm and len(layers) > 1:
        mixed = F.layer_norm(mixed, (mixed.shape[-1],), eps=config.eps)
    return mixed


def norm_layer(
    hidden: Float[Tensor, "B N D"], config: LayerMixConfig, last_norm: nn.Module
) -> Float[Tensor, "B N D"]:
    """Return a block's output under the norm that ``config`` names, in float32."""
    if config.layer_norm == "model":
        normed: Tensor = last_norm(hidden)
        return normed.float()
    if config.layer_norm == "none":
        return hidden.float()
    return F.layer_norm(hidden.float(), (hidden.shape[-1],), eps=config.eps)


@contextmanager
def captured_outputs(
    blocks: nn.ModuleList, wanted: Sequence[int]
) -> Iterator[dict[int, Float[Tensor, "B T D"]]]:
    """Collect what some blocks return while the tower runs; one thread at a time."""
    outputs: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [blocks[index].register_forward_hook(keep(index)) for index in wanted]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
