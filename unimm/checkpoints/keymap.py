"""Declarative maps from the state-dict keys of released models to ours.

A map is an ordered list of rules. Every foreign key must match one: what a
rule drops, it drops by name, and what none knows is an error.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unimm.errors import CheckpointError

Convert = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a key map.

    Args:
        pattern: Regular expression of the whole foreign key.
        target: Our key, with groups of the pattern as in ``re.sub``; None drops the tensor.
        convert: Change of shape or values.
        rows: (k, n) when the tensor is the k-th of n equal blocks of rows of ours.
    """

    pattern: str
    target: str | None
    convert: Convert | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a foreign tensor goes.

    Args:
        key: Our key; None if it is dropped.
        convert: Change of shape or values.
        rows: See :class:`Rule`.
    """

    key: str | None
    convert: Convert | None
    rows: tuple[int, int] | None


def conv_to_linear(weight: Tensor) -> Tensor:
    """Return the matrix of a convolution that does not overlap: (out, in * height * width)."""
    return weight.flatten(1)


def place(key: str, rules: Iterable[Rule]) -> Placed:
    """Return where the tensor of a foreign key goes.

    Raises:
        CheckpointError: If no rule knows the key.
    """
    for rule in rules:
        match = re.fullmatch(rule.pattern, key)
        if match:
            ours = None if rule.target is None else match.expand(rule.target)
            return Placed(key=ours, convert=rule.convert, rows=rule.rows)
    raise CheckpointError(f"unexpected tensor {key!r}: this layout has no such key")


def rename(key: str, rules: Iterable[Rule]) -> tuple[str | None, Convert | None]:
    """Return our name for a foreign key (None if it is dropped) and its conversion.

    Raises:
        CheckpointError: If no rule knows the key.
    """
    placed = place(key, rules)
    return placed.key, placed.convert


def apply_rules(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Return a foreign state dict under our keys.

    Raises:
        CheckpointError: If no rule knows a key, or one of several blocks of rows is missing.
    """
    rules = tuple(rules)
    result: dict[str, Tensor] = {}
    blocks: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    for key, tensor in state.items():
        placed = place(key, rules)
        if placed.key is None:
            continue
        converted = tensor if placed.convert is None else placed.convert(tensor)
        if placed.rows is None:
            result[placed.key] = converted
        else:
            blocks.setdefault(placed.key, {})[placed.rows[0]] = converted
            counts[placed.key] = placed.rows[1]
    for key, parts in blocks.items():
        if missing := set(range(counts[key])) - set(parts):
            raise CheckpointError(f"{key!r} lacks {len(missing)} of its {counts[key]} parts")
        result[key] = torch.cat([parts[index] for index in sorted(parts)])
    return result


def below(prefix: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return rules for the same keys below a foreign prefix (no pattern) and one of ours.

    Args:
        prefix: As in ``diff_head.model.``, with its dot.
        ours: As in ``generator.dit.``, with its dot.
        rules: Rules of the part itself.
    """
    return tuple(
        Rule(
            re.escape(prefix) + rule.pattern,
            None if rule.target is None else ours + rule.target,
            rule.convert,
            rule.rows,
        )
        for rule in rules
    )


_BLOCK_PARTS = (
    (r"norm([12])\.weight", r"norm\2.weight"),
    (r"attn\.qkv\.(\w+)", r"attention.qkv.\2"),
    (r"attn\.proj\.(\w+)", r"attention.out.\2"),
    (r"attn\.([qk]_norm)\.(\w+)", r"attention.\2.\3"),
    (r"mlp\.w12\.(\w+)", r"mlp.gate_up.\2"),
    (r"mlp\.w3\.(\w+)", r"mlp.down.\2"),
    (r"mlp\.fc1\.(\w+)", r"mlp.up.\2"),
    (r"mlp\.fc2\.(\w+)", r"mlp.down.\2"),
    (r"adaLN_modulation\.1\.(\w+)", r"modulation.\2"),
)


def _block_rules(foreign: str, depth: int, ddt_depth: int) -> tuple[Rule, ...]:
    """Return rules for blocks numbered through backbone and head, ours counted in each."""
    stacks = [(i, f"blocks.layers.{i}") for i in range(depth)]
    stacks += [(depth + i, f"head.blocks.layers.{i}") for i in range(ddt_depth)]
    return tuple(
        # The first group is the whole prefix, so that the parts count theirs from 2.
        Rule(rf"({foreign}\.{index})\.{pattern}", f"{ours}.{target}")
        for index, ours in stacks
        for pattern, target in _BLOCK_PARTS
    )


def _embed_rules(foreign: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{foreign}\.proj\.weight", f"{ours}.weight", conv_to_linear),
        Rule(rf"{foreign}\.proj\.bias", f"{ours}.bias"),
    )


_SHARED = (
    Rule(r"pos_embed", None),  # fixed: recomputed
    Rule(r"((enc|dec)_)?(feat_)?rope\.freqs_(cos|sin)", None),  # fixed: recomputed
    Rule(r"t_embedder\.W", "time_embed.frequencies"),
    Rule(r"t_embedder\.mlp\.0\.(\w+)", r"time_embed.up.\1"),
    Rule(r"t_embedder\.mlp\.2\.(\w+)", r"time_embed.out.\1"),
    Rule(r"s_projector\.(\w+)", r"head.project.\1"),
    Rule(r"final_layer\.norm_final\.weight", "final.norm.weight"),
    Rule(r"final_layer\.linear\.(\w+)", r"final.out.\1"),
    Rule(r"final_layer\.adaLN_modulation\.1\.(\w+)", r"final.modulation.\1"),
)


def scale_rae_dit(depth: int, ddt_depth: int = 0) -> tuple[Rule, ...]:
    """Return the rules of Scale-RAE's LightningDiT and LightningDDT (below ``diff_head.model.``).

    Its files leave out the Fourier frequencies, which the DiT regenerates, and
    the null condition where training had no dropout.
    """
    return (
        *_SHARED,
        *_embed_rules("x_embedder", "latent_embed"),
        *_embed_rules("s_embedder", "head.latent_embed"),
        Rule(r"y_embedder\.dropout_embedding", "null_condition"),
        *_block_rules("dit_blocks", depth, ddt_depth),
    )


LABEL_TABLE = "label_embedding.weight"
"""Where RAE's class embeddings go: one row a class, then the null row (not part of a DiT)."""


def rae_dit(depth: int, ddt_depth: int = 0) -> tuple[Rule, ...]:
    """Return the rules of RAE's LightningDiT and DiTwDDTHead.

    With a head the two embedders swap their meaning against Scale-RAE: the
    backbone reads ``s_embedder`` and the head ``x_embedder``.
    """
    backbone, head = ("s_embedder", "x_embedder") if ddt_depth else ("x_embedder", "s_embedder")
    return (
        *_SHARED,
        *_embed_rules(backbone, "latent_embed"),
        *_embed_rules(head, "head.latent_embed"),
        Rule(r"y_embedder\.embedding_table\.weight", LABEL_TABLE),
        *_block_rules("blocks", depth, ddt_depth),
    )
