"""What an in-context DiT's output may and may not depend on."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaquery.dit import DiTConfig
from metaquery.in_context import InContextConfig, InContextDiT

TINY = replace(DiTConfig.tiny(), qk_norm=True, exit_depth=1)
WITH_HEAD = replace(TINY, ddt_depth=1, ddt_dim=64, ddt_heads=4)
BOTH = pytest.mark.parametrize("config", [TINY, WITH_HEAD])


def build(config: DiTConfig) -> InContextDiT:
    torch.manual_seed(0)
    dit = InContextDiT(InContextConfig(dit=config, num_time_tokens=2))
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return dit.eval()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x_t, condition = torch.randn(3, 16, 8, generator=rng), torch.randn(3, 5, 32, generator=rng)
    return x_t, torch.rand(3, generator=rng), condition


@BOTH
def test_a_fresh_model_predicts_zero(config: DiTConfig) -> None:
    torch.manual_seed(0)
    dit = InContextDiT(InContextConfig(dit=config))
    branches: dict[str, Tensor] = {}
    assert not dit(*inputs(), branches=branches).any()
    assert not branches["exit"].any()


@BOTH
@torch.no_grad()
def test_masked_condition_tokens_have_no_effect_and_others_do(config: DiTConfig) -> None:
    dit, (x_t, t, condition) = build(config), inputs()
    mask = torch.tensor([True, True, True, False, False]).expand(3, -1)
    seen = dit(x_t, t, condition, mask)
    torch.testing.assert_close(seen, dit(x_t, t, condition[:, :3]), rtol=1e-4, atol=1e-5)
    changed = condition.clone()
    changed[:, 3:] = 7.0
    torch.testing.assert_close(seen, dit(x_t, t, changed, mask))
    changed[:, 0] = 7.0
    assert (seen - dit(x_t, t, changed, mask)).abs().max() > 1e-3


@BOTH
@torch.no_grad()
def test_the_order_of_condition_tokens_has_no_effect_and_that_of_latents_does(
    config: DiTConfig,
) -> None:
    dit, (x_t, t, condition) = build(config), inputs()
    velocity = dit(x_t, t, condition)
    torch.testing.assert_close(velocity, dit(x_t, t, condition.flip(1)), rtol=1e-4, atol=1e-5)
    turned = dit(x_t.flip(1), t, condition).flip(1)
    assert (velocity - turned).abs().max() > 1e-3
    assert (velocity - dit(x_t, 1 - t, condition)).abs().max() > 1e-3


def test_condition_tokens_must_be_as_wide_as_the_model() -> None:
    with pytest.raises(ValueError, match=r"dit\.cond_dim \(16\) must equal dit\.hidden_dim \(32\)"):
        InContextConfig(dit=replace(TINY, cond_dim=16))
