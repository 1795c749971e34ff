"""Gate 3: does the model draw what it is asked for, and choose well among its candidates?"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from unimm.generation import Generation
from unimm.options import GenerationOptions, VerifierName
from unimm.pipeline import Pipeline
from unimm.roc import area_under_roc
from unimm.scenes import Prompt, detect, judge

from ..statistics import wilson_interval


@dataclass(frozen=True, slots=True)
class PromptOutcome:
    """What became of one prompt.

    Args:
        skill: GenEval's name for what the prompt tests.
        right: The detector's verdict on each candidate.
        scores: The model's own score of each candidate, by verifier.
    """

    skill: str
    right: tuple[bool, ...]
    scores: Mapping[str, tuple[float, ...]]

    def best_of(self, n: int, verifier: str) -> bool:
        """Whether the model's choice among the first ``n`` is right."""
        return self.right[int(np.argmax(self.scores[verifier][:n]))]

    def oracle(self, n: int) -> bool:
        """Whether any of the first ``n`` is right."""
        return any(self.right[:n])


@dataclass(frozen=True, slots=True)
class Choosing:
    """Quality of the choice by one verifier.

    Args:
        best_of_n: By number of candidates, share of prompts whose chosen picture is right.
        recovered: (best of N - single) / (oracle of N - single) at the largest N.
        auroc: Of the scores against the detector, over all candidates.
        auroc_within: The same over candidates of one prompt, mean over prompts with both verdicts;
            NaN where there is none.
        by_skill: Share of right choices at the largest N.
    """

    best_of_n: dict[int, float]
    recovered: float
    auroc: float
    auroc_within: float
    by_skill: dict[str, float]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Quality of drawing on one list of prompts.

    Args:
        prompts: Prompts in the list.
        pictures: Single pictures judged, four for each prompt or all if there are fewer.
        single: Share of single pictures that are right.
        single_interval: Its 95% Wilson interval.
        oracle_of_n: By number of candidates, share of prompts with any right candidate.
        by_skill: Share of right single pictures.
        chosen: Quality of choosing, by verifier.
    """

    prompts: int
    pictures: int
    single: float
    single_interval: tuple[float, float]
    oracle_of_n: dict[int, float]
    by_skill: dict[str, float]
    chosen: dict[str, Choosing]


def draw_group(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    options: GenerationOptions,
    *,
    first_index: int,
) -> list[PromptOutcome]:
    """Draw all candidates of some prompts, and let detector and model judge them.

    Args:
        pipeline: The model.
        prompts: Drawn together.
        options: How to draw; every verifier scores, whichever is named here.
        first_index: Place of the first prompt in its list, on which its seeds depend.
    """
    outcomes = []
    drawn = pipeline.generate([p.text for p in prompts], options, first_index=first_index)
    for prompt, generation in zip(prompts, drawn, strict=True):
        latents = torch.stack([c.latents for c in generation.candidates])
        pictures = pipeline.decode_images(latents)
        outcomes.append(
            PromptOutcome(
                skill=prompt.skill,
                right=tuple(judge(prompt, detect(np.asarray(p))).correct for p in pictures),
                scores={
                    name: _scores(pipeline, generation, name, searched_by=options.verifier)
                    for name in get_args(VerifierName)
                },
            )
        )
    return outcomes


def _scores(
    pipeline: Pipeline,
    generation: Generation,
    verifier: VerifierName,
    *,
    searched_by: VerifierName | None,
) -> tuple[float, ...]:
    """Return a verifier's scores of all candidates; the search has those of its own already."""
    known = [c.score for c in generation.candidates if c.score is not None]
    if verifier == searched_by and len(known) == len(generation.candidates):
        return tuple(known)
    latents = torch.stack([c.latents for c in generation.candidates])
    return tuple(pipeline.verify(generation.prompt, latents, verifier=verifier))


def summarise(outcomes: Sequence[PromptOutcome], *, singles: int = 4) -> Drawing:
    """Return the figures of a list of outcomes."""
    n = len(outcomes[0].right)
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= n]
    single = [right for o in outcomes for right in o.right[:singles]]
    oracle = {size: _mean(o.oracle(size) for o in outcomes) for size in sizes}
    rate = _mean(single)
    return Drawing(
        prompts=len(outcomes),
        pictures=len(single),
        single=rate,
        single_interval=wilson_interval(sum(single), len(single)),
        oracle_of_n=oracle,
        by_skill=_by_skill(outcomes, lambda o: o.right[:singles]),
        chosen={
            name: _choosing(outcomes, name, sizes, rate=rate, oracle=oracle[sizes[-1]])
            for name in outcomes[0].scores
        },
    )


def _choosing(
    outcomes: Sequence[PromptOutcome],
    verifier: str,
    sizes: Sequence[int],
    *,
    rate: float,
    oracle: float,
) -> Choosing:
    best = {size: _mean(o.best_of(size, verifier) for o in outcomes) for size in sizes}
    mixed = [o for o in outcomes if len(set(o.right)) == 2]
    within = [area_under_roc(o.scores[verifier], o.right) for o in mixed]
    return Choosing(
        best_of_n=best,
        recovered=(best[sizes[-1]] - rate) / (oracle - rate) if oracle > rate else 1.0,
        auroc=area_under_roc(
            [s for o in outcomes for s in o.scores[verifier]],
            [r for o in outcomes for r in o.right],
        ),
        auroc_within=float(np.mean(within)) if within else float("nan"),
        by_skill=_by_skill(outcomes, lambda o: [o.best_of(sizes[-1], verifier)]),
    )


def _by_skill(
    outcomes: Iterable[PromptOutcome], verdicts: Callable[[PromptOutcome], Iterable[bool]]
) -> dict[str, float]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.skill] += verdicts(outcome)
    return {skill: _mean(rights) for skill, rights in sorted(groups.items())}


def _mean(values: Iterable[bool]) -> float:
    return float(np.mean(list(values)))
