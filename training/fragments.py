"""A checkpoint in pieces: every process writes what it holds, any number of them reads it.

A piece is a run of elements of one flattened parameter: its float32 master, or one of the
optimiser's states. Where a piece begins is part of its name, so a reader needs no knowledge of how
many processes wrote, or of how they divided the parameters.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unimm.errors import CheckpointError

_SEPARATOR = "|"


@dataclass(frozen=True, slots=True)
class Fragment:
    """A run of elements of a flattened parameter.

    Args:
        name: Of the parameter.
        kind: ``master`` or the name of an optimiser's state.
        start: First element.
        values: The elements, one-dimensional.
    """

    name: str
    kind: str
    start: int
    values: Tensor


def write_fragments(fragments: Iterable[Fragment], path: Path) -> None:
    """Write one process's fragments."""
    tensors = {
        _SEPARATOR.join((f.kind, f.name, str(f.start))): f.values.detach().cpu().clone()
        for f in fragments
    }
    save_file(tensors, path)


class FragmentReader:
    """All processes' fragments of one checkpoint; use as a context manager.

    Args:
        directory: Holds the files that :func:`write_fragments` wrote.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = ExitStack()
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any]]] = defaultdict(list)

    def __enter__(self) -> "FragmentReader":
        paths = sorted(self.directory.glob("rank-*.safetensors"))
        if not paths:
            raise CheckpointError(f"{self.directory} holds no weights; it is no whole checkpoint")
        try:
            for path in paths:
                self._index(path)
        except (SafetensorError, OSError) as error:
            self._stack.close()
            raise CheckpointError(
                f"{path} cannot be read ({error}); delete {self.directory} to go on from the "
                f"checkpoint before"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _index(self, path: Path) -> None:
        file = self._stack.enter_context(safe_open(path, framework="pt"))
        for key in file.keys():  # noqa: SIM118
            kind, name, start = key.split(_SEPARATOR)
            piece = file.get_slice(key)
            self._pieces[kind, name].append((int(start), piece.get_shape()[0], piece))

    @property
    def kinds(self) -> set[str]:
        """What is stored of the parameters."""
        return {kind for kind, _ in self._pieces}

    @property
    def names(self) -> set[str]:
        """The parameters."""
        return {name for _, name in self._pieces}

    def read(self, name: str, start: int, count: int, *, kind: str) -> Tensor:
        """Return ``count`` elements from ``start``, whoever wrote them.

        Raises:
            CheckpointError: They are not there: the checkpoint is of another model.
        """
        values = torch.empty(count)
        found = 0
        for piece_start, length, piece in self._pieces.get((kind, name), ()):
            begin = max(start, piece_start)
            end = min(start + count, piece_start + length)
            if begin < end:
                values[begin - start : end - start] = piece[begin - piece_start : end - piece_start]
                found += end - begin
        if found != count:
            raise CheckpointError(
                f"{self.directory} holds {found} of {count} values of {name} ({kind}): the "
                f"checkpoint is of another model; give run.output_dir a new folder"
            )
        return values

    def read_whole(self, name: str, kind: str, shape: Sequence[int]) -> Tensor:
        """Return a whole parameter or state."""
        return self.read(name, 0, prod(shape), kind=kind).view(*shape)
