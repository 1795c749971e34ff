"""What is said of a processor without fast bfloat16."""

from pathlib import Path
from typing import Literal

import pytest

from training.config import OptimizerConfig, RunConfig
from training.processor import slow_settings


@pytest.fixture
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")


def run(precision: Literal["float32", "bfloat16"] = "bfloat16", device: str = "cpu") -> RunConfig:
    return RunConfig(output_dir=Path("run"), num_steps=1, precision=precision, device=device)


@pytest.mark.usefixtures("old_processor")
def test_an_old_processor_names_each_slow_setting_and_the_way_out() -> None:
    adamw, muon = OptimizerConfig(), OptimizerConfig(hidden="muon")
    (line,) = slow_settings(run(), adamw)
    assert "run.precision=float32" in line
    (line,) = slow_settings(run("float32"), muon)
    assert "optimizer.hidden=adamw" in line
    assert len(slow_settings(run(), muon)) == 2
    assert not slow_settings(run("float32"), adamw)


@pytest.mark.usefixtures("old_processor")
def test_the_processor_does_not_matter_on_a_gpu() -> None:
    assert not slow_settings(run(device="cuda:1"), OptimizerConfig(hidden="muon"))


@pytest.mark.parametrize(
    ("machine", "capability"), [("x86_64", "AVX512"), ("arm64", "DEFAULT"), ("aarch64", "SVE256")]
)
def test_other_processors_hear_nothing(
    machine: str, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert not slow_settings(run(), OptimizerConfig(hidden="muon"))
