"""Lay sequences of text, pictures and queries out as padded tensors.

The layout holds integers only, so a data worker can make it; the model turns it into input
embeddings (:meth:`unimm.model.UniMM.embed`).

Shape legend:
    B batch      L sequence length      I pictures read, over the whole batch
    A pictures drawn, over the whole batch      N latent tokens      Q queries
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unimm.chat import ImageSegment, QuerySegment, Segment, TextSegment
from unimm.packing import Fork, Packing, pack, segment_length

IGNORE = -100
"""Label of a position that no loss looks at."""

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A padded batch of sequences, pictures and queries in it marked by position.

    Args:
        token_ids: Tokens; the padding token where a picture, a query or padding stands.
        mask: True where a position is real.
        labels: The token itself where it is supervised, else ``IGNORE``.
        image_index: Flat position (row * L + column) of every latent token, in reading order.
        query_index: Flat position of every query, in reading order.
        packing: Who sees whom where a row holds several conversations; None for one a row.
    """

    token_ids: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    labels: Int[Tensor, "B L"]
    image_index: Int[Tensor, "image_positions"]
    query_index: Int[Tensor, "query_positions"]
    packing: Packing | None = None

    def to(self, device: torch.device | str) -> "Layout":
        """Return the layout on another device."""
        return Layout(
            token_ids=self.token_ids.to(device),
            mask=self.mask.to(device),
            labels=self.labels.to(device),
            image_index=self.image_index.to(device),
            query_index=self.query_index.to(device),
            packing=None if self.packing is None else self.packing.to(device),
        )

    @property
    def is_dense(self) -> bool:
        """Whether no position is padding."""
        return self.packing is None and bool(self.mask.all())


def sequence_length(sequence: Sequence[Segment], *, num_image_tokens: int, num_queries: int) -> int:
    """Return how many positions a sequence takes."""
    return sum(
        segment_length(s, num_image_tokens=num_image_tokens, num_queries=num_queries)
        for s in sequence
    )


def lay_out(
    sequences: Sequence[Sequence[Segment]],
    *,
    num_image_tokens: int,
    num_queries: int,
    pad_id: int,
    length: int | None = None,
    padding_side: PaddingSide = "left",
) -> Layout:
    """Return the sequences as one padded batch.

    Args:
        sequences: One list of segments a row.
        num_image_tokens: Latent tokens of a picture, N.
        num_queries: Queries of a picture to draw, Q.
        pad_id: Token that stands where no token is.
        length: Pad to this length; the longest sequence when None.
        padding_side: ``left`` for generation, where every row must end at a real token.
    """
    sizes = {"num_image_tokens": num_image_tokens, "num_queries": num_queries}
    lengths = [sequence_length(sequence, **sizes) for sequence in sequences]
    longest = max(lengths)
    if length is not None and longest > length:
        raise ValueError(f"a sequence of {longest} positions does not fit into length {length}")
    width = length or longest
    shape = (len(sequences), width)
    token_ids = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORE, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    images: list[Tensor] = []
    queries: list[Tensor] = []
    for row, (sequence, used) in enumerate(zip(sequences, lengths, strict=True)):
        start = width - used if padding_side == "left" else 0
        mask[row, start : start + used] = True
        for segment in sequence:
            stop = start + segment_length(segment, **sizes)
            positions = torch.arange(row * width + start, row * width + stop)
            match segment:
                case TextSegment():
                    tokens = torch.tensor(segment.token_ids, dtype=torch.long)
                    token_ids[row, start:stop] = tokens
                    if segment.supervised:
                        labels[row, start:stop] = tokens
                case ImageSegment():
                    images.append(positions)
                case QuerySegment():
                    queries.append(positions)
            start = stop
    return Layout(
        token_ids=token_ids,
        mask=mask,
        labels=labels,
        image_index=_concatenate(images),
        query_index=_concatenate(queries),
    )


def lay_out_packed(
    rows: Sequence[Sequence[Fork]],
    *,
    num_image_tokens: int,
    num_queries: int,
    pad_id: int,
    length: int,
) -> Layout:
    """Return rows of several conversations each, padded on the right.

    Args:
        rows: Conversations of a row, those that begin alike as one fork.
        num_image_tokens: Latent tokens of a picture, N.
        num_queries: Queries of a picture to draw, Q.
        pad_id: Token that stands where no token is.
        length: Positions of a row.

    Raises:
        ValueError: A row does not fit, or a branch begins with a supervised token: what stands
            before it in the row is not what comes before it in its conversation.
    """
    sizes = {"num_image_tokens": num_image_tokens, "num_queries": num_queries}
    sequences, packing = pack(rows, **sizes, length=length)
    layout = lay_out(sequences, **sizes, pad_id=pad_id, length=length, padding_side="right")
    is_first = packing.position[:, 1:] != packing.position[:, :-1] + 1
    if bool((is_first & (layout.labels[:, 1:] != IGNORE)).any()):
        raise ValueError("a branch must not begin with a token that the model should write")
    return replace(layout, packing=packing)


def stack_layouts(first: Layout, second: Layout) -> Layout:
    """Return two layouts of one length and without packing as one batch."""
    if first.packing is not None or second.packing is not None:
        raise ValueError("packed layouts cannot be stacked")
    offset = first.token_ids.numel()
    return Layout(
        token_ids=torch.cat([first.token_ids, second.token_ids]),
        mask=torch.cat([first.mask, second.mask]),
        labels=torch.cat([first.labels, second.labels]),
        image_index=torch.cat([first.image_index, second.image_index + offset]),
        query_index=torch.cat([first.query_index, second.query_index + offset]),
    )


def _concatenate(positions: list[Tensor]) -> Tensor:
    return torch.cat(positions) if positions else torch.empty(0, dtype=torch.long)
