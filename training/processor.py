"""What the processor of this machine does slowly, said before the first step."""

import platform

import torch

from .config import OptimizerConfig, RunConfig


def slow_settings(run: RunConfig, optimizer: OptimizerConfig) -> list[str]:
    """Return a line for each setting that this processor has no fast instructions for.

    An x86 processor without AVX-512 multiplies bfloat16 matrices element by element: a step of
    the small model takes about seven times as long as in float32.
    """
    if torch.device(run.device).type != "cpu" or has_fast_bfloat16():
        return []
    lines = []
    if run.precision == "bfloat16":
        lines.append(
            "this processor is slow at bfloat16 (it has no AVX-512); a new run is several times "
            "faster with run.precision=float32"
        )
    if optimizer.hidden == "muon":
        lines.append(
            "Muon makes its updates in bfloat16, at which this processor is slow; "
            "optimizer.hidden=adamw takes shorter steps, though more of them"
        )
    return lines


def has_fast_bfloat16() -> bool:
    """Return False for an x86 processor without AVX-512; of others nothing is known."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or "AVX512" in torch.backends.cpu.get_cpu_capability()
