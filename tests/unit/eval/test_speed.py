"""The benchmark adds up; how fast it is, is nobody's test."""

import io
import itertools
import json
from pathlib import Path

import pytest
from rich.console import Console

import eval.speed
from eval.speed import (
    Ceilings,
    SpeedSettings,
    evaluation_floor,
    measure,
    measure_sharing,
    measure_throughput,
    print_report,
)
from unimm.errors import UserError
from unimm.pipeline import Pipeline
from unimm.testing import tiny_model, tiny_pipeline, tiny_tokenizer


def settings(**changes: object) -> SpeedSettings:
    values = {
        "model": None,
        "batch_sizes": (1, 2),
        "best_of": 2,
        "num_steps": 2,
        "guidance_scale": None,
        "num_runs": 2,
        "device": "cpu",
        "dtype": "float32",
    }
    return SpeedSettings(**values | changes)  # type: ignore[arg-type]


@pytest.fixture
def a_second_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock of the benchmark move on by a second at every look."""
    clock = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))


def test_a_report_has_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pipeline(tiny_model(), tiny_tokenizer()).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(eval.speed, "measure_ceilings", lambda device, dtype: Ceilings(1e9, 1e9))
    results = measure(settings(model=str(tmp_path / "model")))
    assert results["latency"]["nfe"] == 2
    assert list(results["latency"]["phases"]) == ["prompt", "denoise", "verify", "decode"]
    assert sum(results["latency"]["phases"].values()) <= 2 * results["latency"]["total"]["seconds"]
    assert [row["batch_size"] for row in results["throughput"]] == [1, 2]
    assert json.loads(json.dumps(results))["device"].startswith("cpu")
    text = io.StringIO()
    print_report(results, Console(file=text, width=120))
    for words in ("denoise ms", "pictures/s", "best of 2", "1 GFLOP/s"):
        assert words in text.getvalue()


@pytest.mark.usefixtures("a_second_a_look")
def test_rates_follow_from_seconds() -> None:
    """Every call takes as many seconds as the clock is looked at in it."""
    pipeline = tiny_pipeline()
    row = measure_throughput(pipeline, settings(), 3)
    assert row.pictures_per_s == pytest.approx(3 / row.total.seconds)
    sharing = measure_sharing(pipeline, settings(best_of=2))
    assert sharing.ratio == pytest.approx(sharing.together.seconds / 2 / sharing.single.seconds)
    # One prompt, one decoding and one verification whatever N: the looks do not double.
    assert sharing.ratio < 1


def test_the_floor_is_the_slower_of_products_and_memory() -> None:
    pipeline = tiny_pipeline()
    weights = [p.numel() for p in pipeline.model.generator.parameters() if p.ndim >= 2]
    products = 2 * sum(weights) * 16  # of 16 latent tokens
    assert evaluation_floor(pipeline, Ceilings(1.0, 1e30)) == pytest.approx(products)
    assert evaluation_floor(pipeline, Ceilings(1e30, 1.0)) == pytest.approx(4 * sum(weights))


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match="dtype must be one of float32, bfloat16, got 'int8'"):
        measure(settings(dtype="int8"))
