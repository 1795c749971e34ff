"""Samples in tars: ``X.json`` beside its pictures, or a picture beside ``X.txt``."""

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..config import SourceConfig
from ..conversation import Record
from ..sample import SampleError
from .paths import check_files, find_files, read_manifest
from .tar_index import Member, TarIndex, load_tar_index

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_KEPT_INDEXES = 64
_SCANNING_THREADS = 8


class TarSource:
    """Tars in the layout of WebDataset, read by position."""

    is_stream = False

    def __init__(self, config: SourceConfig, index_dir: Path) -> None:
        self._config = config
        self._index_dir = index_dir
        path = Path(config.path)
        if path.suffix == ".json":
            self.tars = read_manifest(path, source=config.name)
            check_files(self.tars, source=config.name)
        else:
            self.tars = find_files(path, [".tar"], source=config.name)
        self._recent: OrderedDict[int, TarIndex] = OrderedDict()
        with ThreadPoolExecutor(_SCANNING_THREADS) as pool:
            self.block_sizes: Sequence[int] = list(pool.map(self._count, self.tars))
        self._starts = np.concatenate([[0], np.cumsum(self.block_sizes)])
        self.num_bytes = sum(tar.stat().st_size for tar in self.tars)

    def key(self, index: int) -> str:
        tar, sample = self._locate(index)
        try:
            name = self._index(tar).members(sample)[0].name
        except SampleError:
            return f"{self.tars[tar]}:sample {sample}"
        return f"{self.tars[tar]}:{name.rpartition('/')[2].partition('.')[0]}"

    def record(self, index: int, *, with_images: bool = True) -> Record:
        tar, sample = self._locate(index)
        members = self._index(tar).members(sample)
        try:
            descriptor = os.open(self.tars[tar], os.O_RDONLY)
        except OSError as error:
            raise SampleError(f"cannot open the tar: {error.strerror}") from None
        try:
            fields = self._fields(descriptor, members)
            chosen = _pictures(fields, members) if with_images else []
            images = tuple((m.name, _read(descriptor, m)) for m in chosen)
        finally:
            os.close(descriptor)
        return Record(self.key(index), fields, images)

    def _fields(self, descriptor: int, members: Sequence[Member]) -> Mapping[str, Any]:
        by_suffix = {os.path.splitext(m.name)[1]: m for m in members}  # noqa: PTH122
        fields: dict[str, Any] = {}
        if ".json" in by_suffix:
            fields = _parse(_read(descriptor, by_suffix[".json"]))
        elif self._config.layout == "conversations":
            raise SampleError("it has no .json member")
        if self._config.layout == "caption" and ".txt" in by_suffix:
            text = _read(descriptor, by_suffix[".txt"]).decode("utf-8", errors="replace")
            fields = {**fields, self._config.text_column: text}
        return fields

    def _count(self, tar: Path) -> int:
        return len(load_tar_index(tar, self._index_dir))

    def _locate(self, index: int) -> tuple[int, int]:
        tar = int(np.searchsorted(self._starts, index, side="right")) - 1
        return tar, index - int(self._starts[tar])

    def _index(self, tar: int) -> TarIndex:
        index = self._recent.get(tar)
        if index is None:
            try:
                index = self._recent[tar] = load_tar_index(self.tars[tar], self._index_dir)
            except OSError as error:
                raise SampleError(f"cannot open the tar: {error.strerror}") from None
            if len(self._recent) > _KEPT_INDEXES:
                self._recent.popitem(last=False)
        self._recent.move_to_end(tar)
        return index


def _pictures(fields: Mapping[str, Any], members: Sequence[Member]) -> list[Member]:
    """Return the members that are a sample's pictures, in the order that its JSON gives them."""
    found = [m for m in members if m.name.lower().endswith(IMAGE_SUFFIXES)]
    named = fields.get("image_filename", fields.get("image"))
    if named is None or (isinstance(named, str) and len(found) == 1):
        return found
    by_name = {m.name.rpartition("/")[2]: m for m in members}
    names = [named] if isinstance(named, str) else list(named)
    bases = [str(name).rpartition("/")[2] for name in names]
    missing = next((base for base in bases if base not in by_name), None)
    if missing is not None:
        raise SampleError(f"the picture {missing} is not among its members")
    return [by_name[base] for base in bases]


def _read(descriptor: int, member: Member) -> bytes:
    try:
        content = os.pread(descriptor, member.size, member.offset)
    except OSError as error:
        raise SampleError(f"cannot read {member.name}: {error.strerror}") from None
    if len(content) < member.size:
        raise SampleError(f"{member.name} is cut short: {len(content)} of {member.size} bytes")
    return content


def _parse(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"its .json is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise SampleError("its .json holds no object")
    return fields
