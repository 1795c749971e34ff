"""Several conversations in one row, blind to each other; those on one picture share its reading.

Shape legend:
    B batch      L sequence length
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unimm.chat import ImageSegment, QuerySegment, Segment, TextSegment


def segment_length(segment: Segment, *, num_image_tokens: int, num_queries: int) -> int:
    """Return how many positions a segment takes."""
    match segment:
        case TextSegment():
            return len(segment.token_ids)
        case ImageSegment():
            return num_image_tokens
        case QuerySegment():
            return num_queries


@dataclass(frozen=True, slots=True)
class Fork:
    """Conversations that begin alike.

    Args:
        beginning: What all of them read first, laid out once.
        branches: How each goes on; no branch sees another.
    """

    beginning: tuple[Segment, ...]
    branches: tuple[tuple[Segment, ...], ...]


def fork_after_picture(conversations: Sequence[Sequence[Segment]]) -> Fork:
    """Return conversations on one picture, which is read once.

    Raises:
        ValueError: They do not begin alike up to the end of a picture.
    """
    first = conversations[0]
    picture = next((i for i, s in enumerate(first) if isinstance(s, ImageSegment)), None)
    if picture is None:
        raise ValueError("the conversations show no picture that they could share")
    stop = picture + 2  # the end-of-image token follows the picture
    beginning = tuple(first[:stop])
    if any(tuple(c[:stop]) != beginning or len(c) == stop for c in conversations):
        raise ValueError("the conversations must begin alike up to their picture, and go on")
    return Fork(beginning, tuple(tuple(c[stop:]) for c in conversations))


def sees(fork: Tensor, branch: Tensor, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return whether a position of a row may look at another of it, element by element.

    Args:
        fork: See :class:`Packing`, (B, L).
        branch: Likewise.
        row: Numbers of rows.
        query: Positions that look.
        key: Positions that are looked at.
    """
    same_fork = fork[row, query] == fork[row, key]
    in_branch = (branch[row, query] == branch[row, key]) | (branch[row, key] == 0)
    return (query >= key) & same_fork & in_branch


@dataclass(frozen=True, slots=True)
class Packing:
    """Who sees whom in packed rows.

    Args:
        fork: Which fork a position belongs to, from 1; 0 is padding.
        branch: Which branch of it, from 1; 0 is the shared beginning.
        position: Place in its own conversation, from 0, for rotary embeddings.
    """

    fork: Int[Tensor, "B L"]
    branch: Int[Tensor, "B L"]
    position: Int[Tensor, "B L"]

    def to(self, device: torch.device | str) -> "Packing":
        """Return the packing on another device."""
        return Packing(self.fork.to(device), self.branch.to(device), self.position.to(device))

    def visible(self) -> Bool[Tensor, "B L L"]:
        """Return which position (second to last axis) may look at which (last axis)."""
        batch, length = self.fork.shape
        rows = torch.arange(batch, device=self.fork.device)[:, None, None]
        places = torch.arange(length, device=self.fork.device)
        return sees(self.fork, self.branch, rows, places[:, None], places)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """Return the visibility as a term to add to attention scores, (B, 1, L, L)."""
        hidden = ~self.visible()[:, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(
            hidden, torch.finfo(dtype).min
        )


def pack(
    rows: Sequence[Sequence[Fork]], *, num_image_tokens: int, num_queries: int, length: int
) -> tuple[list[list[Segment]], Packing]:
    """Return each row's segments one after another, and who sees whom in them.

    Args:
        rows: Forks that share a row.
        num_image_tokens: Latent tokens of a picture.
        num_queries: Queries of a picture to draw.
        length: Positions of a row.
    """
    numbers = torch.zeros((3, len(rows), length), dtype=torch.long)
    flat: list[list[Segment]] = []
    for row, forks in enumerate(rows):
        column = 0
        flat.append([])
        for fork_number, fork in enumerate(forks, start=1):
            start = 0
            for branch_number, part in enumerate((fork.beginning, *fork.branches)):
                used = sum(
                    segment_length(s, num_image_tokens=num_image_tokens, num_queries=num_queries)
                    for s in part
                )
                if column + used > length:
                    raise ValueError(f"packed row {row} does not fit into length {length}")
                here = numbers[:, row, column : column + used]
                here[0], here[1] = fork_number, branch_number
                here[2] = torch.arange(start, start + used)
                column += used
                flat[-1].extend(part)
                start = start if branch_number else used
    return flat, Packing(*numbers)
