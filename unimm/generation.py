"""From prompts that the language model has read to pictures.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unimm.drawing import LatentSampler, StepHook
from unimm.image import pixels_to_images
from unimm.options import ResolvedOptions
from unimm.reader import Reader
from unimm.search import BestOfN, Candidate, Draw, DrawingTask, Drawn
from unimm.sight import PixelVerifier, decode_latents
from unimm.verify import Verifier, build_verifier

PHASES = ("prompt", "denoise", "verify", "decode")


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """A picture and how it came about.

    Args:
        prompt: What was asked for.
        seed: Seed that the candidates' own seeds derive from.
        image: The winner, decoded.
        latents: The winner, float32 on the CPU.
        candidates: All of them; their latents are on the CPU, too.
        chosen: Index of the winner.
        nfe: Denoiser evaluations of all candidates, counted as in
            :class:`unimm.search.Candidate`.
        pixel_decodes: Pictures that were decoded: the winner, and all candidates where the model
            cannot read what it draws.
        seconds: Spent on each of ``PHASES``; prompts that shared a batch share its time.
    """

    prompt: str
    seed: int
    image: Image.Image
    latents: Float[Tensor, "N D"]
    candidates: tuple[Candidate, ...]
    chosen: int
    nfe: int
    pixel_decodes: int
    seconds: dict[str, float]

    @property
    def score(self) -> float | None:
        """The winner's score."""
        return self.candidates[self.chosen].score


class Stopwatch:
    """Adds up the seconds of named phases.

    Args:
        device: Waited for at both ends of a phase, since a GPU works ahead.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self.seconds[name] += time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _TimedSampler:
    def __init__(self, sampler: LatentSampler, watch: Stopwatch) -> None:
        self.sampler, self.watch = sampler, watch

    def sample(self, draws: Sequence[Draw]) -> list[Drawn]:
        with self.watch.phase("denoise"):
            return self.sampler.sample(draws)


class _TimedVerifier:
    def __init__(self, verifier: Verifier, watch: Stopwatch) -> None:
        self.verifier, self.watch = verifier, watch

    def score(self, prompt: str, latents: Float[Tensor, "K N D"]) -> Float[Tensor, "K"]:
        with self.watch.phase("verify"):
            return self.verifier.score(prompt, latents)


def draw_pictures(
    reader: Reader,
    tasks: Sequence[DrawingTask],
    options: ResolvedOptions,
    watch: Stopwatch,
    *,
    on_step: StepHook | None = None,
) -> list[Generation]:
    """Search for the best latents of each task and decode the winners, and only them.

    Args:
        reader: Model and chat template.
        tasks: Prompts that the language model has read.
        options: How to draw.
        watch: Gets the time of each phase; already holds that of the prompts.
        on_step: Called after every denoising step.
    """
    verifier = build_verifier(options.verifier, reader, batch_size=options.batch_size)
    if reader.model.vision is not None:
        verifier = PixelVerifier(verifier, reader.model, batch_size=options.batch_size)
    selections = BestOfN(options.best_of).search(
        tasks,
        sampler=_TimedSampler(LatentSampler(reader.model, options, on_step=on_step), watch),
        verifier=_TimedVerifier(verifier, watch),
        seed=options.seed,
    )
    with watch.phase("decode"):
        winners = torch.stack([selection.winner.latents for selection in selections])
        pixels = decode_latents(reader.model, winners, batch_size=options.batch_size)
        images = pixels_to_images(pixels)
    share = {phase: seconds / len(tasks) for phase, seconds in watch.seconds.items()}
    return [
        Generation(
            prompt=task.prompt,
            seed=options.seed,
            image=image,
            latents=selection.winner.latents.cpu(),
            candidates=tuple(replace(c, latents=c.latents.cpu()) for c in selection.candidates),
            chosen=selection.chosen,
            nfe=selection.nfe,
            pixel_decodes=1 + (0 if reader.model.vision is None else len(selection.candidates)),
            seconds=share,
        )
        for task, selection, image in zip(tasks, selections, images, strict=True)
    ]
