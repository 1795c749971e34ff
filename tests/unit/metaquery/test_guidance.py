"""Guidance as arithmetic on velocities."""

import pytest
import torch
from torch import Tensor

from metaquery.guidance import autoguidance, classifier_free, extrapolate

SHAPE = (3, 4, 8)  # B, N, D
T = torch.tensor([0.1, 0.5, 0.9])


@pytest.fixture
def x_t() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


class Model:
    """Adds its condition to the latents and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.batches.append(len(x_t))
        return x_t * (1 + condition) + t.view(-1, 1, 1)


CONDITION, NONE = torch.ones(3, 1, 1), torch.zeros(3, 1, 1)


def test_scale_of_one_is_the_conditional_model_alone(x_t: Tensor) -> None:
    model = Model()
    velocity = classifier_free(model, CONDITION, NONE, 1.0)(x_t, T)
    assert model.batches == [3]
    assert torch.equal(velocity, model(x_t, T, CONDITION))


def test_scale_of_zero_is_the_unconditional_model(x_t: Tensor) -> None:
    velocity = classifier_free(Model(), CONDITION, NONE, 0.0)(x_t, T)
    torch.testing.assert_close(velocity, Model()(x_t, T, NONE))


def test_both_predictions_come_from_one_call(x_t: Tensor) -> None:
    model = Model()
    velocity = classifier_free(model, CONDITION, NONE, 3.0)(x_t, T)
    assert model.batches == [6]
    good, bad = Model()(x_t, T, CONDITION), Model()(x_t, T, NONE)
    torch.testing.assert_close(velocity, bad + 3 * (good - bad))


def test_guidance_is_on_inside_its_closed_interval_row_by_row(x_t: Tensor) -> None:
    guided = classifier_free(Model(), CONDITION, NONE, 3.0, interval=(0.5, 0.8))(x_t, T)
    good, bad = Model()(x_t, T, CONDITION), Model()(x_t, T, NONE)
    expected = torch.stack([good[0], bad[1] + 3 * (good[1] - bad[1]), good[2]])
    torch.testing.assert_close(guided, expected)


def test_a_batch_outside_the_interval_costs_one_plain_call(x_t: Tensor) -> None:
    model = Model()
    classifier_free(model, CONDITION, NONE, 3.0, interval=(0.95, 1.0))(x_t, T)
    assert model.batches == [3]


def test_rescaling_restores_the_deviation(x_t: Tensor) -> None:
    good, bad = x_t, 0.3 * x_t.flip(0)
    restored = extrapolate(good, bad, 4.0, rescale=1.0)
    torch.testing.assert_close(restored.std((1, 2)), good.std((1, 2)))
    halfway = extrapolate(good, bad, 4.0, rescale=0.5)
    plain = extrapolate(good, bad, 4.0)
    torch.testing.assert_close(halfway, (plain + restored) / 2)


def test_the_norm_is_capped_only_where_it_grew(x_t: Tensor) -> None:
    good = x_t
    bad = torch.stack([0.5 * x_t[0], 1.5 * x_t[1], 0 * x_t[2]])
    capped = extrapolate(good, bad, 2.0, max_norm=True)
    torch.testing.assert_close(capped[0], good[0])  # grew to 1.5, back to 1
    torch.testing.assert_close(capped[1], 0.5 * good[1])  # shrank, left alone
    torch.testing.assert_close(capped[2], good[2])


def test_autoguidance_moves_away_from_the_worse_model(x_t: Tensor) -> None:
    guided = autoguidance(lambda x, t: x, lambda x, t: 0.5 * x, 1.5, interval=(0.5, 1.0))
    expected = torch.stack([x_t[0], 1.25 * x_t[1], 1.25 * x_t[2]])
    torch.testing.assert_close(guided(x_t, T), expected)


def test_autoguidance_of_one_never_calls_the_guide(x_t: Tensor) -> None:
    def guide(x_t: Tensor, t: Tensor) -> Tensor:
        pytest.fail("the guide was called")

    assert torch.equal(autoguidance(lambda x, t: x, guide, 1.0)(x_t, T), x_t)
