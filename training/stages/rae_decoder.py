"""A pixel decoder for the latents of a frozen tower: RAE's first stage (arXiv:2510.11690).

Absolute error, LPIPS and a critic whose weight follows the gradients; noise on what is decoded.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor, nn

from unimm.errors import ConfigError

from ..data.picture_folder import PictureFolder
from ..data.scenes import pixels_of, render_samples, sample_scenes, step_rng
from ..engine import LocalEngine
from ..grids import reconstruction_grid
from ..loop import LossReport
from ..losses.adversarial import adaptive_weight
from ..losses.critic import Critic, build_discriminator
from ..losses.perceptual import LPIPS
from ..optimizer import ParameterGroup, parameter_groups
from ..ranks import ALONE, Ranks, run_device
from .decoder import edge_strength
from .latent_source import LatentSource, from_model, from_tower
from .rae_decoder_config import RAEDecoderStageConfig

STREAM = 6
GRID_PICTURES = 32


class RAEDecoderStage:
    """Train the decoder of a latent space whose tower stays as it is, and a critic beside it.

    The critic learns from a step's pictures after the decoder has: just before the next step,
    whose batch is another. Its state is the stage's own, so a resumed run is the same run.
    """

    def __init__(self, config: RAEDecoderStageConfig, ranks: Ranks = ALONE) -> None:
        self.config, self.ranks = config, ranks
        self.device = run_device(config.run.device, ranks)
        self.source = _open(config)
        self.space = self.source.space
        self.model: nn.Module = self.source.model
        self.model.to(self.device, getattr(torch, config.run.precision))
        self.model.requires_grad_(False).eval()
        assert self.space.decoder is not None
        self.decoder = self.space.decoder.requires_grad_(True).train()
        self.target_size = self.decoder.config.image_size
        self.pictures = self._pictures()
        self.lpips = LPIPS.from_folder(self._weights) if config.losses.lpips_weight else None
        discriminator = build_discriminator(config.critic, config.weights)
        self.critic = None
        if discriminator is not None:
            discriminator.to(self.device)
            self.critic = Critic(discriminator, config.critic, num_steps=config.run.num_steps)
        if self.lpips is not None:
            self.lpips.to(self.device)
        self.critic_loss = float("nan")
        self._seen: tuple[int, Tensor] | None = None

    @property
    def _weights(self) -> Path:
        assert self.config.weights is not None  # checked by the configuration
        return self.config.weights

    def _pictures(self) -> PictureFolder | None:
        config = self.config
        if config.images is not None:
            return PictureFolder(
                config.images,
                size=self.target_size,
                scale=config.crop_scale,
                seed=config.run.seed,
            )
        if self.source.grammar is None or self.target_size != self.space.image_size:
            raise ConfigError(
                f"images must name a folder of pictures: {config.init} has no world that is drawn "
                f"at {self.target_size} pixels a side"
            )
        return None

    def groups(self) -> list[ParameterGroup]:
        return parameter_groups([("decoder", list(self.decoder.parameters()))], self.decoder)

    def batch(self, step: int) -> Tensor:
        """Return pictures of the decoder's size, 8 bits, this rank's own."""
        place, count = self.ranks.place(step), self.config.batch_size
        if self.pictures is not None:
            return self.pictures.batch(place * count, count)
        return self._scenes(step_rng(self.config.run.seed, STREAM, place), count)

    def _scenes(self, rng: Any, count: int) -> Tensor:
        assert self.source.grammar is not None
        return render_samples(sample_scenes(rng, self.source.grammar, count))

    def loss(self, batch: Tensor, *, step: int, generator: Generator) -> LossReport:
        weights = self.config.losses
        target = pixels_of(batch.to(self.device), torch.float32)
        decoded = self.space.decode_unclamped(self._noised_latents(target, generator)).float()
        parts = self._reconstruction(decoded, target, step)
        loss = weights.l1_weight * parts["l1"] + weights.l2_weight * parts["l2"]
        if "lpips" in parts:
            loss = loss + weights.lpips_weight * parts["lpips"]
        if self.critic is not None and step >= weights.adversarial_start:
            verdict = self.critic.judge(2 * decoded - 1, generator)
            weight = adaptive_weight(
                loss,
                verdict,
                self.decoder.to_pixels.weight,
                largest=weights.largest_adaptive_weight,
                synchronise=self.config.critic.synchronise,
            )
            loss = loss + weights.adversarial_weight * weight * verdict
            parts |= {"adversarial": verdict, "adaptive_weight": weight}
        if self.critic is not None and step > self.config.critic.start:
            parts["critic"] = torch.tensor(self.critic_loss)
        self._seen = (step, batch)
        return LossReport(loss, parts, len(batch))

    def _reconstruction(self, decoded: Tensor, target: Tensor, step: int) -> dict[str, Tensor]:
        weights = self.config.losses
        error = decoded - target
        emphasis = 1 + weights.edge_weight * edge_strength(target) if weights.edge_weight else 1.0
        squared = error.square()
        parts = {"l1": (emphasis * error.abs()).mean(), "l2": (emphasis * squared).mean()}
        parts["psnr_db"] = -10 * squared.detach().mean().log10()
        if self.lpips is not None and step >= weights.lpips_start:
            parts["lpips"] = self.lpips(2 * target - 1, 2 * decoded - 1).mean()
        return parts

    @torch.no_grad()
    def _raw_features(self, target: Float[Tensor, "B 3 side side"]) -> Float[Tensor, "B N D"]:
        """Return the tower's features of pictures of the decoder's size."""
        size = self.space.image_size
        if size != self.target_size:
            target = F.interpolate(target, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return self.space.features(self.space.normalise(target)).float()

    @torch.no_grad()
    def _noised_latents(self, target: Tensor, generator: Generator) -> Float[Tensor, "B N D"]:
        raw = self._raw_features(target)
        scale = torch.rand((len(raw), 1, 1), generator=generator, device=self.device)
        scale = scale * self.config.max_noise
        scale[: round(self.config.clean_share * len(raw))] = 0
        noise = torch.randn(raw.shape, generator=generator, device=self.device)
        return self.space.standardise(raw + scale * noise)

    def before_step(self, step: int, engine: LocalEngine) -> None:
        """Let the critic learn from the pictures of the step before, as they are decoded now."""
        last = step - 1
        if self.critic is None or last < self.config.critic.start:
            return
        # After a restart the pictures of the last step are not at hand, but can be had again.
        batch = self._seen[1] if self._seen and self._seen[0] == last else self.batch(last)
        target = pixels_of(batch.to(self.device), torch.float32)
        rng = step_rng(self.config.run.seed, STREAM + 1, self.ranks.place(last))
        generator = Generator(self.device).manual_seed(int(rng.integers(2**62)))
        with torch.no_grad():
            latents = self.space.standardise(self._raw_features(target))
            decoded = self.space.decode_unclamped(latents).float()
        loss = self.critic.learn(2 * target - 1, 2 * decoded - 1, generator)
        self.critic_loss = loss.item()

    @torch.no_grad()
    def sample_grid(self, step: int) -> Image.Image:
        if self.pictures is not None:
            pictures = self.pictures.batch(0, GRID_PICTURES)
        else:
            rng = step_rng(self.config.run.seed, STREAM + 100, 0)
            pictures = self._scenes(rng, GRID_PICTURES)
        target = pixels_of(pictures.to(self.device), torch.float32)
        size = self.space.image_size
        if size != self.target_size:
            target = F.interpolate(target, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return reconstruction_grid(self.space, target)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.critic is None else {"critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.critic is not None and "critic" in state:
            self.critic.load_state_dict(state["critic"])

    def export(self, directory: Path) -> None:
        self.source.save(directory)


def _open(config: RAEDecoderStageConfig) -> LatentSource:
    if config.init is not None:
        return from_model(config.init, config.decoder)
    assert config.tower is not None
    assert config.decoder is not None
    return from_tower(
        config.tower,
        config.decoder,
        image_size=config.image_size,
        encoder_size=config.encoder_size,
    )
