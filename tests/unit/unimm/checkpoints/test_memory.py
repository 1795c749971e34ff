import ctypes
import gc
from pathlib import Path

import pytest
import torch

from tests.unit.unimm.checkpoints.releases import Options, write_scale_rae
from unimm.checkpoints.foreign import load_scale_rae

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def resident(field: str) -> int:
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def give_back() -> None:
    """Return freed memory to the system, or loading would reuse it unseen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@pytest.mark.slow
@pytest.mark.skipif(not CLEAR.exists(), reason="only Linux says how much memory was ever in use")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickles"])
def test_loading_never_holds_the_model_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, pickled: bool
) -> None:
    """Also mapped pages of the files count, and conversion to half the size.

    What is mapped at a time is a constant, made as small as this model is against a real one.
    """
    monkeypatch.setattr("unimm.checkpoints.tensors._RELEASE_AFTER", 2**22)
    options = Options(width=512, depth=6 if dtype == torch.float32 else 12, pickled=pickled)
    model = write_scale_rae(tmp_path / "release", options)
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    assert size > 100e6
    del model
    give_back()
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        pytest.skip("this system does not let a process reset its peak")
    before = resident("VmRSS")
    loaded = load_scale_rae(tmp_path / "release", device=torch.device("cpu"), dtype=dtype)
    peak = resident("VmHWM") - before
    assert 0.9 * size < peak < 1.15 * size
    assert loaded.model.dtype == dtype
