"""Weights of frozen critics, found in a folder by what the files hold."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from unimm.checkpoints.tensors import TensorFolder
from unimm.errors import CheckpointError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def find_tensors(folder: Path, wanted: Callable[[str], bool], *, what: str) -> dict[str, Tensor]:
    """Return the tensors that are wanted, from all files of a folder.

    Args:
        folder: Holds safetensors or PyTorch files, whatever their names.
        wanted: Tells by its key whether a tensor is one of them.
        what: What they are and which file has them, for the message.

    Raises:
        CheckpointError: The folder is missing, no file holds one, or a file is corrupt.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder} with {what}")
    found: dict[str, Tensor] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES):
        file = TensorFolder.of_file(path)
        if any(wanted(key) for key in file.shapes):
            found |= {key: tensor.clone() for key, tensor in file.read() if wanted(key)}
    if not found:
        raise CheckpointError(
            f"{folder} has no {what}; put the file there, or train without it (its weight 0)"
        )
    return found
