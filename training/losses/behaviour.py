"""Behaviour alignment: answers about imperfect latents are pulled to those about clean ones.

A continuous form of LatentUM's (arXiv:2604.02097): what the language model says of a picture is
to survive the error that a generator leaves in its latents.

Shape legend:
    I pictures read      N latent tokens      D latent channels      T answer tokens
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unimm.layout import IGNORE, Layout
from unimm.model import UniMM

AlignmentSource = Literal["noise", "exit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignmentConfig:
    """How much answers about imperfect latents are pulled to those about clean ones.

    Args:
        weight: Of the divergence, a mean over the answers' tokens; 0 leaves it out.
        share: Share of conversations about pictures that are read a second time for it.
        source: What makes latents imperfect: ``noise``, or the early exit of the DiT, which
            predicts them from noise in one step.
        noise: Largest standard deviation of that noise; most pictures get much less.
        max_time: Latest time that the early exit predicts from; a picture's is uniform below.
    """

    weight: float = 0.0
    share: float = 0.5
    source: AlignmentSource = "noise"
    noise: float = 0.5
    max_time: float = 0.5

    def __post_init__(self) -> None:
        if self.weight < 0 or self.noise < 0:
            raise ValueError(
                f"weight ({self.weight}) and noise ({self.noise}) must not be negative"
            )
        if not 0 <= self.share <= 1 or not 0 < self.max_time <= 1:
            raise ValueError(
                f"share ({self.share}) must be in [0, 1] and max_time ({self.max_time}) in (0, 1]"
            )


def answer_divergences(
    model: UniMM,
    layout: Layout,
    clean: Float[Tensor, "I N D"],
    changed: Float[Tensor, "I N D"],
) -> Float[Tensor, "T"]:
    """Return KL(answer on clean latents || on changed ones) at every supervised token, in nats.

    The answers on clean latents are the teacher: no gradient flows through them.
    """
    rows, columns = (layout.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)

    def answers(latents: Tensor) -> Tensor:
        logits = model.lm.logits(model(layout, latents)[rows, columns])
        return logits.float().log_softmax(dim=-1)

    with torch.no_grad():
        teacher = answers(clean)
    return F.kl_div(answers(changed), teacher, log_target=True, reduction="none").sum(dim=-1)
