"""Answers about imperfect latents against answers about clean ones."""

import pytest
import torch
from torch import Generator, Tensor

from training.losses.behaviour import AlignmentConfig, answer_divergences
from unimm.chat import ChatTemplate
from unimm.layout import Layout
from unimm.model import UniMM
from unimm.testing import tiny_model, tiny_tokenizer


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 2.0}, r"share \(2.0\) must be in \[0, 1\]"),
        ({"weight": -1.0}, r"weight \(-1.0\)"),
        ({"max_time": 0.0}, r"max_time \(0.0\) in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignmentConfig(**settings)  # type: ignore[arg-type]
