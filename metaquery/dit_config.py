"""Size and options of the latent diffusion transformer."""

from dataclasses import dataclass
from math import isqrt
from typing import Literal, get_args

from metaquery.layers import MLPKind, NormKind, TimeKind

Prediction = Literal["velocity", "x_0"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """Size and options of a DiT, with or without a wide denoising (DDT) head.

    The part that writes the output must be at least as wide as one latent
    token: a narrower network cannot carry full-rank noise (Zheng et al. 2025,
    arXiv:2510.11690).

    Args:
        num_latent_tokens: Tokens per image, N. A square grid: 256 is 16 x 16.
        latent_dim: Channels per latent token, D. 1152 for SigLIP-2 So400m.
        cond_dim: Channels of the connector's output, C.
        hidden_dim: Width of the backbone.
        depth: Transformer blocks in the backbone.
        num_heads: Attention heads in the backbone; divides ``hidden_dim``.
        mlp_ratio: Feed-forward width over model width, before SwiGLU's 2/3.
        ddt_dim: Width of the DDT head; read only if ``ddt_depth`` > 0.
        ddt_depth: Transformer blocks in the DDT head; 0 for no head.
        ddt_heads: Attention heads in the DDT head; divides ``ddt_dim``.
        ddt_time: Add the time embedding to the head's condition, as RAE does and
            Scale-RAE does not.
        cond_silu: Apply SiLU to time + condition once more before the blocks do.
        qk_norm: Normalise queries and keys inside each head.
        rope: Turn queries and keys by two-dimensional positions.
        pos_embed: Add fixed sin-cos positions to the embedded latents.
        norm: RMSNorm with weights, or LayerNorm without.
        mlp: SwiGLU, or GELU.
        time_embedding: Random Fourier features, or DiT's sinusoids.
        prediction: What the last layer writes; ``forward`` returns velocity either way.
        exit_depth: Blocks of the backbone before a second, early final layer; 0 for none. It
            learns the same velocity and guides the sampler at no cost (RAEv2,
            arXiv:2605.18324); see :meth:`usual_exit_depth`.
        repa_depth: Blocks before a linear layer to another encoder's features (REPA,
            arXiv:2410.06940); 0 for none.
        repa_dim: Channels of those features.
        checkpoint_activations: Recompute blocks in the backward pass to save memory.
    """

    num_latent_tokens: int = 256
    latent_dim: int = 1152
    cond_dim: int = 2048
    hidden_dim: int = 2048
    depth: int = 32
    num_heads: int = 32
    mlp_ratio: float = 4.0
    ddt_dim: int = 2048
    ddt_depth: int = 0
    ddt_heads: int = 16
    ddt_time: bool = False
    cond_silu: bool = True
    qk_norm: bool = False
    rope: bool = True
    pos_embed: bool = True
    norm: NormKind = "rms"
    mlp: MLPKind = "swiglu"
    time_embedding: TimeKind = "fourier"
    prediction: Prediction = "velocity"
    exit_depth: int = 0
    repa_depth: int = 0
    repa_dim: int = 0
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        if isqrt(self.num_latent_tokens) ** 2 != self.num_latent_tokens:
            raise ValueError(f"num_latent_tokens must be a square, got {self.num_latent_tokens}")
        if self.depth < 1 or self.ddt_depth < 0:
            raise ValueError(
                f"depth must be at least 1 and ddt_depth at least 0, "
                f"got {self.depth} and {self.ddt_depth}"
            )
        self._check_heads("hidden_dim", self.hidden_dim, "num_heads", self.num_heads)
        if self.ddt_depth:
            self._check_heads("ddt_dim", self.ddt_dim, "ddt_heads", self.ddt_heads)
        self._check_width()
        self._check_choices()
        self._check_branches()
        if self.ddt_time and self.cond_dim != self.hidden_dim:
            raise ValueError(
                f"ddt_time adds the time embedding (cond_dim {self.cond_dim}) to the backbone's "
                f"output (hidden_dim {self.hidden_dim}), so the two must be equal"
            )

    def _check_heads(self, dim_name: str, dim: int, heads_name: str, heads: int) -> None:
        if dim < 1 or heads < 1 or dim % heads:
            raise ValueError(f"{dim_name} ({dim}) must be divisible by {heads_name} ({heads})")
        if self.rope and (dim // heads) % 4:
            raise ValueError(
                f"{dim_name} / {heads_name} ({dim // heads}) must be divisible by 4: two axes of "
                "rotary pairs; change one of them or set rope to false"
            )
        if self.pos_embed and dim % 4:
            raise ValueError(f"{dim_name} ({dim}) must be divisible by 4 for sin-cos positions")

    def _check_width(self) -> None:
        if self.ddt_depth:
            name, width, way_out = "ddt_dim", self.ddt_dim, ""
        else:
            name, width = "hidden_dim", self.hidden_dim
            way_out = ", or add a DDT head that wide (ddt_depth, ddt_dim)"
        if width < self.latent_dim:
            raise ValueError(
                f"{name} ({width}) must be at least latent_dim ({self.latent_dim}): a network "
                f"narrower than a latent token cannot represent its noise; widen it{way_out}"
            )

    def _check_branches(self) -> None:
        for name, value in (("exit_depth", self.exit_depth), ("repa_depth", self.repa_depth)):
            if not 0 <= value <= self.depth:
                raise ValueError(f"{name} must be from 0 to depth ({self.depth}), got {value}")
        if self.exit_depth == self.depth and not self.ddt_depth:
            raise ValueError(f"exit_depth ({self.exit_depth}) must be below depth: it ends there")
        if bool(self.repa_depth) != bool(self.repa_dim):
            raise ValueError(
                f"repa_depth ({self.repa_depth}) and repa_dim ({self.repa_dim}) go together: "
                "both positive, or both 0"
            )

    def _check_choices(self) -> None:
        for name, value, allowed in (
            ("norm", self.norm, get_args(NormKind)),
            ("mlp", self.mlp, get_args(MLPKind)),
            ("time_embedding", self.time_embedding, get_args(TimeKind)),
            ("prediction", self.prediction, get_args(Prediction)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")

    @property
    def grid_size(self) -> int:
        """Side of the token grid: 16 for 256 tokens."""
        return isqrt(self.num_latent_tokens)

    @staticmethod
    def usual_exit_depth(depth: int) -> int:
        """Return the exit's place in RAEv2, 0.29 of the depth: 9 of 32 blocks."""
        return max(1, round(0.29 * depth))

    @classmethod
    def tiny(cls) -> "DiTConfig":
        """Return a size that runs in milliseconds on a CPU, for tests."""
        return cls(
            num_latent_tokens=16,
            latent_dim=8,
            cond_dim=32,
            hidden_dim=32,
            depth=2,
            num_heads=2,
        )
