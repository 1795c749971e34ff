"""Samples as lines of JSON, their pictures in files beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimm.errors import UserError
from unimm.files import atomic_write

from ..config import SourceConfig
from ..conversation import Record
from ..sample import SampleError
from .paths import find_files, index_path

BLOCK = 1000
"""Neighbouring lines that keep together when blocks change places."""

_CHUNK = 1 << 24


class JsonlSource:
    """JSONL files, read by position."""

    is_stream = False

    def __init__(self, config: SourceConfig, index_dir: Path) -> None:
        self._config = config
        self.files = find_files(Path(config.path), [".jsonl"], source=config.name)
        self._lines = [_line_starts(file, index_dir) for file in self.files]
        counts = [len(lines) - 1 for lines in self._lines]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.block_sizes: Sequence[int] = [
            min(BLOCK, count - first) for count in counts for first in range(0, count, BLOCK)
        ]
        self.num_bytes = sum(file.stat().st_size for file in self.files)
        self._check_layout()

    def key(self, index: int) -> str:
        file, line = self._locate(index)
        return f"{self.files[file]}:{line + 1}"

    def record(self, index: int, *, with_images: bool = True) -> Record:
        file, line = self._locate(index)
        fields = self._fields(file, line)
        images: tuple[tuple[str, bytes], ...] = ()
        if with_images:
            root = self._config.image_root or self.files[file].parent
            images = tuple(_read(root / name) for name in self._names(fields))
        return Record(self.key(index), fields, images)

    def _names(self, fields: Mapping[str, Any]) -> list[str]:
        named = fields.get(self._config.image_column)
        names = [] if named is None else [named] if isinstance(named, str) else named
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SampleError(f"{self._config.image_column!r} must be a path or a list of paths")
        return names

    def _fields(self, file: int, line: int) -> Mapping[str, Any]:
        first, stop = (int(self._lines[file][line + i]) for i in range(2))
        try:
            with self.files[file].open("rb") as lines:
                lines.seek(first)
                fields = json.loads(lines.read(stop - first))
        except OSError as error:
            raise SampleError(f"cannot read the line: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise SampleError(f"no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise SampleError("no JSON object")
        return fields

    def _check_layout(self) -> None:
        """Refuse a file whose first line is already wrong: it is of another kind."""
        for number, file in enumerate(self.files):
            try:
                fields = self._fields(number, 0)
            except SampleError as error:
                raise UserError(
                    f"{self._config.name}: {file}:1: {error}; a JSONL file has one object a line"
                ) from None
            is_caption = self._config.layout == "caption"
            wanted = self._config.text_column if is_caption else self._config.conversations_column
            if wanted not in fields and (is_caption or "messages" not in fields):
                raise UserError(
                    f"{self._config.name}: {file}:1: no {wanted!r}, but {', '.join(fields)}"
                )

    def _locate(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return file, index - int(self._starts[file])


def _line_starts(path: Path, index_dir: Path) -> NDArray[np.int64]:
    """Return where each line starts, and where the last one ends; blank lines at the end are none.

    The array is mapped into memory, so that all workers share it.
    """
    stored = index_path(index_dir, path, ".npy")
    if not stored.is_file():
        found = _scan(path)
        index_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(stored) as file:
            np.save(file, found)
    starts: NDArray[np.int64] = np.load(stored, mmap_mode="r", allow_pickle=False)
    return starts


def _scan(path: Path) -> NDArray[np.int64]:
    ends: list[NDArray[np.int64]] = []
    offset = 0
    content_end = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            newlines = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            ends.append(newlines.astype(np.int64) + offset + 1)
            stripped = chunk.rstrip()
            content_end = offset + len(stripped) if stripped else content_end
            offset += len(chunk)
    all_ends = np.concatenate(ends)
    if not content_end:
        raise UserError(f"{path} holds only blank lines")
    inner = all_ends[all_ends < content_end]
    return np.concatenate([[0], inner, [content_end]]).astype(np.int64)


def _read(path: Path) -> tuple[str, bytes]:
    try:
        return str(path), path.read_bytes()
    except OSError as error:
        raise SampleError(f"cannot read the picture {path}: {error.strerror}") from None
