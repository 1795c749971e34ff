"""A part of a model as a directory of ours: ``config.json`` and one ``model.safetensors``.

RAE's models have no language model, so they are no pipelines.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from unimm.checkpoints.assemble import Slots, Source, fill
from unimm.checkpoints.keymap import Rule
from unimm.checkpoints.names import canonical
from unimm.checkpoints.tensors import TensorFolder, read_json
from unimm.config_io import from_dict
from unimm.errors import CheckpointError, ConfigError
from unimm.files import atomic_directory

CPU = torch.device("cpu")
_FORMAT = 1
_ConfigT = TypeVar("_ConfigT")
_ModuleT = TypeVar("_ModuleT", bound=nn.Module)


def save_component(
    destination: Path, *, kind: str, config: dict[str, Any], module: nn.Module, source: Path
) -> None:
    """Write a module, whole or not at all.

    Args:
        destination: The directory to write.
        kind: Its ``model_type``.
        config: Its configuration, as plain values.
        module: What to store.
        source: Where it came from, for the card.
    """
    header = {"model_type": kind, "format": _FORMAT}
    with atomic_directory(destination) as partial:
        text = json.dumps({**header, **config}, indent=2)
        (partial / "config.json").write_text(text + "\n", encoding="utf-8")
        card = f"# {destination.name}\n\nConverted from {source.name} by unimm.\n"
        (partial / "README.md").write_text(card, encoding="utf-8")
        state = {canonical(k): tensor.contiguous() for k, tensor in module.state_dict().items()}
        save_file(state, partial / "model.safetensors", metadata={"format": "pt"})


def component_config(directory: Path, *, kind: str, cls: type[_ConfigT]) -> _ConfigT:
    """Return the configuration of a directory that :func:`save_component` wrote.

    Raises:
        CheckpointError: It is missing, corrupt or of another kind.
    """
    path = directory / "config.json"
    tree = read_json(path)
    found, version = tree.pop("model_type", None), tree.pop("format", None)
    if (found, version) != (kind, _FORMAT):
        raise CheckpointError(
            f"{path} describes {found!r} in format {version!r}, not {kind!r} in format {_FORMAT}"
        )
    try:
        return from_dict(cls, tree)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def restore_component(module: _ModuleT, directory: Path) -> _ModuleT:
    """Return a module, built empty, with the tensors of its directory, in their precision."""
    weights = TensorFolder.open(directory)
    parameter = next(canonical(name) for name, _ in module.named_parameters())
    if parameter not in weights.shapes:
        raise CheckpointError(f"{directory} lacks a tensor for {parameter}; copy it again")
    slots = Slots(module, device=CPU, dtype=weights.get(parameter).dtype)
    fill(slots, [Source(weights, (Rule(r"(.+)", r"\1"),))])
    slots.finish(where=directory)
    return module.eval()
