"""What a rank reads, batch by batch, and where it stands.

Worker processes only make samples by number; which number comes next is decided here, so the state
does not depend on how far workers have read ahead, or on how many there are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unimm.errors import UserError

from ..interruption import leave_quietly
from .packer import pack_rows
from .sample import Sample, SampleBatch, Skipped
from .stream import SampleStream


class BatchReader:
    """Micro-batches of a fixed number of samples: the step decides them, whatever the ranks.

    Micro-batch k of all ranks together holds the samples from k * ``batch_size`` *
    ``world_size`` on, dealt out in turn; one that cannot be used leaves its place empty. So as long
    as the product of batch size, ranks and accumulation stays the same, every optimiser step sees
    the same samples. With a row length, a micro-batch is packed into as few rows as it needs.

    Args:
        stream: All samples by number.
        batch_size: Samples of one rank in one micro-batch.
        rank: Which rank this is.
        world_size: How many there are.
        num_workers: Processes that read ahead; 0 reads in this one.
    """

    def __init__(
        self,
        stream: SampleStream,
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
        self._stream = stream
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
        for items in load(self._stream, numbers, num_workers=self._num_workers):
            self.position += width
            samples = [item for item in items if isinstance(item, Sample)]
            length = self._stream.config.row_length
            rows = tuple((s,) for s in samples) if length is None else pack_rows(samples, length)
            yield SampleBatch(rows, tuple(i for i in items if isinstance(i, Skipped)))

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was yielded; alike on all ranks."""
        return {"position": self.position, "fingerprint": self._stream.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position, on any number of ranks and workers.

        Raises:
            UserError: It belongs to other data.
        """
        check_fingerprint(self._stream, state)
        self.position = int(state["position"])


class _Numbered(Dataset[list[Any]]):
    """Lists of samples by lists of numbers, for a loader's workers."""

    def __init__(self, stream: SampleStream) -> None:
        self._stream = stream

    def __getitem__(self, numbers: Iterable[int]) -> list[Any]:
        return [to_wire(self._stream[number]) for number in numbers]


def load(
    stream: SampleStream, numbers: Iterable[Iterable[int]], *, num_workers: int
) -> Iterator[list[Sample | Skipped]]:
    """Yield the samples of each group of numbers, in order."""
    loader: DataLoader[list[Any]] = DataLoader(
        _Numbered(stream),
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=leave_quietly,
    )
    for items in loader:
        yield [from_wire(item) for item in items]


def check_fingerprint(stream: SampleStream, state: dict[str, Any]) -> None:
    """Raise UserError unless a saved position belongs to this data."""
    if state["fingerprint"] != stream.fingerprint:
        raise UserError(
            "the data is not what the checkpoint was trained on (files, weights, seed or shuffle "
            "settings differ), so its position means nothing; restore them or start a new run"
        )


def to_wire(item: Sample | Skipped) -> Sample | Skipped:
    """Return a sample whose pictures are plain arrays.

    Tensors would each take a file descriptor on their way between processes.
    """
    if isinstance(item, Skipped):
        return item
    read, drawn = (tuple(map(_to_array, pictures)) for pictures in (item.read, item.drawn))
    return replace(item, read=read, drawn=drawn)


def from_wire(item: Sample | Skipped) -> Sample | Skipped:
    """Undo :func:`to_wire`."""
    if isinstance(item, Skipped):
        return item
    wired: Any = item
    read, drawn = (tuple(map(_to_tensor, part)) for part in (wired.read, wired.drawn))
    return replace(item, read=read, drawn=drawn)


def _to_array(picture: Tensor) -> Any:
    # numpy has no bfloat16, so the bytes travel.
    return picture.dtype, picture.contiguous().view(torch.uint8).numpy()


def _to_tensor(wired: tuple[torch.dtype, np.ndarray[Any, Any]]) -> Tensor:
    dtype, array = wired
    return torch.from_numpy(array).view(dtype)


def _as_it_is(item: list[Any]) -> list[Any]:
    return item
