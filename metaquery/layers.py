"""Building blocks of the transformers: norms, attention, feed-forward, time embedding.

Shape legend:
    B batch      N tokens      W model width      C condition width      M = N, or 1 if pooled
"""

from collections.abc import Callable
from math import log, pi
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metaquery.attention import attend
from metaquery.rope import rotate

NormKind = Literal["rms", "layer"]
MLPKind = Literal["swiglu", "gelu"]
TimeKind = Literal["fourier", "sinusoidal"]

NUM_FREQUENCIES = 256
"""Random Fourier frequencies of the time embedding."""

FREQUENCY_SEED = 114514
"""Seed with which Scale-RAE draws the frequencies that its checkpoints leave out."""


class Float32Tables(nn.Module):
    """Hold buffers that follow the module's device but never its dtype.

    Sines of positions and times lose their meaning in bfloat16, so
    ``module.to(torch.bfloat16)`` must leave them alone. They are made on the
    CPU whatever the default device, so a model built on ``meta`` has them too.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Tables":
        before = {name: table for name, table in self._buffers.items() if table is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, table in before.items():
            after = self._buffers[name]
            assert after is not None
            self._buffers[name] = table.to(after.device)
        return self


class Tables(Float32Tables):
    """One fixed table that is recomputed, never saved."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self) -> Tensor:
        return self.table


class Linear(nn.Linear):
    """A linear layer whose rows do not depend on the batch they are computed in.

    One product of all samples lets the kernel's blocking, and so the rounding,
    depend on the batch size. When it samples on a CPU in float32, this layer
    multiplies sample by sample in one batched call: a candidate keeps its bits
    whatever else is drawn with it. (Elementwise functions see to the same where
    widths are multiples of 32, the stride of their vector loops.) That is with one
    thread: on some processors a few widths round otherwise when several share a product.
    """

    def forward(self, x: Float[Tensor, "B *tokens W"]) -> Float[Tensor, "B *tokens V"]:
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        samples = x.reshape(len(x), -1, x.shape[-1])
        weight = self.weight.t().expand(len(x), -1, -1)
        return torch.baddbmm(self.bias, samples, weight).view(*x.shape[:-1], -1)


class RMSNorm(nn.Module):
    """Divide by the root mean square, computed in float32 or wider."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch W"]:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = (length.square() / x.shape[-1] + self.eps).rsqrt()
        normed: Tensor = (x * scale).to(x.dtype)
        return normed * self.weight.to(x.dtype)


def build_norm(kind: NormKind, dim: int) -> nn.Module:
    """Return the norm before an adaLN modulation; the modulation is its affine part."""
    return RMSNorm(dim) if kind == "rms" else nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


def build_head_norm(kind: NormKind, head_dim: int) -> nn.Module:
    """Return the norm of queries and keys inside one attention head."""
    return RMSNorm(head_dim) if kind == "rms" else nn.LayerNorm(head_dim)


class Attention(nn.Module):
    """Bidirectional multi-head attention with optional QK norm and rotary positions."""

    def __init__(
        self, dim: int, num_heads: int, *, qk_norm: bool = False, norm: NormKind = "rms"
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_dim = dim // num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.q_norm = build_head_norm(norm, head_dim) if qk_norm else nn.Identity()
        self.k_norm = build_head_norm(norm, head_dim) if qk_norm else nn.Identity()
        self.out = Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "B N W"],
        rope: Float[Tensor, "2 N d"] | None = None,
        mask: Bool[Tensor, "B 1 1 N"] | None = None,
    ) -> Float[Tensor, "B N W"]:
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, d)
        query, key, value = heads.unbind(2)
        query, key = self.q_norm(query), self.k_norm(key)
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        query, key = query.to(value.dtype), key.to(value.dtype)  # norms may return float32
        attended = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask)
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed


class SwiGLU(nn.Module):
    """Gated feed-forward of 2/3 the usual hidden width (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden_dim = int(2 / 3 * int(dim * mlp_ratio))
        self.gate_up = Linear(dim, 2 * hidden_dim)
        self.down = Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch W"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class GeluMLP(nn.Module):
    """Plain feed-forward with tanh-approximated GELU."""

    def __init__(self, dim: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.up = Linear(dim, int(dim * mlp_ratio))
        self.down = Linear(int(dim * mlp_ratio), dim)

    def forward(self, x: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch W"]:
        out: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out


def build_mlp(kind: MLPKind, dim: int, mlp_ratio: float) -> nn.Module:
    return SwiGLU(dim, mlp_ratio) if kind == "swiglu" else GeluMLP(dim, mlp_ratio)


def modulate(
    x: Float[Tensor, "B N W"], shift: Float[Tensor, "B M W"], scale: Float[Tensor, "B M W"]
) -> Float[Tensor, "B N W"]:
    """Scale and shift in the dtype that the modulation was computed in."""
    return torch.addcmul(shift, x.to(scale.dtype), 1 + scale)


class TimeEmbedding(Float32Tables):
    """Embed flow times with fixed frequencies and a two-layer MLP.

    Times and frequencies stay in float32 whatever the model's dtype: bfloat16
    has eight bits, fewer than the samplers have steps.
    """

    frequencies: Tensor

    def __init__(self, dim: int, kind: TimeKind = "fourier") -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("frequencies", _frequencies(kind), persistent=kind == "fourier")
        features = 2 * len(self.frequencies)
        self.up = Linear(features, dim)
        self.out = Linear(dim, dim)

    def forward(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B C"]:
        angles = t.float()[:, None] * self.frequencies
        if self.kind == "fourier":
            angles = angles * 2 * pi
            features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        else:
            features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        features = features.to(self.up.weight.dtype)
        embedding: Tensor = self.out(F.silu(self.up(features)))
        return embedding


def _frequencies(kind: TimeKind) -> Tensor:
    """Return Gaussian frequencies in turns, or geometric ones from 1 to 1/10000 in radians."""
    if kind == "fourier":
        generator = torch.Generator("cpu").manual_seed(FREQUENCY_SEED)
        return torch.normal(0.0, 1.0, (NUM_FREQUENCIES,), generator=generator)
    half = NUM_FREQUENCIES // 2
    return torch.exp(-log(10_000.0) * torch.arange(half, device="cpu", dtype=torch.float32) / half)
