"""Checkpoints of a run: whole directories, named by step, the last few kept."""

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from unimm.errors import CheckpointError
from unimm.files import atomic_directory
from unimm.memory import format_bytes

from .ranks import ALONE, Ranks

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d{8})")


def save_checkpoint(
    run_dir: Path,
    step: int,
    state: dict[str, Any],
    *,
    keep_last: int,
    keep_every: int = 0,
    write: Callable[[Path], dict[str, Any]] | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Write the state after ``step`` steps; a half-written checkpoint never carries the name.

    All processes call it together.

    Args:
        run_dir: Directory of the run.
        step: Steps done.
        state: What the main process knows.
        keep_last: Newest checkpoints that stay.
        keep_every: Also stays what is of a step that this divides; 0 for none.
        write: Writes a process's own share into a directory; what it returns in the main process
            becomes ``state["engine"]``.
        ranks: The processes.

    Raises:
        OutputError: The disk is full or not writable; earlier checkpoints stay.
    """
    folder = run_dir / "checkpoints"
    with ExitStack() as stack:
        partial = folder
        with _together(ranks):
            if ranks.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                partial = stack.enter_context(atomic_directory(folder / f"step-{step:08d}"))
        partial = ranks.share(partial)
        with _together(ranks):
            shared = {} if write is None else {"engine": write(partial)}
            if ranks.is_main:
                _write({"step": step, **state, **shared}, partial / "state.pt")
    if ranks.is_main:
        for old in _superseded(_checkpoints(run_dir), keep_last, keep_every):
            shutil.rmtree(old)
        _warn_of_a_full_disk(folder / f"step-{step:08d}")
    ranks.gather(None)  # nobody goes on before the checkpoint carries its name


def _warn_of_a_full_disk(checkpoint: Path) -> None:
    """Say that the next checkpoint will not fit while there is time to make room for it."""
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    free = shutil.disk_usage(checkpoint).free
    if free < size:
        _LOG.warning(
            "the disk of %s has %s free, but a checkpoint takes %s; make room before the next",
            checkpoint.parent,
            format_bytes(free),
            format_bytes(size),
        )


@contextmanager
def _together(ranks: Ranks) -> Iterator[None]:
    """Let a failure in one process be one in all."""
    try:
        yield
    except Exception as error:
        ranks.raise_together(error)
        raise
    ranks.raise_together(None)


def _superseded(saved: list[Path], keep_last: int, keep_every: int) -> list[Path]:
    older = saved[:-keep_last]
    return [path for path in older if not keep_every or _step(path) % keep_every]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _write(state: dict[str, Any], path: Path) -> None:
    """Write a state, and raise the system's own error where torch hides it behind another."""
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Return the directory of the last whole checkpoint, or None where there is none."""
    saved = _checkpoints(run_dir)
    return saved[-1] if saved else None


def load_latest(run_dir: Path) -> dict[str, Any] | None:
    """Return the state of the last whole checkpoint, or None where there is none."""
    latest = latest_checkpoint(run_dir)
    return None if latest is None else load_state(latest)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Return what the main process wrote into a checkpoint."""
    path = checkpoint / "state.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); delete {checkpoint} to go on from the one before"
        ) from error
    return state


def _checkpoints(run_dir: Path) -> list[Path]:
    found = (run_dir / "checkpoints").glob("step-*")
    return sorted(path for path in found if _NAME.fullmatch(path.name))
