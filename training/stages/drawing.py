"""Pictures that the model in training draws, and what it says of them.

Shape legend:
    B batch      Q queries      H language-model width      N latent tokens      D latent channels
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from unimm.chat import ChatTemplate
from unimm.layout import Layout
from unimm.model import UniMM
from unimm.scenes import BlendedPrompt, Grammar, Prompt

from ..data.blending import BlendRows, blend_rows, blended_states
from ..data.joint import JointBatchConfig, matching_layout, tile_states
from ..data.reading import conversations
from ..data.scenes import SceneSample


class Drawer:
    """Lays out prompts and verdicts for a model in rows of fixed lengths, and draws.

    Args:
        model: Drawn with as it is at the time of a call.
        template: Of its chats.
        lengths: Lengths of the rows.
    """

    def __init__(self, model: UniMM, template: ChatTemplate, lengths: JointBatchConfig) -> None:
        self.model, self.template, self.lengths = model, template, lengths

    def prompts(self, prompts: Sequence[Prompt]) -> Layout:
        """Return rows of prompts with queries after them."""
        rows = [self.template.draw(prompt.text) for prompt in prompts]
        length = self.lengths.drawing_length
        layout = self.model.lay_out(rows, pad_id=self.template.pad_id, length=length)
        return layout.to(self.model.device)

    def verdicts(self, cases: list[tuple[str, bool]]) -> Layout:
        """Return yes/no rows for prompts and verdicts."""
        length = self.lengths.matching_length
        layout = matching_layout(cases, template=self.template, model=self.model, length=length)
        return layout.to(self.model.device)

    def questions(
        self, samples: Sequence[SceneSample], rng: np.random.Generator, grammar: Grammar
    ) -> Layout:
        """Return a row of questions and the prompt for each picture."""
        talk = replace(self.lengths, caption_share=0.0, prompt_share=1.0)
        forks = [conversations(one, self.template, rng, grammar, talk) for one in samples]
        layout = self.model.lay_out_packed(
            [[fork] for fork in forks],
            pad_id=self.template.pad_id,
            length=self.lengths.reading_length,
        )
        return layout.to(self.model.device)

    def blends(self, blends: Sequence[BlendedPrompt]) -> BlendRows | None:
        """Return rows to move the last ones of :meth:`prompts` to; None where there is none."""
        if not blends:
            return None
        others = self.prompts([blend.other for blend in blends])
        return blend_rows(others, blends).to(self.model.device)

    def states(self, layout: Layout, blends: BlendRows | None = None) -> Float[Tensor, "B Q H"]:
        """Return the hidden states at the queries of rows of prompts."""
        states = self.model.query_states(self.model(layout), layout)
        return states if blends is None else self.moved(states, blends)

    def moved(self, states: Float[Tensor, "B Q H"], blends: BlendRows) -> Float[Tensor, "B Q H"]:
        """Return states of which the last ones are moved towards other prompts'."""
        return blended_states(states, self.states(blends.others), blends.shares)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[Prompt],
        *,
        num_steps: int,
        guidance_scale: float,
        generator: Generator,
        copies: int = 1,
    ) -> Float[Tensor, "B N D"]:
        """Return the latents of some pictures of each prompt, those of a prompt side by side."""
        states = tile_states(self.states(self.prompts(prompts)), copies)
        return self.sample(
            states, num_steps=num_steps, guidance_scale=guidance_scale, generator=generator
        )

    def sample(
        self,
        states: Float[Tensor, "B Q H"],
        *,
        num_steps: int,
        guidance_scale: float,
        generator: Generator,
    ) -> Float[Tensor, "B N D"]:
        """Return latents drawn from hidden states at the queries."""
        space = self.model.latents
        shape = (len(states), space.num_tokens, space.dim)
        noise = torch.randn(shape, generator=generator, device=self.model.device)
        return self.model.generator.sample(
            states, noise=noise, num_steps=num_steps, guidance_scale=guidance_scale
        )

    @torch.no_grad()
    def log_odds(
        self, prompts: Sequence[Prompt], latents: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B"]:
        """Return how far the model believes each picture to match its prompt."""
        layout = self.verdicts([(prompt.text, True) for prompt in prompts])
        hidden = self.model(layout, latents.to(self.model.dtype))
        yes, no = self.template.yes_ids[0], self.template.no_ids[0]
        rows, columns = (layout.labels[:, 1:] == yes).nonzero(as_tuple=True)
        logits: Tensor = self.model.lm.logits(hidden[rows, columns])
        return logits[:, yes] - logits[:, no]
