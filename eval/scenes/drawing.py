"""Gate 3: does the model draw what it is asked for, and choose well among its candidates?"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unimm.options import GenerationOptions
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
        scores: The model's own log-odds of each candidate.
    """

    skill: str
    right: tuple[bool, ...]
    scores: tuple[float, ...]

    def best_of(self, n: int) -> bool:
        """Whether the model's choice among the first ``n`` is right."""
        return self.right[int(np.argmax(self.scores[:n]))]

    def oracle(self, n: int) -> bool:
        """Whether any of the first ``n`` is right."""
        return any(self.right[:n])


@dataclass(frozen=True, slots=True)
class Drawing:
    """Quality of drawing on one list of prompts.

    Args:
        prompts: Prompts in the list.
        pictures: Single pictures judged, four for each prompt or all if there are fewer.
        single: Share of single pictures that are right.
        single_interval: Its 95% Wilson interval.
        best_of_n: By number of candidates, share of prompts whose chosen picture is right.
        oracle_of_n: By number of candidates, share of prompts with any right candidate.
        recovered: (best of N - single) / (oracle of N - single) at the largest N.
        auroc: Of the log-odds against the detector, over all candidates.
        by_skill: Share of right single pictures.
        best_by_skill: Share of right choices at the largest N.
    """

    prompts: int
    pictures: int
    single: float
    single_interval: tuple[float, float]
    best_of_n: dict[int, float]
    oracle_of_n: dict[int, float]
    recovered: float
    auroc: float
    by_skill: dict[str, float]
    best_by_skill: dict[str, float]


def draw_outcomes(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    options: GenerationOptions,
    *,
    group_size: int = 16,
) -> Iterator[PromptOutcome]:
    """Draw all candidates of each prompt and let detector and model judge them."""
    for start in range(0, len(prompts), group_size):
        group = prompts[start : start + group_size]
        drawn = pipeline.generate([prompt.text for prompt in group], options, first_index=start)
        for prompt, generation in zip(group, drawn, strict=True):
            latents = torch.stack([c.latents for c in generation.candidates])
            pictures = pipeline.decode_images(latents)
            scores = [c.score for c in generation.candidates]
            if any(score is None for score in scores):
                scores = list(pipeline.verify(prompt.text, latents))
            yield PromptOutcome(
                skill=prompt.skill,
                right=tuple(judge(prompt, detect(np.asarray(p))).correct for p in pictures),
                scores=tuple(float(s) for s in scores if s is not None),
            )


def summarise(outcomes: Sequence[PromptOutcome], *, singles: int = 4) -> Drawing:
    """Return the figures of a list of outcomes."""
    n = len(outcomes[0].right)
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= n]
    single = [right for o in outcomes for right in o.right[:singles]]
    best = {size: _mean(o.best_of(size) for o in outcomes) for size in sizes}
    oracle = {size: _mean(o.oracle(size) for o in outcomes) for size in sizes}
    rate = _mean(single)
    room = oracle[sizes[-1]] - rate
    return Drawing(
        prompts=len(outcomes),
        pictures=len(single),
        single=rate,
        single_interval=wilson_interval(sum(single), len(single)),
        best_of_n=best,
        oracle_of_n=oracle,
        recovered=(best[sizes[-1]] - rate) / room if room > 0 else 1.0,
        auroc=area_under_roc(
            [s for o in outcomes for s in o.scores], [r for o in outcomes for r in o.right]
        ),
        by_skill=_by_skill(outcomes, lambda o: o.right[:singles]),
        best_by_skill=_by_skill(outcomes, lambda o: [o.best_of(n)]),
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
