"""A replay bank of what the generator makes, with the exact detector's verdict.

A verifier that has only seen true pictures cannot judge half-broken ones, so the yes/no branch
also learns from generated and noised latents. A verdict is one bit; what the detector sees in the
picture is much more, so there may be questions about that too.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unimm.config_io import from_dict
from unimm.errors import CheckpointError
from unimm.image import pixels_to_images
from unimm.latents import LatentSpace
from unimm.scenes import (
    Prompt,
    Scene,
    colours_of,
    detect,
    judge,
    recognize,
    shows_held_out,
    wordings,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BankConfig:
    """How the verifier's examples are drawn.

    Args:
        start: First step that draws pictures to judge.
        every: Steps between draws.
        num_prompts: Prompts drawn for each time; a noised true picture of each is added.
        pictures_per_prompt: Pictures drawn of each: the verifier learns to tell right from wrong
            ones of the same prompt.
        failed_share: Share of these prompts that it drew wrongly before, the more often wrong the
            likelier: a few prompts may be behind most of what a verifier misses.
        capacity: Pictures kept.
        rows: Matching rows of a training step that come from the bank.
        paired_share: Share of these rows that are a right and a wrong picture of one prompt. The
            others are right and wrong ones of any prompts, so that which prompts are hard counts
            too, as it does for scores that are compared between prompts.
        reading_rows: Rows of questions about drawn pictures, answered by what they show, right
            for their prompt or not.
        num_steps: Sampler steps.
        guidance_scales: Guidance of a draw, each in turn.
    """

    start: int = 1000
    every: int = 40
    num_prompts: int = 24
    pictures_per_prompt: int = 4
    failed_share: float = 0.0
    capacity: int = 4096
    rows: int = 16
    paired_share: float = 1.0
    reading_rows: int = 0
    num_steps: int = 12
    guidance_scales: tuple[float, ...] = (1.5, 2.5, 3.5)

    def __post_init__(self) -> None:
        counts = ("every", "num_prompts", "pictures_per_prompt", "capacity", "rows", "num_steps")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("failed_share", "paired_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.reading_rows < 0:
            raise ValueError(f"reading_rows must not be negative, got {self.reading_rows}")
        if not self.guidance_scales:
            raise ValueError("guidance_scales must hold at least one scale, such as [2.5]")


@dataclass(frozen=True, slots=True)
class Judgement:
    """The exact detector's word on some pictures.

    Args:
        correct: Whether each shows exactly what its prompt says, (B).
        held_out: Whether it shows what is held out of training, (B).
        scenes: What it shows, None where something in it has no name.
    """

    correct: Tensor
    held_out: Tensor
    scenes: Sequence[Scene | None]

    def head(self, count: int) -> "Judgement":
        """Return what is said of the first pictures."""
        return Judgement(self.correct[:count], self.held_out[:count], self.scenes[:count])


@dataclass(frozen=True, slots=True)
class _Case:
    """What is known of a picture in the bank: its prompt in every wording, and what it shows."""

    wordings: tuple[str, ...]
    is_right: bool
    is_drawn: bool
    scene: Scene | None


class PictureBank:
    """Latents with the prompt they were made for and whether they match it; the newest are kept."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.latents = torch.empty(0)
        self.cases: list[_Case] = []

    def __len__(self) -> int:
        return len(self.cases)

    def add(
        self,
        prompts: Sequence[Prompt],
        latents: Float[Tensor, "B N D"],
        judgement: Judgement,
        *,
        is_drawn: bool = True,
    ) -> None:
        """Take in judged latents, but for those of held-out content, and let the oldest go.

        Args:
            prompts: What each was made for.
            latents: The pictures.
            judgement: The detector's word on them.
            is_drawn: Whether the model drew them; noised true pictures are told from right ones
                too easily to be compared with.
        """
        kept = (~judgement.held_out).nonzero().flatten()
        stored = latents[kept.to(latents.device)].to("cpu", torch.bfloat16)
        old = self.latents if len(self) else stored[:0]
        self.latents = torch.cat([old, stored])[-self.capacity :]
        verdicts = judgement.correct.tolist()
        added = [
            _Case(wordings(prompts[i]), verdicts[i], is_drawn, judgement.scenes[i])
            for i in kept.tolist()
        ]
        self.cases = (self.cases + added)[-self.capacity :]

    def draw(
        self, count: int, rng: np.random.Generator, *, paired_share: float = 1.0
    ) -> tuple[list[tuple[str, bool]], Float[Tensor, "B N D"]]:
        """Return cases: a right and a wrong picture of one prompt, then of another.

        Of the same prompt, in any of its wordings, because a verifier of pictures that differ in
        their prompts can do well by knowing which prompts are hard; but in a share of cases, and
        without a prompt that has both, the two are taken from all.
        """
        everything = self._sides(range(len(self)))
        pools = self._pools()
        chosen: list[int] = []
        while len(chosen) < count:
            is_paired = pools and rng.random() < paired_share
            pool = pools[rng.integers(len(pools))] if is_paired else everything
            chosen += [members[rng.integers(len(members))] for members in pool if members]
        picked = [self.cases[number] for number in chosen[:count]]
        texts = [case.wordings[rng.integers(len(case.wordings))] for case in picked]
        verdicts = [case.is_right for case in picked]
        return [*zip(texts, verdicts, strict=True)], self.latents[chosen[:count]]

    def draw_shown(
        self, count: int, rng: np.random.Generator
    ) -> tuple[list[Scene], Float[Tensor, "B N D"]]:
        """Return drawn pictures and what they show, every second wrong for its prompt.

        Both are empty while it is known of no picture.
        """
        known = [n for n, case in enumerate(self.cases) if case.is_drawn and case.scene]
        sides = [side for side in self._sides(known) if side]
        chosen = [sides[k % len(sides)] for k in range(count)] if sides else []
        numbers = [side[rng.integers(len(side))] for side in chosen]
        scenes = [self.cases[number].scene for number in numbers]
        return [scene for scene in scenes if scene], self.latents[numbers]

    def failed(self, count: int, rng: np.random.Generator) -> list[str]:
        """Return prompts that were drawn wrongly, each as likely as it is wrong; none if none was.

        Its share counts and not its number, or a prompt that is drawn for being wrong would come
        ever more often.
        """
        if not count:
            return []
        shares = {
            prompt: len(wrong) / (len(right) + len(wrong))
            for prompt, (right, wrong) in self._by_prompt().items()
            if wrong
        }
        if not shares:
            return []
        weights = np.array([*shares.values()])
        chosen = rng.choice(len(weights), size=count, p=weights / weights.sum())
        prompts = [*shares]
        return [prompts[number] for number in chosen]

    def _pools(self) -> list[tuple[list[int], list[int]]]:
        """Return the right and the wrong pictures of each prompt that was drawn rightly and not."""
        return [sides for sides in self._by_prompt().values() if all(sides)]

    def _by_prompt(self) -> dict[str, tuple[list[int], list[int]]]:
        """Return the drawn pictures of each prompt, right and wrong."""
        by_prompt: dict[str, list[int]] = {}
        for number, case in enumerate(self.cases):
            if case.is_drawn:
                by_prompt.setdefault(min(case.wordings), []).append(number)
        return {prompt: self._sides(numbers) for prompt, numbers in by_prompt.items()}

    def _sides(self, numbers: Iterable[int]) -> tuple[list[int], list[int]]:
        """Return which of these pictures are right, and which are wrong."""
        sides: tuple[list[int], list[int]] = ([], [])
        for number in numbers:
            sides[0 if self.cases[number].is_right else 1].append(number)
        return sides

    def state_dict(self) -> dict[str, Any]:
        return {"latents": self.latents, "cases": [asdict(case) for case in self.cases]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` was called.

        Raises:
            CheckpointError: The state is that of another version.
        """
        cases = state.get("cases")
        if cases is None or any("wordings" not in case for case in cases):
            raise CheckpointError(
                "the last checkpoint holds the judged pictures of an earlier version of unimm, "
                "which this one cannot go on from; finish the run with that version, or give "
                "run.output_dir a new folder and init the model that the run began from"
            )
        self.latents = state["latents"]
        self.cases = [from_dict(_Case, case) for case in cases]


def judge_latents(
    space: LatentSpace, prompts: Sequence[Prompt], latents: Float[Tensor, "B N D"]
) -> Judgement:
    """Decode latents and look at the pictures."""
    pictures = [np.asarray(picture) for picture in pixels_to_images(space.decode(latents))]
    seen = [detect(p, colours_of(prompt)) for p, prompt in zip(pictures, prompts, strict=True)]
    pairs = [*zip(prompts, seen, strict=True)]
    return Judgement(
        correct=torch.tensor([judge(*pair).correct for pair in pairs], dtype=torch.bool),
        held_out=torch.tensor([shows_held_out(*pair) for pair in pairs], dtype=torch.bool),
        scenes=[recognize(*pair) for pair in zip(pictures, seen, strict=True)],
    )
