"""Latents of the data's pictures on disk, so that a run need not encode them.

A cache folder holds one folder for each pair of encoder and preprocessing, called after their
hashes: latents of another encoder are never found. Inside, shards of safetensors hold latents
beside the hash of the picture file each was made from, so renamed and repeated files are found too.

Shape legend:
    N latent tokens      D latent channels
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from unimm.errors import UserError
from unimm.files import atomic_write

from .preprocessing import Preprocessing
from .sample import SampleError

_DIGEST_BYTES = 16
_OPEN_SHARDS = 64

Digest = bytes


def picture_digest(content: bytes) -> Digest:
    """Return what names a picture in a cache: a hash of its file."""
    return blake2b(content, digest_size=_DIGEST_BYTES).digest()


def cache_folder(root: Path, *, space: str, preprocessing: Preprocessing) -> Path:
    """Return the folder of one encoder and preprocessing."""
    return root / f"{space}-{preprocessing.digest}"


def open_cache(root: Path, *, space: str, preprocessing: Preprocessing) -> "LatentCache":
    """Return a cache to read.

    Raises:
        UserError: There is none for this encoder and preprocessing.
    """
    folder = cache_folder(root, space=space, preprocessing=preprocessing)
    if not any(folder.glob("*.safetensors")):
        others = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        raise UserError(
            f"{root} holds no latents for {folder.name}, but {', '.join(others) or 'nothing'}; "
            f"write them with: unimm cache-latents"
        )
    return LatentCache(folder)


class LatentCache:
    """Latents by the content of a picture file.

    Args:
        folder: Of one encoder and preprocessing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.shards = sorted(folder.glob("*.safetensors"))
        self._index = _load_index(folder, self.shards)
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self._index.shape[1])

    def __contains__(self, digest: Digest) -> bool:
        return self._find(digest) is not None

    def get(self, content: bytes) -> Float[Tensor, "N D"] | None:
        """Return the latents of a picture file; None where they are not cached.

        Raises:
            SampleError: The shard that holds them is damaged.
        """
        place = self._find(picture_digest(content))
        if place is None:
            return None
        shard, row = place
        try:
            latents: Tensor = self._shard(shard).get_slice("latents")[row]
        except (safetensors.SafetensorError, OSError) as error:
            raise SampleError(f"the latents in {self.shards[shard]} are damaged: {error}") from None
        return latents

    def _find(self, digest: Digest) -> tuple[int, int] | None:
        high, low = np.frombuffer(digest, np.uint64)
        column = int(np.searchsorted(self._index[0], high))
        while column < self._index.shape[1] and self._index[0, column] == high:
            if self._index[1, column] == low:
                return int(self._index[2, column]), int(self._index[3, column])
            column += 1
        return None

    def _shard(self, number: int) -> Any:
        shard = self._open.get(number)
        if shard is None:
            opened: Any = safetensors.safe_open  # its context methods are untyped
            shard = self._open[number] = opened(self.shards[number], framework="pt")
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return shard


class LatentCacheWriter:
    """Writes latents in whole shards; started again, it goes on after the last one.

    Args:
        root: The cache folder.
        space: Identifier of the latent space.
        preprocessing: How files become pictures.
        part: Which of several processes this is; their shards do not meet.
        shard_size: Pictures of a shard.
    """

    def __init__(
        self,
        root: Path,
        *,
        space: str,
        preprocessing: Preprocessing,
        part: int = 0,
        shard_size: int = 1024,
    ) -> None:
        self.folder = cache_folder(root, space=space, preprocessing=preprocessing)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cache = LatentCache(self.folder)
        self._part = part
        self._shard_size = shard_size
        prefix = f"part{part:04d}-"
        numbers = [int(p.stem.removeprefix(prefix)) for p in self.folder.glob(f"{prefix}*")]
        self._number = max(numbers, default=-1) + 1
        self._pending: OrderedDict[Digest, Tensor] = OrderedDict()

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._pending or digest in self._cache

    def add(self, digests: Sequence[Digest], latents: Float[Tensor, "B N D"]) -> None:
        """Keep the latents of pictures; a full shard is written at once.

        Raises:
            OutputError: The disk is full or refuses the file.
        """
        for digest, one in zip(digests, latents, strict=True):
            self._pending[digest] = one
        if len(self._pending) >= self._shard_size:
            self.flush()

    def flush(self) -> None:
        """Write what is kept; call it at the end."""
        if not self._pending:
            return
        digests = np.frombuffer(b"".join(self._pending), np.uint8).reshape(-1, _DIGEST_BYTES)
        content = safetensors.torch.save(
            {
                "digests": torch.from_numpy(digests.copy()),
                "latents": torch.stack(list(self._pending.values())).contiguous(),
            },
            metadata={"format": "unimm-latent-cache-1"},
        )
        name = f"part{self._part:04d}-{self._number:06d}.safetensors"
        with atomic_write(self.folder / name) as file:
            file.write(content)
        self._number += 1
        self._pending.clear()
        self._cache = LatentCache(self.folder)


def _load_index(folder: Path, shards: Sequence[Path]) -> NDArray[np.uint64]:
    """Return (high, low, shard, row) of every picture by rising hash, mapped into memory."""
    described = json.dumps([[p.name, p.stat().st_size] for p in shards])
    stored = folder / f"index-{blake2b(described.encode(), digest_size=6).hexdigest()}.npy"
    if not stored.is_file():
        with atomic_write(stored) as file:
            np.save(file, _build_index(shards))
        for old in folder.glob("index-*.npy"):
            if old != stored:
                old.unlink(missing_ok=True)
    index: NDArray[np.uint64] = np.load(stored, mmap_mode="r", allow_pickle=False)
    return index


def _build_index(shards: Sequence[Path]) -> NDArray[np.uint64]:
    parts = [np.empty((4, 0), np.uint64)]
    for number, shard in enumerate(shards):
        try:
            with safetensors.safe_open(shard, framework="np") as file:
                digests = file.get_tensor("digests")
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(
                f"{shard} is damaged ({error}); delete it and run unimm cache-latents again"
            ) from None
        words = np.ascontiguousarray(digests).view(np.uint64).T
        rows = np.arange(words.shape[1], dtype=np.uint64)
        parts.append(np.stack([*words, np.full_like(rows, number), rows]))
    joined = np.concatenate(parts, axis=1)
    return np.ascontiguousarray(joined[:, np.lexsort((joined[1], joined[0]))])
