"""The training loop: batches in, steps, metrics, checkpoints, pictures, the final model."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unimm.config_io import dump_config
from unimm.errors import UnimmError

from .checkpoint import latest_checkpoint, load_latest, save_checkpoint
from .config import OptimizerConfig, RunConfig
from .engine import Engine, LocalEngine, StepReport
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
        num_samples: Pictures (or conversations) in the batch.
        num_positions: Positions of the language model that held something; 0 if not counted.
        flops: Floating-point operations of the model; 0 if not counted.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    num_samples: int
    num_positions: int = 0
    flops: float = 0.0


class Stage(Protocol):
    """What is trained: the model, its loss, its pictures and its export."""

    @property
    def model(self) -> nn.Module:
        """All that is trained, exported or needed for the loss."""

    def groups(self) -> list[ParameterGroup]:
        """Return what is trained."""

    def batch(self, step: int) -> Batch:
        """Return this process's batch of a step.

        A pure function of step and process, so that resuming is exact.
        """

    def loss(self, batch: Batch, *, step: int, generator: Generator) -> LossReport: ...

    def before_step(self, step: int, engine: Any) -> None:
        """Do what must happen between steps, such as drawing pictures to learn from."""

    def sample_grid(self, step: int) -> Image.Image:
        """Return pictures that show what the model can do; called with averaged weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the stage itself must remember over a restart."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def export(self, directory: Path) -> None:
        """Write the final model; called with float32 weights in place."""


@runtime_checkable
class SteppingStage(Protocol):
    """A stage that divides its steps into micro-batches, over one process or many."""

    def take_step(
        self, engine: Engine, batches: Any, *, step: int
    ) -> tuple[LossReport, StepReport]:
        """Return what one optimiser step over all processes did."""


class _Steps(Dataset[Batch]):
    """The batches of a stage by step, for a loader's workers."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


def train(
    stage: Stage,
    run: RunConfig,
    optimizer: OptimizerConfig,
    config: object,
    *,
    engine: Engine | None = None,
    header: str = "",
) -> Path | None:
    """Train to ``run.num_steps``, going on from the last checkpoint, and export the model.

    A SIGTERM ends the run after the step under way, with a checkpoint.

    Args:
        stage: What is trained.
        run: How long, where, on what.
        optimizer: AdamW and its schedule.
        config: All of the above and more, written beside the run.
        engine: Takes the steps; one for this process alone when None.
        header: First line of the written configuration.

    Returns:
        The directory of the final model; None where the run was told to stop before its end.

    Raises:
        OutputError: The disk is full or refuses a file; what was saved before stays.
        UnimmError: Too many steps in a row had no finite loss or gradient.
    """
    run_dir = run.output_dir
    if engine is None:
        engine = LocalEngine(
            stage.groups(), optimizer, num_steps=run.num_steps, ema_decay=run.ema_decay
        )
    is_main = engine.ranks.is_main
    with explained_write_errors(run_dir):
        if is_main:
            run_dir.mkdir(parents=True, exist_ok=True)
            dump_config(config, run_dir / "config.yaml", header=header)
        start = _resume(stage, engine, run_dir)
        reporter = Reporter(
            run_dir,
            start=start,
            num_steps=run.num_steps,
            is_silent=not is_main,
            peak_flops=run.peak_tflops * 1e12 * engine.ranks.size,
            wandb_project=run.wandb_project,
        )
        with reporter, StopRequest() as stop:
            finished = _run_steps(stage, engine, reporter, run, start=start, stop=stop)
        if finished < run.num_steps:
            return None
        return export(stage, engine, run_dir / "model")


def _run_steps(
    stage: Stage,
    engine: Engine,
    reporter: Reporter,
    run: RunConfig,
    *,
    start: int,
    stop: StopRequest,
) -> int:
    """Take the steps that are left, or until asked to stop; return how many are done in all."""
    finished = saved = start
    bad_steps = 0
    for batch in _until_any_asked(stop.until_asked(_loader(stage, run, start)), engine, stop):
        step = finished
        stage.before_step(step, engine)
        report, done = _take_step(stage, engine, batch, run, step)
        reporter.count(report.num_samples, report.num_positions, report.flops)
        bad_steps = bad_steps + 1 if done.skipped else 0
        if bad_steps >= run.max_bad_steps:
            raise UnimmError(
                f"{bad_steps} steps in a row gave no finite loss or gradient, or a gradient above "
                f"optimizer.spike_factor times its running mean; the last is step {step}; lower "
                f"optimizer.lr or go on from an earlier checkpoint"
            )
        finished = step + 1
        if finished % run.log_every == 0 or done.skipped:
            reporter.write(finished, engine.ranks.mean(_values(report, done)))
        if run.sample_every and finished % run.sample_every == 0:
            _write_grid(stage, engine, run.output_dir, finished)
        if finished % run.save_every == 0 or finished == run.num_steps:
            _save(stage, engine, run, finished)
            saved = finished
    if saved < finished:
        _save(stage, engine, run, finished)
    return finished


def _take_step(
    stage: Stage, engine: Engine, batch: Batch, run: RunConfig, step: int
) -> tuple[LossReport, StepReport]:
    if isinstance(stage, SteppingStage):
        return stage.take_step(engine, batch, step=step)
    if not isinstance(engine, LocalEngine):
        raise UnimmError(f"{type(stage).__name__} trains in one process only")
    ranks = engine.ranks
    report = stage.loss(batch, step=step, generator=step_generator(run, ranks.place(step)))
    # Gradients add up over the processes, and the step's loss is the mean of theirs.
    done = engine.step(report.loss / ranks.size, step)
    return replace(report, num_samples=report.num_samples * ranks.size), done


def _values(report: LossReport, done: StepReport) -> dict[str, float]:
    values = {name: value.item() for name, value in report.parts.items()}
    values |= {"loss": report.loss.item(), "lr": done.lr, "grad_norm": done.grad_norm}
    if len(done.part_norms) > 1:
        values |= {f"grad_norm_{part}": norm for part, norm in done.part_norms.items()}
    return values | {"skipped": float(done.skipped)}


def _until_any_asked(
    batches: Iterator[Batch], engine: Engine, stop: StopRequest
) -> Iterator[Batch]:
    """Yield batches until any process is asked to stop or has none left: all leave together."""
    is_shared = engine.ranks.size > 1
    while True:
        batch = next(batches, None)
        if engine.ranks.any(batch is None or (is_shared and stop.is_asked)):
            return
        yield batch


def _save(stage: Stage, engine: Engine, run: RunConfig, step: int) -> None:
    save_checkpoint(
        run.output_dir,
        step,
        {"stage": stage.state_dict()},
        keep_last=run.keep_last,
        keep_every=run.keep_every,
        write=engine.save,
        ranks=engine.ranks,
    )


def step_generator(run: RunConfig, place: int) -> Generator:
    """Return the randomness of a process's part of a step, whether or not the run was interrupted.

    Args:
        run: The run.
        place: Number of the part, from :meth:`Ranks.place`.
    """
    return Generator(run.device).manual_seed((run.seed << 32) + place)


def export(stage: Stage, engine: Engine, directory: Path) -> Path:
    """Write the model with its float32 (averaged) weights; the stage is then done training."""
    if isinstance(engine, LocalEngine):
        stage.model.float()
        with torch.no_grad():
            for parameter, final in zip(engine.parameters, engine.final_weights(), strict=True):
                parameter.copy_(final)
        if engine.ranks.is_main:
            stage.export(directory)
    return directory


def _resume(stage: Stage, engine: Engine, run_dir: Path) -> int:
    state, directory = load_latest(run_dir), latest_checkpoint(run_dir)
    if state is None or directory is None:
        return 0
    engine.load(directory, state["engine"])
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


def _write_grid(stage: Stage, engine: Engine, run_dir: Path, step: int) -> None:
    folder = run_dir / "samples"
    with engine.averaged():
        grid = stage.sample_grid(step)  # by all processes: each may hold a part of the weights
    if engine.ranks.is_main:
        folder.mkdir(exist_ok=True)
        grid.save(folder / f"step-{step:08d}.png")
