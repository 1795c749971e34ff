"""Where parts are put, and how they are rounded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.unit.unimm.checkpoints.releases import Options, write_scale_rae
from unimm.errors import MissingExtraError, UserError
from unimm.options import GenerationOptions
from unimm.pipeline import Pipeline
from unimm.placement import in_use, parse_devices
from unimm.quantize import is_quantized

Calls = list[str]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    write_scale_rae(tmp_path / "release")
    return tmp_path / "release"


def note_moves(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Return what happens to the latent space, in order."""
    latents: Any = pipeline.model.latents
    calls: Calls = []

    def noted(name: str) -> None:
        original = getattr(latents, name)

        def call(*args: Any) -> Any:
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(latents, name, call)

    for name in ("to", "encode", "decode"):
        noted(name)
    return calls


def test_an_offloaded_part_is_brought_for_its_work_and_taken_back(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.from_pretrained(release, offload=True)
    calls = note_moves(pipeline, monkeypatch)
    latents = pipeline.encode([Image.new("RGB", (16, 16))])
    pipeline.decode(latents)
    assert calls == ["to", "encode", "to", "to", "decode", "to"]


def test_an_offloaded_part_goes_back_also_after_a_failure(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.from_pretrained(release, offload=True)
    calls = note_moves(pipeline, monkeypatch)
    with pytest.raises(RuntimeError, match="broken"), in_use(pipeline.model, "latents"):
        raise RuntimeError("broken")
    assert calls == ["to", "to"]


def test_placement_changes_no_picture(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Pipeline.from_pretrained(release)
    placed = Pipeline.from_pretrained(release, devices={"generator": "cpu"}, offload=True)
    calls = note_moves(plain, monkeypatch)
    options = GenerationOptions(num_steps=2)
    (expected,), (found,) = (p.generate("a cat", options) for p in (plain, placed))
    assert torch.equal(found.latents, expected.latents)
    assert calls == ["decode"]


@pytest.mark.parametrize(
    ("devices", "reason"),
    [({"queries": "cpu"}, "got 'queries'"), ({"generator": "tpu9"}, "unknown device")],
)
def test_impossible_placements_are_refused(devices: dict[str, str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_devices(devices)


def test_an_unknown_quantisation_is_refused(release: Path) -> None:
    kind: Any = "3bit"
    with pytest.raises(UserError, match="8bit or 4bit"):
        Pipeline.from_pretrained(release, quantize=kind)


def test_without_bitsandbytes_the_extra_is_named(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"unimm\[quant\]"):
        Pipeline.from_pretrained(release, quantize="8bit")


@pytest.mark.parametrize(
    ("kind", "bits", "tolerance"), [("8bit", 8, 0.02), ("4bit", 4, 0.25)], ids=["8bit", "4bit"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_quantised_language_model_is_smaller_and_close(
    tmp_path: Path, kind: Any, bits: int, tolerance: float, dtype: torch.dtype
) -> None:
    """Rounding errors of one layer: NF4 has 16 levels, so about a tenth; int8 below a hundredth."""
    pytest.importorskip("bitsandbytes")
    write_scale_rae(tmp_path / "release", Options(width=64))
    plain = Pipeline.from_pretrained(tmp_path / "release", dtype=dtype)
    rounded = Pipeline.from_pretrained(tmp_path / "release", dtype=dtype, quantize=kind)
    embeds = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected, found = (p.model.lm.hidden_states(embeds).float() for p in (plain, rounded))
    error = float((found - expected).norm() / expected.norm())
    assert 0 < error < tolerance

    def size(pipeline: Pipeline) -> int:
        layers = pipeline.model.language.get_submodule("model.layers").parameters()
        return sum(p.numel() * p.element_size() for p in layers if p.ndim == 2)

    assert size(rounded) * 8 * dtype.itemsize == size(plain) * bits
    (picture,) = rounded.generate("a cat", GenerationOptions(num_steps=2))
    assert torch.isfinite(picture.latents).all()
    assert is_quantized(rounded.model.language)
    with pytest.raises(UserError, match="cannot be stored"):
        rounded.save_pretrained(tmp_path / "ours")
