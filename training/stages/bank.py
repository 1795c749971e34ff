"""A replay bank of what the generator makes, with the exact detector's verdict.

A verifier that has only seen true pictures cannot judge half-broken ones, so the yes/no branch
also learns from generated and noised latents.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unimm.image import pixels_to_images
from unimm.latents import LatentSpace
from unimm.scenes import Prompt, detect, judge


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
        self, prompts: list[str], latents: Float[Tensor, "B N D"], verdicts: Bool[Tensor, "B"]
    ) -> None:
        """Take in judged latents and let the oldest go."""
        stored = latents.to("cpu", torch.bfloat16)
        old = self.latents if len(self) else stored[:0]
        self.latents = torch.cat([old, stored])[-self.capacity :]
        self.verdicts = torch.cat([self.verdicts, verdicts.cpu()])[-self.capacity :]
        self.prompts = (self.prompts + prompts)[-self.capacity :]

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[list[tuple[str, bool]], Float[Tensor, "B N D"]]:
        """Return cases, half right and half wrong ones as far as both exist."""
        right = self.verdicts.nonzero().flatten().numpy()
        wrong = (~self.verdicts).nonzero().flatten().numpy()
        pools = [pool for pool in (right, wrong) if len(pool)]
        chosen = [
            int(pools[i % len(pools)][rng.integers(len(pools[i % len(pools)]))])
            for i in range(count)
        ]
        cases = [(self.prompts[i], bool(self.verdicts[i])) for i in chosen]
        return cases, self.latents[chosen]

    def state_dict(self) -> dict[str, Any]:
        return {"latents": self.latents, "verdicts": self.verdicts, "prompts": self.prompts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.latents, self.verdicts = state["latents"], state["verdicts"]
        self.prompts = list(state["prompts"])


def judge_latents(
    space: LatentSpace, prompts: list[Prompt], latents: Float[Tensor, "B N D"]
) -> Bool[Tensor, "B"]:
    """Return whether each decoded picture shows exactly what its prompt says."""
    pictures = pixels_to_images(space.decode(latents))
    verdicts = [
        judge(prompt, detect(np.asarray(picture))).correct
        for prompt, picture in zip(prompts, pictures, strict=True)
    ]
    return torch.tensor(verdicts, dtype=torch.bool)
