import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unimm.checkpoints.assemble import Slots, Source, empty_parameters, fill
from unimm.checkpoints.keymap import Rule, apply_rules
from unimm.checkpoints.tensors import TensorFolder, load_pickle
from unimm.errors import CheckpointError


class Trap:
    """Writes a file when it is unpickled by a careless reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    torch.save({"x": Trap(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"model\.pt holds more than tensors") as caught:
        load_pickle(path)
    assert not trace.exists()
    assert "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(Trap(trace)))  # the trap does work
    assert trace.exists()


@pytest.mark.parametrize("kept", [0, 50, -20])
def test_a_truncated_pickle_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.pt"
    torch.save({"x": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.pt is corrupt or truncated"):
        load_pickle(path)


def test_averaged_weights_come_before_the_last_ones(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": {"x": torch.zeros(1)}, "ema": {"x": torch.ones(1)}, "step": 3}, path)
    assert TensorFolder.of_file(path).get("x") == 1


def test_blocks_of_rows_are_joined_in_their_order() -> None:
    rules = (Rule("v", "qkv", None, (1, 2)), Rule("q", "qkv", None, (0, 2)))
    joined = apply_rules({"v": torch.ones(1, 2), "q": torch.zeros(1, 2)}, rules)["qkv"]
    assert joined.tolist() == [[0, 0], [1, 1]]
    with pytest.raises(CheckpointError, match="'qkv' lacks 1 of its 2 parts"):
        apply_rules({"q": torch.zeros(1, 2)}, rules)


def test_a_missing_block_of_rows_is_listed(tmp_path: Path) -> None:
    torch.save({"q": torch.zeros(1, 2)}, tmp_path / "model.pt")
    with empty_parameters():
        model = nn.Linear(2, 2, bias=False)
    slots = Slots(model, device=torch.device("cpu"), dtype=torch.float32)
    rules = (Rule("q", "weight", None, (0, 2)),)
    fill(slots, [Source(TensorFolder.of_file(tmp_path / "model.pt"), rules)])
    with pytest.raises(CheckpointError, match="lacks tensors for weight"):
        slots.finish(where=tmp_path)


def test_empty_parameters_hold_nothing_and_leave_torch_as_it_was() -> None:
    register = nn.Module.register_parameter
    with empty_parameters():
        model = nn.BatchNorm1d(3)
    assert model.weight.is_meta
    assert model.running_mean is not None
    assert not model.running_mean.is_meta
    assert nn.Module.register_parameter is register
    assert not nn.Linear(1, 1).weight.is_meta


def test_tied_parameters_stay_tied(tmp_path: Path) -> None:
    with empty_parameters():
        model: Any = nn.Module()
        model.first, model.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        model.second.weight = model.first.weight
    torch.save({"first.weight": torch.ones(2, 2)}, tmp_path / "model.pt")
    slots = Slots(model, device=torch.device("cpu"), dtype=torch.bfloat16)
    source = Source(TensorFolder.of_file(tmp_path / "model.pt"), (Rule(r"(.+)", r"\1"),))
    fill(slots, [source])
    slots.finish(where=tmp_path)
    assert model.second.weight.dtype == torch.bfloat16
    model.first.weight.data[0, 0] = 7
    assert model.second.weight[0, 0] == 7
