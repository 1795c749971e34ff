"""Where each sample's members lie inside a tar, found once and remembered.

The webdataset library reads a tar from front to back, and its shuffle buffer lives in memory: after
a restart on other ranks, the next sample is not known. With positions, any sample is one read.
"""

import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimm.errors import UserError
from unimm.files import atomic_write

from .paths import index_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TarIndex:
    """The samples of a tar.

    Args:
        names: Names of all members.
        spans: First byte and size of each member, (M, 2).
        starts: First member of each sample, and the number of members, (S + 1,).
    """

    names: tuple[str, ...]
    spans: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def members(self, sample: int) -> list[Member]:
        """Return the members of a sample."""
        first, stop = int(self.starts[sample]), int(self.starts[sample + 1])
        return [
            Member(self.names[i], int(self.spans[i, 0]), int(self.spans[i, 1]))
            for i in range(first, stop)
        ]


def sample_key(name: str) -> str:
    """Return a member's key: its path up to the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def load_tar_index(path: Path, index_dir: Path) -> TarIndex:
    """Return a tar's index, made now if there is none or the tar has changed.

    Raises:
        UserError: The file is no plain tar.
    """
    stored = index_path(index_dir, path, ".npz")
    try:
        with np.load(stored, allow_pickle=False) as arrays:
            names = tuple(str(arrays["names"]).split("\n"))
            return TarIndex(names, arrays["spans"], arrays["starts"])
    except (OSError, ValueError, KeyError):
        logger.info("finding the samples of %s", path)
    index = _scan(path)
    index_dir.mkdir(parents=True, exist_ok=True)
    with atomic_write(stored) as file:
        np.savez(
            file, names=np.array("\n".join(index.names)), spans=index.spans, starts=index.starts
        )
    return index


def _scan(path: Path) -> TarIndex:
    names: list[str] = []
    spans: list[tuple[int, int]] = []
    starts: list[int] = []
    previous: str | None = None
    for member in _members(path):
        key = sample_key(member.name)
        if key != previous:
            starts.append(len(names))
            previous = key
        names.append(member.name)
        spans.append((member.offset, member.size))
    if not names:
        raise UserError(f"{path} is no tar, or holds no files; a compressed one must be unpacked")
    starts.append(len(names))
    return TarIndex(tuple(names), np.array(spans, np.int64), np.array(starts, np.int64))


def _members(path: Path) -> Iterator[Member]:
    """Yield the files of a tar; after a damaged header, go on at the next whole one."""
    try:
        with tarfile.open(path, "r:", ignore_zeros=True) as tar:
            for member in tar:
                if member.isfile() and "\n" not in member.name:
                    yield Member(member.name, member.offset_data, member.size)
    except tarfile.ReadError as error:
        # A tar that was cut short; what came before is whole.
        logger.warning("%s: %s", path, error)
