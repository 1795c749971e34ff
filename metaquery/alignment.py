"""Distances of a denoiser's inner features to those of a frozen encoder (REPA).

Shape legend:
    B batch      N tokens      F channels of the encoder's features
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FeatureDistance = Literal["mse", "cosine"]


def feature_distances(
    predicted: Float[Tensor, "B N F"],
    target: Float[Tensor, "B N F"],
    *,
    distance: FeatureDistance = "mse",
) -> Float[Tensor, "B"]:
    """Return each sample's mean distance in float32; nothing flows into the target.

    ``cosine`` is one minus the cosine (Yu et al. 2024, arXiv:2410.06940), ``mse`` the mean
    squared error on raw features (RAEv2, arXiv:2605.18324).
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"the DiT projects to features of shape {tuple(predicted.shape)}, but the encoder "
            f"gives {tuple(target.shape)}; set dit.repa_dim to the encoder's width"
        )
    ours, theirs = predicted.float(), target.detach().float()
    if distance == "cosine":
        return 1 - F.cosine_similarity(ours, theirs, dim=-1).mean(dim=1)
    return (ours - theirs).square().flatten(1).mean(dim=1)
