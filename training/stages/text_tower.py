"""The text side of SigLIP: it trains the vision tower and is not part of the model.

Shape legend:
    B batch      N latent tokens      D tower width      E embedding width      T text tokens
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import SiglipTextConfig, SiglipTextModel


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTowerConfig:
    """Size of the text tower.

    Args:
        hidden_dim: Width of the text tower and of the shared embedding.
        depth: Blocks.
        num_heads: Attention heads.
        max_tokens: Tokens of a text; longer texts are cut.
    """

    hidden_dim: int = 128
    depth: int = 2
    num_heads: int = 4
    max_tokens: int = 32


class ImageTextPair(nn.Module):
    """Embed pictures and texts in one space (Zhai et al. 2023, arXiv:2303.15343)."""

    def __init__(self, config: TextTowerConfig, *, vocab_size: int, vision_dim: int) -> None:
        super().__init__()
        width = config.hidden_dim
        build_config: Any = SiglipTextConfig  # its signature lacks the attention's name
        self.text = SiglipTextModel(
            build_config(
                vocab_size=vocab_size,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.num_heads,
                max_position_embeddings=config.max_tokens,
                projection_size=width,
                hidden_act="gelu",
                attn_implementation="eager",
            )
        )
        # SigLIP's pooling: one learned probe attends to the patch tokens.
        self.probe = nn.Parameter(torch.randn(1, 1, vision_dim) * vision_dim**-0.5)
        self.pool = nn.MultiheadAttention(vision_dim, 4, batch_first=True)
        self.to_embedding = nn.Linear(vision_dim, width)
        # The paper's initial temperature and bias: pairs start as mostly negative.
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def embed_images(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B E"]:
        probe = self.probe.expand(len(tokens), -1, -1)
        pooled, _ = self.pool(probe, tokens, tokens, need_weights=True)
        return F.normalize(self.to_embedding(pooled[:, 0]), dim=-1)

    def embed_texts(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        pooled: Tensor = self.text(input_ids=token_ids).pooler_output
        return F.normalize(pooled, dim=-1)

    def loss(
        self,
        tokens: Float[Tensor, "B N D"],
        token_ids: Int[Tensor, "B T"],
    ) -> Float[Tensor, ""]:
        """Return the sigmoid loss of all pairs; identical texts count as matching."""
        images, texts = self.embed_images(tokens), self.embed_texts(token_ids)
        logits = (images @ texts.T).float() * self.logit_scale.float().exp() + self.logit_bias
        same = (token_ids[:, None] == token_ids[None]).all(dim=-1)
        signs = same.float() * 2 - 1
        return -F.logsigmoid(signs * logits).sum(dim=1).mean()
