"""Lay a batch out in packed rows, in the order in which its samples come."""

from collections.abc import Callable, Sequence

from unimm.chat import Segment
from unimm.layout import Layout, sequence_length
from unimm.model import UniMM
from unimm.packing import Fork


def packed(
    model: UniMM, *, pad_id: int, length: int
) -> Callable[[Sequence[Sequence[Segment]]], Layout]:
    """Return a function that lays sequences out in rows of ``length``, blind to each other.

    A row takes sequences as long as they fit. Sequences that come in the order of
    :func:`~.packer.pack_rows` get exactly its rows, and pictures keep the order of the sequences.
    """
    sizes = {
        "num_image_tokens": model.config.seen.num_tokens,
        "num_queries": model.config.num_queries,
    }

    def lay_out(sequences: Sequence[Sequence[Segment]]) -> Layout:
        rows: list[list[Fork]] = []
        room = 0
        for sequence in sequences:
            used = sequence_length(sequence, **sizes)
            if used > room:
                rows.append([])
                room = length
            rows[-1].append(Fork(tuple(sequence), ()))
            room -= used
        return model.lay_out_packed(rows, pad_id=pad_id, length=length)

    return lay_out
