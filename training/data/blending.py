"""Rows of prompts with, for some, another prompt that they are moved towards.

Shape legend:
    B batch      L sequence length      K blends      Q queries      H language-model width
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unimm.layout import Layout
from unimm.scenes import BlendedPrompt, Grammar, blend_prompt, names_colours, sample_scene

from .scenes import draw_prompt

COLOURED_SKILLS = ("counting", "colors", "position", "color_attr")
"""Whose prompts can name colours."""


@dataclass(frozen=True, slots=True)
class BlendRows:
    """Where the last rows of a layout are moved to.

    Args:
        others: For each of them, the row of the other prompt, (K, L).
        shares: How far it is moved there, float32 (K).
    """

    others: Layout
    shares: Tensor

    def to(self, device: torch.device | str) -> "BlendRows":
        """Return the rows on another device."""
        return BlendRows(self.others.to(device), self.shares.to(device))


def blended_states(
    states: Float[Tensor, "B Q H"], others: Float[Tensor, "K Q H"], shares: Float[Tensor, "K"]
) -> Float[Tensor, "B Q H"]:
    """Move the last states some way towards those of other prompts.

    What is mixed are the hidden states at the queries, not the words: on the straight line from
    one condition to another lies, at its end, just what the generator is given for the other
    prompt, whatever the language model makes of it.
    """
    plain, moved = states.tensor_split([-len(shares)])
    return torch.cat([plain, torch.lerp(moved, others, shares.to(states)[:, None, None])])


def draw_blends(
    count: int,
    rng: np.random.Generator,
    grammar: Grammar,
    *,
    skill_weights: Mapping[str, float],
    pictures: int = 0,
    to_judge: bool = False,
) -> list[BlendedPrompt]:
    """Return blends of training prompts, with so many pictures each.

    Args:
        count: How many.
        rng: Draws them.
        grammar: Whose prompts.
        skill_weights: Weights of the prompts' skills, 1 where nothing is said.
        pictures: Of each blend.
        to_judge: Only blends that the detector can judge a picture by.
    """
    found: list[BlendedPrompt] = []
    while len(found) < count:
        prompt = draw_prompt(rng, grammar, skill_weights)
        if names_colours(prompt):
            scenes = [sample_scene(rng, grammar, prompt) for _ in range(pictures)]
            blend = blend_prompt(prompt, scenes, rng, grammar)
            if blend.can_be_judged or not to_judge:
                found.append(blend)
    return found


def blend_rows(others: Layout, blends: Sequence[BlendedPrompt]) -> BlendRows:
    """Return the rows of the other prompts with how far each is."""
    return BlendRows(others, torch.tensor([blend.share for blend in blends]))


def check_blends(count: int, most: int, skill_weights: Mapping[str, float]) -> None:
    """Refuse a number of blends that there is no room or no prompt for.

    Raises:
        ValueError: naming the number.
    """
    if not 0 <= count <= most:
        raise ValueError(f"num_blends must be from 0 to {most} here, got {count}")
    if count and not any(skill_weights.get(skill, 1) for skill in COLOURED_SKILLS):
        raise ValueError(
            f"num_blends={count} needs prompts that name colours; give one of "
            f"{', '.join(COLOURED_SKILLS)} a weight in skill_weights"
        )
