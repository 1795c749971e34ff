"""Checkpoints of a run: whole directories, named by step, the last few kept."""

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from unimm.errors import CheckpointError
from unimm.files import atomic_directory

_NAME = re.compile(r"step-(\d{8})")


def save_checkpoint(run_dir: Path, step: int, state: dict[str, Any], *, keep_last: int) -> None:
    """Write the state after ``step`` steps; a half-written checkpoint never carries the name.

    Raises:
        OutputError: The disk is full or not writable; earlier checkpoints stay.
    """
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_directory(folder / f"step-{step:08d}") as directory:
        _write({"step": step, **state}, directory / "state.pt")
    for old in _checkpoints(run_dir)[:-keep_last]:
        shutil.rmtree(old)


def _write(state: dict[str, Any], path: Path) -> None:
    """Write a state, and raise the system's own error where torch hides it behind another."""
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load_latest(run_dir: Path) -> dict[str, Any] | None:
    """Return the state of the last whole checkpoint, or None where there is none."""
    saved = _checkpoints(run_dir)
    if not saved:
        return None
    path = saved[-1] / "state.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); delete {saved[-1]} to go on from the one before"
        ) from error
    return state


def _checkpoints(run_dir: Path) -> list[Path]:
    found = (run_dir / "checkpoints").glob("step-*")
    return sorted(path for path in found if _NAME.fullmatch(path.name))
