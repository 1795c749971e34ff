"""The key-value cache and padding: neither may change an answer."""

from typing import Any

import pytest
import torch
from torch import Tensor

from unimm.errors import ConfigError
from unimm.language import LanguageModel, build_language_model

SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}


@pytest.fixture(scope="module", params=["qwen2", "qwen3", "llama"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_language_model({"model_type": request.param, **SIZE})
    # Default random weights are so small that attention hardly matters.
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(8)
    return LanguageModel(model.eval())


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_shapes_and_limits(lm: LanguageModel) -> None:
    assert (lm.hidden_dim, lm.context_length) == (32, 64)
    assert lm.next_token_logprobs(lm.embed(tokens(3, 5))).shape == (3, 64)


def test_states_are_what_the_hugging_face_model_computes(lm: LanguageModel) -> None:
    token_ids = tokens(2, 7)
    expected = lm.model(input_ids=token_ids).logits
    actual = lm.logits(lm.hidden_states(lm.embed(token_ids)))
    torch.testing.assert_close(actual, expected)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(4,), (1, 2, 3), (5, 6)])
def test_cached_equals_uncached(lm: LanguageModel, cuts: tuple[int, ...]) -> None:
    embeds = lm.embed(tokens(2, 9))
    state = None
    pieces = []
    for start, stop in zip((0, *cuts), (*cuts, 9), strict=True):
        state = lm.read(embeds[:, start:stop], after=state)
        pieces.append(state.hidden)
    torch.testing.assert_close(torch.cat(pieces, dim=1), lm.hidden_states(embeds))


@torch.no_grad()
def test_left_padding_does_not_change_an_answer(lm: LanguageModel) -> None:
    embeds = lm.embed(tokens(1, 6))
    more = lm.embed(tokens(1, 3, seed=1))
    junk = lm.embed(tokens(1, 4, seed=2))
    mask = torch.tensor([[False] * 4 + [True] * 6])
    padded = lm.read(torch.cat([junk, embeds], dim=1), mask)
    plain = lm.read(embeds)
    torch.testing.assert_close(padded.hidden[:, 4:], plain.hidden)
    after_padded, after_plain = lm.read(more, after=padded), lm.read(more, after=plain)
    torch.testing.assert_close(after_padded.hidden, after_plain.hidden)


@torch.no_grad()
def test_padding_in_the_middle_does_not_change_an_answer(lm: LanguageModel) -> None:
    """Rows that go on by different lengths are padded left in the continuation, too."""
    start, more = lm.embed(tokens(1, 4)), lm.embed(tokens(1, 2, seed=1))
    junk = lm.embed(tokens(1, 3, seed=2))
    mask = torch.tensor([[False] * 3 + [True] * 2])
    padded = lm.read(torch.cat([junk, more], dim=1), mask, after=lm.read(start))
    plain = lm.read(more, after=lm.read(start))
    torch.testing.assert_close(padded.last, plain.last)


@torch.no_grad()
def test_extending_leaves_a_state_as_it_was(lm: LanguageModel) -> None:
    state = lm.read(lm.embed(tokens(1, 5)))
    more = lm.embed(tokens(1, 3, seed=1))
    first = lm.read(more, after=state)
    lm.read(lm.embed(tokens(1, 4, seed=2)), after=state)
    assert state.length == 5
    assert torch.equal(lm.read(more, after=state).hidden, first.hidden)


@torch.no_grad()
def test_an_expanded_state_shares_its_keys_and_continues_each_row(lm: LanguageModel) -> None:
    state = lm.read(lm.embed(tokens(1, 5)))
    wide = state.expand(3)
    layer: Any = wide.cache.layers[0]
    original: Any = state.cache.layers[0]
    assert layer.keys.data_ptr() == original.keys.data_ptr()
    more = lm.embed(tokens(3, 4, seed=1))
    together = lm.read(more, after=wide).hidden
    for row in range(3):
        alone = lm.read(more[row : row + 1], after=state).hidden
        torch.testing.assert_close(together[row], alone[0])


@torch.no_grad()
def test_only_a_single_row_can_be_expanded(lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="batch of one"):
        lm.read(lm.embed(tokens(2, 3))).expand(2)


def test_gradients_reach_the_embeddings(lm: LanguageModel) -> None:
    embeds = lm.embed(tokens(1, 4)).detach().requires_grad_()
    lm.next_token_logprobs(embeds)[0, 0].backward()
    assert embeds.grad is not None
    assert bool((embeds.grad.abs().sum(-1) > 0).all())


@pytest.mark.parametrize("config", [{"model_type": "no-such-model"}, {"hidden_size": 8}])
def test_a_config_that_is_no_causal_language_model_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot build a causal language model"):
        build_language_model(config)
