"""A model is a directory: config.json, model*.safetensors, tokenizer files, README.md."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from unimm.checkpoints.assemble import Slots, empty_parameters
from unimm.checkpoints.names import canonical
from unimm.checkpoints.tensors import TensorFolder
from unimm.config import UniMMConfig
from unimm.config_io import from_dict, to_dict
from unimm.errors import CheckpointError, ConfigError
from unimm.files import atomic_directory
from unimm.fingerprint import latent_space_id
from unimm.footprint import Footprint, footprint
from unimm.model import UniMM

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
FORMAT = 1
_MAX_SHARD = "5GB"


def save_checkpoint(
    directory: Path,
    model: UniMM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    readme: str,
    space: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model, whole or not at all; a directory that was there is replaced.

    Args:
        directory: Where.
        model: The model.
        tokenizer: Its tokenizer.
        readme: The model card.
        space: Identifier of the latent space; computed from the encoder when None.
        dtype: Store floating-point weights in this type; as they are when None.
    """
    state = {
        name: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor)
        .detach()
        .cpu()
        .contiguous()
        for name, tensor in unique_state(model).items()
    }
    header = {
        "model_type": "unimm",
        "format": FORMAT,
        "latent_space": space or latent_space_id(model),
    }
    with atomic_directory(directory) as partial:
        tree = to_dict(model.config)
        if tree["vision"] is None:
            del tree["vision"]  # the files of one-space models stay what older releases read
        config = json.dumps({**header, **tree}, indent=2, ensure_ascii=False)
        (partial / CONFIG_NAME).write_text(config + "\n", encoding="utf-8")
        (partial / "README.md").write_text(readme, encoding="utf-8")
        tokenizer.save_pretrained(str(partial))
        _save_weights(partial, state)


def _save_weights(directory: Path, state: dict[str, Tensor]) -> None:
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=_MAX_SHARD
    )
    for filename, names in split.filename_to_tensors.items():
        shard = {name: state[name] for name in names}
        save_file(shard, directory / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def read_config(directory: Path) -> tuple[UniMMConfig, str]:
    """Return a model directory's configuration and the identifier of its latent space."""
    path = directory / CONFIG_NAME
    tree = _read_json(path)
    model_type, version = tree.pop("model_type", None), tree.pop("format", None)
    if model_type != "unimm":
        raise CheckpointError(
            f"{path} describes a {model_type!r} model, not 'unimm'; convert it with: unimm convert"
        )
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version!r}, this release reads {FORMAT}; update unimm"
        )
    space = str(tree.pop("latent_space", ""))
    try:
        return from_dict(UniMMConfig, tree), space
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_model(
    directory: Path,
    config: UniMMConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "sdpa",
    parts: Mapping[str, torch.device] | None = None,
) -> UniMM:
    """Return a directory's model, every tensor checked.

    Args:
        directory: Holds the weights.
        config: Of the same directory.
        device: Where the weights go.
        dtype: Of the weights.
        attention: ``attn_implementation`` of the language model.
        parts: Devices of parts that are elsewhere.

    Raises:
        CheckpointError: A file is missing or corrupt, or tensors do not fit.
        NotEnoughMemoryError: The model is larger than the free memory.
    """
    files = _weight_files(directory)
    stored = {name: shape for path in files for name, shape in _read_shapes(path)}
    footprint(directory, stored.items()).check(dtype, device, parts=parts)
    with empty_parameters():
        model = UniMM(config, attention=attention)
    slots = Slots(model, device=device, dtype=dtype, parts=parts)
    check_tensors(directory, stored, slots.shapes)
    for path in files:
        for name, tensor in TensorFolder.of_file(path).read():
            slots.put(name, tensor, where=f"{path}: {name}")
    slots.finish(where=directory)
    return model.eval().requires_grad_(False)


def model_footprint(directory: Path) -> Footprint:
    """Return what a directory's model needs of memory; only headers of files are read."""
    stored = (item for path in _weight_files(directory) for item in _read_shapes(path))
    return footprint(directory, stored)


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict, each tensor once though tied weights have several names.

    Names are those of files, whatever the installed release of transformers.
    """
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        state[canonical(name)] = tensor
    return state


Shapes = dict[str, tuple[int, ...]]


def check_tensors(where: Path, stored: Shapes, expected: Shapes) -> None:
    """Raise CheckpointError that lists every missing, unexpected and mis-shaped tensor."""
    misshaped = [
        f"{name} {stored[name]} instead of {expected[name]}"
        for name in expected
        if name in stored and stored[name] != expected[name]
    ]
    problems = {
        "missing": [name for name in expected if name not in stored],
        "unexpected": [name for name in stored if name not in expected],
        "of the wrong shape": misshaped,
    }
    found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
    if found:
        raise CheckpointError(f"the tensors in {where} do not fit its {CONFIG_NAME}: {found}")


def _weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX_NAME
    names: Iterable[str] = (WEIGHTS_NAME,)
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    files = [directory / name for name in names]
    if missing := [path.name for path in files if not path.is_file()]:
        raise CheckpointError(
            f"{directory} has no {', '.join(missing)}; the model is incomplete, copy it again"
        )
    return files


def _read_shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, tuple(file.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is corrupt: {error}; copy the model again") from None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}; it is not a model directory")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is corrupt: {error}; copy the model again") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} is corrupt: it holds no JSON object; copy the model again")
    return tree
