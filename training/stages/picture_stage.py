"""What stages have in common that learn from true pictures alone."""

from typing import Any

import torch
from PIL import Image

from unimm.model import UniMM
from unimm.scenes import Grammar

from ..config import RunConfig
from ..data.scenes import pixels_of, render_samples, sample_scenes, step_rng
from ..engine import LocalEngine
from ..grids import reconstruction_grid

STREAM = 100
"""Of the pictures of grids, which no stage learns from."""


class PictureStage:
    """A stage without any state of its own: its batches are a function of the step alone.

    Args:
        run: Of the stage.
        unimm: The model whose latent space encodes the pictures.
        grammar: Of the pictures.
    """

    def __init__(self, run: RunConfig, unimm: UniMM, grammar: Grammar) -> None:
        self.run, self.unimm, self.grammar = run, unimm, grammar

    def before_step(self, step: int, engine: LocalEngine) -> None:
        """Nothing to do between steps."""

    @torch.no_grad()
    def sample_grid(self, step: int) -> Image.Image:
        """Return a fixed set of pictures, and below each what encoding and decoding leave of it."""
        rng = step_rng(self.run.seed, STREAM, 0)
        pictures = render_samples(sample_scenes(rng, self.grammar, 32)).to(self.unimm.device)
        return reconstruction_grid(self.unimm.latents, pixels_of(pictures, self.unimm.dtype))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing beyond the engine's state."""
