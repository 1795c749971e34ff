"""Training on files in real processes: killed at any step, it goes on with the next sample."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.launcher import NUM_STEPS, TINY, Runs
from tests.unit.training.data.layouts import png, reading_records, write_jsonl, write_tars

pytest.importorskip("deepspeed")

NUM_SAMPLES, PER_STEP = 20, 4


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """Write tars to draw and lines to read, one of them damaged; return what names them."""
    folder = tmp_path_factory.mktemp("data")
    drawn = write_tars(folder / "tars", [5, 4])
    asked = write_jsonl(folder / "asked.jsonl", reading_records(folder, NUM_SAMPLES - 9))
    (folder / "pictures" / "4.png").write_bytes(png(4)[:40])
    sources = (
        f"{{name: drawn, kind: wds, path: {drawn}}}, {{name: asked, kind: jsonl, path: {asked}}}"
    )
    return (
        f"data.sources=[{sources}]",
        f"data.index_dir={folder / 'index'}",
        "data.max_length=200",
        "data.max_skipped_share=1",
        "engine.kind=local",
        f"samples_per_step={PER_STEP}",
    )


def train(runs: Runs, name: str, *overrides: str, **order: Any) -> list[int]:
    settings = [line for line in TINY if not line.startswith("samples_per_step")]
    place = (f"run.output_dir={runs.folder / name}", f"model.init={runs.init}")
    return runs.launch("train", "scenes/zero", *settings, *place, *overrides, **order)


def skipped_numbers(runs: Runs, name: str) -> list[int]:
    """Return the numbers of samples that could not be used, as the run's reports name them."""
    reports = sorted((runs.folder / name / "skipped").iterdir())
    lines = [line for report in reports for line in report.read_text().splitlines()]
    return sorted({json.loads(line)["number"] for line in lines})


@pytest.fixture(scope="module")
def whole(runs: Runs, overrides: Sequence[str]) -> list[dict[str, float]]:
    assert train(runs, "whole-data", *overrides) == [0], runs.launch.said()
    return runs.metrics("whole-data")


@pytest.mark.parametrize(
    ("step", "first", "then"),  # processes and workers of each before the kill and after it
    [(3, (1, 0), (2, 1)), (4, (2, 1), (1, 0)), (5, (2, 0), (2, 1))],
)
def test_a_killed_run_goes_on_with_the_very_next_sample(
    whole: list[dict[str, float]],
    runs: Runs,
    overrides: Sequence[str],
    *,
    step: int,
    first: tuple[int, int],
    then: tuple[int, int],
) -> None:
    """On as many processes and loader workers or others; a sample lost would change a loss."""
    name = f"killed-data{step}"
    killed = {"at_step": step, "signal": signal.SIGKILL, "signalled": [*range(first[0])]}
    statuses = train(
        runs, name, *overrides, f"run.num_workers={first[1]}", ranks=first[0], **killed
    )
    assert statuses == [-signal.SIGKILL] * first[0]
    assert not (runs.folder / name / "model").exists()
    statuses = train(runs, name, *overrides, f"run.num_workers={then[1]}", ranks=then[0])
    assert statuses == [0] * then[0], runs.launch.said()
    ours = runs.metrics(name)
    assert [line["step"] for line in ours] == list(range(1, NUM_STEPS + 1))
    for our, their in zip(ours, whole, strict=True):
        assert our["flow"] == pytest.approx(their["flow"], rel=1e-4)
        assert our["text"] == pytest.approx(their["text"], rel=1e-4)
    assert skipped_numbers(runs, name) == skipped_numbers(runs, "whole-data")


def test_the_damaged_picture_is_met_once_in_each_pass(
    runs: Runs, whole: list[dict[str, float]], overrides: Sequence[str]
) -> None:
    del whole, overrides
    assert len(skipped_numbers(runs, "whole-data")) in (1, 2)  # 24 samples of passes of 20
    report: Path = runs.folder / "whole-data" / "skipped"
    assert "4.png" in next(report.iterdir()).read_text()
