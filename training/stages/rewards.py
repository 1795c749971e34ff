"""Learning to draw from verdicts on the model's own pictures: DiffusionNFT (arXiv:2509.16117).

A true picture says what a prompt may look like; a verdict on a picture that the model drew says
what it gets wrong. The samples are drawn without guidance, so the model learns to do without.

Shape legend:
    P prompts      K pictures of a prompt      R rows trained on      N latent tokens
    D latent channels
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from metaquery.flow import (
    FlowSample,
    interpolate,
    reinforced_target,
    sample_times,
    velocity_error,
    velocity_target,
)
from unimm.layout import Layout
from unimm.scenes import SKILLS, BlendedPrompt, Prompt

from ..data.blending import BlendRows, check_blends
from ..data.joint import tile_states
from ..data.scenes import check_weights
from .bank import Judgement, judge_latents
from .drawing import Drawer


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """How the generator learns from verdicts on what it draws.

    Args:
        num_prompts: Prompts drawn for at each step; 0 learns from true pictures alone.
        num_blends: How many of these lie between two prompts that differ in colours alone, in
            colours that the detector sees and tells apart.
        pictures_per_prompt: Pictures of each; a verdict counts against the others of its prompt.
        rows: Pictures of these that a step learns from, at one time each. Those of prompts
            with both right and wrong pictures come first: the others teach nothing.
        num_steps: Sampler steps.
        strength: How far a verdict moves the velocity, 1 / beta of the paper.
        weight: Of the loss.
        skill_weights: Weights of the prompts' skills, 1 where nothing is said.
    """

    num_prompts: int = 0
    num_blends: int = 0
    pictures_per_prompt: int = 12
    rows: int = 128
    num_steps: int = 10
    strength: float = 1.0
    weight: float = 1.0
    skill_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_weights("skill_weights", self.skill_weights, SKILLS)
        if self.num_prompts < 0:
            raise ValueError(f"num_prompts must not be negative, got {self.num_prompts}")
        check_blends(self.num_blends, self.num_prompts, self.skill_weights)
        if self.pictures_per_prompt < 2:
            raise ValueError(
                f"pictures_per_prompt must be at least 2, for a verdict counts against the "
                f"others of its prompt, got {self.pictures_per_prompt}"
            )
        drawn = self.num_prompts * self.pictures_per_prompt
        if self.num_prompts and not 0 < self.rows <= drawn:
            raise ValueError(f"rows must be from 1 to the {drawn} pictures drawn, got {self.rows}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        for name in ("strength", "weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Rollout:
    """Pictures that the model drew, judged, and what follows for its velocity.

    Args:
        prompts: What each picture is judged by, those of a prompt side by side, (P*K).
        latents: The pictures, (P*K, N, D).
        judgement: The detector's word on each.
        layout: Rows of the P prompts with queries after them.
        blends: Where the last of these rows are moved to; None without blends.
        prompt_index: The row of ``layout`` for each picture that is learned from, (R).
        sample: Noised latents of these, and their times.
        target: The velocity to learn there, (R, N, D).
    """

    prompts: list[Prompt]
    latents: Tensor
    judgement: Judgement
    layout: Layout
    blends: BlendRows | None
    prompt_index: Tensor
    sample: FlowSample
    target: Tensor


@torch.no_grad()
def draw_rollout(
    drawer: Drawer,
    prompts: Sequence[Prompt],
    config: RewardConfig,
    generator: Generator,
    *,
    blends: Sequence[BlendedPrompt] = (),
) -> Rollout:
    """Draw pictures with the model as it is, judge them, and say where its velocity should go.

    Those of the blends come last.
    """
    copies = config.pictures_per_prompt
    layout = drawer.prompts([*prompts, *(blend.prompt for blend in blends)])
    moved = drawer.blends(blends)
    states = tile_states(drawer.states(layout, moved), copies)
    latents = drawer.sample(
        states, num_steps=config.num_steps, guidance_scale=1.0, generator=generator
    )
    judged = [*prompts, *(blend.judged for blend in blends)]
    repeated = [prompt for prompt in judged for _ in range(copies)]
    judgement = judge_latents(drawer.model.latents, repeated, latents)
    advantages = group_advantages(
        judgement.correct.view(-1, copies), is_judged=~judgement.held_out.view(-1, copies)
    )
    advantages = advantages.flatten().to(latents.device)
    kept = most_telling(advantages, config.rows, generator)
    old = drawer.model.generator
    noise = torch.randn(latents[kept].shape, generator=generator, device=latents.device)
    times = sample_times(
        len(kept),
        distribution="uniform",
        shift=old.config.timestep_shift,
        generator=generator,
        device=latents.device,
    )
    sample = interpolate(latents[kept], noise, times)
    target = reinforced_target(
        old.velocity(sample.x_t, times, old.condition(states[kept])).float(),
        velocity_target(sample, min_time=old.min_time),
        advantages[kept],
        strength=config.strength,
    )
    return Rollout(repeated, latents, judgement, layout, moved, kept // copies, sample, target)


def group_advantages(
    correct: Bool[Tensor, "P K"], is_judged: Bool[Tensor, "P K"]
) -> Float[Tensor, "P K"]:
    """Return how much better each picture is than its prompt's mean, 2 r - 1 of the paper.

    Within (-1, 1), and 0 on the mean of every prompt: with rewards of 0 and 1 there is nothing to
    divide by and to clip, which would weigh failures of hard prompts more than their successes.
    0 throughout for prompts whose pictures are all right or all wrong, and for pictures that are
    not to be judged since they show what is held out of training.
    """
    rewards, counted = correct.float(), is_judged.float()
    mean = (rewards * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
    return (rewards - mean) * counted


def most_telling(
    advantages: Float[Tensor, "B"], count: int, generator: Generator
) -> Int[Tensor, "R"]:
    """Return numbers of pictures, at random, those with an advantage before those without."""
    order = torch.rand(len(advantages), generator=generator, device=advantages.device)
    return (order + (advantages == 0)).argsort()[:count]


def reward_loss(drawer: Drawer, rollout: Rollout) -> Float[Tensor, ""]:
    """Return the mean squared error of the model's velocity at the rollout's targets."""
    generator, sample = drawer.model.generator, rollout.sample
    states = drawer.states(rollout.layout, rollout.blends)[rollout.prompt_index]
    velocity = generator.velocity(sample.x_t, sample.t, generator.condition(states))
    return velocity_error(velocity, rollout.target).mean()
