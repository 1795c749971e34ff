"""A tiny vision stage of the shipped recipe, made once."""

from pathlib import Path
from typing import Any

import pytest

from training.recipes import find_recipe
from training.stages.vision import VisionConfig, VisionStage
from unimm.config_io import apply_override, from_dict, read_tree

TINY_VISION = (
    "run.precision=float32",
    "run.num_workers=0",
    "batch_size=8",
    "reading_batch_size=8",
    "text_tower.hidden_dim=16",
    "text_tower.depth=1",
    "model.language.hidden_size=32",
    "model.language.intermediate_size=64",
    "model.language.num_hidden_layers=1",
    "model.language.num_attention_heads=2",
    "model.language.num_key_value_heads=1",
    "model.latents.tower.hidden_size=32",
    "model.latents.tower.intermediate_size=64",
    "model.latents.tower.num_hidden_layers=1",
    "model.latents.tower.num_attention_heads=2",
    "model.latents.decoder.latent_dim=32",
    "model.latents.decoder.hidden_dim=32",
    "model.latents.decoder.depth=1",
    "model.latents.decoder.num_heads=2",
    "model.latents.decoder.mlp_dim=64",
    "model.generator.connector.in_dim=32",
    "model.generator.connector.out_dim=32",
    "model.generator.dit.latent_dim=32",
    "model.generator.dit.cond_dim=32",
    "model.generator.dit.hidden_dim=32",
    "model.generator.dit.depth=1",
    "model.generator.dit.num_heads=2",
)


def tiny_vision_tree(output_dir: Path) -> dict[str, Any]:
    tree = read_tree(find_recipe("scenes/vision"))
    assert tree.pop("stage") == "vision"
    for override in (*TINY_VISION, f"run.output_dir={output_dir}"):
        apply_override(tree, override)
    return tree


@pytest.fixture(scope="session")
def vision_stage(tmp_path_factory: pytest.TempPathFactory) -> VisionStage:
    """Return a stage with random weights and the tokenizer that the recipe trains."""
    tree = tiny_vision_tree(tmp_path_factory.mktemp("vision"))
    return VisionStage(from_dict(VisionConfig, tree))


@pytest.fixture(scope="session")
def vision_model(vision_stage: VisionStage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the model that such a stage exports."""
    directory = tmp_path_factory.mktemp("models") / "vision"
    vision_stage.export(directory)
    return directory
