"""A run is planned without a GPU and without the memory that it needs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import unimm
from metaquery.generator import LatentGenerator
from training.build import ModelRecipe
from training.config import RunConfig
from training.data.config import DataConfig, SourceConfig
from training.plan import Machine, Plan, missing_files, plan, plan_recipe
from training.recipes import find_recipe
from training.stages.unified_config import UnifiedConfig
from unimm.assembly import Assembly, published_config
from unimm.checkpoints.assemble import empty_parameters
from unimm.config_io import from_dict, read_tree
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


PUBLISHED = {
    # name: parameters of language model, DiT and tower, in thousand millions
    "stage1_qwen1.5b_dit2.4b": (1.544, 2.436, 0.412),
    "stage2_qwen1.5b_dit2.4b": (1.544, 2.436, 0.412),
    "stage1_qwen7b_dit9.8b": (7.616, 9.73, 0.412),
    "stage1_webssl_qwen1.5b_dit2.4b": (1.544, 2.436, 0.304),
    "lora_qwen7b": (7.616, 2.436, 0.412),
}

VAE_RECIPES = ("stage1_flux_vae_qwen1.5b_dit2.4b", "stage2_flux_vae_qwen1.5b_dit2.4b")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_planned_before_weights_and_data_are_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("lora"):
        pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    made = plan_recipe(find_recipe(f"scale_rae/{name}"), [], Machine(num_gpus=64))
    sizes = {size.part: size for size in made.sizes}
    language, dit, tower = PUBLISHED[name]
    added = 0.021 if name.startswith("lora") else 0
    assert sizes["language"].total / 1e9 == pytest.approx(language * (1 + added), rel=0.005)
    assert sizes["generator"].total / 1e9 == pytest.approx(dit, rel=0.005)
    assert sizes["latents"].total / 1e9 == pytest.approx(tower, rel=0.01)
    assert sizes["language"].trained < sizes["language"].total or not added
    assert list(made.state_bytes.values()) == sorted(made.state_bytes.values(), reverse=True)
    text = "\n".join(made.lines())
    assert "not there; each sample counts as" in text
    assert "is not there; parts have their published sizes" in text
    assert "steps an hour" in text


@pytest.mark.parametrize("name", VAE_RECIPES)
def test_the_baseline_sees_by_the_tower_and_draws_a_vae(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    config = load_config(name).model.planned_config()
    assert (config.latents.num_tokens, config.latents.dim, config.latents.image_size) == (
        *(256, 64),
        256,
    )
    assert config.generator.timestep_shift == pytest.approx(2.0)
    assert (config.seen.num_tokens, config.seen.dim, config.seen.image_size) == (256, 1152, 224)
    made = plan_recipe(find_recipe(f"scale_rae/{name}"), [], Machine(num_gpus=64))
    sizes = {size.part: size.total for size in made.sizes}
    assert sizes["latents"] == 83_819_683  # FLUX's autoencoder
    assert sizes["vision"] / 1e9 == pytest.approx(0.412, rel=0.01)
    assert sizes["generator"] / 1e9 == pytest.approx(2.436, rel=0.005)
    rival = plan_recipe(find_recipe(f"scale_rae/{name.replace('flux_vae_', '')}"), [], Machine())
    # The VAE's encoder is small beside a step of the DiT, but not nothing.
    assert 0.95 * rival.flops < made.flops < 1.2 * rival.flops
    assert "parts have their published sizes" in "\n".join(made.lines())


def load_config(name: str) -> UnifiedConfig:
    tree = read_tree(find_recipe(f"scale_rae/{name}"))
    assert tree.pop("stage") == "unified"
    return from_dict(UnifiedConfig, tree)


@pytest.mark.parametrize(
    ("size", "published"), [("0.5B", 0.48), ("3.1B", 3.08), ("5.5B", 5.48), ("9.8B", 9.73)]
)
def test_the_other_sizes_of_the_dit_are_the_published_ones(size: str, published: float) -> None:
    parts = Assembly(
        language="Qwen/Qwen2.5-1.5B-Instruct",
        tower="google/siglip2-so400m-patch14-224",
        generator=size,
    )
    with empty_parameters():
        dit = LatentGenerator(published_config(parts).generator).dit
    assert sum(p.numel() for p in dit.parameters()) / 1e9 == pytest.approx(published, rel=0.01)


def test_a_real_file_that_is_wrong_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text("no json\n")
    source = SourceConfig(name="own", kind="jsonl", path=str(tmp_path / "lines.jsonl"))
    config = replace(scale_rae(), data=DataConfig(sources=(source,), index_dir=tmp_path / "index"))
    assert missing_files(config) == []
    gone = replace(source, name="gone", path=str(tmp_path / "gone.jsonl"))
    config = replace(config, data=DataConfig(sources=(source, gone)))
    assert missing_files(config) == [gone.path]
