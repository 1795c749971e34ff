"""A run is planned without a GPU and without the memory that it needs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import unimm
from training.build import ModelRecipe
from training.config import RunConfig
from training.plan import Machine, Plan, plan, plan_recipe
from training.recipes import find_recipe
from training.stages.unified import UnifiedConfig
from unimm.errors import ConfigError
from unimm.scenes import Grammar

SHIPPED = Path(unimm.__file__).parent / "models" / "scenes-small"

QWEN_15B = {
    "model_type": "qwen2",
    "vocab_size": 151_667,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def scale_rae(**changes: Any) -> UnifiedConfig:
    """Return a run of Scale-RAE's smaller model on a few conversations."""
    model = {
        "language": QWEN_15B,
        "latents": {
            "tower": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
            }
        },
        "num_queries": 256,
        "grammar": Grammar.small().to_dict(),
        "generator": {"connector": {"in_dim": 1536, "out_dim": 2048}, "dit": {}},
    }
    settings: dict[str, Any] = {
        "run": RunConfig(output_dir=Path("run"), num_steps=1),
        "model": ModelRecipe(tokenizer=SHIPPED, config=model, **changes),
        "samples_per_step": 8,
    }
    return UnifiedConfig(**settings)


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(scale_rae(), Machine(num_gpus=8))


def test_the_parts_of_scale_rae_have_the_published_sizes(planned: Plan) -> None:
    sizes = {size.part: size for size in planned.sizes}
    assert sizes["language"].total == pytest.approx(1.54e9, rel=0.005)
    assert sizes["generator"].total == pytest.approx(2.436e9, rel=0.005)
    assert sizes["latents"].trained == 0
    trained = sum(size.trained for size in planned.sizes)
    # 16 bytes a trained parameter in one process, beside the frozen tower of about 0.4e9.
    assert planned.state_bytes[0] == pytest.approx(16 * trained + 2 * sizes["latents"].total)
    assert planned.state_bytes[3] < planned.state_bytes[2] < planned.state_bytes[1]


def test_steps_an_hour_follow_from_operations_and_utilisation(planned: Plan) -> None:
    one = replace(planned, machine=Machine(num_gpus=1, mfu=0.5, peak_tflops=1000))
    assert one.steps_per_hour == pytest.approx(3600 * 500e12 / one.flops)
    eight = replace(planned, machine=Machine(num_gpus=8, mfu=0.5, peak_tflops=1000))
    assert eight.steps_per_hour == pytest.approx(8 * one.steps_per_hour)
    text = "\n".join(one.lines())
    assert "ZeRO-3" in text
    assert "steps an hour" in text


def test_a_frozen_language_model_costs_less_but_not_nothing(planned: Plan) -> None:
    frozen = plan(scale_rae(language="frozen"), Machine())
    assert 0.6 * planned.flops < frozen.flops < planned.flops
    assert frozen.state_bytes[0] < 0.75 * planned.state_bytes[0]
    assert {s.part for s in frozen.sizes if s.trained} == {"queries", "projector", "generator"}


def test_only_the_unified_stage_is_planned() -> None:
    with pytest.raises(ConfigError, match="only recipes of the unified stage"):
        plan_recipe(find_recipe("scenes/joint"), [], Machine())
    with pytest.raises(ConfigError, match=r"did you mean 'engine\.zero_stage'"):
        plan_recipe(find_recipe("scenes/zero"), ["engine.zero_stag=1"], Machine())
    with pytest.raises(ValueError, match="mfu"):
        Machine(mfu=1.5)
