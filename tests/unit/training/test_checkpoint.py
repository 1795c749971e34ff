"""Checkpoints of a run survive whatever ends it."""

import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from training import checkpoint
from training.checkpoint import load_latest, save_checkpoint
from unimm.errors import CheckpointError, OutputError


def state_of(step: int) -> dict[str, Any]:
    return {"weights": torch.full((1000,), float(step))}


def save(run_dir: Path, *steps: int, keep_last: int = 2) -> None:
    for step in steps:
        save_checkpoint(run_dir, step, state_of(step), keep_last=keep_last)


def latest_step(run_dir: Path) -> int:
    state = load_latest(run_dir)
    assert state is not None
    assert torch.equal(state["weights"], state_of(state["step"])["weights"])
    return int(state["step"])


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_new_run_has_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None


def test_the_last_few_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 9, 10, 100, keep_last=2)
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    assert latest_step(tmp_path) == 100


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"weights": torch.zeros(1)}, keep_last=2)
    save(tmp_path, 5)
    assert names(tmp_path) == ["step-00000005"]
    assert latest_step(tmp_path) == 5


def test_one_that_a_kill_left_half_written_is_never_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def write_half_and_die(state: object, path: Path) -> None:
        torch.save(state, path)
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(checkpoint, "_write", write_half_and_die)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads; it only writes
        child = os.fork()
    if child == 0:
        save(tmp_path, 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    monkeypatch.undo()
    left = [name for name in names(tmp_path) if name.endswith(".partial")]
    assert len(left) == 1, "the kill came too early to leave anything"
    assert latest_step(tmp_path) == 1
    save(tmp_path, 2, 3)
    assert latest_step(tmp_path) == 3


@pytest.mark.parametrize("damage", ["cut", "emptied", "lost"])
def test_a_corrupt_one_is_named_with_a_way_out_that_works(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1, 2)
    broken = tmp_path / "checkpoints" / "step-00000002"
    if damage == "lost":
        (broken / "state.pt").unlink()
    else:
        os.truncate(broken / "state.pt", 0 if damage == "emptied" else 2000)
    with pytest.raises(CheckpointError, match=f"delete {broken} to go on from the one before"):
        load_latest(tmp_path)
    shutil.rmtree(broken)
    assert latest_step(tmp_path) == 1


@pytest.mark.usefixtures("small_files")
def test_one_that_does_not_fit_on_the_disk_leaves_the_earlier_ones(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(OutputError, match="step-00000002: File too large"):
        save_checkpoint(tmp_path, 2, {"weights": torch.zeros(100_000)}, keep_last=1)
    assert names(tmp_path) == ["step-00000001"]
    assert latest_step(tmp_path) == 1
