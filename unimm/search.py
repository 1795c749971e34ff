"""Test-time search: draw several latents, let the model read them, keep the best.

Candidates are data; nothing here knows a model. Only a winner is ever decoded to pixels.

Shape legend:
    N latent tokens      D latent channels      Q queries      H language-model width
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from unimm.errors import UserError
from unimm.seeds import candidate_seed
from unimm.verify import Verifier


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingTask:
    """A prompt that the language model has read.

    Args:
        index: Position of the prompt in its list; part of its candidates' seeds.
        prompt: What to draw.
        states: Hidden states at the queries.
    """

    index: int
    prompt: str
    states: Float[Tensor, "Q H"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One attempt at a picture.

    Args:
        index: Its number among the candidates of its prompt, k.
        seed: Seed of its noise.
        score: The verifier's log-odds; None if it was never scored.
        nfe: Denoiser evaluations spent on it; one with classifier-free guidance counts twice, one
            with guidance by the early exit once: the exit lies on its way.
        pruned_at: Sampler step after which the search gave it up; None if it was finished.
        latents: What it is.
    """

    index: int
    seed: int
    score: float | None
    nfe: int
    pruned_at: int | None
    latents: Float[Tensor, "N D"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The outcome of a search for one prompt.

    Args:
        candidates: All of them, in the order of their indices.
        chosen: Index of the winner.
    """

    candidates: tuple[Candidate, ...]
    chosen: int

    @property
    def winner(self) -> Candidate:
        return self.candidates[self.chosen]

    @property
    def nfe(self) -> int:
        """Denoiser evaluations spent on all candidates."""
        return sum(candidate.nfe for candidate in self.candidates)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """One candidate to be drawn."""

    task: DrawingTask
    index: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """One candidate's latents and what they cost."""

    latents: Float[Tensor, "N D"]
    nfe: int


@runtime_checkable
class CandidateSampler(Protocol):
    """Draws candidates, batched as it sees fit."""

    def sample(self, draws: Sequence[Draw]) -> list[Drawn]: ...


@runtime_checkable
class SearchStrategy(Protocol):
    """Spends denoiser and verifier on prompts and chooses a candidate for each."""

    def search(
        self,
        tasks: Sequence[DrawingTask],
        *,
        sampler: CandidateSampler,
        verifier: Verifier,
        seed: int,
    ) -> list[Selection]: ...


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Draw ``n`` candidates to the end, score all, keep the best.

    ``n`` 1 is plain sampling: the only candidate is scored too, so that its score can be compared
    with a wider search. A larger ``n`` contains the candidates of every smaller one.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"best_of must be a whole number of at least 1, got {self.n}")

    def search(
        self,
        tasks: Sequence[DrawingTask],
        *,
        sampler: CandidateSampler,
        verifier: Verifier,
        seed: int,
    ) -> list[Selection]:
        draws = [
            Draw(task=task, index=k, seed=candidate_seed(seed, task.index, k))
            for task in tasks
            for k in range(self.n)
        ]
        drawn = sampler.sample(draws)
        selections = []
        for i, task in enumerate(tasks):
            mine = slice(i * self.n, (i + 1) * self.n)
            latents = torch.stack([d.latents for d in drawn[mine]])
            scores = verifier.score(task.prompt, latents).tolist()
            candidates = tuple(
                Candidate(
                    index=draw.index,
                    seed=draw.seed,
                    score=score,
                    nfe=result.nfe,
                    pruned_at=None,
                    latents=result.latents,
                )
                for draw, result, score in zip(draws[mine], drawn[mine], scores, strict=True)
            )
            # The first of equals, so that more candidates never change a choice without reason.
            chosen = max(range(self.n), key=lambda k, scores=scores: (scores[k], -k))  # type: ignore[misc]
            selections.append(Selection(candidates=candidates, chosen=chosen))
        return selections
