"""A discriminator with its own optimiser and schedule, taught beside a decoder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from ..config import OptimizerConfig
from ..optimizer import ParameterGroup, build_adamw, lr_factor
from .adversarial import (
    average_over_ranks,
    generator_loss,
    hinge_loss,
    quantise,
    vanilla_loss,
)
from .augment import augment

CriticKind = Literal["none", "dino", "patch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticConfig:
    """A discriminator and how it learns.

    Args:
        kind: ``dino``: heads on a frozen DINO ViT-S/8, whose weights must be given; ``patch``: a
            small convolutional one from scratch; ``none``: no adversarial loss.
        start: First step on which it learns.
        loss: What it minimises.
        optimizer: AdamW and its schedule, which counts the critic's own updates over the length
            of the run: its warm-up begins with it.
        width: First width of the ``patch`` critic.
        augment: Whether it sees pictures moved and recoloured at random.
        synchronise: Whether ranks share one critic; off, each rank teaches its own, as RAE's
            released code does.
    """

    kind: CriticKind = "dino"
    start: int = 0
    loss: Literal["hinge", "vanilla"] = "hinge"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    width: int = 32
    augment: bool = True
    synchronise: bool = True

    def __post_init__(self) -> None:
        if self.optimizer.hidden != "adamw":
            raise ValueError(
                f"critic.optimizer.hidden must be adamw, got {self.optimizer.hidden}: a critic's "
                f"layers are convolutions"
            )


def build_discriminator(config: CriticConfig, weights: Path | None) -> nn.Module | None:
    """Return the discriminator that ``config`` names.

    Raises:
        CheckpointError: DINO's weights are not in the folder ``weights``.
    """
    match config.kind:
        case "none":
            return None
        case "patch":
            from .discriminator import PatchDiscriminator

            return PatchDiscriminator(config.width)
        case "dino":
            from .dino import DinoFeatures
            from .discriminator import DinoDiscriminator

            assert weights is not None
            return DinoDiscriminator(DinoFeatures.from_folder(weights))
        case _:
            assert_never(config.kind)


class Critic:
    """Judge decoded pictures, and learn to.

    Args:
        model: The discriminator.
        config: How it learns.
        num_steps: Of the run, over which its schedule is laid.
    """

    def __init__(self, model: nn.Module, config: CriticConfig, *, num_steps: int) -> None:
        self.model = model.requires_grad_(False).eval()
        self.config = config
        self.num_steps = num_steps
        self.updates = 0
        self.parameters = tuple(model.parameters())
        group = ParameterGroup("critic", self.parameters)
        self.optimizer = build_adamw([group], [self.parameters], config.optimizer)

    def judge(
        self, fake: Float[Tensor, "B 3 height width"], generator: Generator
    ) -> Float[Tensor, ""]:
        """Return the decoder's adversarial loss of pictures in [-1, 1]."""
        loss: Tensor = generator_loss(self.model(self._seen(fake, generator)))
        return loss

    def learn(
        self,
        real: Float[Tensor, "B 3 height width"],
        fake: Float[Tensor, "B 3 height width"],
        generator: Generator,
    ) -> Float[Tensor, ""]:
        """Take one step on pictures in [-1, 1] and return the loss; a bad one changes nothing.

        What is decoded is rounded to 8 bits first: real pictures are, and nothing else about
        them is to be learnt from that.
        """
        seen = [self._seen(real, generator), self._seen(quantise(fake.detach()), generator)]
        self.model.requires_grad_(True).train()
        logits = self.model(torch.cat(seen))
        criterion = hinge_loss if self.config.loss == "hinge" else vanilla_loss
        loss = criterion(*logits.chunk(2))
        torch.autograd.backward(loss)
        self._update()
        self.model.requires_grad_(False).eval()
        return loss.detach()

    def _seen(self, pixels: Tensor, generator: Generator) -> Tensor:
        return augment(pixels, generator=generator) if self.config.augment else pixels.float()

    @torch.no_grad()
    def _update(self) -> None:
        config = self.config.optimizer
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.config.synchronise:
            average_over_ranks(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        if bool(torch.isfinite(norm)):
            if 0 < config.grad_clip < norm.item():
                torch.nn.utils.clip_grads_with_norm_(self.parameters, config.grad_clip, norm)
            factor = lr_factor(self.updates, self.num_steps, config)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            self.optimizer.step()
        self.updates += 1
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return all that resuming needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` was called."""
        self.model.load_state_dict(state["model"])
        groups = [(g["peak_lr"], g["weight_decay"]) for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        # A resumed run may change these two; the file must not bring the old ones back.
        for group, (peak, decay) in zip(self.optimizer.param_groups, groups, strict=True):
            group["peak_lr"], group["weight_decay"] = peak, decay
        self.updates = int(state["updates"])
