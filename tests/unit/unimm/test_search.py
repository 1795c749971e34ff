"""Search without a model: candidates are data."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from unimm.errors import UserError
from unimm.search import BestOfN, CandidateSampler, Draw, DrawingTask, Drawn, SearchStrategy
from unimm.seeds import candidate_seed, draw_noise
from unimm.verify import Verifier


class NoiseSampler:
    """Draws nothing but noise."""

    def __init__(self) -> None:
        self.num_drawn = 0

    def sample(self, draws: Sequence[Draw]) -> list[Drawn]:
        self.num_drawn += len(draws)
        noise = draw_noise([draw.seed for draw in draws], 4, 2)
        return [Drawn(latents=latents, nfe=7) for latents in noise]


class MeanVerifier:
    """Prefers bright latents."""

    def score(self, prompt: str, latents: Tensor) -> Tensor:
        return latents.mean(dim=(1, 2))


class TiedVerifier:
    def score(self, prompt: str, latents: Tensor) -> Tensor:
        return torch.zeros(len(latents))


def tasks(count: int) -> list[DrawingTask]:
    return [DrawingTask(index=i, prompt="p", states=torch.zeros(1, 1)) for i in range(count)]


def test_doubles_fit_the_protocols() -> None:
    assert isinstance(NoiseSampler(), CandidateSampler)
    assert isinstance(MeanVerifier(), Verifier)
    assert isinstance(BestOfN(1), SearchStrategy)


def test_the_winner_has_the_best_score() -> None:
    (selection,) = BestOfN(9).search(
        tasks(1), sampler=NoiseSampler(), verifier=MeanVerifier(), seed=0
    )
    scores = [candidate.score for candidate in selection.candidates]
    assert None not in scores
    assert selection.winner.score == max(score for score in scores if score is not None)
    assert selection.winner.latents.mean().item() == pytest.approx(selection.winner.score)
    assert selection.nfe == 9 * 7


def test_the_best_score_never_falls_as_n_grows() -> None:
    """And it rises for most seeds: the first of 16 is the best with odds of 1 to 16."""
    risen = 0
    for seed in range(8):
        best: list[float] = []
        for n in range(1, 17):
            (selection,) = BestOfN(n).search(
                tasks(1), sampler=NoiseSampler(), verifier=MeanVerifier(), seed=seed
            )
            assert selection.winner.score is not None
            best.append(selection.winner.score)
        assert best == sorted(best)
        risen += best[-1] > best[0]
    assert risen >= 5


def test_a_wider_search_contains_the_narrower_one() -> None:
    narrow, wide = (
        BestOfN(n).search(tasks(3), sampler=NoiseSampler(), verifier=MeanVerifier(), seed=4)
        for n in (2, 6)
    )
    for few, many in zip(narrow, wide, strict=True):
        for one, same in zip(few.candidates, many.candidates, strict=False):
            assert (one.index, one.seed, one.score) == (same.index, same.seed, same.score)
            assert torch.equal(one.latents, same.latents)


def test_the_first_of_equals_wins() -> None:
    (selection,) = BestOfN(5).search(
        tasks(1), sampler=NoiseSampler(), verifier=TiedVerifier(), seed=0
    )
    assert selection.chosen == 0


def test_all_candidates_are_drawn_in_one_call() -> None:
    sampler = NoiseSampler()
    BestOfN(4).search(tasks(3), sampler=sampler, verifier=MeanVerifier(), seed=0)
    assert sampler.num_drawn == 12


def test_no_candidates_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1, got 0"):
        BestOfN(0)


def test_seeds_are_stable_distinct_and_exact_in_json() -> None:
    """The first value is fixed for good: a saved seed must mean the same picture next year."""
    assert candidate_seed(0, 0, 0) == 78_808_467_027_499
    seeds = {candidate_seed(s, i, k) for s in range(5) for i in range(20) for k in range(20)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_noise_depends_on_the_seed_alone() -> None:
    together = draw_noise([3, 5, 8], 16, 4)
    assert torch.equal(together[1], draw_noise([5], 16, 4)[0])
    assert not torch.equal(together[0], together[1])
