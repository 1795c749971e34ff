"""The unified stage on a model that sees by one space and draws in another."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests.unit.training.data.layouts import reading_records, write_jsonl, write_tars
from training.batch import mixed_seed
from training.build import ModelRecipe
from training.cli import cache_latents_app
from training.config import OptimizerConfig, RunConfig
from training.cost import StepCost
from training.data.config import DataConfig, SourceConfig
from training.engine import LocalEngine
from training.loop import train
from training.plan import Machine, plan
from training.stages.unified import UnifiedStage
from training.stages.unified_config import UnifiedConfig
from unimm.checkpoint import save_checkpoint
from unimm.pipeline import Pipeline
from unimm.testing import tiny_model, tiny_tokenizer, tiny_two_space_config

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tiny = tiny_model(config=tiny_two_space_config())
    save_checkpoint(directory, tiny, tiny_tokenizer(), readme="Tiny.\n")
    return directory


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    drawn = SourceConfig(name="drawn", kind="wds", path=str(write_tars(tmp_path / "wds", [4])))
    questions = write_jsonl(tmp_path / "questions.jsonl", reading_records(tmp_path, 4))
    read = SourceConfig(name="read", kind="jsonl", path=str(questions))
    return {"sources": (drawn, read), "max_length": 200, "index_dir": tmp_path / "index"}


def config(model: Path, data: dict[str, Any], run_dir: Path) -> UnifiedConfig:
    run = RunConfig(
        output_dir=run_dir, num_steps=2, precision="float32", num_workers=0, sample_every=1
    )
    return UnifiedConfig(
        run=run,
        model=ModelRecipe(init=model),
        optimizer=OptimizerConfig(warmup_steps=0),
        samples_per_step=8,
        data=DataConfig(**data),
    )


def test_pictures_are_read_by_the_tower_and_drawn_from_the_posterior(
    model: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    stage = UnifiedStage(config(model, data, tmp_path / "run"))
    (batch,) = stage.batch(0).micro_batches
    assert batch.read.shape[1:] == (3, 30, 30)
    assert batch.drawn.shape[1:] == (3, 16, 16)
    read, drawn = stage.encoder.read(batch), stage.encoder.drawn(batch)
    vae: Any = stage.unimm.latents
    assert stage.unimm.vision is not None
    torch.testing.assert_close(read, stage.unimm.vision.encode(batch.read.float() / 255))
    for i, seed in enumerate(batch.drawn_seeds.tolist()):
        pixels = batch.drawn[i : i + 1].float() / 255
        expected = vae.sample(pixels, [Generator().manual_seed(mixed_seed(seed, 2))])
        torch.testing.assert_close(drawn[i : i + 1], expected)
    assert torch.equal(drawn, stage.encoder.drawn(batch))


@pytest.mark.parametrize("row_length", [None, 260])
def test_training_changes_what_is_trained_and_exports_both_spaces(
    model: Path, data: dict[str, Any], tmp_path: Path, row_length: int | None
) -> None:
    settings = config(model, {**data, "row_length": row_length}, tmp_path / "run")
    stage = UnifiedStage(settings)
    before = {name: p.detach().clone() for name, p in stage.unimm.named_parameters()}
    engine = LocalEngine(stage.groups(), settings.optimizer, num_steps=2, module=stage.objective)
    exported = train(stage, settings.run, settings.optimizer, settings, engine=engine)
    assert exported is not None
    after = dict(stage.unimm.named_parameters())
    changed = {n.partition(".")[0] for n, p in after.items() if not torch.equal(p, before[n])}
    assert changed == {"language", "queries", "projector", "generator"}
    (generation,) = Pipeline.from_pretrained(exported).generate("a red circle")
    assert generation.pixel_decodes == 2
    assert list((tmp_path / "run").rglob("*.png"))  # sample grids


def test_a_cache_holds_each_picture_in_both_spaces(
    model: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    sources = [{"name": s.name, "kind": s.kind, "path": s.path} for s in data["sources"]]
    section = {"sources": sources, "index_dir": str(tmp_path / "index")}
    recipe.write_text(json.dumps({"stage": "unified", "data": section}))
    cache = tmp_path / "cache"
    command = [str(recipe), "--model", str(model), "--device", "cpu", "--output", str(cache)]
    result = CliRunner().invoke(
        cache_latents_app, [*command, "--dtype", "float32"], catch_exceptions=False
    )
    assert result.exit_code == 0
    kinds = sorted(Path(line).name.partition("-")[0] for line in result.stdout.split())
    assert kinds == ["flux_vae", "patches"]
    plain = UnifiedStage(config(model, data, tmp_path / "run"))
    cached = UnifiedStage(config(model, {**data, "latent_cache": cache}, tmp_path / "run"))
    (pixels,), (latents,) = plain.batch(0).micro_batches, cached.batch(0).micro_batches
    torch.testing.assert_close(cached.encoder.read(latents), plain.encoder.read(pixels))
    mean = plain.unimm.latents.encode(pixels.drawn.float() / 255)
    torch.testing.assert_close(cached.encoder.drawn(latents), mean)


def test_a_plan_counts_what_each_encoder_costs(
    model: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    stage = UnifiedStage(config(model, data, tmp_path / "run"))
    # The other kernels of attention on a CPU are not counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        stage.unimm.latents.encode(torch.zeros(1, 3, 16, 16))
    cost = StepCost.of(stage.unimm)
    assert cost.per_target == counter.get_total_flops() > 0
    assert cost.per_seen == 0  # patches have no weights
    made = plan(config(model, data, tmp_path / "run"), Machine())
    assert made.work.seen + made.work.targets == 8
    assert made.work.targets == made.work.drawn
    assert [size.part for size in made.sizes][-2:] == ["latents", "vision"]
