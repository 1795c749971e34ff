"""What a run writes down about its steps."""

import json
from pathlib import Path

import pytest

from training.metrics import Reporter


def report(run_dir: Path, steps: range) -> None:
    with Reporter(run_dir, start=steps.start, num_steps=steps.stop) as reporter:
        for step in steps:
            reporter.count(16)
            reporter.write(step + 1, {"loss": 1.0 / (step + 1)})


def rows(run_dir: Path) -> list[dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_line_has_the_step_its_values_and_the_speed(tmp_path: Path) -> None:
    report(tmp_path, range(3))
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
    ]
    assert all(row["samples_per_s"] > 0 for row in rows(tmp_path))
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_lines_are_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    with Reporter(tmp_path, start=0, num_steps=2) as reporter:
        reporter.write(1, {"loss": 1.0})
        assert [row["step"] for row in rows(tmp_path)] == [1]


@pytest.mark.parametrize("last", ["", '{"step": 6, "los', '{"step"', "{}", "\x00\x00"])
def test_resuming_drops_later_lines_and_a_half_written_one(tmp_path: Path, last: str) -> None:
    report(tmp_path, range(5))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(last)
    report(tmp_path, range(3, 6))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_values_that_are_no_numbers_survive(tmp_path: Path) -> None:
    with Reporter(tmp_path, start=0, num_steps=1) as reporter:
        reporter.write(1, {"loss": float("nan")})
    report(tmp_path, range(1, 2))
    assert rows(tmp_path)[0]["loss"] != rows(tmp_path)[0]["loss"]
