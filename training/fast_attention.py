"""Attention of the language model in few passes over memory, for training on a CPU.

Transformers' own written-out attention copies keys and values to all heads, scales the scores
after the product and takes the softmax in float32. Torch's fused kernel is far slower here when it
goes backward in bfloat16 (see :func:`metaquery.attention.attend`).

Shape legend:
    B batch      H query heads      K key-value heads      L positions      d channels of a head
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "grouped_eager"


def grouped_attention(  # noqa: PLR0917 - called by transformers, by position
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output (B, L, H, d); the query heads of a key are one long head.

    Args:
        module: The attention layer.
        query: (B, H, L, d).
        key: (B, K, S, d).
        value: (B, K, S, d).
        attention_mask: Added to the scores, (B or 1, 1, L, S).
        scaling: Of the scores.
        dropout: Must be 0.
    """
    if dropout:
        raise ValueError(f"grouped attention knows no dropout, got {dropout}")
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    rows = (query * scaling).reshape(batch, -1, groups * length, width)
    scores = rows @ key.mT  # (B, K, G*L, S)
    if attention_mask is not None:
        by_head = scores.view(batch, -1, groups, length, key.shape[2])
        by_head += attention_mask[:, None]
    output = torch.softmax(scores, dim=-1) @ value
    return output.view(batch, heads, length, width).transpose(1, 2), None


def use_fast_attention(model: Any) -> None:
    """Let a Hugging Face model attend by :func:`grouped_attention`."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
