"""What a run reports: a line of JSON, TensorBoard scalars, a progress bar."""

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from unimm.errors import MissingExtraError
from unimm.files import atomic_write


class Reporter:
    """Write metrics of steps; use as a context manager.

    Args:
        run_dir: Holds ``metrics.jsonl`` and ``tensorboard/``.
        start: Steps already done; later lines of an interrupted run are dropped.
        num_steps: Steps in all, for the progress bar.
        is_silent: Write nothing: another process does.
        peak_flops: Operations a second of all devices at best; 0 where unknown.
        wandb_project: Also report to Weights & Biases.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start: int,
        num_steps: int,
        is_silent: bool = False,
        peak_flops: float = 0.0,
        wandb_project: str = "",
    ) -> None:
        self._is_silent, self._peak_flops = is_silent, peak_flops
        self._wandb = (
            open_wandb(wandb_project, run_dir) if wandb_project and not is_silent else None
        )
        self._path = Path(os.devnull) if is_silent else run_dir / "metrics.jsonl"
        _drop_after(self._path, start)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = (
            None if is_silent else SummaryWriter(str(run_dir / "tensorboard"), purge_step=start)
        )
        self._clock = time.perf_counter()
        self._samples = self._positions = 0
        self._flops = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=is_silent,
        )
        self._task = self._progress.add_task("training", total=num_steps, completed=start)

    def count(self, num_samples: int, num_positions: int = 0, flops: float = 0.0) -> None:
        """Note that a step over so many samples and positions is done."""
        self._samples += num_samples
        self._positions += num_positions
        self._flops += flops
        self._progress.advance(self._task)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the metrics after ``step`` steps, with the throughput since the last line."""
        now = time.perf_counter()
        speed = self._speed(max(now - self._clock, 1e-9))
        self._clock = now
        self._samples = self._positions = 0
        self._flops = 0.0
        if self._is_silent:
            return
        line = {"step": step, **values, **speed}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                self._board.add_scalar(name, value, step)
        self._progress.update(self._task, description=f"loss {values.get('loss', 0):.4f}")

        if self._wandb is not None:
            self._wandb.log(line, step=step)

    def _speed(self, seconds: float) -> dict[str, float]:
        speed = {"samples_per_s": self._samples / seconds}
        if self._positions:
            speed["tokens_per_s"] = self._positions / seconds
        if self._flops:
            speed["tflops"] = self._flops / seconds / 1e12
        if self._flops and self._peak_flops:
            speed["mfu"] = self._flops / seconds / self._peak_flops
        if torch.cuda.is_available():
            speed["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return speed

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def open_wandb(project: str, run_dir: Path) -> Any:
    """Return a run of Weights & Biases, which a resumed run goes on with.

    Raises:
        MissingExtraError: wandb is not installed.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise MissingExtraError("wandb", extra="wandb") from error
    name = run_dir.absolute().name
    return wandb.init(project=project, name=name, id=name, dir=str(run_dir), resume="allow")


def _drop_after(path: Path, step: int) -> None:
    """Remove lines of steps that will be done again, and a half-written last line."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    with atomic_write(path) as file:
        file.write("".join(line + "\n" for line in kept).encode())
