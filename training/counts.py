"""What the processes of a step tell each other about it before they take it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unimm.layout import IGNORE, Layout

from .batch import TrainingBatch
from .cost import Work
from .objective import Totals, task_tokens
from .ranks import Ranks


class LayoutCounts(NamedTuple):
    """Supervised tokens, positions, and the sum of the rows' squared lengths."""

    tokens: float = 0.0
    positions: float = 0.0
    squared: float = 0.0

    @classmethod
    def of(cls, layout: Layout) -> "LayoutCounts":
        """Count a layout, without its padding."""
        lengths = layout.mask.sum(dim=1)
        tokens = (layout.labels[:, 1:] != IGNORE).sum()
        return cls(float(tokens), float(lengths.sum()), float(lengths.square().sum()))


class StepCounts(NamedTuple):
    """What a step handles, over all processes and micro-batches.

    Args:
        samples: Conversations.
        pictures: To draw.
        seen: To read, that the tower encodes.
        targets: To draw, that are encoded.
        predicted: To read, that the generator predicts.
        rows: The sequences.
        aligned: Those that are read once more.
        prompts: Those of the pictures that are predicted.
        by_task: Supervised tokens of each task.
    """

    samples: float
    pictures: float
    seen: float
    targets: float
    predicted: float
    rows: LayoutCounts
    aligned: LayoutCounts
    prompts: LayoutCounts
    by_task: Sequence[float]

    @classmethod
    def of(cls, batches: Sequence[TrainingBatch], ranks: Ranks) -> "StepCounts":
        """Count the micro-batches of all processes."""
        samples, pictures, seen, targets, predicted, *more = ranks.sum(
            torch.stack([_counted(batch) for batch in batches]).sum(dim=0)
        ).tolist()
        rows, aligned, prompts = (LayoutCounts(*more[i : i + 3]) for i in (0, 3, 6))
        by_task = more[9:]
        return cls(samples, pictures, seen, targets, predicted, rows, aligned, prompts, by_task)

    @property
    def totals(self) -> Totals:
        """What the means of the step are taken over."""
        return Totals(self.rows.tokens, self.pictures, self.aligned.tokens)

    def work(self, times_per_picture: int) -> tuple[Work, Work]:
        """Return the work with a gradient, and that without."""
        main = Work(
            positions=self.rows.positions,
            squared=self.rows.squared,
            tokens=self.rows.tokens,
            drawn=self.pictures * times_per_picture,
            seen=self.seen,
            targets=self.targets,
        )
        aligned = _language_work(self.aligned)
        prompts = _language_work(self.prompts._replace(tokens=0), predicted=self.predicted)
        return main + aligned, aligned + prompts


def _language_work(counts: LayoutCounts, *, predicted: float = 0.0) -> Work:
    return Work(counts.positions, counts.squared, counts.tokens, predicted, 0, 0)


def _counted(batch: TrainingBatch) -> Tensor:
    """Return the numbers of :class:`StepCounts` in its order."""
    aligned = None if batch.rereading is None else batch.rereading.aligned
    read_back = None if batch.rereading is None else batch.rereading.read_back
    asked = [rows for rows in (read_back, aligned and aligned.prompts) if rows is not None]
    encoded = [0 if p.is_floating_point() else len(p) for p in (batch.read, batch.drawn)]
    prompts = torch.zeros(3, dtype=torch.double)
    for rows in asked:
        prompts += torch.tensor(LayoutCounts.of(rows.layout), dtype=torch.double)
    numbers = [
        *(batch.num_samples, batch.num_drawn, *encoded, sum(len(r.pictures) for r in asked)),
        *LayoutCounts.of(batch.layout),
        *(LayoutCounts() if aligned is None else LayoutCounts.of(aligned.layout)),
        *prompts.tolist(),
    ]
    return torch.cat(
        [torch.tensor(numbers, dtype=torch.double), task_tokens(batch.layout).double()]
    )
