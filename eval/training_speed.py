"""What a training step costs, as ratios: packed rows against padded ones, cached latents, and more.

Each variant is the real ``unimm train`` in a process of its own, over the same conversations. The
variants take turns, so that all of them meet the same machine, and the first is what the others
are compared with.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from unimm.errors import UnimmError, UserError
from unimm.locate import locate_model

from .training_data import write_conversations

PACKED = "data.row_length={max_length}"
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "padded": (),
    "longest": ("sequence_length=null",),
    "packed": (PACKED,),
    "cached": (PACKED, "data.latent_cache={folder}/latents"),
    "checkpointed": (PACKED, "model.checkpoint_activations=true"),
    "compiled": (PACKED, "model.compile_blocks=true"),
}
"""Overrides of each: rows padded to ``max_length``, as Scale-RAE's code pads them; to the longest
of a batch; packed; and packed with one thing more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSpeedSettings:
    """What is timed; see ``unimm eval training-speed --help``."""

    model: str | None
    variants: tuple[str, ...]
    num_rounds: int
    num_steps: int
    samples_per_step: int
    max_length: int
    device: str
    dtype: str
    peak_tflops: float
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise UserError(f"unknown variant {unknown[0]!r}; choose from {', '.join(VARIANTS)}")
        if len(self.variants) < 1 or len(set(self.variants)) < len(self.variants):
            raise UserError("name each variant once, and at least one")


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one run of a variant took.

    Args:
        tokens_per_s: Positions that hold something; padding counts for nothing.
        samples_per_s: Conversations.
        memory_gib: Peak of the device's memory; on a CPU of the process's.
        mfu: Share of ``peak_tflops``; None where that was not given.
    """

    tokens_per_s: float
    samples_per_s: float
    memory_gib: float
    mfu: float | None


def run(settings: TrainingSpeedSettings) -> dict[str, Any]:
    """Time training, print a table and, as the last line, the same figures as JSON."""
    results = measure(settings)
    print_report(results, Console(file=sys.stdout, highlight=False))
    sys.stdout.write(json.dumps(results) + "\n")
    return results


def measure(settings: TrainingSpeedSettings) -> dict[str, Any]:
    """Train each variant in turn, some rounds long, and return medians and ratios.

    Raises:
        UserError: There is no such model, or an override is wrong.
        UnimmError: A run failed.
    """
    with tempfile.TemporaryDirectory(prefix="unimm-training-speed-") as name:
        folder = Path(name)
        recipe = write_workload(folder, settings)
        if any("latent_cache" in override for v in settings.variants for override in VARIANTS[v]):
            _cache_latents(recipe, folder, settings)
        costs: dict[str, list[StepCost]] = {variant: [] for variant in settings.variants}
        for number in range(settings.num_rounds):
            for variant in settings.variants:
                out = folder / f"{variant}-{number}"
                costs[variant].append(_train(recipe, out, variant, settings))
                shutil.rmtree(out)
    return {"settings": asdict(settings), "variants": compare(costs)}


def write_workload(folder: Path, settings: TrainingSpeedSettings) -> Path:
    """Write conversations and the recipe that trains on them; return the recipe."""
    count = settings.samples_per_step * settings.num_steps
    conversations = write_conversations(folder, count=count, seed=0)
    tree = {
        "stage": "unified",
        "run": {
            "output_dir": str(folder / "run"),
            "num_steps": settings.num_steps,
            "device": settings.device,
            "precision": settings.dtype,
            "log_every": 1,
            "save_every": settings.num_steps,
            "sample_every": 0,
            "peak_tflops": settings.peak_tflops,
        },
        "model": {"init": str(locate_model(settings.model))},
        "samples_per_step": settings.samples_per_step,
        "sequence_length": settings.max_length,
        "data": {
            "sources": [{"name": "mixed", "kind": "jsonl", "path": str(conversations)}],
            "max_length": settings.max_length,
            "index_dir": str(folder / "index"),
        },
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return recipe


def read_cost(metrics: Path, *, peak_memory: float) -> StepCost:
    """Return the medians over the second half of a run's steps: the first warms up."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    late = lines[len(lines) // 2 :]

    def median(key: str) -> float:
        return float(statistics.median(line[key] for line in late))

    return StepCost(
        tokens_per_s=median("tokens_per_s"),
        samples_per_s=median("samples_per_s"),
        memory_gib=max(line.get("memory_gib", peak_memory) for line in lines),
        mfu=median("mfu") if "mfu" in late[0] else None,
    )


def print_report(results: dict[str, Any], console: Console) -> None:
    """Print the figures as a table."""
    table = Table(title="a training step", title_justify="left")
    for name in ("variant", "tokens/s", "ratio", "from", "to", "samples/s", "memory GiB", "MFU"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for name, row in results["variants"].items():
        table.add_row(
            name,
            f"{row['tokens_per_s']:,.0f}",
            *(f"{row[key]:.2f}" for key in ("ratio", "smallest_ratio", "largest_ratio")),
            f"{row['samples_per_s']:.1f}",
            f"{row['memory_gib']:.2f}",
            "-" if row["mfu"] is None else f"{row['mfu']:.1%}",
        )
    console.print(table)


def compare(costs: Mapping[str, Sequence[StepCost]]) -> dict[str, dict[str, float | None]]:
    """Return each variant's medians, and its tokens/s over the first variant's, round by round."""
    base = next(iter(costs.values()))
    compared: dict[str, dict[str, float | None]] = {}
    for variant, rounds in costs.items():
        pairs = zip(rounds, base, strict=True)
        ratios = [own.tokens_per_s / first.tokens_per_s for own, first in pairs]
        shares = [cost.mfu for cost in rounds if cost.mfu is not None]
        compared[variant] = {
            "tokens_per_s": statistics.median(cost.tokens_per_s for cost in rounds),
            "samples_per_s": statistics.median(cost.samples_per_s for cost in rounds),
            "ratio": statistics.median(ratios),
            "smallest_ratio": min(ratios),
            "largest_ratio": max(ratios),
            "memory_gib": max(cost.memory_gib for cost in rounds),
            "mfu": statistics.median(shares) if shares else None,
        }
    return compared


def _train(recipe: Path, out: Path, variant: str, settings: TrainingSpeedSettings) -> StepCost:
    places = {"folder": recipe.parent, "max_length": settings.max_length}
    overrides = [override.format(**places) for override in VARIANTS[variant]]
    arguments = [*settings.overrides, *overrides, f"run.output_dir={out}"]
    peak = _finish(["train", str(recipe), *arguments], recipe.parent / "log.txt")
    return read_cost(out / "metrics.jsonl", peak_memory=peak / 2**30)


def _cache_latents(recipe: Path, folder: Path, settings: TrainingSpeedSettings) -> None:
    model = ["--model", settings.model] if settings.model else []
    arguments = [*model, "--output", str(folder / "latents"), "--device", settings.device]
    _finish(["cache-latents", str(recipe), *arguments], folder / "log.txt")


def _finish(arguments: Sequence[str], log: Path) -> int:
    """Run a command of unimm to its end and return the most bytes that it held.

    Raises:
        UserError: What it was told cannot be done.
        UnimmError: It failed otherwise; both with the last line of what it said.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "unimm", *arguments], stdout=file, stderr=file
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = said[-1].removeprefix("unimm: ") if said else "it said nothing"
        kind = UserError if process.returncode == 2 else UnimmError
        raise kind(f"unimm {arguments[0]} failed: {reason}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
