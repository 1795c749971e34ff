"""Gate 2: does the language model read what a picture's latents say?"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from unimm.pipeline import Pipeline
from unimm.roc import area_under_roc
from unimm.scenes import Grammar, near_misses, questions

from .samples import TrueSample

_STREAM = 1_000_033


@dataclass(frozen=True, slots=True)
class Reading:
    """Accuracy of answers on true pictures.

    Args:
        count: Questions asked.
        accuracy: Share answered exactly.
        balanced_accuracy: Mean over kinds of question of the mean over their answers of the
            share answered exactly, so that frequent answers weigh no more than rare ones.
        by_kind: Balanced accuracy of each kind.
        match_accuracy: Share of prompts and near misses on the right side of even odds.
        match_auroc: How often a true prompt scores above a near miss.
    """

    count: int
    accuracy: float
    balanced_accuracy: float
    by_kind: dict[str, float]
    match_accuracy: float
    match_auroc: float


def measure_reading(
    pipeline: Pipeline, samples: list[TrueSample], grammar: Grammar, *, seed: int, per_picture: int
) -> Reading:
    """Ask questions about each picture, and whether its prompt or a near miss matches."""
    rng = np.random.default_rng([seed, _STREAM])
    latents = list(pipeline.encode([sample.picture for sample in samples]))
    asked = [
        (i, question)
        for i, sample in enumerate(samples)
        for question in questions(sample.scene, sample.prompt, rng, grammar, per_picture)
    ]
    answers = pipeline.ask_many([latents[i] for i, _ in asked], [q.question for _, q in asked])
    outcomes = [
        (question.kind, question.answer, answer == question.answer)
        for (_, question), answer in zip(asked, answers, strict=True)
    ]
    by_kind = balanced(outcomes)
    scores, truths = _match_scores(pipeline, samples, latents, grammar, rng)
    return Reading(
        count=len(outcomes),
        accuracy=float(np.mean([right for _, _, right in outcomes])),
        balanced_accuracy=float(np.mean(list(by_kind.values()))),
        by_kind=by_kind,
        match_accuracy=float(np.mean([(s > 0) == t for s, t in zip(scores, truths, strict=True)])),
        match_auroc=area_under_roc(scores, truths),
    )


def balanced(outcomes: Iterable[tuple[str, str, bool]]) -> dict[str, float]:
    """Return, for (kind, answer, right) triples, each kind's mean over its answers."""
    groups: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for kind, answer, is_right in outcomes:
        groups[kind][answer].append(is_right)
    return {
        kind: float(np.mean([np.mean(rights) for rights in answers.values()]))
        for kind, answers in sorted(groups.items())
    }


def _match_scores(
    pipeline: Pipeline,
    samples: list[TrueSample],
    latents: list[Tensor],
    grammar: Grammar,
    rng: np.random.Generator,
) -> tuple[list[float], list[bool]]:
    """Score each picture against its own prompt and against one near miss."""
    scores: list[float] = []
    truths: list[bool] = []
    for sample, latent in zip(samples, latents, strict=True):
        wrong = near_misses(sample.prompt, sample.scene, rng, grammar)
        chosen = wrong[:1] if not wrong else [wrong[int(rng.integers(len(wrong)))]]
        for prompt, is_true in [(sample.prompt, True), *((w, False) for w in chosen)]:
            scores += pipeline.verify(prompt.text, [latent], verifier="yes_no")
            truths.append(is_true)
    return scores, truths
