"""Training on several processes: how a step is divided must not matter, nor who goes on with it."""

import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import unimm
from tests.integration.launcher import NUM_STEPS, TINY, Runs
from training.checkpoint import load_state

pytest.importorskip("deepspeed")

SHIPPED = Path(unimm.__file__).parent / "models" / "scenes-small"

LOCAL = ("engine.kind=local",)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> list[dict[str, float]]:
    """Return the metrics of a run on one process, with the plain optimiser."""
    assert runs("local", *LOCAL) == [0], runs.launch.said()
    return runs.metrics("local")


def assert_same_course(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert [set(line) for line in ours] == [set(line) for line in theirs]
    assert len(theirs) == NUM_STEPS
    for our, their in zip(ours, theirs, strict=True):
        for name, value in their.items():
            # Sums in another order; Adam turns what rounding leaves of a zero into a step.
            assert math.isclose(our[name], value, rel_tol=1e-4, abs_tol=1e-5), (name, our, their)


def assert_same_model(
    runs: Runs, ours: str, theirs: str = "local", *, rtol: float = 1e-2, atol: float = 2e-3
) -> None:
    expected = runs.weights(theirs)
    for key, weight in runs.weights(ours).items():
        torch.testing.assert_close(weight, expected[key], rtol=rtol, atol=atol)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_sharding_over_two_processes_changes_nothing(
    runs: Runs, whole: list[dict[str, float]], stage: int
) -> None:
    name = f"zero{stage}"
    assert runs(name, f"engine.zero_stage={stage}", ranks=2) == [0, 0], runs.launch.said()
    assert_same_course(runs.metrics(name), whole)
    assert_same_model(runs, name)


LONG = ("run.num_steps=20", "run.save_every=20")


@pytest.fixture(scope="module")
def long_course(runs: Runs) -> list[float]:
    """Return the losses of twenty steps on one process, with the plain optimiser."""
    assert runs("long", *LONG, *LOCAL) == [0], runs.launch.said()
    return [line["loss"] for line in runs.metrics("long")]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_twenty_steps_have_the_losses_of_one_process(
    runs: Runs, long_course: list[float], stage: int
) -> None:
    name = f"long{stage}"
    assert runs(name, *LONG, f"engine.zero_stage={stage}", ranks=2) == [0, 0], runs.launch.said()
    assert len(long_course) == 20
    assert long_course[-1] < 0.9 * long_course[0]
    losses = [line["loss"] for line in runs.metrics(name)]
    assert losses == pytest.approx(long_course, rel=1e-4)


def test_imperfect_pictures_are_the_same_however_a_step_is_divided(runs: Runs) -> None:
    """Micro-batches of two conversations: many have nothing to predict, or nothing to align."""
    imperfect = (
        "model.config.generator.dit.exit_depth=1",
        "model.fresh=[generator.dit.exit]",
        "objective.read_back_share=0.7",
        "objective.alignment={weight: 0.5, share: 0.7, source: exit}",
        "scenes.matching=0.6",
    )
    assert runs("imperfect", *imperfect, *LOCAL) == [0], runs.launch.said()
    sharding = ("engine.zero_stage=3", "engine.accumulation=2")
    assert runs("imperfect3", *imperfect, *sharding, ranks=2) == [0, 0], runs.launch.said()
    assert_same_course(runs.metrics("imperfect3"), runs.metrics("imperfect"))
    assert all(line["alignment"] > 0 for line in runs.metrics("imperfect"))


@pytest.mark.parametrize("engine", ["local", "deepspeed"])
def test_accumulating_gradients_changes_nothing(
    runs: Runs, whole: list[dict[str, float]], engine: str
) -> None:
    name = f"accumulated-{engine}"
    overrides = (f"engine.kind={engine}", "engine.zero_stage=3", "engine.accumulation=4")
    assert runs(name, *overrides, ranks=2) == [0, 0], runs.launch.said()
    assert_same_course(runs.metrics(name), whole)
    assert_same_model(runs, name)


def test_a_process_without_pictures_keeps_nobody_waiting(runs: Runs) -> None:
    """One conversation a process, most of them talk: many batches have no picture at all.

    With fewer tokens than parts of them some parts are empty, in one process and not the other.
    """
    talk = ("scenes.text=2", "scenes.drawing=1", "samples_per_step=2", "run.num_steps=6")
    assert runs("talk", *talk, *LOCAL) == [0], runs.launch.said()
    sharded = ("engine.zero_stage=3", "objective.loss_chunks=9")
    assert runs("talk3", *talk, *sharded, ranks=2) == [0, 0], runs.launch.said()
    assert_same_course(runs.metrics("talk3"), runs.metrics("talk"))
    assert any(line["flow"] == 0 for line in runs.metrics("talk3"))
    assert any(line["flow"] > 0 for line in runs.metrics("talk3"))


def test_bfloat16_keeps_float32_masters(runs: Runs) -> None:
    half = ("run.precision=bfloat16", "run.sample_every=3")
    assert runs("half", *half, *LOCAL) == [0], runs.launch.said()
    sharded = (*half, "engine.zero_stage=3", "engine.accumulation=2")
    assert runs("half3", *sharded, ranks=2) == [0, 0], runs.launch.said()
    for ours, theirs in zip(runs.metrics("half3"), runs.metrics("half"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)
    pictures = sorted((runs.folder / "half3" / "samples").iterdir())
    assert [p.name for p in pictures] == ["step-00000003.png", "step-00000006.png"]
    assert runs.weights("half3")["queries.embeddings"].dtype == torch.float32


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_goes_on_bit_for_bit_and_on_fewer_processes(
    runs: Runs, whole: list[dict[str, float]], stage: int
) -> None:
    straight, name = f"zero{stage}", f"resumed{stage}"
    sharding = f"engine.zero_stage={stage}"
    if not (runs.folder / straight).exists():
        assert runs(straight, sharding, ranks=2) == [0, 0]
    at_three = {"at_step": 3, "signal": signal.SIGTERM, "signalled": [1]}
    assert runs(name, sharding, ranks=2, **at_three) == [0, 0], runs.launch.said()
    assert runs.checkpoints(name) == ["step-00000002", "step-00000003"]
    assert not (runs.folder / name / "model").exists()
    shutil.copytree(runs.folder / name, runs.folder / f"{name}-one")
    assert runs(name, sharding, ranks=2) == [0, 0], runs.launch.said()
    assert runs.metrics(name) == runs.metrics(straight)
    assert_same_model(runs, name, straight, rtol=0, atol=0)
    # One process, another ZeRO stage, then two again.
    other = f"engine.zero_stage={4 - stage}"
    at_five = {"at_step": 5, "signal": signal.SIGTERM}
    assert runs(f"{name}-one", other, ranks=1, **at_five) == [0], runs.launch.said()
    assert runs(f"{name}-one", sharding, ranks=2) == [0, 0], runs.launch.said()
    assert_same_course(runs.metrics(f"{name}-one"), whole)
    assert_same_model(runs, f"{name}-one")


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(runs: Runs) -> None:
    statuses = runs("killed", "engine.zero_stage=2", ranks=2, die_saving=4)
    assert statuses == [9, 9]
    assert "step-00000004" not in runs.checkpoints("killed")
    assert runs("killed", "engine.zero_stage=2", ranks=2) == [0, 0], runs.launch.said()
    if not (runs.folder / "zero2").exists():
        assert runs("zero2", "engine.zero_stage=2", ranks=2) == [0, 0]
    assert runs.metrics("killed") == runs.metrics("zero2")


def test_a_checkpoint_is_exported_without_the_processes_that_wrote_it(
    runs: Runs, tmp_path: Path
) -> None:
    if not (runs.folder / "zero3").exists():
        assert runs("zero3", "engine.zero_stage=3", ranks=2) == [0, 0]
    assert runs.launch("export", str(runs.folder / "zero3"), str(tmp_path / "model")) == [0]
    exported = load_file(tmp_path / "model" / "model.safetensors")
    for name, weight in runs.weights("zero3").items():
        assert torch.equal(exported[name], weight)
    assert runs.launch("export", str(tmp_path), str(tmp_path / "other")) == [2]
    assert "it is not the directory of a run" in runs.launch.said()


def test_low_rank_additions_are_trained_and_merged(runs: Runs) -> None:
    pytest.importorskip("peft")
    lora = ("model.language=lora", "model.lora.rank=4", "run.ema_decay=0")
    assert runs("lora", *lora, *LOCAL) == [0], runs.launch.said()
    assert runs("lora3", *lora, "engine.zero_stage=3", ranks=2) == [0, 0], runs.launch.said()
    assert_same_course(runs.metrics("lora3"), runs.metrics("lora"))
    before = load_file(runs.init / "model.safetensors")
    after = runs.weights("lora3")
    assert set(after) == set(before)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "language.model.layers.0.self_attn.q_proj.weight" in changed
    assert "language.model.embed_tokens.weight" not in changed


def test_a_frozen_language_model_stays_as_it_was(runs: Runs) -> None:
    frozen = ("model.language=frozen", "model.checkpoint_activations=true")
    assert runs("frozen", *frozen, *LOCAL) == [0], runs.launch.said()
    assert runs("frozen3", *frozen, "engine.zero_stage=3", ranks=2) == [0, 0], runs.launch.said()
    assert_same_course(runs.metrics("frozen3"), runs.metrics("frozen"))
    before = load_file(runs.init / "model.safetensors")
    for name, weight in runs.weights("frozen3").items():
        is_fixed = name.startswith(("language.", "latents.")) or name.endswith("frequencies")
        assert torch.equal(weight, before[name]) == is_fixed, name


@pytest.mark.parametrize("stage", [2, 3])
def test_computing_activations_again_changes_nothing(
    runs: Runs, whole: list[dict[str, float]], stage: int
) -> None:
    name = f"again{stage}"
    overrides = (
        f"engine.zero_stage={stage}",
        "model.checkpoint_activations=true",
        "objective.loss_chunks=7",
    )
    assert runs(name, *overrides, ranks=2) == [0, 0], runs.launch.said()
    assert_same_course(runs.metrics(name), whole)


def test_states_on_the_cpu_change_nothing(runs: Runs, whole: list[dict[str, float]]) -> None:
    overrides = ("engine.zero_stage=2", "engine.offload_optimizer=cpu")
    assert runs("offloaded", *overrides, ranks=2) == [0, 0], runs.launch.said()
    assert_same_course(runs.metrics("offloaded"), whole)


def test_samples_that_cannot_be_shared_out_are_refused_by_all(runs: Runs) -> None:
    assert runs("odd", "samples_per_step=9", ranks=2) == [2, 2]
    assert "9 samples of a step cannot be shared out evenly" in runs.launch.said(1)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_process_holds_the_memory_that_was_planned(runs: Runs, stage: int) -> None:
    """Weights, gradients and optimiser of the shipped model, against what the plan says."""
    from training.plan import Machine, plan_recipe
    from training.recipes import find_recipe

    engine = LOCAL if stage == 0 else (f"engine.zero_stage={stage}", "engine.bucket_size=100000")
    settings = (
        *TINY,
        *engine,
        f"run.output_dir={runs.folder / f'weighed{stage}'}",
        f"model.init={SHIPPED}",
        "run.precision=bfloat16",
        "run.num_steps=2",
        "run.save_every=100",
        "samples_per_step=2",
    )
    assert runs.launch("train", "scenes/zero", *settings, ranks=2, weigh_at=1) == [0, 0]
    plan = plan_recipe(find_recipe("scenes/zero"), list(settings), Machine(num_gpus=2))
    held = [int((runs.folder / f"rank.{rank}.bytes").read_text()) for rank in range(2)]
    for bytes_of_rank in held:
        assert bytes_of_rank == pytest.approx(plan.state_bytes[stage], rel=0.15)


JOINT = (
    "batch.num_prompts=3",
    "batch.num_blends=1",
    "batch.pictures_per_prompt=2",
    "batch.matching_rows=2",
    "batch.reading_rows=2",
    "batch.chat_rows=1",
    "bank.start=1",
    "bank.every=2",
    "bank.num_prompts=2",
    "bank.pictures_per_prompt=2",
    "bank.rows=2",
    "bank.num_steps=2",
    "batch.drawing_length=160",
    "batch.matching_length=160",
    "batch.reading_length=500",
    "batch.chat_length=900",
    "keep_generator=true",
    "model={}",
)


def test_a_stage_of_the_miniature_world_trains_on_two_processes_and_goes_on(runs: Runs) -> None:
    """Each process draws its own share of a step and keeps its own bank of drawn pictures."""

    def train(name: str, **order: Any) -> list[int]:
        settings = [line for line in TINY if line.startswith(("run.", "optimizer.lr"))]
        place = (f"run.output_dir={runs.folder / name}", f"init={runs.init}")
        return runs.launch("train", "scenes/joint", *settings, *JOINT, *place, **order)

    assert train("joint1") == [0], runs.launch.said()
    assert train("joint2", ranks=2) == [0, 0], runs.launch.said()
    at_three = {"at_step": 3, "signal": signal.SIGTERM, "signalled": [1]}
    assert train("joint-resumed", ranks=2, **at_three) == [0, 0], runs.launch.said()
    assert not (runs.folder / "joint-resumed" / "model").exists()
    assert train("joint-resumed", ranks=2) == [0, 0], runs.launch.said()
    assert runs.metrics("joint-resumed") == runs.metrics("joint2")
    assert_same_model(runs, "joint-resumed", "joint2", rtol=0, atol=0)
    (checkpoint,) = (runs.folder / "joint2" / "checkpoints").glob("step-00000006")
    first, second = load_state(checkpoint)["stage"]["banks"]
    assert not torch.equal(first["latents"], second["latents"])
    ours, theirs = runs.metrics("joint2")[0], runs.metrics("joint1")[0]
    assert ours["flow"] != theirs["flow"]  # twice the data: the mean over both shares
