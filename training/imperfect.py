"""Pictures as a generator leaves them: with noise, or predicted from noise in one step.

Shape legend:
    I pictures read      R of them predicted      N latent tokens      D latent channels
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from metaquery.dit import Head
from metaquery.flow import interpolate, velocity_to_x_0
from unimm.model import UniMM

from .batch import PromptRows

DrawTime = Callable[[Generator], Tensor]
"""Draws the time of a picture, (1,), on the generator's device."""


def noised(
    latents: Float[Tensor, "I N D"], largest: float, generator: Generator
) -> Float[Tensor, "I N D"]:
    """Return latents with noise of up to ``largest`` standard deviation on each.

    The squared draw leaves most of them nearly clean.
    """
    device = latents.device
    scale = torch.rand((len(latents), 1, 1), generator=generator, device=device).square() * largest
    noise = torch.randn(latents.shape, generator=generator, device=device)
    return latents + (scale * noise).to(latents.dtype)


def noised_by_seed(
    latents: Float[Tensor, "I N D"], largest: float, seeds: Int64[Tensor, "I"]
) -> Float[Tensor, "I N D"]:
    """Return :func:`noised` latents whose noise depends on their own seed alone."""
    if not largest:
        return latents
    generators = [Generator(latents.device).manual_seed(seed) for seed in seeds.tolist()]
    return torch.cat(
        [noised(x[None], largest, each) for x, each in zip(latents, generators, strict=True)]
    )


@torch.no_grad()
def predicted(
    model: UniMM,
    rows: PromptRows,
    latents: Float[Tensor, "R N D"],
    seeds: Int64[Tensor, "R"],
    draw_time: DrawTime,
    *,
    head: Head = "final",
) -> Float[Tensor, "R N D"]:
    """Return what the generator takes pictures to be that noise has partly covered.

    Each is predicted from its own prompt, or from the null condition where there is none. No
    gradient flows into the generator or the language model.

    Args:
        model: The model.
        rows: Their prompts.
        latents: The true pictures of these rows.
        seeds: Of the times and the noise, a picture's own.
        draw_time: How far each is covered.
        head: ``exit`` asks the early exit.
    """
    device = latents.device
    generators = [Generator(device).manual_seed(seed) for seed in seeds.tolist()]
    t = torch.cat([draw_time(each) for each in generators])
    noise = torch.stack(
        [torch.randn(latents.shape[1:], generator=each, device=device) for each in generators]
    )
    states = model.query_states(model(rows.layout), rows.layout)
    sample = interpolate(latents.float(), noise, t)
    generator = model.generator
    velocity = generator.dit(
        sample.x_t, t, generator.condition(states), ~rows.is_prompted, head=head
    )
    return velocity_to_x_0(sample.x_t, velocity.float(), t)
