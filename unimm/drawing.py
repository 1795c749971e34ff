"""Prompts to hidden states, hidden states to latents.

Shape legend:
    K candidates      Q queries      H language-model width      N latent tokens
    D latent channels
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from metaquery.flow import VelocityFn
from metaquery.official import official_schedule
from metaquery.sampler import EvaluationCounter, euler_step, steps
from unimm.batching import batched, denoising_batch_size, exact_batch_size
from unimm.model import UniMM
from unimm.options import ResolvedOptions
from unimm.placement import device_of
from unimm.reader import Reader
from unimm.search import Draw, DrawingTask, Drawn
from unimm.seeds import draw_noise

StepHook = Callable[[int], None]
"""Called with the number of candidate steps just done; may raise to stop the work."""

Progress = Callable[[int, int], None]
"""Called with (denoising steps done, of all); may raise to stop the work."""


@torch.no_grad()
def read_prompts(
    reader: Reader, prompts: Sequence[str], *, first_index: int, batch_size: int
) -> list[DrawingTask]:
    """Run prompts and queries through the language model, each once."""
    model = reader.model
    tasks: list[DrawingTask] = []
    for chunk in batched(prompts, exact_batch_size(batch_size, model.device, model.dtype)):
        turns = [reader.template.draw(prompt) for prompt in chunk]
        if reader.template.style.preface:
            turns = [reader.with_preface(turn) for turn in turns]
        state = reader.read(turns)
        for prompt, states in zip(chunk, state.hidden[:, -model.config.num_queries :], strict=True):
            index = first_index + len(tasks)
            tasks.append(DrawingTask(index=index, prompt=prompt, states=states))
    return tasks


class LatentSampler:
    """Draws candidates with a model's generator.

    Args:
        model: The model.
        options: Steps, guidance, sampler and batch size.
        on_step: See :data:`StepHook`.
    """

    def __init__(
        self, model: UniMM, options: ResolvedOptions, *, on_step: StepHook | None = None
    ) -> None:
        self.model = model
        self.options = options
        self.on_step = on_step

    @torch.no_grad()
    def sample(self, draws: Sequence[Draw]) -> list[Drawn]:
        """Return finished candidates, float32, on the generator's device."""
        size = denoising_batch_size(self.options.batch_size, self.model.generator)
        drawn: list[Drawn] = []
        for chunk in batched(draws, size):
            drawn += self._sample_batch(chunk)
        return drawn

    def _sample_batch(self, draws: Sequence[Draw]) -> list[Drawn]:
        model, options = self.model, self.options
        generator = model.generator
        is_official = options.sampler == "official"  # which never guides
        exit_scale = 1.0 if is_official else options.exit_scale
        # Both velocities of a model with an exit come from one evaluation, and count as one.
        counter = EvaluationCounter(
            generator.velocity if exit_scale == 1.0 else generator.velocities
        )
        velocity_fn = generator.velocity_fn(
            torch.stack([draw.task.states for draw in draws]).to(device_of(model, "generator")),
            guidance_scale=1.0 if is_official else options.guidance_scale,
            guidance_interval=options.guidance_interval,
            exit_scale=exit_scale,
            exit_interval=options.exit_interval,
            model=counter,
        )
        x_t = noise = self._noise(draws)
        for state in self._path(velocity_fn, noise):
            x_t = state
            if self.on_step is not None:
                self.on_step(len(draws))
        nfe = counter.rows // len(draws)
        return [Drawn(latents=latents, nfe=nfe) for latents in x_t]

    def _path(self, velocity_fn: VelocityFn, noise: Tensor) -> Iterator[Tensor]:
        """Yield the latents after every step."""
        generator, options = self.model.generator, self.options
        if options.sampler != "official":
            grid = generator.times(options.num_steps)
            for step in steps(velocity_fn, noise, grid, solver=options.sampler):
                yield step.x_t
            return
        x_t = noise.float()
        shift = generator.config.timestep_shift
        for t, t_next in official_schedule(options.num_steps, shift):
            times = x_t.new_full((2, len(x_t)), t)
            times[1] = t_next
            x_t, _ = euler_step(velocity_fn, x_t, times[0], times[1])
            yield x_t

    def _noise(self, draws: Sequence[Draw]) -> Float[Tensor, "K N D"]:
        latents = self.model.config.latents
        noise = draw_noise([draw.seed for draw in draws], latents.num_tokens, latents.dim)
        return noise.to(device_of(self.model, "generator"))


def count_steps(progress: Progress | None, total: int) -> StepHook | None:
    """Return a hook that adds denoising steps up and reports them."""
    if progress is None:
        return None
    done = 0

    def on_step(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return on_step
