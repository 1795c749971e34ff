"""The loop around any stage: resuming, stopping, refusing."""

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Generator, Tensor, nn

from training.checkpoint import load_latest
from training.config import OptimizerConfig, RunConfig
from training.engine import LocalEngine
from training.loop import LossReport, train
from training.optimizer import ParameterGroup, parameter_groups
from training.run_dir import check_run_dir, explained_write_errors
from unimm.errors import CheckpointError, OutputError, UnimmError, UserError

OPTIMIZER = OptimizerConfig(lr=0.05, warmup_steps=2)


class LineStage:
    """Fit a line through noisy points; whatever a test hooks in happens before a step."""

    def __init__(self, *, hook: Callable[[int], None] | None = None, width: int = 3) -> None:
        torch.manual_seed(0)
        self.line = nn.Linear(width, 1).to(torch.bfloat16)
        self.hook = hook
        self.seen: list[int] = []
        self.sampled_weights: list[Tensor] = []

    @property
    def model(self) -> nn.Module:
        return self.line

    def groups(self) -> list[ParameterGroup]:
        return parameter_groups([("line", list(self.line.parameters()))])

    def batch(self, step: int) -> Tensor:
        points = torch.randn(8, 3, generator=Generator().manual_seed(step))
        return points.to(torch.bfloat16)

    def loss(self, batch: Tensor, *, step: int, generator: Generator) -> LossReport:
        noise = torch.randn(len(batch), 1, generator=generator)
        error = self.line(batch).float() - batch.sum(dim=1, keepdim=True).float() - 0.1 * noise
        squared = error.square().mean()
        return LossReport(squared, {"squared": squared.detach()}, len(batch))

    def before_step(self, step: int, engine: LocalEngine) -> None:
        self.seen.append(step)
        if self.hook:
            self.hook(step)

    def sample_grid(self, step: int) -> Image.Image:
        self.sampled_weights.append(self.line.weight.detach().clone())
        return Image.new("RGB", (2, 2))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])

    def export(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        torch.save(self.line.state_dict(), directory / "line.pt")


def run_config(output_dir: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "num_steps": 8,
        "num_workers": 0,
        "log_every": 1,
        "save_every": 3,
        "sample_every": 0,
        "ema_decay": 0.5,
    }
    return RunConfig(output_dir=output_dir, **settings | changes)


def losses(run_dir: Path) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["step"] for row in rows}) == len(rows), "a step is logged twice"
    return {row["step"]: row["loss"] for row in rows}


def weights(run_dir: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(run_dir / "model" / "line.pt", weights_only=True)
    return state


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return the directory of a run that nothing interrupted."""
    run = run_config(tmp_path / "whole")
    assert train(LineStage(), run, OPTIMIZER, run) == tmp_path / "whole" / "model"
    return run.output_dir


def assert_same_end(run_dir: Path, whole: Path) -> None:
    assert losses(run_dir) == losses(whole)
    for name, weight in weights(whole).items():
        assert torch.equal(weights(run_dir)[name], weight), name


def test_a_crash_between_checkpoints_changes_nothing(tmp_path: Path, whole: Path) -> None:
    def crash(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    run = run_config(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(LineStage(hook=crash), run, OPTIMIZER, run)
    assert max(losses(run.output_dir)) == 5  # two of them will be taken again
    stage = LineStage()
    train(stage, run, OPTIMIZER, run)
    assert stage.seen == list(range(8))
    assert_same_end(run.output_dir, whole)


def test_sigterm_finishes_the_step_and_saves(tmp_path: Path, whole: Path) -> None:
    def terminate(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    run = run_config(tmp_path / "run")
    before = signal.getsignal(signal.SIGTERM)
    assert train(LineStage(hook=terminate), run, OPTIMIZER, run) is None
    assert signal.getsignal(signal.SIGTERM) == before
    state = load_latest(run.output_dir)
    assert state is not None
    assert state["step"] == max(losses(run.output_dir)) == 5
    assert not (run.output_dir / "model").exists()
    train(LineStage(), run, OPTIMIZER, run)
    assert_same_end(run.output_dir, whole)


def test_a_finished_run_is_exported_again_and_not_trained(whole: Path) -> None:
    before = weights(whole)
    (whole / "model" / "line.pt").unlink()
    stage = LineStage()
    run = run_config(whole)
    train(stage, run, OPTIMIZER, run)
    assert stage.seen == list(range(8))  # from the checkpoint
    assert all(torch.equal(weights(whole)[name], weight) for name, weight in before.items())


def test_sample_pictures_show_the_averaged_weights(tmp_path: Path) -> None:
    stage = LineStage()
    run = run_config(tmp_path, sample_every=4)
    train(stage, run, OPTIMIZER, run)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step-00000004.png", "step-00000008.png"]
    # The last grid shows what is exported, in the precision of training.
    assert torch.equal(stage.sampled_weights[-1], weights(tmp_path)["weight"].to(torch.bfloat16))


def test_a_run_without_finite_losses_stops_and_says_what_to_do(tmp_path: Path) -> None:
    stage = LineStage()
    torch.nn.init.constant_(stage.line.weight, torch.inf)
    run = run_config(tmp_path, max_bad_steps=3)
    with pytest.raises(UnimmError, match=r"step 2; lower optimizer.lr"):
        train(stage, run, OPTIMIZER, run)


def test_a_checkpoint_of_another_model_is_refused(whole: Path) -> None:
    run = run_config(whole)
    with pytest.raises(CheckpointError, match=r"other shapes; give run.output_dir a new"):
        train(LineStage(width=4), run, OPTIMIZER, run)


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run.output_dir .*file is not a folder; choose another"):
        check_run_dir(tmp_path / "file" / "run")
    check_run_dir(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_with_the_way_on(tmp_path: Path, error: Exception) -> None:
    expected = pytest.raises(OutputError, match=r"the disk is full; .* goes on from the last check")
    with expected, explained_write_errors(tmp_path):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError("without a number"),
        SafetensorError("invalid header"),
    ],
)
def test_errors_that_have_nothing_to_do_with_writing_pass(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained_write_errors(tmp_path):
        raise error
    assert caught.value is error
