"""The latent diffusion transformer: noisy latents and a condition in, velocity out.

Shape legend:
    B batch      N latent tokens      D latent channels      C condition width
    W model width      M = N for a condition per token, 1 for a pooled one
"""

from collections.abc import Iterable, MutableMapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaquery.dit_config import DiTConfig
from metaquery.flow import x_0_to_velocity
from metaquery.layers import (
    Attention,
    Linear,
    Tables,
    TimeEmbedding,
    build_mlp,
    build_norm,
    modulate,
)
from metaquery.rope import grid_rope, sincos_embedding

Head = Literal["final", "exit"]

__all__ = ["DDTHead", "DiT", "DiTBlock", "DiTConfig", "DiTStack", "FinalLayer", "Head"]


class DiTBlock(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the condition."""

    def __init__(self, config: DiTConfig, *, dim: int, num_heads: int, cond_dim: int) -> None:
        super().__init__()
        self.norm1 = build_norm(config.norm, dim)
        self.attention = Attention(dim, num_heads, qk_norm=config.qk_norm, norm=config.norm)
        self.norm2 = build_norm(config.norm, dim)
        self.mlp = build_mlp(config.mlp, dim, config.mlp_ratio)
        self.modulation = Linear(cond_dim, 6 * dim)

    def forward(
        self,
        x: Float[Tensor, "B N W"],
        activated: Float[Tensor, "B M C"],
        rope: Float[Tensor, "2 N d"] | None,
    ) -> Float[Tensor, "B N W"]:
        """Return the next residual stream; ``activated`` is SiLU of the condition.

        The SiLU belongs to each block's modulation in the literature. It does
        not depend on the block, so the caller applies it once.
        """
        parts: tuple[Tensor, ...] = self.modulation(activated).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), rope)
        update: Tensor = self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x + gate2 * update


class FinalLayer(nn.Module):
    """Project the residual stream to latent channels under the condition."""

    def __init__(self, config: DiTConfig, *, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = build_norm(config.norm, dim)
        self.modulation = Linear(cond_dim, 2 * dim)
        self.out = Linear(dim, config.latent_dim)

    def forward(
        self, x: Float[Tensor, "B N W"], activated: Float[Tensor, "B M C"]
    ) -> Float[Tensor, "B N D"]:
        shift, scale = self.modulation(activated).chunk(2, dim=-1)
        latents: Tensor = self.out(modulate(self.norm(x), shift, scale))
        return latents


class DiTStack(nn.Module):
    """A run of blocks of one width and the rotary table they share."""

    def __init__(
        self, config: DiTConfig, *, depth: int, dim: int, num_heads: int, cond_dim: int
    ) -> None:
        super().__init__()
        self.checkpoint_activations = config.checkpoint_activations
        self.rope = (
            Tables(grid_rope(config.num_latent_tokens, dim // num_heads)) if config.rope else None
        )
        self.layers = nn.ModuleList(
            DiTBlock(config, dim=dim, num_heads=num_heads, cond_dim=cond_dim) for _ in range(depth)
        )

    def forward(
        self, x: Float[Tensor, "B N W"], activated: Float[Tensor, "B M C"]
    ) -> Float[Tensor, "B N W"]:
        state = x
        for state in self.states(x, activated):  # noqa: B007
            pass
        return state

    def states(self, x: Tensor, activated: Tensor) -> Iterable[Tensor]:
        """Yield the residual stream after every block, for early exits and alignment losses."""
        rope = None if self.rope is None else self.rope()
        for block in self.layers:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, activated, rope, use_reentrant=False)
            else:
                x = block(x, activated, rope)
            yield x


class DiT(nn.Module):
    """Predict the flow's velocity from noisy latents, time and condition.

    A LightningDiT (Yao et al. 2025, arXiv:2501.01423) whose adaptive norms read
    one condition vector per token, as Scale-RAE's (arXiv:2601.16208), or one
    for all, as RAE's. With ``ddt_depth`` its output is only the condition of a
    shallow and wide head that sees the noisy latents again.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, cond_dim = config.hidden_dim, config.cond_dim
        self.latent_embed = Linear(config.latent_dim, width)
        self.positions = (
            Tables(sincos_embedding(config.num_latent_tokens, width)) if config.pos_embed else None
        )
        self.time_embed = TimeEmbedding(cond_dim, config.time_embedding)
        self.null_condition = nn.Parameter(torch.zeros(cond_dim))
        self.blocks = DiTStack(
            config, depth=config.depth, dim=width, num_heads=config.num_heads, cond_dim=cond_dim
        )
        self.head = DDTHead(config) if config.ddt_depth else None
        if self.head is None:
            self.final = FinalLayer(config, dim=width, cond_dim=cond_dim)
        else:
            self.final = FinalLayer(config, dim=config.ddt_dim, cond_dim=config.ddt_dim)
        # The branches come last and exist only where asked for: without them a seed gives the
        # same weights, under the same keys, as before they were thought of.
        if config.exit_depth:
            self.exit = FinalLayer(config, dim=width, cond_dim=cond_dim)
        if config.repa_depth:
            self.repa = Linear(width, config.repa_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise so that the first prediction is zero and every block the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for linear in (self.time_embed.up, self.time_embed.out):
            nn.init.normal_(linear.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, DiTBlock | FinalLayer):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.final.out.weight)
        if self.config.exit_depth:
            nn.init.zeros_(self.exit.out.weight)

    def forward(
        self,
        x_t: Float[Tensor, "B N D"],
        t: Float[Tensor, "B"],
        condition: Float[Tensor, "B M C"] | Float[Tensor, "B C"] | None,
        drop: Bool[Tensor, "B"] | None = None,
        *,
        head: Head = "final",
        branches: MutableMapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Return the velocity at ``x_t``.

        Args:
            x_t: Noisy latents, in float32 or the model's dtype.
            t: Time of each sample, 0 for data and 1 for noise.
            condition: One vector per token or one per sample; None for the learned null.
            drop: True where the null condition replaces the sample's own.
            head: ``exit`` stops at the early exit and returns its velocity.
            branches: Where to put what else there is: the early exit's velocity as ``exit``,
                the projected features as ``repa``.
        """
        time = self.time_embed(t).unsqueeze(1)  # (B, 1, C)
        mixed = time + self._condition(condition, drop)  # (B, M, C)
        if self.config.cond_silu:
            mixed = F.silu(mixed)
        latents = x_t.to(self.latent_embed.weight.dtype)
        x = self.latent_embed(latents)
        if self.positions is not None:
            x = x + self.positions().to(x.dtype)
        activated = F.silu(mixed)
        if head == "exit":
            return self._velocity(self._early(x, activated), x_t, t)
        if branches is None:
            x = self.blocks(x, activated)
        else:
            x = self._with_branches(x, activated, branches)
            if "exit" in branches:
                branches["exit"] = self._velocity(branches["exit"], x_t, t)
        if self.head is not None:
            x, activated = self.head(latents, x + time if self.config.ddt_time else x)
        output: Tensor = self.final(x, activated)
        return self._velocity(output, x_t, t)

    def _velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.config.prediction == "x_0":
            return x_0_to_velocity(x_t, output, t)
        return output

    def _early(self, x: Tensor, activated: Tensor) -> Tensor:
        """Return what the early exit writes; the blocks behind it do not run."""
        if not self.config.exit_depth:
            raise ValueError("this DiT has no early exit; train one with exit_depth")
        for depth, state in enumerate(self.blocks.states(x, activated), start=1):
            if depth == self.config.exit_depth:
                x = state
                break
        output: Tensor = self.exit(x, activated)
        return output

    def _with_branches(
        self, x: Tensor, activated: Tensor, branches: MutableMapping[str, Tensor]
    ) -> Tensor:
        for depth, state in enumerate(self.blocks.states(x, activated), start=1):
            x = state
            if depth == self.config.exit_depth:
                branches["exit"] = self.exit(x, activated)
            if depth == self.config.repa_depth:
                branches["repa"] = self.repa(x)
        return x

    def _condition(self, condition: Tensor | None, drop: Tensor | None) -> Tensor:
        null = self.null_condition.view(1, 1, -1)
        if condition is None:
            return null
        if condition.ndim == 2:
            condition = condition.unsqueeze(1)
        if drop is None:
            return condition
        return torch.where(drop.view(-1, 1, 1), null.to(condition.dtype), condition)


class DDTHead(nn.Module):
    """Denoise with few wide blocks, conditioned on the backbone (Wang et al. 2025, 2504.05741)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        same_width = config.ddt_dim == config.hidden_dim
        self.latent_embed = Linear(config.latent_dim, config.ddt_dim)
        self.project = nn.Identity() if same_width else Linear(config.hidden_dim, config.ddt_dim)
        self.blocks = DiTStack(
            config,
            depth=config.ddt_depth,
            dim=config.ddt_dim,
            num_heads=config.ddt_heads,
            cond_dim=config.ddt_dim,
        )

    def forward(
        self, x_t: Float[Tensor, "B N D"], backbone: Float[Tensor, "B N W"]
    ) -> tuple[Float[Tensor, "B N V"], Float[Tensor, "B N V"]]:
        """Return the head's residual stream and its activated condition."""
        activated = F.silu(self.project(F.silu(backbone)))
        return self.blocks(self.latent_embed(x_t), activated), activated
