"""Checkpoints in pieces: whoever wrote them, any number of readers finds every element."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.fragments import Fragment, FragmentReader, write_fragments
from training.spikes import SpikeGuard
from unimm.errors import CheckpointError

VALUES = torch.arange(60.0)


def write(directory: Path, cuts: list[int]) -> None:
    """Write the values as runs between cuts, each from a process of its own."""
    edges = [0, *cuts, len(VALUES)]
    for rank, (start, stop) in enumerate(pairwise(edges)):
        fragment = Fragment("layer.weight", "master", start, VALUES[start:stop])
        write_fragments(
            [fragment] if stop > start else [], directory / f"rank-{rank:05d}.safetensors"
        )


@given(
    written=st.lists(st.integers(0, 60), max_size=4).map(sorted),
    start=st.integers(0, 59),
    count=st.integers(1, 60),
)
def test_any_run_of_elements_is_found_again(
    tmp_path_factory: pytest.TempPathFactory, written: list[int], start: int, count: int
) -> None:
    directory = tmp_path_factory.mktemp("pieces")
    write(directory, written)
    count = min(count, len(VALUES) - start)
    with FragmentReader(directory) as reader:
        found = reader.read("layer.weight", start, count, kind="master")
        assert torch.equal(found, VALUES[start : start + count])
        whole = reader.read_whole("layer.weight", "master", (6, 10))
        assert torch.equal(whole, VALUES.view(6, 10))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"), FragmentReader(tmp_path):
        pass
    write(tmp_path, [20])
    (tmp_path / "rank-00001.safetensors").unlink()
    with FragmentReader(tmp_path) as reader:
        with pytest.raises(CheckpointError, match=r"20 of 60 values of layer\.weight \(master\)"):
            reader.read_whole("layer.weight", "master", (60,))
        with pytest.raises(CheckpointError, match="0 of 1 values of other"):
            reader.read("other", 0, 1, kind="master")
    (tmp_path / "rank-00000.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="cannot be read"), FragmentReader(tmp_path):
        pass


def test_a_spike_is_refused_once_the_mean_is_known() -> None:
    guard = SpikeGuard(5.0)
    assert guard.allows(1e6)  # nothing is known yet
    for _ in range(60):
        guard.note(2.0, taken=True)
    assert guard.mean == pytest.approx(2.0)
    assert guard.allows(9.9)
    assert not guard.allows(10.1)
    guard.note(10.1, taken=False)
    assert guard.mean == pytest.approx(2.0)
    assert guard.skipped == 1
    resumed = SpikeGuard(5.0)
    resumed.load_state_dict(guard.state_dict())
    assert not resumed.allows(10.1)


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1.0])
def test_a_norm_that_is_none_is_refused_even_without_a_factor(norm: float) -> None:
    assert not SpikeGuard(0.0).allows(norm)
    assert SpikeGuard(0.0).allows(1e30)
