"""The unified stage on files: shared out over ranks, continued elsewhere, damage reported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.launcher import tiny_world_model
from tests.unit.training.data.layouts import png, reading_records, write_jsonl, write_tars
from training.build import ModelRecipe, build_model
from training.config import OptimizerConfig, RunConfig
from training.data.config import DataConfig, SourceConfig
from training.engine import LocalEngine
from training.loop import train
from training.losses.behaviour import AlignmentConfig
from training.objective import ObjectiveConfig
from training.plan import Machine, plan
from training.ranks import Ranks
from training.stages.unified import UnifiedStage
from training.stages.unified_config import UnifiedConfig, space_names
from unimm.checkpoint import save_checkpoint
from unimm.errors import UserError
from unimm.fingerprint import latent_space_id
from unimm.pipeline import Pipeline
from unimm.testing import tiny_model, tiny_tokenizer

NUM_FILES = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(directory, tiny_model(), tiny_tokenizer(), readme="Tiny.\n")
    return directory


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    drawn = SourceConfig(name="drawn", kind="wds", path=str(write_tars(tmp_path / "wds", [7, 5])))
    records = reading_records(tmp_path, NUM_FILES - 12)
    questions = write_jsonl(tmp_path / "questions.jsonl", records)
    read = SourceConfig(name="read", kind="jsonl", path=str(questions))
    return {"sources": (drawn, read), "max_length": 200, "index_dir": tmp_path / "index"}


def config(model: Path, data: dict[str, Any], run_dir: Path, **changes: Any) -> UnifiedConfig:
    run = RunConfig(
        output_dir=run_dir, num_steps=3, precision="float32", num_workers=0, sample_every=0
    )
    settings = {"run": run, "model": ModelRecipe(init=model), "samples_per_step": 4, **changes}
    return UnifiedConfig(
        data=DataConfig(**data), optimizer=OptimizerConfig(warmup_steps=0), **settings
    )


def seeds(stage: UnifiedStage, step: int) -> list[int]:
    """Return the seeds of a step's pictures: each belongs to one conversation."""
    batches = stage.batch(step).micro_batches
    found = [
        seed
        for b in batches
        for seed, counts in (
            *((s, True) for s in b.read_seeds.tolist()),
            *zip(b.drawn_seeds.tolist(), b.is_drawn.tolist(), strict=True),
        )
        if counts and seed
    ]
    return sorted(found)


def test_a_step_holds_the_same_pictures_however_many_share_it(
    model: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    settings = config(model, data, tmp_path / "run")
    alone = UnifiedStage(settings)
    pair = [UnifiedStage(settings, Ranks(rank=r, size=2)) for r in range(2)]
    for step in range(3):
        assert seeds(alone, step) == sorted(seeds(pair[0], step) + seeds(pair[1], step))
    first_pass = [seed for step in range(NUM_FILES // 4) for seed in seeds(alone, step)]
    assert len(set(first_pass)) == NUM_FILES


def test_a_run_goes_on_with_the_next_conversation_in_steps_of_another_size(
    model: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    whole = UnifiedStage(config(model, data, tmp_path / "run"))
    expected = [seed for step in range(6) for seed in seeds(whole, step)]
    whole.finished = 2
    resumed = UnifiedStage(config(model, data, tmp_path / "run", samples_per_step=8))
    resumed.load_state_dict(whole.state_dict())
    taken = [s for step in (0, 1) for s in seeds(whole, step)]
    assert sorted(taken + seeds(resumed, 2) + seeds(resumed, 3)) == sorted(expected)


def test_a_position_in_other_data_is_refused(
    model: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    state = UnifiedStage(config(model, data, tmp_path / "run")).state_dict()
    fewer = {**data, "sources": data["sources"][:1]}
    with pytest.raises(UserError, match="not what the checkpoint was trained on"):
        UnifiedStage(config(model, fewer, tmp_path / "other")).load_state_dict(state)


def test_a_cache_is_found_whatever_the_precision_of_the_run(tmp_path: Path) -> None:
    """The cache is named by the weights as they are stored, in float32 here."""
    model = tiny_world_model(tmp_path / "model")
    recipe = ModelRecipe(init=model)
    half = build_model(recipe, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert space_names(half, recipe).drawn == Pipeline.from_pretrained(model).space
    assert latent_space_id(half) != Pipeline.from_pretrained(model).space  # or nothing was shown


@pytest.mark.parametrize("row_length", [None, 260])
def test_training_on_files_learns_and_names_a_damaged_picture(
    model: Path, data: dict[str, Any], tmp_path: Path, row_length: int | None
) -> None:
    broken = tmp_path / "pictures" / "3.png"
    broken.write_bytes(png(3)[:40])
    data = {**data, "row_length": row_length}
    settings = config(model, data, tmp_path / "run", samples_per_step=NUM_FILES)
    stage = UnifiedStage(settings)
    before = stage.unimm.queries.embeddings.detach().clone()
    engine = LocalEngine(stage.groups(), settings.optimizer, num_steps=3, module=stage.objective)
    exported = train(stage, settings.run, settings.optimizer, settings, engine=engine)
    assert exported is not None
    assert not torch.equal(stage.unimm.queries.embeddings, before)
    lines = (tmp_path / "run" / "skipped" / "rank-0000.jsonl").read_text().splitlines()
    named = [json.loads(line) for line in lines]
    assert len(named) == 3  # one in each pass over the files
    assert all("3.png" in one["reason"] for one in named)


IMPERFECT = ObjectiveConfig(read_back_share=1.0, alignment=AlignmentConfig(weight=0.5, share=1.0))


@pytest.mark.parametrize("objective", [ObjectiveConfig(), IMPERFECT], ids=["plain", "imperfect"])
def test_packed_and_padded_rows_have_the_same_loss(
    model: Path, data: dict[str, Any], tmp_path: Path, objective: ObjectiveConfig
) -> None:
    records = [{"image": f"pictures/{n}.png", "text": f"thing {n}"} for n in range(8)]
    captions = SourceConfig(
        name="captions",
        kind="jsonl",
        path=str(write_jsonl(tmp_path / "captions.jsonl", records)),
        layout="caption",
        task="understanding",
    )
    data = {**data, "sources": (*data["sources"], captions)}
    losses = []
    for row_length in (None, 300):
        settings = config(model, {**data, "row_length": row_length}, tmp_path / "run")
        settings = replace(settings, objective=objective, samples_per_step=8)
        stage = UnifiedStage(settings)
        engine = LocalEngine(
            stage.groups(), settings.optimizer, num_steps=1, module=stage.objective
        )
        batch = stage.batch(0)
        (micro,) = batch.micro_batches
        if objective is IMPERFECT:
            assert micro.rereading is not None
            assert micro.rereading.read_back is not None
            assert micro.rereading.read_back.num_used  # the descriptions
        else:
            assert micro.rereading is None
        report, _ = stage.take_step(engine, batch, step=0)
        losses.append(report.loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_a_plan_says_what_the_files_hold(model: Path, data: dict[str, Any], tmp_path: Path) -> None:
    planned = plan(config(model, data, tmp_path / "run"), Machine(num_gpus=2))
    text = "\n".join(planned.lines())
    assert "data: drawn (wds): 12 samples" in text
    assert f"together: {NUM_FILES} samples" in text
    assert "passes in 12 samples: drawn 0.50, read 0.50" in text
