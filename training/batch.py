"""A micro-batch for the unified objective: sequences, pictures to read, pictures to draw.

Shape legend:
    B batch      I pictures read      A pictures drawn      N latent tokens      D latent channels
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from unimm.chat import ImageSegment, QuerySegment, Segment
from unimm.layout import IGNORE, Layout

LayOut = Callable[[Sequence[Sequence[Segment]]], Layout]
"""Lays sequences out for one model."""


class ExampleLike(Protocol):
    """One conversation and its pictures, from wherever it comes."""

    @property
    def segments(self) -> Sequence[Segment]:
        """What the language model reads."""

    @property
    def read(self) -> Sequence[Tensor]:
        """Its pictures to read, in reading order: uint8 (3, S, S) or latents (N, D)."""

    @property
    def drawn(self) -> Sequence[Tensor]:
        """Its pictures to draw, in the same form and order."""

    @property
    def prompts(self) -> Sequence[Sequence[Segment]]:
        """What would draw each of its pictures to read, up to the queries; or nothing."""

    @property
    def seed(self) -> int:
        """Of everything random about it, whatever batch it is in."""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation and its pictures.

    A picture is uint8 (3, S, S) or float latents (N, D); all that a run reads are of one form, and
    all that it draws.

    Args:
        segments: What the language model reads.
        read: Its pictures to read, in reading order.
        drawn: Its pictures to draw, in reading order.
        seed: Of everything random about it, whatever batch it is in.
        prompts: What would draw each of its pictures to read, up to the queries; empty where
            nobody knows.
    """

    segments: Sequence[Segment]
    read: Sequence[Tensor] = ()
    drawn: Sequence[Tensor] = ()
    seed: int = 0
    prompts: Sequence[Sequence[Segment]] = ()


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows that ask for pictures which are there already, each up to its queries.

    Args:
        layout: The rows.
        pictures: Number of each row's picture among those to read.
        is_prompted: False where the null condition takes the prompt's place.
        num_used: Rows that count; 0 where a single one only runs along.
    """

    layout: Layout
    pictures: Int64[Tensor, "R"]
    is_prompted: Bool[Tensor, "R"]
    num_used: int

    def to(self, device: torch.device) -> "PromptRows":
        """Return the rows on another device."""
        return PromptRows(
            self.layout.to(device),
            self.pictures.to(device),
            self.is_prompted.to(device),
            self.num_used,
        )


@dataclass(frozen=True, slots=True)
class AlignedRows:
    """Conversations whose answers about imperfect pictures are aligned.

    Args:
        layout: The conversations.
        pictures: Number of each of their pictures among those to read.
        prompts: What predicts these pictures; None where they only get noise.
    """

    layout: Layout
    pictures: Int64[Tensor, "S"]
    prompts: PromptRows | None

    def to(self, device: torch.device) -> "AlignedRows":
        """Return the rows on another device."""
        prompts = None if self.prompts is None else self.prompts.to(device)
        return AlignedRows(self.layout.to(device), self.pictures.to(device), prompts)


@dataclass(frozen=True, slots=True)
class Rereading:
    """What a micro-batch reads imperfectly.

    Args:
        read_back: Pictures that are read as the generator predicts them; None for none in the run.
        aligned: Conversations that are read once more; None for none in the run.
    """

    read_back: PromptRows | None
    aligned: AlignedRows | None

    def to(self, device: torch.device) -> "Rereading":
        """Return the rows on another device."""
        return Rereading(
            None if self.read_back is None else self.read_back.to(device),
            None if self.aligned is None else self.aligned.to(device),
        )


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What one process handles at once.

    Every batch has at least one picture to read and one to draw, so that all processes run the
    same modules in the same order: ZeRO-3 would wait forever for one that left a module out. A
    picture that is there for this reason alone has no weight in the loss.

    Args:
        layout: The sequences.
        read: Pictures to read, uint8 (I, 3, S, S) or latents (I, N, D).
        drawn: Pictures to draw, likewise; of another size where the model draws in another latent
            space than it sees in.
        read_seeds: Seed of each picture to read.
        drawn_seeds: Seed of each picture to draw.
        is_drawn: False for a picture without weight.
        num_samples: Conversations.
        rereading: What is read imperfectly.
    """

    layout: Layout
    read: Tensor
    drawn: Tensor
    read_seeds: Int64[Tensor, "I"]
    drawn_seeds: Int64[Tensor, "A"]
    is_drawn: Bool[Tensor, "A"]
    num_samples: int
    rereading: Rereading | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that the cross-entropy is taken of."""
        return int((self.layout.labels[:, 1:] != IGNORE).sum())

    @property
    def num_drawn(self) -> int:
        """Pictures that the flow loss is taken of."""
        return int(self.is_drawn.sum())

    def to(self, device: torch.device) -> "TrainingBatch":
        """Return the batch on another device; seeds stay on the CPU, where generators take them."""
        return TrainingBatch(
            self.layout.to(device),
            self.read.to(device),
            self.drawn.to(device),
            self.read_seeds,
            self.drawn_seeds,
            self.is_drawn.to(device),
            self.num_samples,
            None if self.rereading is None else self.rereading.to(device),
        )


class Blanks(NamedTuple):
    """Pictures of a run's form, to stand in where there is none."""

    read: Tensor
    drawn: Tensor


def collate(samples: Sequence[ExampleLike], *, lay_out: LayOut, blanks: Blanks) -> TrainingBatch:
    """Return samples as one batch.

    Args:
        samples: Conversations; there may be none.
        lay_out: Lays their segments out.
        blanks: Stand in where there is no picture.
    """
    filler: list[Segment] = []
    read = [(picture, seed) for s in samples for picture, seed in _seeded(s.read, s.seed, 0)]
    drawn = [(picture, seed) for s in samples for picture, seed in _seeded(s.drawn, s.seed, 1)]
    num_drawn = len(drawn)
    if not read:
        filler.append(ImageSegment())
        read.append((blanks.read, 0))
    if not drawn:
        filler.append(QuerySegment())
        drawn.append((blanks.drawn, 0))
    sequences = [sample.segments for sample in samples]
    return TrainingBatch(
        layout=lay_out([*sequences, filler] if filler else sequences),
        read=torch.stack([picture for picture, _ in read]),
        drawn=torch.stack([picture for picture, _ in drawn]),
        read_seeds=torch.tensor([seed for _, seed in read]),
        drawn_seeds=torch.tensor([seed for _, seed in drawn]),
        is_drawn=torch.arange(len(drawn)) < num_drawn,
        num_samples=len(samples),
    )


def _seeded(pictures: Sequence[Tensor], seed: int, purpose: int) -> list[tuple[Tensor, int]]:
    return [(p, mixed_seed(seed, purpose, i)) for i, p in enumerate(pictures)]


def mixed_seed(*numbers: int) -> int:
    """Return a stable hash of whole numbers as a seed."""
    key = struct.pack(f"<{len(numbers)}Q", *numbers)
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 1


def share_of(count: int, *, rank: int, ranks: int, micro: int, micros: int) -> range:
    """Return which of a step's ``count`` samples a process handles in one micro-batch.

    Raises:
        ValueError: They cannot be shared out evenly.
    """
    if count % (ranks * micros):
        raise ValueError(
            f"{count} samples of a step cannot be shared out evenly among {ranks} processes with "
            f"{micros} micro-batches each; change the batch size, or engine.accumulation"
        )
    each = count // (ranks * micros)
    start = (micro * ranks + rank) * each
    return range(start, start + each)
