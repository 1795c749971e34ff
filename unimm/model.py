"""One model: a language model, queries, a generator, a latent space and the way back.

Shape legend:
    B batch      L sequence length      I pictures read      A pictures drawn
    Q queries      N latent tokens      D latent channels      H language-model width
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaquery.generator import LatentGenerator
from metaquery.queries import QueryTokens
from unimm.chat import Segment
from unimm.config import UniMMConfig
from unimm.language import LanguageModel, build_language_model
from unimm.latents import LatentSpace, build_latent_space
from unimm.layout import IGNORE, Layout, PaddingSide, lay_out, lay_out_packed
from unimm.packing import Fork
from unimm.readback import Projector

Part = Literal["language", "queries", "projector", "generator", "latents", "vision"]
PARTS: tuple[Part, ...] = get_args(Part)[:-1]
"""What every model has; only one that sees and draws in different spaces has a ``vision``, too."""


class UniMM(nn.Module):
    """Reads text and pictures, draws pictures, and reads what it drew.

    The parts are attributes: ``language`` (a Hugging Face causal language model), ``queries``,
    ``projector``, ``generator``, ``latents`` (frozen encoder and pixel decoder of what it draws)
    and, only where it cannot read what it draws, ``vision`` (frozen encoder of what it sees).
    """

    def __init__(self, config: UniMMConfig, *, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.language = build_language_model(config.language, attention=attention)
        self.queries = QueryTokens(config.num_queries, self.lm.hidden_dim)
        self.projector = Projector(config.seen.dim, self.lm.hidden_dim)
        self.generator = LatentGenerator(config.generator)
        self.latents = build_latent_space(config.latents)
        self.vision = None if config.vision is None else build_latent_space(config.vision)
        # Parts that wait on the CPU while they are not in use.
        self.offloaded: frozenset[Part] = frozenset()

    @property
    def lm(self) -> LanguageModel:
        """The language model's verbs."""
        return LanguageModel(self.language)

    @property
    def device(self) -> torch.device:
        return self.queries.embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        return self.queries.embeddings.dtype

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of this model."""
        return PARTS if self.vision is None else (*PARTS, "vision")

    @property
    def seen(self) -> LatentSpace:
        """The latent space that the language model reads pictures in."""
        space: LatentSpace = self.latents if self.vision is None else self.vision
        return space

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "UniMM":
        """Keep buffers in float32 when the weights are cast.

        Rotary frequencies in half precision would turn distant positions by other angles, so a
        model trained in one precision would not be the same model in another.
        """
        kept = {name: b for name, b in self.named_buffers() if b.dtype == torch.float32}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            cast = self.get_buffer(name)
            if cast.dtype != torch.float32:
                module, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(module), leaf, buffer.to(cast.device))
        return self

    def lay_out(
        self,
        sequences: Sequence[Sequence[Segment]],
        *,
        pad_id: int,
        length: int | None = None,
        padding_side: PaddingSide = "left",
    ) -> Layout:
        """Return sequences as one padded batch for this model."""
        return lay_out(
            sequences,
            num_image_tokens=self.config.seen.num_tokens,
            num_queries=self.config.num_queries,
            pad_id=pad_id,
            length=length,
            padding_side=padding_side,
        )

    def lay_out_packed(self, rows: Sequence[Sequence[Fork]], *, pad_id: int, length: int) -> Layout:
        """Return rows of several conversations each as one padded batch for this model."""
        return lay_out_packed(
            rows,
            num_image_tokens=self.config.seen.num_tokens,
            num_queries=self.config.num_queries,
            pad_id=pad_id,
            length=length,
        )

    def embed(
        self, layout: Layout, images: Float[Tensor, "I N D"] | None = None
    ) -> Float[Tensor, "B L H"]:
        """Return the input embeddings of a batch.

        Args:
            layout: What stands where.
            images: Latents of the pictures to read, in reading order.
        """
        batch, length = layout.token_ids.shape
        embeds = self.lm.embed(layout.token_ids).flatten(0, 1)  # (B*L, H)
        if len(layout.image_index) or images is not None:
            embeds = self._with_images(embeds, layout, images)
        if len(layout.query_index):
            count = len(layout.query_index) // self.config.num_queries
            queries = self.queries.embeddings.to(embeds.dtype).repeat(count, 1)  # (A*Q, H)
            embeds = embeds.index_copy(0, layout.query_index, queries)
        return embeds.view(batch, length, -1)

    def _with_images(self, embeds: Tensor, layout: Layout, images: Tensor | None) -> Tensor:
        expected = len(layout.image_index) // self.config.seen.num_tokens
        given = 0 if images is None else len(images)
        if images is None or given != expected:
            raise ValueError(f"the sequences hold {expected} pictures, got latents of {given}")
        read = self.projector(images.to(self.projector.fc1.weight.dtype)).flatten(0, 1)
        return embeds.index_copy(0, layout.image_index, read.to(embeds.dtype))

    def forward(
        self, layout: Layout, images: Float[Tensor, "I N D"] | None = None
    ) -> Float[Tensor, "B L H"]:
        """Return the final hidden states of a batch (for training)."""
        embeds = self.embed(layout, images)
        if layout.packing is not None:
            return self.lm.packed_hidden_states(embeds, layout.packing)
        return self.lm.hidden_states(embeds, None if layout.is_dense else layout.mask)

    def query_states(
        self, hidden: Float[Tensor, "B L H"], layout: Layout
    ) -> Float[Tensor, "A Q H"]:
        """Return the hidden states at the queries, which condition the generator."""
        states = hidden.flatten(0, 1).index_select(0, layout.query_index)
        return states.view(-1, self.config.num_queries, states.shape[-1])

    def token_losses(
        self, hidden: Float[Tensor, "B L H"], layout: Layout, *, chunks: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of every supervised token, and the row it stands in.

        Only supervised positions go through the output embedding.

        Args:
            hidden: Final hidden states.
            layout: The sequences.
            chunks: Parts that the tokens are taken in. With several, the logits of one part are
                in memory at a time, computed once more in the backward pass: a large vocabulary's
                logits can outweigh all other activations.
        """
        rows, columns = (layout.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        states, targets = hidden[rows, columns], layout.labels[rows, columns + 1]
        if chunks == 1:
            return self._cross_entropy(states, targets), rows
        # As many parts in every process, some perhaps empty: ZeRO-3 gathers weights at each.
        parts = zip(states.tensor_split(chunks), targets.tensor_split(chunks), strict=True)
        losses = [
            checkpoint(self._cross_entropy, *part, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        ]
        return torch.cat(losses), rows

    def _cross_entropy(self, states: Float[Tensor, "T H"], targets: Tensor) -> Float[Tensor, "T"]:
        return nn.functional.cross_entropy(self.lm.logits(states), targets, reduction="none")

    def part(self, name: Part) -> nn.Module:
        """Return a part by its name."""
        if name not in self.parts:
            raise ValueError(f"this model has the parts {', '.join(self.parts)}, got {name!r}")
        module: nn.Module = getattr(self, name)
        return module

    def train_only(self, names: Iterable[Part]) -> None:
        """Freeze every part but the named ones: no gradients, and in evaluation mode."""
        trained = {name: self.part(name) for name in names}
        self.requires_grad_(False).eval()
        for module in trained.values():
            module.requires_grad_(True).train()
        if "generator" in trained and self.config.generator.exit_only:
            self.generator.train_exit_only()

    def parameter_groups(self) -> dict[Part, list[nn.Parameter]]:
        """Return the parameters that are trained, by part."""
        groups = {
            name: [p for p in self.part(name).parameters() if p.requires_grad] for name in PARTS
        }
        return {name: parameters for name, parameters in groups.items() if parameters}
