"""Fill rows of one length with samples; how they see each other is ``unimm/packing.py``."""

from collections.abc import Iterable

from .sample import Sample

Row = tuple[Sample, ...]


def pack_rows(samples: Iterable[Sample], length: int) -> tuple[Row, ...]:
    """Return all samples in as few rows as first fit by falling length needs.

    Raises:
        ValueError: A sample is longer than a row.
    """
    rows: list[list[Sample]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda s: (-s.length, s.number)):
        if sample.length > length:
            raise ValueError(f"{sample.key} takes {sample.length} positions, a row has {length}")
        place = next((n for n, free in enumerate(room) if free >= sample.length), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(sample)
        room[place] -= sample.length
    return tuple(map(tuple, rows))
