"""The training loop: batches in, steps, metrics, checkpoints, pictures, the final model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unimm.config_io import dump_config
from unimm.errors import UnimmError

from .checkpoint import load_latest, save_checkpoint
from .config import OptimizerConfig, RunConfig
from .engine import LocalEngine
from .interruption import StopRequest, leave_quietly
from .metrics import Reporter
from .optimizer import ParameterGroup
from .run_dir import explained_write_errors

Batch = Any


@dataclass(frozen=True, slots=True)
class LossReport:
    """The loss of a step and its parts.

    Args:
        loss: Scalar to minimise.
        parts: Named scalars for the metrics, not weighted.
        num_samples: Pictures in the batch.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    num_samples: int


class Stage(Protocol):
    """What is trained: the model, its loss, its pictures and its export."""

    @property
    def model(self) -> nn.Module:
        """All that is trained, exported or needed for the loss."""

    def groups(self) -> list[ParameterGroup]:
        """Return what is trained."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step: a pure function of the step, so that resuming is exact."""

    def loss(self, batch: Batch, *, step: int, generator: Generator) -> LossReport: ...

    def before_step(self, step: int, engine: LocalEngine) -> None:
        """Do what must happen between steps, such as drawing pictures to learn from."""

    def sample_grid(self, step: int) -> Image.Image:
        """Return pictures that show what the model can do; called with averaged weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the stage itself must remember over a restart."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def export(self, directory: Path) -> None:
        """Write the final model; called with float32 weights in place."""


class _Steps(Dataset[Batch]):
    """The batches of a stage by step, for a loader's workers."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


def train(stage: Stage, run: RunConfig, optimizer: OptimizerConfig, config: object) -> Path | None:
    """Train to ``run.num_steps``, going on from the last checkpoint, and export the model.

    A SIGTERM ends the run after the step under way, with a checkpoint.

    Returns:
        The directory of the final model; None where the run was told to stop before its end.

    Raises:
        OutputError: The disk is full or refuses a file; what was saved before stays.
        UnimmError: Too many steps in a row had no finite loss or gradient.
    """
    run_dir = run.output_dir
    with explained_write_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        dump_config(config, run_dir / "config.yaml")
        engine = LocalEngine(
            stage.groups(), optimizer, num_steps=run.num_steps, ema_decay=run.ema_decay
        )
        start = _resume(stage, engine, run_dir)
        reporter = Reporter(run_dir, start=start, num_steps=run.num_steps)
        with reporter, StopRequest() as stop:
            finished = _run_steps(stage, engine, reporter, run, start=start, stop=stop)
        if finished < run.num_steps:
            return None
        return export(stage, engine, run_dir / "model")


def _run_steps(
    stage: Stage,
    engine: LocalEngine,
    reporter: Reporter,
    run: RunConfig,
    *,
    start: int,
    stop: StopRequest,
) -> int:
    """Take the steps that are left, or until asked to stop; return how many are done in all."""
    finished = saved = start
    bad_steps = 0
    for batch in stop.until_asked(_loader(stage, run, start)):
        step = finished
        stage.before_step(step, engine)
        report = stage.loss(batch, step=step, generator=step_generator(run, step))
        done = engine.step(report.loss, step)
        reporter.count(report.num_samples)
        bad_steps = bad_steps + 1 if done.skipped else 0
        if bad_steps >= run.max_bad_steps:
            raise UnimmError(
                f"{bad_steps} steps in a row gave no finite loss or gradient, the last is step "
                f"{step}; lower optimizer.lr or go on from an earlier checkpoint"
            )
        finished = step + 1
        if finished % run.log_every == 0 or done.skipped:
            values = {name: value.item() for name, value in report.parts.items()}
            values |= {"loss": report.loss.item(), "lr": done.lr, "grad_norm": done.grad_norm}
            reporter.write(finished, values | {"skipped": float(done.skipped)})
        if run.sample_every and finished % run.sample_every == 0:
            _write_grid(stage, engine, run.output_dir, finished)
        if finished % run.save_every == 0 or finished == run.num_steps:
            _save(stage, engine, run, finished)
            saved = finished
    if saved < finished:
        _save(stage, engine, run, finished)
    return finished


def _save(stage: Stage, engine: LocalEngine, run: RunConfig, step: int) -> None:
    state = {"engine": engine.state_dict(), "stage": stage.state_dict()}
    save_checkpoint(run.output_dir, step, state, keep_last=run.keep_last)


def step_generator(run: RunConfig, step: int) -> Generator:
    """Return the randomness of one step: the same whether or not the run was interrupted."""
    return Generator(run.device).manual_seed((run.seed << 32) + step)


def export(stage: Stage, engine: LocalEngine, directory: Path) -> Path:
    """Write the model with its float32 (averaged) weights; the stage is then done training."""
    stage.model.float()
    with torch.no_grad():
        for parameter, final in zip(engine.parameters, engine.final_weights(), strict=True):
            parameter.copy_(final)
    stage.export(directory)
    return directory


def _resume(stage: Stage, engine: LocalEngine, run_dir: Path) -> int:
    state = load_latest(run_dir)
    if state is None:
        return 0
    engine.load_state_dict(state["engine"])
    stage.load_state_dict(state["stage"])
    return int(state["step"])


def _loader(stage: Stage, run: RunConfig, start: int) -> DataLoader[Batch]:
    return DataLoader(
        _Steps(stage.batch),
        batch_size=None,
        sampler=range(start, run.num_steps),
        num_workers=run.num_workers,
        prefetch_factor=4 if run.num_workers else None,
        multiprocessing_context="fork" if run.num_workers else None,
        worker_init_fn=leave_quietly,
    )


def _write_grid(stage: Stage, engine: LocalEngine, run_dir: Path, step: int) -> None:
    folder = run_dir / "samples"
    folder.mkdir(exist_ok=True)
    with engine.averaged():
        stage.sample_grid(step).save(folder / f"step-{step:08d}.png")
