"""A Hugging Face causal language model over input embeddings, with a key-value cache.

Shape legend:
    B batch      L new positions      T all positions so far      H width      V vocabulary
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from unimm.errors import ConfigError, MissingExtraError
from unimm.packed_attention import packed_arguments
from unimm.packing import Packing


def build_language_model(config: dict[str, Any], *, attention: str = "sdpa") -> nn.Module:
    """Return the causal language model that a Hugging Face config describes, randomly initialised.

    Args:
        config: What ``config.json`` of the model holds, with its ``model_type``.
        attention: ``attn_implementation`` of transformers: ``sdpa``, ``eager``,
            ``flash_attention_2`` (when installed) or ``flex_attention``.

    Raises:
        ConfigError: There is no such model or attention.
        MissingExtraError: Flash attention is asked for and not installed.
    """
    settings = dict(config)
    model_type = settings.pop("model_type", None)
    try:
        hf_config = AutoConfig.for_model(model_type, **settings)
        factory: Any = AutoModelForCausalLM  # its methods are untyped
        model: nn.Module = factory.from_config(hf_config, attn_implementation=attention)
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"language: cannot build a causal language model of type {model_type!r}: {reason}"
        ) from error
    except ImportError as error:
        if "flash" not in attention:
            raise
        raise MissingExtraError(f"flash-attn, for {attention},", extra="flash") from error
    return model


@dataclass(frozen=True, slots=True)
class State:
    """What the model has read so far. A value: extending it leaves it as it was.

    So a conversation can be rolled back, and many continuations can share one beginning.

    Args:
        cache: Keys and values of all positions; never changed in place.
        mask: True where a position is real, (B, T).
        hidden: Final hidden states of the positions read last, (B, L, H).
        is_dense: Whether no position is padding.
    """

    cache: DynamicCache
    mask: Bool[Tensor, "B T"]
    hidden: Float[Tensor, "B L H"]
    is_dense: bool

    @property
    def length(self) -> int:
        """Positions read so far, padding included."""
        return int(self.mask.shape[1])

    @property
    def last(self) -> Float[Tensor, "B H"]:
        """Hidden state of the last position, which predicts the next token."""
        return self.hidden[:, -1]

    def expand(self, count: int) -> "State":
        """Return ``count`` rows that share this single row's keys and values, not copied."""
        if self.mask.shape[0] != 1:
            raise ValueError(f"only a batch of one can be expanded, got {self.mask.shape[0]} rows")
        cache = _fork(self.cache)
        layers: list[Any] = cache.layers
        for layer in layers:
            layer.keys = layer.keys.expand(count, -1, -1, -1)
            layer.values = layer.values.expand(count, -1, -1, -1)
        return State(
            cache=cache,
            mask=self.mask.expand(count, -1),
            hidden=self.hidden.expand(count, -1, -1),
            is_dense=self.is_dense,
        )


class LanguageModel:
    """The few verbs that the rest of unimm needs from a causal language model.

    A view: the module itself stays Hugging Face's, with its own state-dict keys. Any model works
    that takes ``inputs_embeds`` and whose logits are its output embedding of the final state.

    Args:
        model: Built by :func:`build_language_model` or loaded by transformers.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config.get_text_config(decoder=True)
        self.hidden_dim: int = config.hidden_size
        self.context_length: int = config.max_position_embeddings

    def embed(self, token_ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L H"]:
        """Return the input embeddings of tokens."""
        embeddings: Tensor = self.model.get_input_embeddings()(token_ids)
        return embeddings

    def hidden_states(
        self, embeds: Float[Tensor, "B L H"], mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L H"]:
        """Return the final hidden states of whole sequences, without a cache (for training).

        Args:
            embeds: Input embeddings.
            mask: True where a position is real; all real when None.
        """
        positions = None if mask is None else _positions(mask, start=0)
        output = self.model.base_model(
            inputs_embeds=embeds,
            attention_mask=None if mask is None else mask.long(),
            position_ids=positions,
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def packed_hidden_states(
        self, embeds: Float[Tensor, "B L H"], packing: Packing
    ) -> Float[Tensor, "B L H"]:
        """Return the final hidden states of rows that hold several conversations (for training).

        Args:
            embeds: Input embeddings.
            packing: Who sees whom.
        """
        attention = self.model.config._attn_implementation  # noqa: SLF001 - it has no other name
        output = self.model.base_model(
            inputs_embeds=embeds,
            position_ids=packing.position,
            use_cache=False,
            **packed_arguments(packing, attention, embeds.dtype),
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def read(
        self,
        embeds: Float[Tensor, "B L H"],
        mask: Bool[Tensor, "B L"] | None = None,
        *,
        after: State | None = None,
    ) -> State:
        """Read embeddings, following what ``after`` has read already.

        Args:
            embeds: Input embeddings of the new positions.
            mask: True where a new position is real; all real when None. Padding goes left.
            after: Where to go on; None starts anew.
        """
        new = embeds.new_ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask
        total = new if after is None else torch.cat([after.mask, new], dim=1)
        is_dense = (mask is None or bool(mask.all())) and (after is None or after.is_dense)
        start = 0 if after is None else after.mask.sum(dim=1, keepdim=True)
        cache = _fork(after.cache) if after else DynamicCache(config=self.model.config)
        output = self.model.base_model(
            inputs_embeds=embeds,
            # Without padding the fused kernels need no mask tensor at all.
            attention_mask=None if is_dense else total.long(),
            position_ids=_positions(new, start=start),
            past_key_values=cache,
            use_cache=True,
        )
        return State(cache=cache, mask=total, hidden=output.last_hidden_state, is_dense=is_dense)

    def logits(self, hidden: Float[Tensor, "*B H"]) -> Float[Tensor, "*B V"]:
        """Return next-token logits in float32."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits.float()

    def next_token_logprobs(
        self, embeds: Float[Tensor, "B L H"], mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B V"]:
        """Return log-probabilities of the token after left-padded sequences."""
        return self.logits(self.hidden_states(embeds, mask)[:, -1]).log_softmax(dim=-1)


def _positions(mask: Bool[Tensor, "B L"], *, start: Tensor | int) -> Int[Tensor, "B L"]:
    """Number real positions from ``start``; padding repeats a number that nobody reads."""
    return (mask.long().cumsum(dim=1) - 1 + start).clamp(min=0)


def _fork(cache: DynamicCache) -> DynamicCache:
    """Return a cache that shares all tensors; growing it makes new ones by concatenation."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    return fork
