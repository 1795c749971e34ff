"""Memory that a model needs, before it is loaded."""

import re
from pathlib import Path

import pytest
import torch

from tests.unit.unimm.checkpoints.releases import Options, write_scale_rae
from unimm.errors import NotEnoughMemoryError
from unimm.footprint import Footprint
from unimm.loading import LoadOptions, inspect, load
from unimm.model import PARTS, UniMM
from unimm.pipeline import Pipeline
from unimm.testing import tiny_pipeline

CPU = torch.device("cpu")


def counted(model: UniMM) -> dict[str, int]:
    return {name: sum(p.numel() for p in model.part(name).parameters()) for name in PARTS}


@pytest.fixture(autouse=True)
def headers_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a tensor was read")

    if "headers" in request.node.name:
        monkeypatch.setattr("unimm.checkpoints.tensors._read_tensors", refuse)


def test_headers_of_our_files_say_what_each_part_needs(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    footprint, space = inspect(tmp_path / "model")
    assert dict(footprint.parameters) == counted(pipeline.model)
    assert space == pipeline.space


@pytest.mark.parametrize(
    "options", [Options(), Options(ddt=True, tied=False, pickled=True)], ids=["plain", "wide"]
)
def test_headers_of_a_release_say_it_too(tmp_path: Path, options: Options) -> None:
    """Text halves, pooling heads and fixed tables in the files are not counted."""
    model = write_scale_rae(tmp_path / "release", options)
    footprint, space = inspect(tmp_path / "release")
    assert dict(footprint.parameters) == counted(model)
    assert space is None


def test_a_model_that_cannot_fit_is_refused_with_figures_and_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scale_rae(tmp_path / "release")
    footprint, _ = inspect(tmp_path / "release")
    monkeypatch.setattr("unimm.memory.available_memory", lambda device: 4 * footprint.total - 1)
    with pytest.raises(NotEnoughMemoryError) as caught:
        Pipeline.from_pretrained(tmp_path / "release")
    message = str(caught.value)
    for part in ("language", "generator", "latents"):
        assert re.search(rf"{part} \d+ MiB", message)
    assert "in float32" in message
    assert "dtype bfloat16" in message
    assert "\n" not in message
    assert load(tmp_path / "release", LoadOptions(dtype=torch.bfloat16)).model is not None


def test_quantising_shrinks_the_matrices_of_the_language_model_alone() -> None:
    parameters = {"language": 100, "queries": 1, "projector": 1, "generator": 50, "latents": 9}
    footprint = Footprint(Path("m"), parameters, 80)
    assert footprint.size("language", torch.float32) == 400
    assert footprint.size("language", torch.bfloat16, "8bit") == 2 * 20 + 80
    assert footprint.size("language", torch.bfloat16, "4bit") == 2 * 20 + 40
    assert footprint.size("generator", torch.bfloat16, "4bit") == 100


def test_each_device_is_asked_for_its_own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"language": 100, "generator": 50}
    footprint = Footprint(Path("m"), parameters, 0)
    other = torch.device("meta")
    free = {CPU: 400, other: 199}
    monkeypatch.setattr("unimm.memory.available_memory", free.__getitem__)
    with pytest.raises(NotEnoughMemoryError, match="meta"):
        footprint.check(torch.float32, CPU, parts={"generator": other})
    free[other] = 200
    footprint.check(torch.float32, CPU, parts={"generator": other})
    with pytest.raises(NotEnoughMemoryError, match="cpu"):
        footprint.check(torch.float32, CPU)
