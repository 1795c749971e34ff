"""Let the language model read sequences and write text.

Shape legend:
    B batch      I pictures read      N latent tokens      D latent channels      Q queries
    H language-model width      V vocabulary
"""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unimm.chat import ChatTemplate, ImageSegment, Segment, TextSegment
from unimm.errors import UserError
from unimm.language import State
from unimm.layout import sequence_length
from unimm.model import UniMM
from unimm.options import TextOptions


class Reader:
    """A model and its chat template, as one thing that reads and writes.

    Args:
        model: The model.
        template: Its turns.
    """

    def __init__(self, model: UniMM, template: ChatTemplate) -> None:
        self.model = model
        self.template = template

    def length(self, sequence: Sequence[Segment]) -> int:
        """Return how many positions a sequence takes."""
        return sequence_length(
            sequence,
            num_image_tokens=self.model.config.seen.num_tokens,
            num_queries=self.model.config.num_queries,
        )

    def check_prompt(self, prompt: str, *sequences: Sequence[Segment]) -> None:
        """Raise UserError if a sequence that holds the prompt exceeds the model's context."""
        context = self.model.lm.context_length
        excess = max(self.length(sequence) for sequence in sequences) - context
        if excess > 0:
            tokens = len(self.template.encode(prompt))
            limit = max(tokens - excess, 0)
            raise UserError(
                f"the prompt has {tokens} tokens; at most {limit} fit into the model's context of "
                f"{context} positions; shorten it"
            )

    def read(
        self,
        sequences: Sequence[Sequence[Segment]],
        images: Float[Tensor, "I N D"] | None = None,
        *,
        after: State | None = None,
    ) -> State:
        """Read one sequence a row, following what ``after`` has read."""
        layout = self.model.lay_out(sequences, pad_id=self.template.pad_id)
        layout = layout.to(self.model.device)
        embeds = self.model.embed(layout, images)
        mask = None if layout.is_dense else layout.mask
        return self.model.lm.read(embeds, mask, after=after)

    def read_tokens(self, token_ids: Int[Tensor, "B"], after: State) -> State:
        """Read one more token a row."""
        return self.model.lm.read(self.model.lm.embed(token_ids[:, None]), after=after)

    def write(
        self, state: State, options: TextOptions, *, stop_ids: Collection[int] | None = None
    ) -> list[list[int]]:
        """Return the tokens that the model writes in each row, without the one that stops it.

        Args:
            state: What it has read.
            options: How to choose tokens.
            stop_ids: Tokens that end a row; the end of the turn when None.
        """
        stop = set(stop_ids or (self.template.turn_end_id, self.template.pad_id))
        rows = state.mask.shape[0]
        written: list[list[int]] = [[] for _ in range(rows)]
        running = set(range(rows))
        generator = torch.Generator().manual_seed(options.seed)
        room = self.model.lm.context_length - state.length
        for _ in range(min(options.max_new_tokens, room)):
            token_ids = choose_tokens(self.model.lm.logits(state.last), options, generator)
            for row, token in enumerate(token_ids.tolist()):
                if token in stop:
                    running.discard(row)
                if row in running:
                    written[row].append(token)
            if not running:
                break
            state = self.read_tokens(token_ids.to(self.model.device), state)
        return written

    def with_preface(self, turn: Sequence[Segment]) -> list[Segment]:
        """Return a turn that ends in a picture to draw, with what the model says before it.

        The model writes until it opens the picture itself; one that ends its turn instead, or
        goes on for too long, has the picture opened for it.
        """
        template = self.template
        *before, opening, queries = turn
        room = self.model.lm.context_length - self.length(turn)
        limit = min(template.style.preface, room)
        if limit < 1:
            return list(turn)
        stop = (template.image_start_id, template.turn_end_id, template.pad_id)
        state, options = self.read([before]), TextOptions(max_new_tokens=limit)
        (tokens,) = self.write(state, options, stop_ids=stop)
        spoken = [TextSegment(tuple(tokens))] if tokens else []
        return [*before, *spoken, opening, queries]


def split_at_image(sequence: Sequence[Segment]) -> tuple[list[Segment], list[Segment]]:
    """Return what comes before the first picture, which candidates share, and the rest."""
    for index, segment in enumerate(sequence):
        if isinstance(segment, ImageSegment):
            return list(sequence[:index]), list(sequence[index:])
    return list(sequence), []


def choose_tokens(
    logits: Float[Tensor, "B V"], options: TextOptions, generator: torch.Generator
) -> Int[Tensor, "B"]:
    """Return a token for each row: the likeliest, or one drawn from the distribution."""
    logits = logits.cpu()
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits / options.temperature).softmax(dim=-1)
    if options.top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True)
        # Keep a token if the likelier ones together have not reached top_p yet.
        ranked = ranked * (ranked.cumsum(dim=-1) - ranked < options.top_p)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
