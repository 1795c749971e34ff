"""Samples by number, and which of them a process handles in a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from unimm.chat import Segment
from unimm.layout import Layout
from unimm.model import UniMM

from ..batch import LayOut, Sample, TrainingBatch, collate, share_of
from ..ranks import Ranks


class SampleSource(Protocol):
    """Conversations in a fixed order, without end."""

    def sample(self, number: int) -> Sample:
        """Return the sample of a number: the same whoever asks, and when."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How the samples of a step are shared out.

    Args:
        samples_per_step: Conversations of a step, over all processes and micro-batches.
        micro_batches: Of a step, in each process.
        ranks: The processes.
    """

    samples_per_step: int
    micro_batches: int
    ranks: Ranks

    def __post_init__(self) -> None:
        self.numbers(0, 0)

    def numbers(self, step: int, micro: int) -> range:
        """Return the numbers of the samples of one micro-batch of this process."""
        share = share_of(
            self.samples_per_step,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            micro=micro,
            micros=self.micro_batches,
        )
        first = step * self.samples_per_step
        return range(first + share.start, first + share.stop)

    def batches(
        self, source: SampleSource, step: int, *, lay_out: LayOut, blank: Tensor
    ) -> list[TrainingBatch]:
        """Return this process's micro-batches of a step."""
        return [
            collate(
                [source.sample(n) for n in self.numbers(step, micro)],
                lay_out=lay_out,
                blank=blank,
            )
            for micro in range(self.micro_batches)
        ]


def right_padded(model: UniMM, *, pad_id: int, length: int | None) -> LayOut:
    """Return how a model's training sequences are laid out."""

    def lay_out(sequences: Sequence[Sequence[Segment]]) -> Layout:
        return model.lay_out(sequences, pad_id=pad_id, length=length, padding_side="right")

    return lay_out
