"""Conversations by number, and which of them a process handles in a step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from unimm.chat import Segment
from unimm.layout import Layout
from unimm.model import UniMM

from ..batch import Blanks, ExampleLike, LayOut, TrainingBatch, collate, share_of
from ..ranks import Ranks
from ..rereading import RereadingPlan, reread
from .corpus import Corpus
from .sample import Skipped

_NOTHING = RereadingPlan()


@dataclass(frozen=True, slots=True)
class Reading:
    """What some numbers gave.

    Args:
        examples: Conversations, in the order in which they are to be laid out.
        skipped: Those that cannot be used.
    """

    examples: Sequence[ExampleLike]
    skipped: tuple[Skipped, ...] = ()


class ExampleSource(Protocol):
    """Conversations in a fixed order, without end."""

    @property
    def fingerprint(self) -> str:
        """Identify the order: a position in another one means other conversations."""

    def read(self, numbers: Iterable[int]) -> Reading:
        """Return the conversations of some numbers: the same whoever asks, and when."""


@dataclass(frozen=True, slots=True)
class CorpusSource:
    """Conversations from files."""

    corpus: Corpus

    @property
    def fingerprint(self) -> str:
        return self.corpus.fingerprint

    def read(self, numbers: Iterable[int]) -> Reading:
        batch = self.corpus.batch(numbers)
        return Reading(batch.samples, batch.skipped)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One process's part of a step.

    Args:
        micro_batches: One after another.
        num_read: Conversations that were asked for.
        skipped: Those that could not be used.
    """

    micro_batches: Sequence[TrainingBatch]
    num_read: int
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How the samples of a step are shared out.

    Args:
        samples_per_step: Conversations of a step, over all processes and micro-batches.
        micro_batches: Of a step, in each process.
        ranks: The processes.
        rereading: How many are read with imperfect pictures.
    """

    samples_per_step: int
    micro_batches: int
    ranks: Ranks
    rereading: RereadingPlan = _NOTHING

    def __post_init__(self) -> None:
        self.numbers(0, 0)

    def numbers(self, first: int, micro: int) -> range:
        """Return the numbers of one micro-batch of this process, in a step from ``first`` on."""
        share = share_of(
            self.samples_per_step,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            micro=micro,
            micros=self.micro_batches,
        )
        return range(first + share.start, first + share.stop)

    def batch(
        self, source: ExampleSource, first: int, *, lay_out: LayOut, blanks: Blanks
    ) -> StepBatch:
        """Return this process's part of the step whose first number is ``first``."""
        numbers = [self.numbers(first, micro) for micro in range(self.micro_batches)]
        read = [source.read(each) for each in numbers]
        return StepBatch(
            [self._micro_batch(one.examples, lay_out, blanks) for one in read],
            sum(map(len, numbers)),
            tuple(skipped for one in read for skipped in one.skipped),
        )

    def _micro_batch(
        self, examples: Sequence[ExampleLike], lay_out: LayOut, blanks: Blanks
    ) -> TrainingBatch:
        batch = collate(examples, lay_out=lay_out, blanks=blanks)
        return replace(batch, rereading=reread(examples, self.rereading, lay_out=lay_out))


def right_padded(model: UniMM, *, pad_id: int, length: int | None) -> LayOut:
    """Return how a model's training sequences are laid out."""

    def lay_out(sequences: Sequence[Sequence[Segment]]) -> Layout:
        return model.lay_out(sequences, pad_id=pad_id, length=length, padding_side="right")

    return lay_out
