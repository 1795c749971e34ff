"""Latents of several layers keep what a single layer promises."""

from typing import Any

import pytest
import torch
from torch import Tensor

from unimm.latents import LatentSpaceConfig, LayerMixConfig, build_latent_space, strided_layers
from unimm.latents.tower import TowerLatents

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}


def space(mix: LayerMixConfig | None) -> TowerLatents:
    torch.manual_seed(0)
    config = LatentSpaceConfig(image_size=32, patch_size=8, tower=TOWER, layers=mix)
    built = build_latent_space(config)
    assert isinstance(built, TowerLatents)
    return built.eval().requires_grad_(False)


def pictures() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_last_layer_alone_is_the_plain_latent_to_the_bit() -> None:
    mixed = space(LayerMixConfig(layers=(3,)))
    plain = space(None)
    assert torch.equal(mixed.encode(pictures()), plain.encode(pictures()))
    assert set(mixed.state_dict()) == set(plain.state_dict())


def test_tokens_of_many_layers_have_mean_zero_and_variance_one() -> None:
    latents = space(LayerMixConfig(layers=(1, 2, 3), combine="sum")).encode(pictures())
    assert latents.mean(dim=-1).abs().max() < 1e-4
    torch.testing.assert_close(
        latents.var(dim=-1, unbiased=False), torch.ones(2, 16), rtol=1e-3, atol=1e-3
    )
    assert (latents - space(None).encode(pictures())).abs().max() > 0.1


def test_a_sum_is_the_mean_times_its_layers_until_it_is_normed() -> None:
    settings: dict[str, Any] = {"layers": (0, 2, 3), "post_norm": False}
    mean = space(LayerMixConfig(**settings)).encode(pictures())
    total = space(LayerMixConfig(**settings, combine="sum")).encode(pictures())
    torch.testing.assert_close(total, 3 * mean)
    normed = space(LayerMixConfig(layers=(0, 2, 3))).encode(pictures())
    again = space(LayerMixConfig(layers=(0, 2, 3), combine="sum")).encode(pictures())
    torch.testing.assert_close(normed, again, rtol=1e-4, atol=1e-4)


def test_a_frozen_tower_stays_in_evaluation_mode() -> None:
    frozen = space(None).train()
    assert frozen.training
    assert not frozen.tower.training
    frozen.requires_grad_(True).train()
    assert frozen.tower.training


def test_strided_layers_end_with_the_last() -> None:
    assert strided_layers(27, count=7, stride=2) == (14, 16, 18, 20, 22, 24, 26)
    assert strided_layers(24, count=1) == (23,)
    with pytest.raises(ValueError, match="a tower of 4 blocks has no 3 layers 2 apart"):
        strided_layers(4, count=3, stride=2)


@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1), (-1, 2)])
def test_layers_out_of_order_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="layers must be increasing"):
        LayerMixConfig(layers=layers)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers must be below num_hidden_layers \(4\), got 4"):
        LatentSpaceConfig(
            image_size=32, patch_size=8, tower=TOWER, layers=LayerMixConfig(layers=(3, 4))
        )
    with pytest.raises(ValueError, match="there is no tower"):
        LatentSpaceConfig(
            kind="patches", image_size=32, patch_size=8, layers=LayerMixConfig(layers=(0,))
        )
