"""The sigmoid loss of pictures and texts."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.stages.text_tower import ImageTextPair, TextTowerConfig

NUM_PAIRS = 6


@pytest.fixture
def pair() -> ImageTextPair:
    torch.manual_seed(0)
    config = TextTowerConfig(hidden_dim=16, depth=1, num_heads=2, max_tokens=5)
    return ImageTextPair(config, vocab_size=20, vision_dim=8)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(NUM_PAIRS, 4, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def texts() -> Tensor:
    """Return texts that differ from each other."""
    ids = torch.randint(20, (NUM_PAIRS, 5), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = torch.arange(NUM_PAIRS)
    return ids


def test_the_loss_is_the_papers(pair: ImageTextPair, tokens: Tensor, texts: Tensor) -> None:
    """Sum over pairs of log(1 + exp(-z (t x.y + b))) over the pictures (arXiv:2303.15343)."""
    images, words = pair.embed_images(tokens), pair.embed_texts(texts)
    assert torch.allclose(images.norm(dim=-1), torch.ones(NUM_PAIRS))
    total = torch.zeros(())
    for i in range(NUM_PAIRS):
        for j in range(NUM_PAIRS):
            sign = 1 if i == j else -1
            logit = pair.logit_scale.exp() * (images[i] @ words[j]) + pair.logit_bias
            total = total + torch.log1p(torch.exp(-sign * logit))
    torch.testing.assert_close(pair.loss(tokens, texts), total / NUM_PAIRS)


def test_pictures_with_the_same_text_are_no_mismatch(
    pair: ImageTextPair, tokens: Tensor, texts: Tensor
) -> None:
    same = texts[:1].expand(NUM_PAIRS, -1)
    logits = pair.embed_images(tokens) @ pair.embed_texts(same).T * pair.logit_scale.exp()
    expected = -F.logsigmoid(logits + pair.logit_bias).sum(dim=1).mean()
    torch.testing.assert_close(pair.loss(tokens, same), expected)


def test_learning_pulls_pairs_together(pair: ImageTextPair, tokens: Tensor, texts: Tensor) -> None:
    """Below the best loss of embeddings that ignore the pictures: each text is then as likely."""
    share = 1 / NUM_PAIRS
    ignoring = NUM_PAIRS * F.binary_cross_entropy(torch.tensor(share), torch.tensor(share)).item()
    adam = torch.optim.Adam(pair.parameters(), lr=0.02)
    for _ in range(60):
        adam.zero_grad()
        torch.autograd.backward(pair.loss(tokens, texts))
        adam.step()
    assert loss_of(pair.loss, tokens, texts) < 0.5 * ignoring
    assert loss_of(pair.loss, tokens, texts.roll(1, dims=0)) > 2 * ignoring


@torch.no_grad()
def loss_of(loss: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, texts: Tensor) -> float:
    return loss(tokens, texts).item()
