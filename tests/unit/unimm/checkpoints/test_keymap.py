"""Key maps name every tensor of a foreign layout, and refuse the ones they do not know."""

import pytest
import torch

from unimm.checkpoints.keymap import (
    LABEL_TABLE,
    Rule,
    apply_rules,
    conv_to_linear,
    place,
    rae_dit,
    scale_rae_dit,
)
from unimm.errors import CheckpointError


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("x_embedder.proj.weight", "latent_embed.weight"),
        ("s_embedder.proj.bias", "head.latent_embed.bias"),
        ("dit_blocks.1.attn.qkv.weight", "blocks.layers.1.attention.qkv.weight"),
        ("dit_blocks.2.mlp.w3.bias", "head.blocks.layers.0.mlp.down.bias"),
        ("dit_blocks.3.norm2.weight", "head.blocks.layers.1.norm2.weight"),
        ("y_embedder.dropout_embedding", "null_condition"),
        ("feat_rope.freqs_cos", None),
        ("dec_rope.freqs_sin", None),
        ("pos_embed", None),
    ],
)
def test_scale_rae_keys(foreign: str, ours: str | None) -> None:
    assert place(foreign, scale_rae_dit(depth=2, ddt_depth=2)).key == ours


@pytest.mark.parametrize(
    ("ddt_depth", "backbone", "head"),
    [(0, "x_embedder", "s_embedder"), (2, "s_embedder", "x_embedder")],
)
def test_rae_swaps_its_embedders_under_a_head(ddt_depth: int, backbone: str, head: str) -> None:
    rules = rae_dit(depth=2, ddt_depth=ddt_depth)
    assert place(f"{backbone}.proj.weight", rules).key == "latent_embed.weight"
    assert place(f"{head}.proj.weight", rules).key == "head.latent_embed.weight"
    assert place("y_embedder.embedding_table.weight", rules).key == LABEL_TABLE
    assert place("enc_feat_rope.freqs_cos", rules).key is None


@pytest.mark.parametrize(
    "key",
    ["dit_blocks.4.norm1.weight", "dit_blocks.10.norm1.weight", "extra.weight", "x_pos_embed"],
)
def test_unknown_keys_are_refused_by_name(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"unexpected tensor '{key}'"):
        apply_rules({key: torch.zeros(1)}, scale_rae_dit(depth=4))


def test_a_convolution_that_does_not_overlap_is_a_matrix() -> None:
    convolution = torch.nn.Conv2d(3, 8, kernel_size=4, stride=4, bias=False)
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = convolution(image).flatten()
    actual = conv_to_linear(convolution.weight) @ image.flatten()
    torch.testing.assert_close(actual, expected)


def test_the_first_matching_rule_wins_and_converts() -> None:
    rules = (Rule(r"a\.(\w+)", r"b.\1", torch.neg), Rule(r".*", None))
    state = apply_rules({"a.x": torch.ones(2), "other": torch.ones(1)}, rules)
    assert list(state) == ["b.x"]
    assert state["b.x"].tolist() == [-1.0, -1.0]


def test_blocks_of_rows_become_one_tensor_in_their_order() -> None:
    rules = (Rule("query", "qk", rows=(0, 2)), Rule("key", "qk", rows=(1, 2)))
    state = {"key": torch.full((1, 3), 2.0), "query": torch.full((1, 3), 1.0)}
    assert apply_rules(state, rules)["qk"].tolist() == [[1.0] * 3, [2.0] * 3]
    with pytest.raises(CheckpointError, match="'qk' lacks 1 of its 2 parts"):
        apply_rules({"key": torch.zeros(1, 3)}, rules)
