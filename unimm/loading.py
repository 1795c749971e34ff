"""Load a model: ours or another system's, in any precision, on one device or several."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from unimm.checkpoint import load_model, model_footprint, read_config
from unimm.checkpoints.foreign import is_foreign, load_scale_rae, open_scale_rae
from unimm.device import parse_device
from unimm.footprint import Footprint
from unimm.locate import locate_model
from unimm.model import UniMM
from unimm.placement import parse_devices
from unimm.quantize import Quantization, check_quantization, quantize_language
from unimm.tokenizer import load_tokenizer

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How to load a model.

    Args:
        device: Where to run, such as ``cpu`` or ``cuda:0``.
        dtype: Of parameters and matrix products, whatever the files hold.
        devices: Other devices for parts: ``generator``, ``latents`` and ``vision``.
        quantize: Round the language model's matrices to ``8bit`` or ``4bit`` (extra ``quant``).
        offload: Keep tower and pixel decoder on the CPU while they are not in use.
    """

    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32
    devices: Mapping[str, str | torch.device] = field(default_factory=dict)
    quantize: Quantization | None = None
    offload: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with what belongs to it; ``space`` is None where it must be computed."""

    model: UniMM
    tokenizer: PreTrainedTokenizerFast
    space: str | None
    card: str


def load(name: str | Path | None, options: LoadOptions) -> Loaded:
    """Return a model, every tensor checked.

    Raises:
        CheckpointError: There is no such model, or its files are incomplete or corrupt.
        UserError: The device is unknown, or the model does not fit into its memory.
    """
    target = parse_device(options.device)
    parts = parse_devices(options.devices)
    check_quantization(options.quantize)
    if options.offload:
        parts |= {"latents": CPU, "vision": CPU}
    directory = locate_model(name)
    # The matrices of a quantised language model are rounded on their way to the device.
    first = parts | ({"language": CPU} if options.quantize else {})
    if is_foreign(directory):
        foreign = load_scale_rae(directory, device=target, dtype=options.dtype, parts=first)
        loaded = Loaded(foreign.model, foreign.tokenizer, None, foreign.card)
    else:
        loaded = _load_ours(directory, target, options.dtype, first)
    if options.quantize:
        quantize_language(loaded.model.language, options.quantize, target)
    if options.offload:
        loaded.model.offloaded = frozenset({"latents", "vision"})
    return loaded


def _load_ours(
    directory: Path, device: torch.device, dtype: torch.dtype, parts: Mapping[str, torch.device]
) -> Loaded:
    config, space = read_config(directory)
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, config, device=device, dtype=dtype, parts=parts)
    card = directory / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else "# A unimm model\n"
    return Loaded(model, tokenizer, space or None, text)


def inspect(name: str | Path | None) -> tuple[Footprint, str | None]:
    """Return a model's footprint and its latent space's identifier, from headers alone.

    The identifier of another system's model is None: it depends on the encoder's weights.
    """
    directory = locate_model(name)
    if is_foreign(directory):
        return open_scale_rae(directory).footprint, None
    _, space = read_config(directory)
    return model_footprint(directory), space or None
