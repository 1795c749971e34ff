"""Which conversations are read with imperfect pictures, and what that takes.

The choice belongs to the conversation, so it does not depend on how a step is divided.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from unimm.chat import ImageSegment, QuerySegment, Segment
from unimm.latents import LatentSpaceConfig

from .batch import (
    AlignedRows,
    Example,
    ExampleLike,
    LayOut,
    PromptRows,
    Rereading,
    mixed_seed,
)
from .cost import Work, work_of

READ_BACK, ALIGNMENT = 2, 3
"""Purposes of a conversation's seed, beside 0 and 1 of its pictures to read and to draw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RereadingPlan:
    """How many conversations are read with imperfect pictures.

    Args:
        read_back: Share of those with a prompt for their pictures that are read with pictures as
            the generator predicts them.
        aligned: Share of those with pictures that are read a second time, for the alignment.
        aligned_by_exit: Whether that takes predictions of the early exit.
    """

    read_back: float = 0.0
    aligned: float = 0.0
    aligned_by_exit: bool = False


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture that is to be predicted: its number in the batch, and its prompt if known."""

    number: int
    prompt: Sequence[Segment] | None


def reread(
    samples: Sequence[ExampleLike], plan: RereadingPlan, *, lay_out: LayOut
) -> Rereading | None:
    """Return what a micro-batch reads imperfectly; None where the plan asks for nothing.

    Where it does, every micro-batch has rows, for the reason that every
    :class:`training.batch.TrainingBatch` has pictures.
    """
    if not plan.read_back and not plan.aligned:
        return None
    read_back, aligned = _choose(samples, plan)
    return Rereading(
        read_back=_prompt_rows([s for _, shown in read_back for s in shown], lay_out)
        if plan.read_back
        else None,
        aligned=_aligned_rows(aligned, plan, lay_out) if plan.aligned else None,
    )


_Chosen = tuple[ExampleLike, list[_Shown]]


def _choose(
    samples: Sequence[ExampleLike], plan: RereadingPlan
) -> tuple[list[_Chosen], list[_Chosen]]:
    """Return the conversations of both kinds, with their pictures."""
    read_back, aligned, first = [], [], 0
    for sample in samples:
        prompts: Sequence[Sequence[Segment] | None] = sample.prompts or [None] * len(sample.read)
        shown = [_Shown(first + i, prompt) for i, prompt in enumerate(prompts)]
        first += len(sample.read)
        if sample.prompts and _is_chosen(sample.seed, READ_BACK, plan.read_back):
            read_back.append((sample, shown))
        if shown and _is_chosen(sample.seed, ALIGNMENT, plan.aligned):
            aligned.append((sample, shown))
    return read_back, aligned


def _is_chosen(seed: int, purpose: int, share: float) -> bool:
    return mixed_seed(seed, purpose) < share * 2**63


def _prompt_rows(shown: Sequence[_Shown], lay_out: LayOut) -> PromptRows:
    rows = shown or [_Shown(0, None)]
    return PromptRows(
        layout=lay_out([[QuerySegment()] if s.prompt is None else s.prompt for s in rows]),
        pictures=torch.tensor([s.number for s in rows]),
        is_prompted=torch.tensor([s.prompt is not None for s in rows]),
        num_used=len(shown),
    )


def _aligned_rows(chosen: Sequence[_Chosen], plan: RereadingPlan, lay_out: LayOut) -> AlignedRows:
    shown = [s for _, each in chosen for s in each]
    sequences: list[Sequence[Segment]] = [sample.segments for sample, _ in chosen]
    return AlignedRows(
        layout=lay_out(sequences or [[ImageSegment()]]),
        pictures=torch.tensor([s.number for s in shown] or [0]),
        prompts=_prompt_rows(shown, lay_out) if plan.aligned_by_exit else None,
    )


def rereading_work(
    samples: Sequence[ExampleLike],
    plan: RereadingPlan,
    *,
    latents: LatentSpaceConfig,
    num_queries: int,
) -> tuple[Work, Work]:
    """Return what reading imperfect pictures adds to a step: with a gradient, and without."""

    def work(rows: Sequence[Sequence[Segment]]) -> Work:
        examples = [Example(row) for row in rows]
        return work_of(examples, latents=latents, num_queries=num_queries, copies=0)

    read_back, chosen = _choose(samples, plan)
    predicted = [*read_back, *(chosen if plan.aligned_by_exit else [])]
    prompts = [s.prompt or [QuerySegment()] for _, shown in predicted for s in shown]
    aligned = work([sample.segments for sample, _ in chosen])
    asked = replace(work(prompts), tokens=0, drawn=len(prompts))
    return aligned, aligned + asked
