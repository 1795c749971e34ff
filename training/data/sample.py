"""What every reader yields: a conversation ready to be laid out, and its pictures.

Shape legend:
    S side of a picture in pixels      N latent tokens      D latent channels
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unimm.chat import ImageSegment, QuerySegment, Segment
from unimm.packing import Fork

Task = Literal["generation", "understanding", "text"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation and its pictures.

    Args:
        number: Its place in the global order of the run, from 0.
        key: Where it comes from, for a person: file and line or member.
        source: Name of the source in the mixture.
        segments: The conversation; supervised text and queries are what is learned.
        read: Pictures that the conversation shows, in reading order: uint8 (3, S, S), or cached
            latents (N, D).
        drawn: Pictures that it asks for, in the same form, one for each ``QuerySegment``.
        length: Positions that the conversation takes.
        seed: Of everything random about it, whatever batch it is in.
        prompts: What would draw each picture to read, up to the queries; empty where nobody knows.
    """

    number: int
    key: str
    source: str
    segments: tuple[Segment, ...]
    read: tuple[Tensor, ...]
    drawn: tuple[Tensor, ...]
    length: int
    seed: int = 0
    prompts: tuple[tuple[Segment, ...], ...] = ()

    @property
    def task(self) -> Task:
        """What it teaches: a picture to draw makes it generation, one to read understanding."""
        return task_of(self.segments)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that could not be used, and why.

    Args:
        number: Its place in the global order of the run.
        key: Where it is.
        source: Name of the source in the mixture.
        reason: What is wrong with it, in one line.
    """

    number: int
    key: str
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """What one rank reads in one micro-batch.

    Args:
        rows: Samples that share a row; one in each row where nothing is packed.
        skipped: What was read and could not be used.
    """

    rows: tuple[tuple[Sample, ...], ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples, in the order in which a layout of the rows holds their pictures."""
        return tuple(sample for row in self.rows for sample in row)

    @property
    def read(self) -> tuple[Tensor, ...]:
        """All pictures to read, in the order of the layout's ``image_index``."""
        return tuple(picture for sample in self.samples for picture in sample.read)

    @property
    def drawn(self) -> tuple[Tensor, ...]:
        """All pictures to draw, in the order of the layout's ``query_index``."""
        return tuple(picture for sample in self.samples for picture in sample.drawn)

    def forks(self) -> list[list[Fork]]:
        """Return the rows as ``UniMM.lay_out_packed`` takes them."""
        return [[Fork(sample.segments, ()) for sample in row] for row in self.rows]


class SampleError(ValueError):
    """A sample cannot be used; caught where samples are read, so it never ends a run."""


def task_of(segments: Sequence[Segment]) -> Task:
    """Return what a conversation teaches."""
    if any(isinstance(segment, QuerySegment) for segment in segments):
        return "generation"
    if any(isinstance(segment, ImageSegment) for segment in segments):
        return "understanding"
    return "text"
