"""Fill rows of one length with samples; how they see each other is ``unimm/packing.py``."""

from collections.abc import Iterable

from .sample import Sample

Row = tuple[Sample, ...]


class RowPacker:
    """First fit over a bounded number of open rows: deterministic, and what it holds is known.

    Args:
        length: Positions of a row.
        max_open: Rows that are filled at a time; more waste less, and hold samples back longer.
    """

    def __init__(self, length: int, *, max_open: int = 16) -> None:
        self._length = length
        self._max_open = max_open
        self.open: list[list[Sample]] = []

    def add(self, sample: Sample) -> list[Row]:
        """Put a sample into a row and return the rows that are now done.

        Raises:
            ValueError: It is longer than a row.
        """
        if sample.length > self._length:
            raise ValueError(
                f"{sample.key} takes {sample.length} positions, a row has {self._length}"
            )
        done: list[Row] = []
        row = next((r for r in self.open if _used(r) + sample.length <= self._length), None)
        if row is None:
            if len(self.open) == self._max_open:
                done.append(self._close(max(self.open, key=_used)))
            row = []
            self.open.append(row)
        row.append(sample)
        if _used(row) == self._length:
            done.append(self._close(row))
        return done

    def flush(self) -> list[Row]:
        """Return the rows as they are, and begin anew."""
        rows = [tuple(row) for row in self.open]
        self.open = []
        return rows

    def _close(self, row: list[Sample]) -> Row:
        # By identity: samples hold tensors, which have no plain equality.
        self.open = [other for other in self.open if other is not row]
        return tuple(row)


def pack_rows(samples: Iterable[Sample], length: int) -> tuple[Row, ...]:
    """Return all samples in as few rows as first-fit by falling length needs."""
    packer = RowPacker(length, max_open=1 << 30)
    full: list[Row] = []
    for sample in sorted(samples, key=lambda s: (-s.length, s.number)):
        full += packer.add(sample)
    return (*full, *packer.flush())


def _used(row: list[Sample]) -> int:
    return sum(sample.length for sample in row)
