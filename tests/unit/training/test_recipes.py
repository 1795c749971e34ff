"""Recipes are checked to the last key before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.config import RunConfig
from training.recipes import RECIPES, find_recipe, recipe_names
from training.run import _config_class, run_recipe
from unimm.config_io import dump_config, from_dict, load_config, read_tree, to_dict
from unimm.errors import ConfigError, UserError
from unimm.scenes import Grammar
from unimm.testing import tiny_two_space_config


def load(name: str) -> tuple[type[Any], Any]:
    tree = read_tree(find_recipe(name))
    config_class = _config_class(tree.pop("stage"))
    return config_class, from_dict(config_class, tree)


def test_the_stages_of_both_worlds_are_shipped() -> None:
    stages = ("vision", "decoder", "reading", "joint", "reward", "verifier")
    shipped = {f"{world}/{stage}" for world in ("scenes", "scenes_full") for stage in stages}
    assert shipped <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_loads_and_is_written_back_whole(name: str, tmp_path: Path) -> None:
    config_class, config = load(name)
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(config_class, tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_begins_where_another_ends_and_keeps_its_runs_apart(name: str) -> None:
    _, config = load(name)
    others = [load(other)[1] for other in recipe_names() if other != name]
    assert config.run.output_dir not in [other.run.output_dir for other in others]
    init = config.model.init if hasattr(config, "engine") else getattr(config, "init", None)
    outputs = [other.run.output_dir / "model" for other in others]
    if init is not None and init not in outputs:
        # Then released parts are its beginning, and its head has the command that joins them.
        command = config.model.assembled.command(init)
        assert f"#   {command}\n" in find_recipe(name).read_text()
    elif init is not None:
        assert init in outputs
    elif getattr(config, "tower", None) is None:
        grammar = Grammar.from_dict(config.model.grammar)
        assert set(grammar.shapes) >= set(Grammar.small().shapes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.leraning_rate=1", "unknown key 'optimizer.leraning_rate'"),
        ("optimiser.lr=1", "did you mean 'optimizer"),
        ("model.generator.dit.dept=3", "did you mean 'model.generator.dit.depth'?"),
        ("run.num_steps=many", "run.num_steps: "),
        ("run.num_steps=2.5", "run.num_steps: "),
        ("run.num_steps=0", "num_steps must be at least 1, got 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("batch_size=1", "reading_batch_size must be from 1 to batch_size (1)"),
        ("model.latents.patch_size=17", "image_size (64) must be divisible by patch_size (17)"),
        ("model.generator.dit.latent_dim=7", "must equal channels of the latent space (192)"),
        ("stage=visoin", "stage must be one of ('vision', 'decoder', 'rae_decoder'"),
    ],
)
def test_a_slip_is_named_by_its_path_and_starts_nothing(
    override: str, message: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(ConfigError) as caught:
        run_recipe(find_recipe("scenes/vision"), [f"run.output_dir={run_dir}", override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not run_dir.exists()


def test_a_model_that_is_not_assembled_yet_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load("scale_rae/stage1_qwen1.5b_dit2.4b")[1]
    with pytest.raises(
        UserError,
        match=r"there is no model directory models/scale_rae_.*begin "
        r"anew with: unimm assemble models/scale_rae_qwen1\.5b_dit2\.4b --language",
    ):
        config.model.model_config()


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("stage: decoder\nrun: {output_dir: x, num_steps: 3}\n")
    with pytest.raises(ConfigError, match=r"own\.yaml: init is missing"):
        run_recipe(find_recipe(str(path)), [])


def test_a_folder_or_gpu_that_is_not_there_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    recipe = find_recipe("scenes/vision")
    with pytest.raises(UserError, match=r"cannot write run\.output_dir"):
        run_recipe(recipe, [f"run.output_dir={tmp_path / 'file' / 'run'}"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch sees no GPU; use run\.device=cpu"):
        run_recipe(recipe, [f"run.output_dir={tmp_path / 'run'}", "run.device=cuda"])
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe 'scenes/visoin'; choose .*scenes/vision"):
        find_recipe("scenes/visoin")
    assert find_recipe("scenes/vision") == RECIPES / "scenes" / "vision.yaml"
    with pytest.raises(UserError, match="no recipe"):
        find_recipe(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize("stage", ["decoder", "reading", "joint"])
def test_stages_that_read_what_is_drawn_refuse_a_model_that_cannot(
    stage: str, tmp_path: Path
) -> None:
    tree = to_dict(tiny_two_space_config())
    header = {"model_type": "unimm", "format": 1, "latent_space": "flux_vae"}
    init = tmp_path / "model"
    init.mkdir()
    (init / "config.json").write_text(json.dumps({**header, **tree}))
    overrides = [f"run.output_dir={tmp_path / 'run'}", f"init={init}"]
    with pytest.raises(UserError, match=f"the stage '{stage}' .*train it by the stage 'unified'"):
        run_recipe(find_recipe(f"scenes/{stage}"), overrides)


@pytest.mark.parametrize(
    "wrong", [{"num_steps": 0}, {"keep_last": 0}, {"ema_decay": 1.0}, {"seed": -1}]
)
def test_a_run_out_of_range_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RunConfig(output_dir=tmp_path, **{"num_steps": 1, **wrong})
