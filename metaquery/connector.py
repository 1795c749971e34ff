"""From hidden states of a language model to the generator's condition.

Shape legend:
    B batch      Q queries      H language-model width      C condition width
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from metaquery.layers import Attention, Linear, RMSNorm, SwiGLU, Tables
from metaquery.rope import sequence_rope

ConnectorKind = Literal["linear", "mlp2", "encoder6", "encoder24"]

_DEPTHS: dict[str, int] = {"encoder6": 6, "encoder24": 24}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectorConfig:
    """Kind and size of a connector.

    Args:
        kind: ``linear`` (Scale-RAE), ``mlp2``, or a bidirectional encoder of 6
            or 24 blocks at the language model's width, then ``mlp2`` (MetaQuery).
        in_dim: Width of the language model's hidden states, H.
        out_dim: Channels of the condition, C.
        num_queries: Queries per image, Q; read only by the encoders.
        num_heads: Attention heads of the encoders; divides ``in_dim``.
        mlp_ratio: Feed-forward width of the encoders over ``in_dim``.
    """

    kind: ConnectorKind = "linear"
    in_dim: int
    out_dim: int
    num_queries: int = 256
    num_heads: int = 8
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConnectorKind):
            allowed = ", ".join(get_args(ConnectorKind))
            raise ValueError(f"connector kind must be one of {allowed}, got {self.kind!r}")
        if min(self.in_dim, self.out_dim, self.num_queries) < 1:
            raise ValueError(
                f"in_dim, out_dim and num_queries must be at least 1, "
                f"got {self.in_dim}, {self.out_dim} and {self.num_queries}"
            )
        if self.depth and (self.in_dim % self.num_heads or self.in_dim // self.num_heads % 2):
            raise ValueError(
                f"in_dim ({self.in_dim}) over num_heads ({self.num_heads}) must be a whole, even "
                "number; choose num_heads accordingly"
            )

    @property
    def depth(self) -> int:
        """Encoder blocks; 0 for the presets without an encoder."""
        return _DEPTHS.get(self.kind, 0)


class EncoderBlock(nn.Module):
    """Pre-norm bidirectional attention and SwiGLU."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.in_dim)
        self.attention = Attention(config.in_dim, config.num_heads, qk_norm=True)
        self.norm2 = RMSNorm(config.in_dim)
        self.mlp = SwiGLU(config.in_dim, config.mlp_ratio)

    def forward(
        self, x: Float[Tensor, "B Q H"], rope: Float[Tensor, "2 Q d"]
    ) -> Float[Tensor, "B Q H"]:
        x = x + self.attention(self.norm1(x), rope)
        update: Tensor = self.mlp(self.norm2(x))
        return x + update


class Encoder(nn.Module):
    """Let the query states, causal until now, see each other both ways."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.rope = Tables(sequence_rope(config.num_queries, config.in_dim // config.num_heads))
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.in_dim)

    def forward(self, x: Float[Tensor, "B Q H"]) -> Float[Tensor, "B Q H"]:
        for block in self.blocks:
            x = block(x, self.rope())
        normed: Tensor = self.norm(x)
        return normed


class Connector(nn.Module):
    """Map hidden states at the query positions to the DiT's condition."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config) if config.depth else None
        if config.kind == "linear":
            self.project: nn.Module = Linear(config.in_dim, config.out_dim)
        else:
            self.project = nn.Sequential(
                Linear(config.in_dim, config.out_dim),
                nn.GELU(approximate="tanh"),
                Linear(config.out_dim, config.out_dim),
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier weights and zero biases, as the DiT."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, states: Float[Tensor, "B Q H"]) -> Float[Tensor, "B Q C"]:
        hidden: Tensor = states if self.encoder is None else self.encoder(states)
        condition: Tensor = self.project(hidden)
        return condition
