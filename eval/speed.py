"""What a picture costs: latency by phase, throughput by batch size, and what best-of-N shares.

Every figure is a median over runs after a warm-up. Next to the denoiser's time stands a floor:
what its matrix products and its weights would take at the speeds measured on this machine.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from unimm.errors import UserError
from unimm.generation import PHASES, Generation
from unimm.options import GenerationOptions
from unimm.pipeline import Pipeline

PROMPT = "a picture of a green circle left of a blue square"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedSettings:
    """What is timed; see ``unimm eval speed --help``."""

    model: str | None
    batch_sizes: tuple[int, ...]
    best_of: int
    num_steps: int | None
    guidance_scale: float | None
    num_runs: int
    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of repeated runs: the median, and the largest minus the smallest."""

    seconds: float
    spread_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """One picture.

    Args:
        total: From the prompt to the picture.
        phases: Median seconds of reading, denoising, scoring and decoding.
        nfe: Denoiser evaluations; a guided one counts twice.
        denoise_floor_s: Least time of the denoiser's matrix products at the measured ceilings;
            attention, norms and launches come on top.
    """

    total: Timing
    phases: dict[str, float]
    nfe: int
    denoise_floor_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Pictures of different prompts drawn together.

    Args:
        batch_size: Pictures.
        total: For all of them.
        pictures_per_s: ``batch_size`` over the median seconds.
        peak_memory_gib: Largest device memory in use; None on a CPU.
    """

    batch_size: int
    total: Timing
    pictures_per_s: float
    peak_memory_gib: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """Best of N against N single calls, timed in turn.

    Args:
        best_of: N.
        together: One call that draws and scores N candidates and decodes the best.
        single: One call with one candidate.
        ratio: Cost of the one call over N times the single; below 1 is what sharing saves.
    """

    best_of: int
    together: Timing
    single: Timing
    ratio: float


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device reaches on this machine in this precision."""

    flops: float
    bytes_per_s: float


def measure(settings: SpeedSettings) -> dict[str, Any]:
    """Time a model and return the figures as a JSON-ready tree.

    Raises:
        UserError: The model, the device or the precision is unknown.
    """
    if settings.dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {settings.dtype!r}")
    pipeline = Pipeline.from_pretrained(
        settings.model, device=settings.device, dtype=DTYPES[settings.dtype]
    )
    ceilings = measure_ceilings(pipeline.model.device, pipeline.model.dtype)
    return {
        "settings": asdict(settings),
        "device": _device_name(pipeline.model.device),
        "ceilings": asdict(ceilings),
        "latency": asdict(measure_latency(pipeline, settings, ceilings)),
        "throughput": [
            asdict(measure_throughput(pipeline, settings, size)) for size in settings.batch_sizes
        ],
        "sharing": asdict(measure_sharing(pipeline, settings)),
    }


def measure_latency(pipeline: Pipeline, settings: SpeedSettings, ceilings: Ceilings) -> Latency:
    """Time one picture and its phases."""
    timing, drawn = _timed_runs(
        lambda: _draw(pipeline, settings), pipeline.model.device, settings.num_runs
    )
    first = drawn[0][0]
    return Latency(
        total=timing,
        phases={p: statistics.median(run[0].seconds[p] for run in drawn) for p in PHASES},
        nfe=first.nfe,
        denoise_floor_s=first.nfe * evaluation_floor(pipeline, ceilings),
    )


def measure_throughput(pipeline: Pipeline, settings: SpeedSettings, batch_size: int) -> Throughput:
    """Time pictures drawn in one batch."""
    device = pipeline.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timing, _ = _timed_runs(
        lambda: _draw(pipeline, settings, num_prompts=batch_size), device, settings.num_runs
    )
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return Throughput(
        batch_size=batch_size,
        total=timing,
        pictures_per_s=batch_size / timing.seconds,
        peak_memory_gib=peak,
    )


def measure_sharing(pipeline: Pipeline, settings: SpeedSettings) -> Sharing:
    """Time best-of-N and single calls in turn, so that both meet the same machine."""
    device = pipeline.model.device
    together, single = [], []
    for _ in range(settings.num_runs + 1):  # the first warms up
        together.append(
            _timed(lambda: _draw(pipeline, settings, best_of=settings.best_of), device)[0]
        )
        single.append(_timed(lambda: _draw(pipeline, settings), device)[0])
    one, many = _timing(single[1:]), _timing(together[1:])
    return Sharing(
        best_of=settings.best_of,
        together=many,
        single=one,
        ratio=many.seconds / (settings.best_of * one.seconds),
    )


def evaluation_floor(pipeline: Pipeline, ceilings: Ceilings) -> float:
    """Return the least seconds of one denoiser evaluation of one picture.

    A weight of the blocks is multiplied once for every latent token and read once.
    """
    weights = [p for p in pipeline.model.generator.parameters() if p.ndim >= 2]
    count = sum(weight.numel() for weight in weights)
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    products = 2 * count * pipeline.model.config.latents.num_tokens / ceilings.flops
    return max(products, num_bytes / ceilings.bytes_per_s)


def measure_ceilings(device: torch.device, dtype: torch.dtype, *, num_runs: int = 5) -> Ceilings:
    """Return the best speed of a large matrix product and of a large copy."""
    side, copied = (8192, 2**30) if device.type == "cuda" else (1024, 2**27)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, side, side, generator=generator).to(device, dtype)
    source = torch.zeros(copied // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)

    def best(run: Callable[[], object]) -> float:
        return min(_timed(run, device)[0] for _ in range(num_runs))

    return Ceilings(
        flops=2 * side**3 / best(lambda: a @ b),
        bytes_per_s=2 * copied / best(lambda: target.copy_(source)),  # read and written
    )


def print_report(results: dict[str, Any], console: Console) -> None:
    """Print the figures as tables."""
    ceilings, latency = results["ceilings"], results["latency"]
    console.print(
        f"{results['device']}, {results['settings']['dtype']}: matrix products "
        f"{ceilings['flops'] / 1e9:,.0f} GFLOP/s, memory {ceilings['bytes_per_s'] / 1e9:,.1f} GB/s"
    )
    table = Table(title="one picture", title_justify="left")
    rows = [*latency["phases"].items(), ("total", latency["total"]["seconds"])]
    for name, _ in rows:
        table.add_column(f"{name} ms", justify="right")
    table.add_column("denoiser's floor ms", justify="right")
    floor = latency["denoise_floor_s"]
    table.add_row(*(f"{1e3 * seconds:.1f}" for _, seconds in rows), f"{1e3 * floor:.1f}")
    console.print(table)
    table = Table(title="drawn together", title_justify="left")
    for name in ("batch", "ms", "spread ms", "pictures/s", "peak GiB"):
        table.add_column(name, justify="right")
    for row in results["throughput"]:
        peak = row["peak_memory_gib"]
        table.add_row(
            str(row["batch_size"]),
            f"{1e3 * row['total']['seconds']:.1f}",
            f"{1e3 * row['total']['spread_s']:.1f}",
            f"{row['pictures_per_s']:.2f}",
            "-" if peak is None else f"{peak:.2f}",
        )
    console.print(table)
    sharing = results["sharing"]
    console.print(
        f"best of {sharing['best_of']}: {1e3 * sharing['together']['seconds']:.1f} ms, "
        f"{sharing['ratio']:.2f} of {sharing['best_of']} single calls "
        f"({1e3 * sharing['single']['seconds']:.1f} ms each)"
    )


def run(settings: SpeedSettings) -> dict[str, Any]:
    """Time a model, print tables and, as the last line, the same figures as JSON."""
    results = measure(settings)
    print_report(results, Console(file=sys.stdout, highlight=False))
    sys.stdout.write(json.dumps(results) + "\n")
    return results


def _draw(
    pipeline: Pipeline, settings: SpeedSettings, *, num_prompts: int = 1, best_of: int = 1
) -> list[Generation]:
    options = GenerationOptions(
        best_of=best_of,
        num_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        verifier="yes_no",
        batch_size=num_prompts * best_of,
    )
    return pipeline.generate([PROMPT] * num_prompts, options)


def _timed_runs(
    run: Callable[[], ResultT], device: torch.device, num_runs: int
) -> tuple[Timing, list[ResultT]]:
    run()  # warm-up
    runs = [_timed(run, device) for _ in range(num_runs)]
    return _timing([seconds for seconds, _ in runs]), [result for _, result in runs]


def _timed(run: Callable[[], ResultT], device: torch.device) -> tuple[float, ResultT]:
    """Return the seconds of a call with the device idle at both ends, and its result."""
    _synchronize(device)
    start = time.perf_counter()
    result = run()
    _synchronize(device)
    return time.perf_counter() - start, result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timing(seconds: Sequence[float]) -> Timing:
    return Timing(statistics.median(seconds), max(seconds) - min(seconds))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu with {torch.get_num_threads()} threads"
