"""Memory that the activations of a micro-batch take, found by running the model without weights.

On torch's ``meta`` device every operation knows the shape of what it keeps for the backward pass
and computes nothing, so the figure follows the code, whatever is checkpointed, frozen or low-rank.

Shape legend:
    B rows      L positions      T supervised tokens      R pictures and times drawn
    N latent tokens      D latent channels      Q queries      H language-model width
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from metaquery.dit import DiTStack
from unimm.model import UniMM

from .build import blocks


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one process takes forward and backward at once.

    Args:
        rows: Rows of the language model.
        length: Positions of each.
        tokens: Supervised tokens in all.
        drawn: Pictures times the times drawn for each.
        loss_chunks: Parts that the logits are computed in.
    """

    rows: int
    length: int
    tokens: int
    drawn: int
    loss_chunks: int = 1


@dataclass(slots=True)
class Kept:
    """Tensors that a forward pass keeps; those that share memory count once.

    Args:
        ignored: Parameters and buffers, which count elsewhere.
        shape: Last two sizes of attention weights, which fused kernels compute again.
    """

    ignored: set[int]
    shape: tuple[int, int]
    tensors: dict[int, Tensor] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> Tensor:
        key = _storage_key(tensor)
        if key not in self.ignored and tensor.shape[-2:] != self.shape:
            self.tensors[key] = tensor  # alive, so that no other gets its address
        return tensor

    @property
    def num_bytes(self) -> int:
        """Memory of all of them."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())


def activation_bytes(model: UniMM, batch: MicroBatch, *, is_checkpointed: bool) -> int:
    """Return the memory of activations when the backward pass begins.

    What the forward pass keeps, and beside it the most that is there besides for a while: the
    logits and their gradient, or what one checkpointed block computes again. Attention counts as
    fused: its weights are never kept.

    Args:
        model: On the ``meta`` device, in the precision of the run, its trained parts marked.
        batch: A micro-batch.
        is_checkpointed: Whether the blocks compute their activations again.
    """
    logits, gradient = _logit_bytes(model, ceil(batch.tokens / batch.loss_chunks))
    kept, passing = logits, gradient
    if batch.loss_chunks > 1:  # then the states that the logits are computed from are kept
        kept, passing = model.dtype.itemsize * batch.tokens * model.lm.hidden_dim, logits + gradient
    language, again_language = _language_bytes(model, batch)
    drawing, again_drawing = _drawing_bytes(model, batch.drawn)
    again = max(again_language, again_drawing) if is_checkpointed else 0
    return language + drawing + kept + max(passing, again)


def _logit_bytes(model: UniMM, tokens: int) -> tuple[int, int]:
    """Return what the cross-entropy of some tokens keeps, and the gradient of their logits."""
    hidden = torch.empty((tokens, model.lm.hidden_dim), dtype=model.dtype, device="meta")
    targets = torch.empty(tokens, dtype=torch.long, device="meta")

    def run() -> None:
        logits = model.lm.logits(hidden.requires_grad_())
        nn.functional.cross_entropy(logits, targets, reduction="none")

    kept, _ = _measure(model, [], run, (0, 0))  # there is no attention
    vocab_size: int = model.lm.model.get_output_embeddings().weight.shape[0]
    return kept, model.dtype.itemsize * tokens * vocab_size


def _language_bytes(model: UniMM, batch: MicroBatch) -> tuple[int, int]:
    """Return what reading text keeps, and what its largest block computes again."""
    embeds = torch.empty(
        (batch.rows, batch.length, model.lm.hidden_dim), dtype=model.dtype, device="meta"
    ).requires_grad_()  # through the queries' embeddings

    # A mask that is given whole is taken as it is: making one would look at its values.
    mask = torch.empty((1, 1, batch.length, batch.length), dtype=model.dtype, device="meta")
    positions = torch.arange(batch.length, device="meta")[None]

    def run() -> None:
        model.lm.model.base_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        )

    layers = [block for block in blocks(model) if block in set(model.language.modules())]
    return _measure(model, layers, run, (batch.length,) * 2)


def _drawing_bytes(model: UniMM, drawn: int) -> tuple[int, int]:
    """Return what the flow loss keeps, and what the DiT's largest block computes again."""
    if not drawn:
        return 0, 0
    dit = model.config.generator.dit
    shape = (drawn, dit.num_latent_tokens, dit.latent_dim)
    latents = torch.empty(shape, device="meta")
    states = torch.empty(
        (drawn, model.config.num_queries, model.lm.hidden_dim), dtype=model.dtype, device="meta"
    ).requires_grad_()
    t = torch.empty(drawn, device="meta")
    drop = torch.empty(drawn, dtype=torch.bool, device="meta")

    def run() -> None:
        model.generator.losses(states, latents, t=t, noise=latents, drop=drop)

    stacks = [m for m in model.generator.modules() if isinstance(m, DiTStack)]
    layers = [block for stack in stacks for block in stack.layers]
    tokens = (dit.num_latent_tokens,) * 2
    return _measure(model, layers, run, tokens)


def _measure(
    model: UniMM,
    layers: list[nn.Module],
    run: Callable[[], None],
    attention: tuple[int, int],
) -> tuple[int, int]:
    """Return what ``run`` keeps, and the most that a block of it keeps if not checkpointed."""
    weights = [*model.parameters(), *model.buffers()]
    kept = Kept({_storage_key(tensor) for tensor in weights}, attention)
    calls: dict[nn.Module, tuple[Any, Any]] = {}
    with _watching(layers, calls, kept), saved_tensors_hooks(kept.add, _never_needed):
        run()
    again = 0
    for layer, (args, kwargs) in calls.items():
        own = Kept(kept.ignored | set(kept.tensors), attention)
        mode, layer.training = layer.training, False  # transformers checkpoints in training only
        with saved_tensors_hooks(own.add, _never_needed):
            layer(*args, **kwargs)
        layer.training = mode
        again = max(again, own.num_bytes)
    return kept.num_bytes, again


@contextmanager
def _watching(
    layers: list[nn.Module], calls: dict[nn.Module, tuple[Any, Any]], kept: Kept
) -> Iterator[None]:
    """Note each block's arguments: checkpointing keeps them where no hook sees it."""

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[layer] = (args, kwargs)
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, tuple) else (value,):
                if isinstance(tensor, Tensor):
                    kept.add(tensor)

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _never_needed(tensor: Tensor) -> Tensor:
    return tensor


def _storage_key(tensor: Tensor) -> int:
    """Return what tells memory apart; on ``meta`` there are no addresses."""
    key: int = tensor.untyped_storage()._cdata  # noqa: SLF001 - torch has no public name for it
    return key
