"""8- and 4-bit weights for the language model, by bitsandbytes.

Only its matrices are rounded (Dettmers et al., arXiv:2208.07339 for 8 bits, arXiv:2305.14314 for
NF4's 4): embeddings, norms and every other part of a model keep their precision.
"""

from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import nn

from unimm.errors import MissingExtraError, UserError

Quantization = Literal["8bit", "4bit"]


def check_quantization(kind: str | None) -> None:
    """Raise UserError unless the kind is known, MissingExtraError without bitsandbytes."""
    if kind is None:
        return
    if kind not in get_args(Quantization):
        raise UserError(
            f"unknown quantisation {kind!r}; choose {' or '.join(get_args(Quantization))}"
        )
    _bitsandbytes()


@torch.no_grad()
def quantize_language(language: Any, kind: Quantization, device: torch.device) -> None:
    """Round a language model's matrices in place and move it to a device.

    Matrices are rounded one at a time, so that the device never holds them in full precision.

    Args:
        language: A causal language model of Hugging Face.
        kind: How many bits.
        device: Where it ends up.
    """
    head = language.get_output_embeddings()
    linears = [
        (name, module)
        for name, module in language.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    for name, module in linears:
        path, _, leaf = name.rpartition(".")
        setattr(language.get_submodule(path), leaf, _rounded(module, kind).to(device))
    language.to(device)


def is_quantized(module: nn.Module) -> bool:
    """Tell whether any weight was rounded, so that the module can only be used, not stored."""
    return any(
        hasattr(parameter, "quant_state") or hasattr(parameter, "SCB")
        for parameter in module.parameters()
    )


def _rounded(linear: nn.Linear, kind: Quantization) -> nn.Module:
    bnb = _bitsandbytes()
    sizes = {"bias": linear.bias is not None, "device": "meta"}
    if kind == "8bit":
        new = bnb.nn.Linear8bitLt(
            linear.in_features, linear.out_features, has_fp16_weights=False, **sizes
        )
        new.weight = bnb.nn.Int8Params(
            linear.weight.detach(), requires_grad=False, has_fp16_weights=False
        )
    else:
        dtype = linear.weight.dtype
        new = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, compute_dtype=dtype, quant_type="nf4", **sizes
        )
        new.weight = bnb.nn.Params4bit(
            linear.weight.detach(), requires_grad=False, quant_type="nf4"
        )
    new.bias = linear.bias
    result: nn.Module = new
    return result


def _bitsandbytes() -> Any:
    try:
        return import_module("bitsandbytes")
    except ImportError:
        raise MissingExtraError("bitsandbytes", extra="quant") from None
