"""What a run of the RAE decoder stage is configured by."""

from dataclasses import dataclass, field
from pathlib import Path

from unimm.latents import RAEDecoderConfig

from ..config import OptimizerConfig, RunConfig
from ..losses.critic import CriticConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """Size of a fresh pixel decoder; the defaults are ViT-B.

    Args:
        hidden_dim: Width of the blocks.
        depth: Number of blocks.
        num_heads: Attention heads; divides ``hidden_dim``.
        mlp_dim: Width inside each block's MLP.
        patch_size: Side of what one token paints, in pixels; twice the encoder's makes pictures
            of twice its size.
    """

    hidden_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    patch_size: int = 16

    def config(self, *, latent_dim: int, grid_size: int) -> RAEDecoderConfig:
        """Return the decoder's configuration for a grid of latents."""
        return RAEDecoderConfig(
            latent_dim=latent_dim,
            image_size=grid_size * self.patch_size,
            patch_size=self.patch_size,
            hidden_dim=self.hidden_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructionConfig:
    """The decoder's loss: a weighted sum, some of whose terms begin later.

    Args:
        l1_weight: Of the mean absolute error.
        l2_weight: Of the mean squared error.
        edge_weight: How much more an error at a full-contrast edge counts than one on a plain
            surface, in both.
        lpips_weight: Of LPIPS; needs its weights.
        lpips_start: First step with LPIPS.
        adversarial_weight: Of the critic's verdict, times the adaptive weight.
        adversarial_start: First step with it; the critic learns from ``critic.start`` on.
        largest_adaptive_weight: Limit of the adaptive weight.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    edge_weight: float = 0.0
    lpips_weight: float = 1.0
    lpips_start: int = 0
    adversarial_weight: float = 0.75
    adversarial_start: int = 0
    largest_adaptive_weight: float = 1e4

    def __post_init__(self) -> None:
        for name in ("l1_weight", "l2_weight", "edge_weight", "lpips_weight", "adversarial_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RAEDecoderStageConfig:
    """A run of the RAE decoder stage.

    Without foreign weights: ``losses.lpips_weight=0`` with ``critic.kind=patch`` or ``none``, and
    ``losses.l2_weight`` and ``losses.edge_weight`` in LPIPS's place, as ``scenes/decoder_gan`` has.

    Args:
        run: Length, place, machine.
        init: Model directory whose latents are decoded; or
        tower: a Hugging Face folder or hub id of a frozen tower alone.
        image_size: Side of the pictures that the ``tower`` encodes.
        encoder_size: Side to which it scales them first; None for ``image_size``.
        decoder: A fresh decoder; None goes on with the one in ``init``.
        images: Folder of training pictures; None for the miniature world of ``init``.
        crop_scale: Shorter side of a picture over that of its random crop.
        weights: Folder with the weights of LPIPS and DINO.
        batch_size: Pictures a step and process.
        max_noise: Largest standard deviation of the noise on raw features; a picture's is
            uniform below it, so that the decoder also reads what a sampler leaves imperfect.
        clean_share: Share of pictures whose features get no noise.
        losses: What the decoder minimises.
        critic: The discriminator.
        optimizer: Of the decoder.
    """

    run: RunConfig
    init: Path | None = None
    tower: str | None = None
    image_size: int = 256
    encoder_size: int | None = None
    decoder: DecoderShape | None = None
    images: Path | None = None
    crop_scale: float = 1.5
    weights: Path | None = None
    batch_size: int = 64
    max_noise: float = 0.8
    clean_share: float = 0.0
    losses: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if (self.init is None) == (self.tower is None):
            raise ValueError("give either init (a model directory) or tower (a vision tower)")
        if self.tower is not None and (self.decoder is None or self.images is None):
            raise ValueError("a tower alone needs decoder (its size) and images (a folder)")
        if not 0 <= self.clean_share <= 1 or self.max_noise < 0:
            raise ValueError(
                f"clean_share must be in [0, 1] and max_noise not negative, "
                f"got {self.clean_share} and {self.max_noise}"
            )
        if self.crop_scale < 1:
            raise ValueError(f"crop_scale must be at least 1, got {self.crop_scale}")
        self._check_critics()

    def _check_critics(self) -> None:
        needs = [
            name
            for name, needed in (
                ("losses.lpips_weight > 0", self.losses.lpips_weight > 0),
                ("critic.kind=dino", self.critic.kind == "dino"),
            )
            if needed
        ]
        if needs and self.weights is None:
            raise ValueError(
                f"{' and '.join(needs)} need weights=FOLDER with those of VGG16, LPIPS and DINO; "
                f"or train without: losses.lpips_weight=0 critic.kind=patch"
            )
        begins = self.critic.start
        if self.critic.kind != "none" and self.losses.adversarial_start < begins:
            raise ValueError(
                f"losses.adversarial_start ({self.losses.adversarial_start}) must not be before "
                f"critic.start ({begins}): an untaught critic says nothing"
            )
