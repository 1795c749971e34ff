"""What a rank reads, batch by batch, and where it stands.

Worker processes only make samples by number; which number comes next is decided here, so the state
does not depend on how far workers have read ahead, or on how many there are.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unimm.errors import UserError

from ..interruption import leave_quietly
from .corpus import Corpus
from .sample import SampleBatch


class Identified(Protocol):
    """Samples in an order that has a name."""

    @property
    def fingerprint(self) -> str:
        """Identify the order."""


class BatchReader:
    """Micro-batches of a fixed number of samples: the step decides them, whatever the ranks.

    Micro-batch k of all ranks together holds the samples from k * ``batch_size`` *
    ``world_size`` on, dealt out in turn; one that cannot be used leaves its place empty. So as long
    as the product of batch size, ranks and accumulation stays the same, every optimiser step sees
    the same samples. With a row length, a micro-batch is packed into as few rows as it needs.

    Args:
        corpus: All samples by number.
        batch_size: Samples of one rank in one micro-batch.
        rank: Which rank this is.
        world_size: How many there are.
        num_workers: Processes that read ahead; 0 reads in this one.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size ({batch_size}) must be at least 1 and rank ({rank}) below "
                f"world_size ({world_size})"
            )
        self._corpus = corpus
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._num_workers = num_workers
        self.position = 0

    def __iter__(self) -> Iterator[SampleBatch]:
        """Yield micro-batches without end, from the position on."""
        width = self._batch_size * self._world_size
        starts = count(self.position, width)
        numbers = (range(start + self._rank, start + width, self._world_size) for start in starts)
        for batch in load(self._corpus, numbers, num_workers=self._num_workers):
            self.position += width
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was yielded; alike on all ranks."""
        return {"position": self.position, "fingerprint": self._corpus.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position, on any number of ranks and workers.

        Raises:
            UserError: It belongs to other data.
        """
        check_fingerprint(self._corpus, state)
        self.position = int(state["position"])


class _Batches(Dataset[SampleBatch]):
    """Batches by the numbers of their samples, for a loader's workers."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def __getitem__(self, numbers: Iterable[int]) -> SampleBatch:
        return to_wire(self._corpus.batch(numbers))


def load(
    corpus: Corpus, numbers: Iterable[Iterable[int]], *, num_workers: int
) -> Iterator[SampleBatch]:
    """Yield the batch of each group of numbers, in order."""
    loader: DataLoader[SampleBatch] = DataLoader(
        _Batches(corpus),
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=leave_quietly,
    )
    for batch in loader:
        yield from_wire(batch)


def check_fingerprint(source: Identified, state: dict[str, Any]) -> None:
    """Raise UserError unless a saved position belongs to this data."""
    if state["fingerprint"] != source.fingerprint:
        raise UserError(
            "the data is not what the checkpoint was trained on (files, weights, seed or shuffle "
            "settings differ), so its position means nothing; restore them or start a new run"
        )


def to_wire(batch: SampleBatch) -> SampleBatch:
    """Return a batch whose pictures are plain arrays.

    Tensors would each take a file descriptor on their way between processes.
    """
    return _convert(batch, _to_array)


def from_wire(batch: SampleBatch) -> SampleBatch:
    """Undo :func:`to_wire`."""
    return _convert(batch, _to_tensor)


def _convert(batch: SampleBatch, picture: Callable[[Any], Any]) -> SampleBatch:
    rows = tuple(
        tuple(
            replace(s, read=tuple(map(picture, s.read)), drawn=tuple(map(picture, s.drawn)))
            for s in row
        )
        for row in batch.rows
    )
    return replace(batch, rows=rows)


def _to_array(picture: Tensor) -> Any:
    # numpy has no bfloat16, so the bytes travel.
    return picture.dtype, picture.contiguous().view(torch.uint8).numpy()


def _to_tensor(wired: tuple[torch.dtype, np.ndarray[Any, Any]]) -> Tensor:
    dtype, array = wired
    return torch.from_numpy(array).view(dtype)


def _as_it_is(item: Any) -> Any:
    return item
