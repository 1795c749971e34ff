"""Tensors in files, read one at a time: safetensors or PyTorch's pickles, one file or shards.

Only tensors are ever unpickled. Files are mapped into memory and given back every 32 MiB, so that
reading a model costs no second copy of it.
"""

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unimm.errors import CheckpointError

Shape = tuple[int, ...]

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_RELEASE_AFTER = 2**25
# Inside a training checkpoint, the averaged weights come first.
_NESTED = ("ema", "model", "state_dict")
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, SafetensorError)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: It is missing or holds none.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}; the model is incomplete")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is corrupt: {error}; copy it again") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} is corrupt: it holds no JSON object; copy it again")
    return tree


def load_pickle(path: Path) -> Any:
    """Return what ``torch.save`` wrote, tensors mapped from the file; code in it is refused.

    Raises:
        CheckpointError: The file is unreadable, or holds more than tensors and plain values.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the old format
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, maybe code, and is refused: {_refused(error)}"
        ) from None
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is corrupt or truncated: {reason}; copy it again") from None


def _refused(error: Exception) -> str:
    """Return the one sentence of torch's advice that names the culprit."""
    sentences = [part.strip() for part in str(error).replace("\n", " ").split(". ")]
    culprits = [
        sentence for sentence in sentences if "GLOBAL" in sentence or "Unsupported" in sentence
    ]
    return (culprits or sentences)[0][:200]


@dataclass(frozen=True, slots=True)
class TensorFolder:
    """Tensors by name, wherever in a folder they are; nothing is read until asked for.

    Args:
        shapes: Of every tensor.
        files: In which file each is.
    """

    shapes: Mapping[str, Shape]
    files: Mapping[str, Path]

    @classmethod
    def open(cls, directory: Path, *, names: Sequence[str] = _SINGLE) -> "TensorFolder":
        """Return the tensors of a model folder: of an index's shards, or of the first file there.

        Raises:
            CheckpointError: A file is missing or corrupt, or an index names a tensor that its
                shard does not hold.
        """
        for name in _INDEXES:
            if names is _SINGLE and (directory / name).is_file():
                return cls._of_shards(directory, directory / name)
        for name in names:
            if (directory / name).is_file():
                return cls.of_file(directory / name)
        raise CheckpointError(f"{directory} has no {' or '.join(names)}; the model is incomplete")

    @classmethod
    def of_file(cls, path: Path) -> "TensorFolder":
        """Return the tensors of one file."""
        shapes = dict(_read_shapes(path))
        return cls(shapes, dict.fromkeys(shapes, path))

    @classmethod
    def _of_shards(cls, directory: Path, index: Path) -> "TensorFolder":
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} is corrupt: it has no weight_map; copy it again")
        files = {str(key): directory / str(name) for key, name in weight_map.items()}
        shapes: dict[str, Shape] = {}
        for path in sorted(set(files.values())):
            if not path.is_file():
                raise CheckpointError(
                    f"{directory} has no {path.name}, which {index.name} lists; copy it again"
                )
            for key, shape in _read_shapes(path):
                if files.get(key) != path:
                    raise CheckpointError(f"{path} holds {key!r}, which {index.name} does not list")
                shapes[key] = shape
        if absent := [key for key in files if key not in shapes]:
            raise CheckpointError(
                f"{files[absent[0]]} lacks {absent[0]!r}, which {index.name} says it holds; "
                f"copy it again"
            )
        return cls(shapes, files)

    def where(self, key: str) -> Path:
        """Return the file of a tensor."""
        return self.files[key]

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor, on the CPU; each may be forgotten once the next is asked for."""
        for path in sorted(set(self.files.values())):
            keys = [key for key in self.shapes if self.files[key] == path]
            yield from _read_tensors(path, keys)

    def get(self, key: str) -> Tensor:
        """Return one tensor."""
        return next(_read_tensors(self.files[key], [key]))[1]


def _read_shapes(path: Path) -> Iterator[tuple[str, Shape]]:
    if path.suffix != ".safetensors":
        for key, tensor in state_of(load_pickle(path), path).items():
            yield key, tuple(tensor.shape)
        return
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                yield key, tuple(file.get_slice(key).get_shape())
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} is corrupt: {error}; copy it again") from None


def state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict that a pickle holds, bare or inside a training checkpoint."""
    for name in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no state dict but {type(content).__name__}")
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path} holds no tensors")
    return state


def _read_tensors(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for chunk in _chunks(path, keys):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for key in chunk:
                    yield key, file.get_tensor(key)
        else:
            state = state_of(load_pickle(path), path)
            for key in chunk:
                yield key, state.pop(key)


def _chunks(path: Path, keys: Sequence[str]) -> Iterator[list[str]]:
    """Split keys so that few bytes of the file are mapped at a time."""
    if path.stat().st_size <= _RELEASE_AFTER:
        yield list(keys)
        return
    sizes = {key: torch.Size(shape).numel() * 4 for key, shape in _read_shapes(path)}
    chunk: list[str] = []
    size = 0
    for key in keys:
        chunk.append(key)
        size += sizes[key]
        if size >= _RELEASE_AFTER:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
