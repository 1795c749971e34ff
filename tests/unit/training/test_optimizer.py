"""The learning-rate schedule and what is decayed."""

from itertools import pairwise
from math import cos, pi

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from training.config import OptimizerConfig
from training.optimizer import build_adamw, build_optimizer, lr_factor, parameter_groups

CONFIG = OptimizerConfig(warmup_steps=10, decay_share=0.2, final_lr_ratio=0.02)


def factors(num_steps: int, config: OptimizerConfig = CONFIG) -> list[float]:
    return [lr_factor(step, num_steps, config) for step in range(num_steps)]


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert factors(100)[:10] == pytest.approx([k / 10 for k in range(1, 11)])


@pytest.mark.parametrize("num_steps", [100, 101, 5000])
def test_before_the_decay_the_length_of_the_run_does_not_matter(num_steps: int) -> None:
    """A run may be made longer or shorter while it is on the plateau, and nothing changes."""
    assert factors(num_steps)[:80] == factors(100)[:80]
    assert factors(100)[10:81] == [1.0] * 71  # the decay begins with the step after


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_the_rate_falls_without_a_jump_to_its_last_value(shape: str) -> None:
    config = OptimizerConfig(
        warmup_steps=0,
        decay_share=0.5,
        final_lr_ratio=0.1,
        decay_shape=shape,  # type: ignore[arg-type]
    )
    values = [*factors(200, config), lr_factor(200, 200, config)]
    falls = [before - after for before, after in pairwise(values)]
    assert values[-1] == pytest.approx(0.1)
    assert all(fall >= 0 for fall in falls)
    assert max(falls) <= pi / 2 * 0.9 / 100 + 1e-12  # the steepest slope of a cosine


def test_a_cosine_over_all_steps_is_the_usual_schedule() -> None:
    config = OptimizerConfig(
        warmup_steps=0, decay_share=1.0, decay_shape="cosine", final_lr_ratio=0.0
    )
    usual = [(1 + cos(pi * step / 50)) / 2 for step in range(50)]
    assert factors(50, config) == pytest.approx(usual)


def test_no_decay_stays_at_the_peak() -> None:
    config = OptimizerConfig(warmup_steps=0, decay_share=0.0)
    assert factors(20, config) == [1.0] * 20


def test_only_matrices_are_decayed_and_a_part_may_have_its_own_rate() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    model["c"].requires_grad_(False)
    groups = parameter_groups([(name, list(part.parameters())) for name, part in model.items()])
    assert [group.part for group in groups] == ["a", "b"]
    config = OptimizerConfig(lr=0.1, part_lr={"b": 0.3}, weight_decay=0.5)
    adam = build_adamw(groups, [group.parameters for group in groups], config)
    found = [
        (group["params"][0].ndim, group["peak_lr"], group["weight_decay"])
        for group in adam.param_groups
    ]
    assert found == [(2, 0.1, 0.5), (1, 0.1, 0.0), (2, 0.3, 0.5), (1, 0.3, 0.0)]


def test_a_rate_for_a_part_that_is_not_trained_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    groups = parameter_groups([("decoder", [parameter])])
    with pytest.raises(ValueError, match=r"part_lr names \['tower'\], but what is trained is deco"):
        build_adamw(groups, [[parameter]], OptimizerConfig(part_lr={"tower": 1.0}))


@pytest.mark.parametrize("tied", [True, False])
def test_muon_trains_hidden_layers_and_adamw_all_else(tied: bool) -> None:
    """Also where the vocabulary is as large as a layer is wide."""
    config = Qwen2Config(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    language = Qwen2ForCausalLM(config)
    model = nn.ModuleDict({"language": language, "projector": nn.Linear(6, 8)})
    model.register_parameter("queries", nn.Parameter(torch.ones(3, 8)))
    groups = parameter_groups([("all", list(model.parameters()))], model)
    optimizer = build_optimizer(
        groups, [group.parameters for group in groups], OptimizerConfig(hidden="muon")
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of_muon = [names[id(p)] for g in optimizer.param_groups if "ns_steps" in g for p in g["params"]]
    of_all = [names[id(p)] for g in optimizer.param_groups for p in g["params"]]
    assert sorted(of_all) == sorted(names.values())
    assert sum(name.startswith("language.model.layers") for name in of_muon) == 2 * 7
    assert [name for name in of_muon if "layers" not in name] == ["projector.weight"]


def test_an_update_of_muon_is_as_large_as_one_of_adamw_in_every_direction() -> None:
    """Moonlight (arXiv:2502.16982) eq. 4: 0.2 sqrt(max(rows, columns)) times an orthogonal one."""
    layer = nn.Linear(6, 4, bias=False, dtype=torch.float32)
    nn.init.zeros_(layer.weight)
    groups = parameter_groups([("all", list(layer.parameters()))], layer)
    config = OptimizerConfig(hidden="muon", lr=0.1, weight_decay=0.0)
    optimizer = build_optimizer(groups, [group.parameters for group in groups], config)
    optimizer.param_groups[0]["lr"] = 0.1
    directions = torch.diag(torch.tensor([1.0, 0.5, 0.2, 0.1]))
    layer.weight.grad = torch.cat([directions, torch.zeros(4, 2)], dim=1)
    optimizer.step()
    moved = torch.linalg.svdvals(layer.weight.detach()) / (0.1 * 0.2 * 6**0.5)
    assert ((moved > 0.6) & (moved < 1.3)).all()  # five Newton-Schulz steps end in this band


def test_muon_without_a_hidden_layer_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    groups = parameter_groups([("queries", [parameter])])
    with pytest.raises(ValueError, match="finds no hidden layer in queries; use adamw"):
        build_optimizer(groups, [[parameter]], OptimizerConfig(hidden="muon"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"muon_momentum": 1.0},
        {"decay_share": 1.5},
        {"warmup_steps": -1},
        {"grad_clip": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)  # type: ignore[arg-type]
