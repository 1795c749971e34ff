"""Connector and DiT as one module: hidden states in, latents out.

Shape legend:
    B batch      Q queries      H language-model width      C condition width
    N latent tokens      D latent channels
"""

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from metaquery.alignment import FeatureDistance, feature_distances
from metaquery.connector import Connector, ConnectorConfig
from metaquery.dit import DiT, DiTConfig
from metaquery.flow import (
    BASE_DIM,
    MIN_TIME,
    Latents,
    TimeDistribution,
    Times,
    VelocityFn,
    dimension_shift,
    interpolate,
    sample_times,
    velocity_error,
    velocity_target,
)
from metaquery.guidance import ALWAYS, ConditionedFn, Interval, classifier_free, internal
from metaquery.sampler import Solver, integrate, time_grid


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorConfig:
    """Connector, DiT and the flow they are trained with.

    Args:
        connector: From hidden states to the condition.
        dit: The denoiser.
        time_distribution: Of training times, before the shift.
        condition_dropout: Share of training samples whose condition becomes the
            learned null, so that classifier-free guidance is possible.
        base_dim: Latent size at which the timestep shift is 1; the shift is
            sqrt(tokens * channels / base_dim).
        exit_weight: Of the early exit's loss, where the DiT has one.
        exit_only: Train the early exit alone, on a model that stays as it is.
        repa_weight: Of the distance to another encoder's features, where the DiT projects them.
        repa_distance: Mean squared error (RAEv2), or cosine (REPA, arXiv:2410.06940).
    """

    connector: ConnectorConfig
    dit: DiTConfig
    time_distribution: TimeDistribution = "logit_normal"
    condition_dropout: float = 0.1
    base_dim: int = BASE_DIM
    exit_weight: float = 1.0
    exit_only: bool = False
    repa_weight: float = 0.5
    repa_distance: FeatureDistance = "mse"

    def __post_init__(self) -> None:
        if self.connector.out_dim != self.dit.cond_dim:
            raise ValueError(
                f"connector.out_dim ({self.connector.out_dim}) must equal "
                f"dit.cond_dim ({self.dit.cond_dim})"
            )
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout must be in [0, 1), got {self.condition_dropout}")
        if self.exit_only and not self.dit.exit_depth:
            raise ValueError("exit_only needs an early exit; set dit.exit_depth")
        if self.base_dim < 1:
            raise ValueError(f"base_dim must be at least 1, got {self.base_dim}")
        if self.time_distribution not in get_args(TimeDistribution):
            allowed = ", ".join(get_args(TimeDistribution))
            raise ValueError(
                f"time_distribution must be one of {allowed}, got {self.time_distribution!r}"
            )

    @property
    def timestep_shift(self) -> float:
        """The shift in use."""
        dit = self.dit
        return dimension_shift(dit.num_latent_tokens, dit.latent_dim, self.base_dim)


class LatentGenerator(nn.Module):
    """Draw latents from hidden states at the query positions."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.connector = Connector(config.connector)
        self.dit = DiT(config.dit)

    def condition(self, states: Float[Tensor, "B Q H"]) -> Float[Tensor, "B Q C"]:
        """Return what the DiT is conditioned on.

        Raises:
            ValueError: If there is neither one query nor one per latent token.
        """
        num_queries, num_tokens = states.shape[1], self.config.dit.num_latent_tokens
        if num_queries not in (1, num_tokens):
            raise ValueError(
                f"got hidden states of {num_queries} queries; the DiT takes one for each of its "
                f"{num_tokens} latent tokens, or a single one for all"
            )
        condition: Tensor = self.connector(states)
        return condition

    def velocity(
        self, x_t: Latents, t: Times, condition: Float[Tensor, "B Q C"]
    ) -> Float[Tensor, "B N D"]:
        """Return the DiT's velocity; it casts latents to its dtype, times never."""
        velocity: Tensor = self.dit(x_t, t, condition)
        return velocity

    def velocities(
        self, x_t: Latents, t: Times, condition: Float[Tensor, "B Q C"]
    ) -> Float[Tensor, "2 B N D"]:
        """Return the velocities of the last layer and of the early exit."""
        branches: dict[str, Tensor] = {}
        full = self.dit(x_t, t, condition, branches=branches)
        return torch.stack([full, branches["exit"]])

    def train_exit_only(self) -> None:
        """Freeze all but the early exit."""
        self.requires_grad_(False)
        self.dit.exit.requires_grad_(True)

    def null_condition(self, batch: int) -> Float[Tensor, "{batch} 1 C"]:
        """Return the learned condition that stands for none."""
        return self.dit.null_condition.expand(batch, 1, -1)

    def losses(
        self,
        states: Float[Tensor, "B Q H"],
        x_0: Latents,
        *,
        drop: Bool[Tensor, "B"] | None = None,
        t: Times | None = None,
        noise: Latents | None = None,
        features: Float[Tensor, "B N F"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B"]:
        """Return each sample's loss in float32: flow matching, plus what the DiT's branches add.

        Args:
            states: Hidden states of the language model at the query positions.
            x_0: Standardised latents of the true images.
            drop: True where the null condition replaces the sample's own; drawn
                at ``condition_dropout`` in training mode when None.
            t: Times, already shifted; drawn when None.
            noise: Drawn when None.
            features: Raw features of the true images by REPA's encoder; ``x_0`` when None.
            generator: Source of the draws, on the device of ``x_0``.
        """
        if t is None:
            t = sample_times(
                len(x_0),
                distribution=self.config.time_distribution,
                shift=self.config.timestep_shift,
                generator=generator,
                device=x_0.device,
            )
        if noise is None:
            noise = torch.randn(x_0.shape, generator=generator, device=x_0.device)
        if drop is None and self.training:
            # Also at dropout 0: gradient reducers wait for every parameter, the null too.
            uniform = torch.rand(len(x_0), generator=generator, device=x_0.device)
            drop = uniform < self.config.condition_dropout
        sample = interpolate(x_0, noise, t)
        target = velocity_target(sample, min_time=self.min_time)
        condition = self.condition(states.detach() if self.config.exit_only else states)
        if self.config.exit_only:
            return velocity_error(self.dit(sample.x_t, t, condition, drop, head="exit"), target)
        dit = self.config.dit
        branches: dict[str, Tensor] | None = {} if dit.exit_depth or dit.repa_depth else None
        losses = velocity_error(self.dit(sample.x_t, t, condition, drop, branches=branches), target)
        if dit.exit_depth and branches:
            losses = losses + self.config.exit_weight * velocity_error(branches["exit"], target)
        if dit.repa_depth and branches:
            reference = x_0 if features is None else features
            distance = self.config.repa_distance
            distances = feature_distances(branches["repa"], reference, distance=distance)
            losses = losses + self.config.repa_weight * distances
        return losses

    @property
    def min_time(self) -> float:
        """Shortest time by which the model divides; 0 for one that predicts velocities."""
        return MIN_TIME if self.config.dit.prediction == "x_0" else 0.0

    def loss(
        self,
        states: Float[Tensor, "B Q H"],
        x_0: Latents,
        *,
        drop: Bool[Tensor, "B"] | None = None,
        t: Times | None = None,
        noise: Latents | None = None,
        features: Float[Tensor, "B N F"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean of :meth:`losses`."""
        return self.losses(
            states, x_0, drop=drop, t=t, noise=noise, features=features, generator=generator
        ).mean()

    forward = loss

    @torch.no_grad()
    def velocity_fn(
        self,
        states: Float[Tensor, "B Q H"],
        *,
        uncond_states: Float[Tensor, "B Q H"] | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Interval = ALWAYS,
        guidance_rescale: float = 0.0,
        exit_scale: float = 1.0,
        exit_interval: Interval = ALWAYS,
        model: ConditionedFn | None = None,
    ) -> VelocityFn:
        """Bind the condition and the guidance for sampling; the connector runs once, here.

        Args:
            states: Hidden states at the query positions.
            uncond_states: Hidden states of an empty prompt; the learned null when None.
            guidance_scale: Classifier-free guidance; 1 is the conditional model alone.
            guidance_interval: Times at which guidance is on.
            guidance_rescale: See :func:`metaquery.guidance.extrapolate`.
            exit_scale: Guidance away from the early exit; 1 for none.
            exit_interval: Times at which that is on.
            model: Stands in for :meth:`velocity`, or for :meth:`velocities` with an
                ``exit_scale``, for example to count evaluations.

        Raises:
            ValueError: There is an ``exit_scale`` but no early exit.
        """
        condition = self.condition(states)
        if uncond_states is None:
            unconditional = self.null_condition(len(states)).expand_as(condition)
        else:
            unconditional = self.condition(uncond_states)
        unconditional = unconditional.to(condition.dtype)
        if exit_scale != 1.0:
            if not self.config.dit.exit_depth:
                raise ValueError(f"exit_scale must be 1 without an early exit, got {exit_scale}")
            return internal(
                model or self.velocities,
                condition,
                exit_scale,
                interval=exit_interval,
                unconditional=unconditional,
                guidance_scale=guidance_scale,
                guidance_interval=guidance_interval,
                rescale=guidance_rescale,
            )
        return classifier_free(
            model or self.velocity,
            condition,
            unconditional,
            guidance_scale,
            interval=guidance_interval,
            rescale=guidance_rescale,
        )

    def times(self, num_steps: int) -> Float[Tensor, "T"]:
        """Return the sampling grid of this model, from 1 down to 0."""
        return time_grid(num_steps, self.config.timestep_shift)

    @torch.no_grad()
    def sample(
        self,
        states: Float[Tensor, "B Q H"],
        *,
        noise: Latents,
        num_steps: int = 50,
        solver: Solver = "euler",
        guidance_scale: float = 1.0,
        guidance_interval: Interval = ALWAYS,
        guidance_rescale: float = 0.0,
        exit_scale: float = 1.0,
        exit_interval: Interval = ALWAYS,
        uncond_states: Float[Tensor, "B Q H"] | None = None,
    ) -> Latents:
        """Return standardised latents drawn from ``noise``, float32."""
        velocity_fn = self.velocity_fn(
            states,
            uncond_states=uncond_states,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            exit_scale=exit_scale,
            exit_interval=exit_interval,
        )
        return integrate(velocity_fn, noise, self.times(num_steps), solver=solver)
