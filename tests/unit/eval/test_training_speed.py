"""Costs of training steps are read from what runs leave behind, and compared round by round."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.training_data import write_conversations
from eval.training_speed import (
    VARIANTS,
    StepCost,
    TrainingSpeedSettings,
    compare,
    measure,
    read_cost,
    write_workload,
)
from training.run import read_recipe
from training.stages.unified_config import UnifiedConfig
from unimm.config_io import from_dict
from unimm.errors import UserError


def settings(*variants: str) -> TrainingSpeedSettings:
    return TrainingSpeedSettings(
        model=None,
        variants=variants,
        num_rounds=1,
        num_steps=2,
        samples_per_step=20,
        max_length=256,
        device="cpu",
        dtype="bfloat16",
        peak_tflops=0.0,
    )


def test_the_first_half_of_a_run_warms_up(tmp_path: Path) -> None:
    lines = [{"tokens_per_s": t, "samples_per_s": t / 10} for t in (1, 2, 100, 300, 200)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cost = read_cost(path, peak_memory=1.5)
    assert cost == StepCost(tokens_per_s=200, samples_per_s=20, memory_gib=1.5, mfu=None)


def test_a_device_reports_its_own_memory_and_use(tmp_path: Path) -> None:
    line = {"tokens_per_s": 1, "samples_per_s": 1, "memory_gib": 70.0, "mfu": 0.5}
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line) + "\n")
    cost = read_cost(path, peak_memory=3.0)
    assert (cost.memory_gib, cost.mfu) == (70.0, 0.5)


def test_variants_are_compared_with_the_first_in_the_same_round() -> None:
    def costs(*speeds: float) -> list[StepCost]:
        return [StepCost(speed, 1.0, 2.0, None) for speed in speeds]

    # The machine is half as fast in the second round; the ratio is the same.
    compared = compare({"padded": costs(100, 50, 100), "packed": costs(200, 100, 250)})
    assert compared["padded"]["ratio"] == 1
    assert compared["packed"]["ratio"] == 2
    assert compared["packed"]["largest_ratio"] == 2.5


def test_lengths_are_mixed_and_conversations_of_every_kind(tmp_path: Path) -> None:
    lines = write_conversations(tmp_path, count=200, seed=0).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    words = sorted(len(json.dumps(r["conversations"]).split()) for r in records)
    assert words[180] > 4 * words[20]
    answers = [record["conversations"][1]["value"] for record in records]
    drawn = sum(answer == "<image>" for answer in answers)
    alone = sum("image" not in record for record in records)
    assert 70 < drawn < 130
    assert 10 < alone < 60
    assert all((tmp_path / r["image"]).is_file() for r in records if "image" in r)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_valid_run(tmp_path: Path, variant: str) -> None:
    chosen = settings(variant)
    recipe = write_workload(tmp_path, chosen)
    places = {"folder": tmp_path, "max_length": chosen.max_length}
    name, tree = read_recipe(recipe, [o.format(**places) for o in VARIANTS[variant]])
    assert name == "unified"
    config: UnifiedConfig = from_dict(UnifiedConfig, tree)
    assert config.data is not None
    assert (config.data.row_length is None) == (variant in ("padded", "longest"))


@pytest.mark.parametrize("variants", [("paddde",), (), ("packed", "packed")])
def test_wrong_variants_are_refused(variants: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"choose from padded, longest|name each variant once"):
        settings(*variants)


def test_an_override_that_is_wrong_is_the_users_mistake() -> None:
    wrong = replace(settings("padded"), overrides=("run.num_stepz=3",))
    with pytest.raises(UserError, match=r"unimm train failed: .*num_stepz"):
        measure(wrong)
