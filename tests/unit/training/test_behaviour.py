"""Answers about imperfect latents against answers about clean ones."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from training.losses.behaviour import (
    AlignmentConfig,
    answer_divergences,
    exit_predictions,
    noised_latents,
)
from unimm.chat import ChatTemplate
from unimm.layout import Layout
from unimm.model import UniMM
from unimm.testing import tiny_config, tiny_model, tiny_tokenizer


def reading(model: UniMM) -> Layout:
    template = ChatTemplate(tiny_tokenizer(), model.config.chat)
    turns = [template.ask("what color is the circle", answer=word) for word in ("red", "yes")]
    return model.lay_out(turns, pad_id=template.pad_id, padding_side="right")


def latents(seed: int = 0) -> Tensor:
    return torch.randn(2, 16, 48, generator=Generator().manual_seed(seed))


def test_the_divergence_is_zero_only_for_the_same_answers() -> None:
    model = tiny_model()
    layout = reading(model)
    with torch.no_grad():
        same = answer_divergences(model, layout, latents(), latents())
        other = answer_divergences(model, layout, latents(), latents(1))
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-5)
    assert (other > -1e-5).all()
    assert other.max() > 1e-3
    assert len(other) == (layout.labels[:, 1:] >= 0).sum()


def test_only_the_answers_on_changed_latents_learn() -> None:
    model = tiny_model().requires_grad_(True)
    clean, changed = latents().requires_grad_(), latents(1).requires_grad_()
    torch.autograd.backward(answer_divergences(model, reading(model), clean, changed).mean())
    assert clean.grad is None
    assert changed.grad is not None
    assert changed.grad.abs().sum() > 0
    assert model.projector.fc1.weight.grad is not None


def test_steps_on_the_divergence_bring_the_answers_together() -> None:
    model = tiny_model()
    layout = reading(model)
    model.projector.requires_grad_(True)
    optimizer = torch.optim.SGD(model.projector.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        loss = answer_divergences(model, layout, latents(), latents(1)).mean()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_noise_has_a_size_of_its_own_for_each_picture() -> None:
    clean = torch.zeros(64, 16, 48)
    config = AlignmentConfig(weight=1.0, noise=0.5, share=0.5)
    sizes = noised_latents(clean, config, Generator().manual_seed(0)).std(dim=(1, 2))
    assert 16 < (sizes == 0).sum() < 48
    assert sizes.max() < 0.55
    with pytest.raises(ValueError, match=r"share \(2.0\) must be in \[0, 1\]"):
        AlignmentConfig(share=2.0)


@torch.no_grad()
def test_the_early_exit_predicts_in_one_step() -> None:
    config = tiny_config()
    dit = replace(config.generator.dit, exit_depth=1)
    model = tiny_model(config=replace(config, generator=replace(config.generator, dit=dit)))
    states = torch.randn(2, 16, 32, generator=Generator().manual_seed(2))
    x_0, noise, t = latents(), latents(1), torch.tensor([0.0, 0.8])
    predicted = exit_predictions(model.generator, states, x_0, t=t, noise=noise)
    assert torch.equal(predicted[0], x_0[0])  # nothing is lost at t = 0
    assert (predicted[1] - x_0[1]).abs().max() > 0.1
