"""RAEv2's diffusion transformer: time and condition as tokens beside the image's.

Blocks are not modulated; only the wide head, if there is one, and its final layer are
(arXiv:2605.18324).

Shape legend:
    B batch      N latent tokens      D latent channels      M condition tokens      S time tokens
    W model width      T = N + S + M
"""

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metaquery.dit import DDTHead, DiTConfig, FinalLayer
from metaquery.flow import x_0_to_velocity
from metaquery.layers import Attention, Linear, Tables, TimeEmbedding, build_mlp, build_norm
from metaquery.rope import grid_rope


@dataclass(frozen=True, kw_only=True, slots=True)
class InContextConfig:
    """Size of an in-context DiT.

    Args:
        dit: Widths, depths, head and branches; what speaks of modulation or of fixed positions
            does not apply to the backbone.
        num_time_tokens: Tokens that carry the time, S.
    """

    dit: DiTConfig
    num_time_tokens: int = 4

    def __post_init__(self) -> None:
        if self.dit.cond_dim != self.dit.hidden_dim:
            raise ValueError(
                f"condition tokens join the sequence: dit.cond_dim ({self.dit.cond_dim}) must "
                f"equal dit.hidden_dim ({self.dit.hidden_dim})"
            )


class InContextDiT(nn.Module):
    """Predict the velocity from noisy latents, time and condition tokens."""

    def __init__(self, config: InContextConfig) -> None:
        super().__init__()
        self.config = config
        dit = config.dit
        width = dit.hidden_dim
        self.latent_embed = Linear(dit.latent_dim, width)
        self.time_embed = TimeEmbedding(width, dit.time_embedding)
        self.time_tokens = nn.Parameter(torch.randn(config.num_time_tokens, width) * width**-0.5)
        self.blocks = nn.ModuleList(InContextBlock(dit) for _ in range(dit.depth))
        self.rope = Tables(grid_rope(dit.num_latent_tokens, width // dit.num_heads))
        self.head = DDTHead(dit) if dit.ddt_depth else None
        if self.head is None:
            self.final: nn.Module = PlainFinalLayer(dit)
        else:
            self.final = FinalLayer(dit, dim=dit.ddt_dim, cond_dim=dit.ddt_dim)
        if dit.exit_depth:
            with_head = self.head is not None
            self.exit = (
                FinalLayer(dit, dim=width, cond_dim=width) if with_head else PlainFinalLayer(dit)
            )
        if dit.repa_depth:
            self.repa = Linear(width, dit.repa_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise so that the first prediction is zero."""
        for module in self.modules():
            if isinstance(module, FinalLayer | PlainFinalLayer):
                nn.init.zeros_(module.out.weight)
                nn.init.zeros_(module.out.bias)

    def forward(
        self,
        x_t: Float[Tensor, "B N D"],
        t: Float[Tensor, "B"],
        condition: Float[Tensor, "B M W"],
        mask: Bool[Tensor, "B M"] | None = None,
        *,
        branches: MutableMapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Return the velocity at ``x_t``.

        Args:
            x_t: Noisy latents.
            t: Time of each sample, 0 for data and 1 for noise.
            condition: Tokens of a class or a text, of the model's width.
            mask: True at real condition tokens; None for all.
            branches: Where to put the early exit's velocity, ``exit``, and the projected
                features, ``repa``.
        """
        dit, found = self.config.dit, {} if branches is None else branches
        latents = x_t.to(self.latent_embed.weight.dtype)
        time = self.time_embed(t).unsqueeze(1)  # (B, 1, W)
        x = torch.cat([self.latent_embed(latents), self.time_tokens + time, condition], dim=1)
        rope, seen = self._rope(x.shape[1]), self._seen(mask)
        for depth, block in enumerate(self.blocks, start=1):
            x = block(x, rope, seen)
            image = x[:, : dit.num_latent_tokens]
            if depth == dit.exit_depth:
                found["exit"] = self._velocity(self._early(image, time), x_t, t)
            if depth == dit.repa_depth:
                found["repa"] = self.repa(image)
        image = x[:, : dit.num_latent_tokens]
        if self.head is None:
            return self._velocity(self.final(image), x_t, t)
        return self._velocity(self.final(*self.head(latents, image + time)), x_t, t)

    def _early(self, image: Float[Tensor, "B N W"], time: Tensor) -> Float[Tensor, "B N D"]:
        if self.head is None:
            plain: Tensor = self.exit(image)
            return plain
        condition = F.silu(image + time)
        modulated: Tensor = self.exit(condition, F.silu(condition))
        return modulated

    def _velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.config.dit.prediction == "x_0":
            return x_0_to_velocity(x_t, output, t)
        return output

    def _rope(self, length: int) -> Float[Tensor, "2 T d"]:
        """Return the grid's rotations for the image, none for what follows it."""
        table = self.rope()
        rest = length - table.shape[1]
        still = torch.stack([torch.ones_like(table[0, :1]), torch.zeros_like(table[0, :1])])
        return torch.cat([table, still.expand(-1, rest, -1)], dim=1)

    def _seen(self, mask: Tensor | None) -> Bool[Tensor, "B 1 1 T"] | None:
        if mask is None:
            return None
        always = self.config.dit.num_latent_tokens + self.config.num_time_tokens
        return F.pad(mask, (always, 0), value=True)[:, None, None]


class InContextBlock(nn.Module):
    """A pre-norm transformer block without modulation."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.norm1 = build_norm(config.norm, width)
        self.attention = Attention(
            width, config.num_heads, qk_norm=config.qk_norm, norm=config.norm
        )
        self.norm2 = build_norm(config.norm, width)
        self.mlp = build_mlp(config.mlp, width, config.mlp_ratio)

    def forward(
        self,
        x: Float[Tensor, "B T W"],
        rope: Float[Tensor, "2 T d"],
        mask: Bool[Tensor, "B 1 1 T"] | None,
    ) -> Float[Tensor, "B T W"]:
        x = x + self.attention(self.norm1(x), rope, mask)
        update: Tensor = self.mlp(self.norm2(x))
        return x + update


class PlainFinalLayer(nn.Module):
    """Project the normed residual stream to latent channels."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm = build_norm(config.norm, config.hidden_dim)
        self.out = Linear(config.hidden_dim, config.latent_dim)

    def forward(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N D"]:
        latents: Tensor = self.out(self.norm(x))
        return latents
