"""Holding a language model to what it told its generator: learning without forgetting.

Reading takes far more steps than drawing leaves time for, and every step changes the hidden states
that the generator is conditioned on. A copy of the model as it was says what they should stay,
at the price of one pass over the prompts; it takes no pictures.

Li & Hoiem, "Learning without Forgetting" (arXiv:1606.09282); here the old task's answers are
conditions instead of classes.

Shape legend:
    B batch      Q queries      H language-model width
"""

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor

from unimm.layout import Layout
from unimm.model import UniMM


class KeptConditions:
    """The conditions that a model gave its generator when this was made.

    Args:
        model: Its language model and queries are copied; generator and latent space are shared,
            and must stay as they are.
    """

    def __init__(self, model: UniMM) -> None:
        shared = {id(part): part for part in (model.generator, model.latents)}
        self._before = deepcopy(model, shared).requires_grad_(False).eval()

    def distance(self, states: Float[Tensor, "B Q H"], layout: Layout) -> Float[Tensor, ""]:
        """Return the squared distance of conditions from those of before, by their variance.

        Args:
            states: Hidden states at the queries, now, for the prompts of ``layout`` in its order,
                be it in these rows or in the middle of a chat.
            layout: At least two rows of prompts with queries after them.

        Returns:
            0 where nothing has changed, 1 where the conditions say no more of a prompt than their
            mean does.
        """
        before = self._before
        with torch.no_grad():
            then = before.query_states(before(layout), layout)
            kept = before.generator.condition(then).float()
        told = before.generator.condition(states).float()
        return (told - kept).square().mean() / kept.var(dim=0, unbiased=False).mean()
