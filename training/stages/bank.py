"""A replay bank of what the generator makes, with the exact detector's verdict.

A verifier that has only seen true pictures cannot judge half-broken ones, so the yes/no branch
also learns from generated and noised latents.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unimm.image import pixels_to_images
from unimm.latents import LatentSpace
from unimm.scenes import Prompt, detect, judge, shows_held_out


@dataclass(frozen=True, kw_only=True, slots=True)
class BankConfig:
    """How the verifier's examples are drawn.

    Args:
        start: First step that draws pictures to judge.
        every: Steps between draws.
        num_prompts: Prompts drawn for each time; a noised true picture of each is added.
        pictures_per_prompt: Pictures drawn of each: the verifier learns to tell right from wrong
            ones of the same prompt.
        capacity: Pictures kept.
        rows: Matching rows of a training step that come from the bank.
        num_steps: Sampler steps.
        guidance_scales: Guidance of a draw, each in turn.
    """

    start: int = 1000
    every: int = 40
    num_prompts: int = 24
    pictures_per_prompt: int = 4
    capacity: int = 4096
    rows: int = 16
    num_steps: int = 12
    guidance_scales: tuple[float, ...] = (1.5, 2.5, 3.5)

    def __post_init__(self) -> None:
        counts = ("every", "num_prompts", "pictures_per_prompt", "capacity", "rows", "num_steps")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.guidance_scales:
            raise ValueError("guidance_scales must hold at least one scale, such as [2.5]")


@dataclass(frozen=True, slots=True)
class Judgement:
    """The exact detector's word on some pictures.

    Args:
        correct: Whether each shows exactly what its prompt says, (B).
        held_out: Whether it shows what is held out of training, (B).
    """

    correct: Tensor
    held_out: Tensor


class PictureBank:
    """Latents with the prompt they were made for and whether they match it; the newest are kept."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.latents = torch.empty(0)
        self.verdicts = torch.empty(0, dtype=torch.bool)
        self.prompts: list[str] = []

    def __len__(self) -> int:
        return len(self.prompts)

    def add(
        self, prompts: Sequence[Prompt], latents: Float[Tensor, "B N D"], judgement: Judgement
    ) -> None:
        """Take in judged latents, but for those of held-out content, and let the oldest go."""
        kept = (~judgement.held_out).nonzero().flatten()
        stored = latents[kept.to(latents.device)].to("cpu", torch.bfloat16)
        old = self.latents if len(self) else stored[:0]
        self.latents = torch.cat([old, stored])[-self.capacity :]
        self.verdicts = torch.cat([self.verdicts, judgement.correct[kept]])[-self.capacity :]
        texts = [prompts[number].text for number in kept.tolist()]
        self.prompts = (self.prompts + texts)[-self.capacity :]

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[list[tuple[str, bool]], Float[Tensor, "B N D"]]:
        """Return cases: a right and a wrong picture of one prompt, then of another.

        Of the same prompt, because a verifier of pictures that differ in their prompts can do
        well by knowing which prompts are hard. Without a prompt that has both, all are drawn from.
        """
        by_prompt = self._by_prompt()
        pools = [pool for pool in by_prompt if all(pool)]
        if not pools:
            rights, wrongs = zip(*by_prompt, strict=True)
            pools = [([*chain(*rights)], [*chain(*wrongs)])]
        chosen: list[int] = []
        while len(chosen) < count:
            pool = pools[rng.integers(len(pools))]
            chosen += [members[rng.integers(len(members))] for members in pool if members]
        cases = [(self.prompts[i], bool(self.verdicts[i])) for i in chosen[:count]]
        return cases, self.latents[chosen[:count]]

    def _by_prompt(self) -> list[tuple[list[int], list[int]]]:
        """Return the numbers of the right and of the wrong pictures of each prompt."""
        found: dict[str, tuple[list[int], list[int]]] = {}
        for number, is_right in enumerate(self.verdicts.tolist()):
            right, wrong = found.setdefault(self.prompts[number], ([], []))
            (right if is_right else wrong).append(number)
        return list(found.values())

    def state_dict(self) -> dict[str, Any]:
        return {"latents": self.latents, "verdicts": self.verdicts, "prompts": self.prompts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.latents, self.verdicts = state["latents"], state["verdicts"]
        self.prompts = list(state["prompts"])


def judge_latents(
    space: LatentSpace, prompts: Sequence[Prompt], latents: Float[Tensor, "B N D"]
) -> Judgement:
    """Decode latents and look at the pictures."""
    pictures = pixels_to_images(space.decode(latents))
    seen = [detect(np.asarray(picture)) for picture in pictures]
    pairs = [*zip(prompts, seen, strict=True)]
    return Judgement(
        correct=torch.tensor([judge(*pair).correct for pair in pairs], dtype=torch.bool),
        held_out=torch.tensor([shows_held_out(*pair) for pair in pairs], dtype=torch.bool),
    )
