"""Behaviour alignment: answers about imperfect latents are pulled to those about clean ones.

A continuous form of LatentUM's (arXiv:2604.02097): what the language model says of a picture is
to survive the error that a generator leaves in its latents.

Shape legend:
    B batch      I pictures read      N latent tokens      D latent channels      T answer tokens
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from metaquery.flow import interpolate, velocity_to_x_0
from metaquery.generator import LatentGenerator
from unimm.layout import IGNORE, Layout
from unimm.model import UniMM


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignmentConfig:
    """How much answers about imperfect latents are pulled to those about clean ones.

    Args:
        weight: Of the divergence; 0 leaves it out.
        noise: Largest standard deviation of the noise on latents; a picture's is uniform below.
        share: Share of pictures that are noised; the others stay clean, and cost nothing.
    """

    weight: float = 0.0
    noise: float = 0.5
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0 or self.noise < 0 or not 0 <= self.share <= 1:
            raise ValueError(
                f"weight ({self.weight}) and noise ({self.noise}) must not be negative and share "
                f"({self.share}) must be in [0, 1]"
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


def noised_latents(
    latents: Float[Tensor, "I N D"], config: AlignmentConfig, generator: Generator
) -> Float[Tensor, "I N D"]:
    """Return latents with noise of a random size each, a share of them as they are."""
    draws = torch.rand((2, len(latents), 1, 1), generator=generator, device=latents.device)
    scale = config.noise * draws[0] * (draws[1] < config.share)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    return latents + (scale * noise).to(latents.dtype)


@torch.no_grad()
def exit_predictions(
    generator: LatentGenerator,
    states: Float[Tensor, "B Q H"],
    x_0: Float[Tensor, "B N D"],
    *,
    t: Float[Tensor, "B"],
    noise: Float[Tensor, "B N D"],
) -> Float[Tensor, "B N D"]:
    """Return what the early exit takes noised latents to be: a generator's errors in one step."""
    sample = interpolate(x_0, noise, t)
    velocity = generator.dit(sample.x_t, t, generator.condition(states), head="exit")
    return velocity_to_x_0(sample.x_t, velocity, t)
