"""A fixed number of full rows a batch: one tensor shape, whatever the samples' lengths.

How many samples fill a row depends on their lengths, so ranks advance at different speeds. What
each has taken and what lies in rows not yet handed out is the state; it can be dealt out anew to
another number of ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from unimm.errors import UserError

from .corpus import Corpus
from .packer import Row, RowPacker
from .reader import check_fingerprint, load
from .sample import Sample, SampleBatch, Skipped


@dataclass(frozen=True, slots=True)
class Queue:
    """Sample numbers in the order in which ranks take them in turn.

    Args:
        owed: Numbers below the frontier that nobody has trained on.
        frontier: The first number that nobody has seen.
    """

    owed: tuple[int, ...] = ()
    frontier: int = 0

    def __getitem__(self, place: int) -> int:
        owed = len(self.owed)
        return self.owed[place] if place < owed else self.frontier + place - owed


class PackedReader:
    """Batches of full rows.

    Args:
        corpus: All samples by number; its configuration has a row length.
        rows: Rows of a batch.
        rank: Which rank this is.
        world_size: How many there are.
        num_workers: Processes that read ahead; 0 reads in this one.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        rows: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        length = corpus.config.row_length
        if length is None:
            raise UserError("packed rows need data.row_length, such as data.row_length=2048")
        if rows < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"rows ({rows}) must be at least 1 and rank ({rank}) below "
                f"world_size ({world_size})"
            )
        self._corpus = corpus
        self._rows = rows
        self._rank = rank
        self._world_size = world_size
        self._num_workers = num_workers
        self._packer = RowPacker(length, max_open=corpus.config.open_rows)
        self._queue = Queue()
        self._taken = 0
        self._done: list[Row] = []

    def __iter__(self) -> Iterator[SampleBatch]:
        """Yield batches without end, from the state on."""
        places = count(self._rank + self._taken * self._world_size, self._world_size)
        numbers = ((self._queue[place],) for place in places)
        skipped: list[Skipped] = []
        for one in load(self._corpus, numbers, num_workers=self._num_workers):
            self._taken += 1
            skipped += one.skipped
            for sample in one.samples:
                self._done += self._packer.add(sample)
            while len(self._done) >= self._rows:
                batch, self._done = self._done[: self._rows], self._done[self._rows :]
                reported, skipped = tuple(skipped), []
                yield SampleBatch(tuple(batch), reported)

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state; a checkpoint needs those of all ranks."""
        return {
            "fingerprint": self._corpus.fingerprint,
            "rank": self._rank,
            "world_size": self._world_size,
            "owed": list(self._queue.owed),
            "frontier": self._queue.frontier,
            "taken": self._taken,
            "done": [[sample.number for sample in row] for row in self._done],
            "open": [[sample.number for sample in row] for row in self._packer.open],
        }

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from the states of all ranks, which may have been more or fewer.

        Raises:
            UserError: They belong to other data, or a rank's is missing.
        """
        for state in states:
            check_fingerprint(self._corpus, state)
        saved = {int(state["rank"]): state for state in states}
        world_size = int(states[0]["world_size"])
        if sorted(saved) != list(range(world_size)):
            raise UserError(
                f"the checkpoint needs the data states of {world_size} ranks, got those of "
                f"{sorted(saved)}"
            )
        if world_size == self._world_size:
            self._restore(saved[self._rank])
        else:
            self._queue, self._taken = merge_states(list(saved.values())), 0
            self._done, self._packer.open = [], []

    def _restore(self, state: dict[str, Any]) -> None:
        self._queue = Queue(tuple(state["owed"]), int(state["frontier"]))
        self._taken = int(state["taken"])
        self._done = [tuple(row) for row in self._read_again(state["done"])]
        self._packer.open = self._read_again(state["open"])

    def _read_again(self, rows: Sequence[Sequence[int]]) -> list[list[Sample]]:
        """Return rows of samples; one whose file is gone since then leaves a gap."""
        read = [[self._corpus[number] for number in row] for row in rows]
        return [[item for item in row if isinstance(item, Sample)] for row in read]


def merge_states(states: Sequence[dict[str, Any]]) -> Queue:
    """Return what is left to do after all ranks' states: held-back samples first, in order."""
    world_size = len(states)
    queue = Queue(tuple(states[0]["owed"]), int(states[0]["frontier"]))
    taken = {int(state["rank"]): int(state["taken"]) for state in states}
    held = [
        n for state in states for rows in (state["done"], state["open"]) for r in rows for n in r
    ]
    reached = max(rank + world_size * done - (world_size - 1) for rank, done in taken.items())
    stop = max(reached, len(queue.owed))
    first = min(taken.values()) * world_size  # every rank has taken the places before it
    untaken = [
        queue[place]
        for place in range(first, stop)
        if place // world_size >= taken[place % world_size]
    ]
    return Queue(tuple(sorted({*held, *untaken})), queue[stop])
