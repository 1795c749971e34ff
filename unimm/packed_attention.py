"""How packed rows reach an attention kernel: each has its own way to say who sees whom.

Shape legend:
    B batch      L sequence length
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from unimm.errors import UserError
from unimm.packing import Packing, sees

VARLEN = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Implementations that take where sequences begin in one long row, and no mask."""


def packed_arguments(packing: Packing, attention: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a Hugging Face model is told about packed rows.

    Args:
        packing: Who sees whom.
        attention: The model's ``attn_implementation``.
        dtype: Type of the attention scores.

    Raises:
        UserError: Conversations share the reading of a picture, which flash attention cannot.
    """
    if attention in VARLEN:
        return _sequence_starts(packing)
    if attention == "flex_attention":
        return {"attention_mask": _block_mask(packing)}
    return {"attention_mask": packing.bias(dtype)}


def _sequence_starts(packing: Packing) -> dict[str, Any]:
    """Return all rows as one, cut where a conversation or padding begins.

    The keys are those of transformers' ``FlashAttentionKwargs``.
    """
    if bool(packing.branch.any()):
        raise UserError(
            "flash attention cannot let several conversations share one reading of a picture; "
            "set model.attention to flex_attention or sdpa, or pack them one by one"
        )
    starts = sequence_starts(packing.fork)
    longest = int(starts.diff().max())
    return {
        "attention_mask": None,
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def sequence_starts(fork: Int[Tensor, "B L"]) -> Int[Tensor, " S_plus_1"]:
    """Return where each run of equal numbers begins in the rows end to end, and where all end."""
    is_start = torch.ones_like(fork, dtype=torch.bool)
    is_start[:, 1:] = fork[:, 1:] != fork[:, :-1]
    starts = is_start.flatten().nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([fork.numel()])]).int()


def _block_mask(packing: Packing) -> Any:
    """Return the visibility as blocks that flex attention skips where nothing is seen."""
    from torch.nn.attention.flex_attention import create_block_mask

    fork, branch = packing.fork, packing.branch

    def is_visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(fork, branch, row, query, key)

    batch, length = fork.shape
    return create_block_mask(is_visible, batch, None, length, length, device=fork.device)
