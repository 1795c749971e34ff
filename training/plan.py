"""``unimm train RECIPE --plan``: what a run needs and how fast it can be, without a GPU."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import get_args

import torch

from unimm.checkpoints.assemble import empty_parameters
from unimm.config_io import from_dict
from unimm.errors import ConfigError
from unimm.memory import format_bytes
from unimm.model import UniMM
from unimm.tokenizer import load_tokenizer

from .activations import MicroBatch, activation_bytes
from .build import prepare
from .cost import NO_WORK, PartSize, StepCost, Work, ZeroStage, part_sizes, state_bytes, work_of
from .data.scenes import CachedTemplate
from .data.stream import CorpusSource, ExampleSource
from .data.summary import summarise
from .objective import check_objective
from .rereading import rereading_work
from .run import read_recipe
from .stages.unified_config import UnifiedConfig, build_source


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a run is planned for.

    Args:
        num_gpus: GPUs in all, one process each.
        peak_tflops: Of one of them: 989 for an H100 or H200 in bfloat16, as its maker says.
        mfu: Share of the peak that the model's operations reach.
    """

    num_gpus: int = 8
    peak_tflops: float = 989.0
    mfu: float = 0.4

    def __post_init__(self) -> None:
        if self.num_gpus < 1 or self.peak_tflops <= 0 or not 0 < self.mfu <= 1:
            raise ValueError(
                f"num_gpus ({self.num_gpus}) must be at least 1, peak_tflops "
                f"({self.peak_tflops}) positive, mfu ({self.mfu}) in (0, 1]"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs.

    Args:
        sizes: Parameters by part.
        state_bytes: Weights, gradients and optimiser in each process, by ZeRO stage.
        batch: What a process takes forward and backward at once.
        activation_bytes: Activations of such a micro-batch.
        work: What a step handles.
        reread: What it reads once more, with imperfect pictures.
        asked: What goes through the models without a gradient for that.
        flops: Of a step, over all GPUs.
        machine: What it was planned for.
        notes: What was assumed because files are not there yet.
        data: What the data files hold, a line for each source and more.
    """

    sizes: list[PartSize]
    state_bytes: dict[int, float]
    batch: MicroBatch
    activation_bytes: int
    work: Work
    reread: Work
    asked: Work
    flops: float
    machine: Machine
    notes: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    @property
    def steps_per_hour(self) -> float:
        """Steps an hour at the machine's utilisation."""
        machine = self.machine
        return 3600 * machine.num_gpus * machine.peak_tflops * 1e12 * machine.mfu / self.flops

    def lines(self) -> Iterator[str]:
        """Yield the plan for a person."""
        yield f"{'part':<12}{'parameters':>16}{'trained':>16}"
        for size in self.sizes:
            yield f"{size.part:<12}{size.total:>16,}{size.trained:>16,}"
        total, trained = (sum(getattr(s, n) for s in self.sizes) for n in ("total", "trained"))
        yield f"{'all':<12}{total:>16,}{trained:>16,}"
        batch, on_top = self.batch, self.activation_bytes
        yield (
            f"activations of {batch.rows} rows of {batch.length} positions, {batch.drawn} drawn: "
            f"{format_bytes(on_top)}"
        )
        yield (
            f"weights, gradients, optimiser, and with activations, on each of "
            f"{self.machine.num_gpus} GPUs:"
        )
        for stage, count in self.state_bytes.items():
            yield (
                f"  ZeRO-{stage}: {format_bytes(round(count))}, "
                f"{format_bytes(round(count) + on_top)}"
            )
        work = self.work
        yield (
            f"a step: {work.positions:,.0f} positions, {work.tokens:,.0f} supervised tokens, "
            f"{work.drawn:,.0f} pictures and times drawn, {self.flops / 1e12:,.4g} TFLOP"
        )
        if self.asked.positions:
            yield (
                f"of which imperfect pictures: {self.reread.positions:,.0f} positions read once "
                f"more, {self.asked.positions:,.0f} and {self.asked.drawn:,.0f} pictures without a "
                f"gradient"
            )
        machine = self.machine
        yield (
            f"at {machine.mfu:.0%} of {machine.num_gpus} x {machine.peak_tflops:g} TFLOP/s: "
            f"{self.steps_per_hour:,.4g} steps an hour"
        )
        yield from (f"data: {line}" for line in self.data)
        yield from (f"note: {note}" for note in self.notes)


def plan_recipe(path: Path, overrides: list[str], machine: Machine) -> Plan:
    """Return what a recipe's run needs.

    Raises:
        ConfigError: The recipe is wrong, or not one of the unified stage.
    """
    name, tree = read_recipe(path, overrides)
    if name != "unified":
        raise ConfigError(f"{path}: only recipes of the unified stage can be planned, not {name!r}")
    try:
        return plan(from_dict(UnifiedConfig, tree), machine)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def plan(config: UnifiedConfig, machine: Machine) -> Plan:
    """Return what a run needs; the model is built without memory, the data of one step with.

    Where the model or the data are not there yet, published sizes and samples of the largest
    length take their place, and the plan says so.
    """
    with empty_parameters():
        model_config = config.model.planned_config()
        check_objective(config.objective, model_config)
        model = UniMM(model_config)
        prepare(model, config.model)
    sizes = part_sizes(model)
    (work, reread, asked), notes = _step_work(config, model)
    if config.model.awaits_assembly:
        init = config.model.init
        has_decoder = model.config.vision is not None  # a VAE's
        without = "" if has_decoder else ", without a decoder"
        notes.append(f"{init} is not there; parts have their published sizes{without}")
    stages: tuple[ZeroStage, ...] = get_args(ZeroStage)
    memory = {
        int(stage): state_bytes(
            sizes,
            stage,
            ranks=machine.num_gpus,
            itemsize=2 if config.run.precision == "bfloat16" else 4,
            keeps_average=config.run.ema_decay > 0,
        )
        for stage in stages
    }
    flops = StepCost.of(model).flops(work + reread, without_gradient=asked)
    data = () if missing_files(config) else data_lines(config, model)
    model.to("meta", dtype=getattr(torch, config.run.precision))
    batch = micro_batch(config, work, machine, reread)
    checkpointed = config.model.checkpoint_activations
    activations = activation_bytes(model, batch, is_checkpointed=checkpointed)
    return Plan(
        sizes=sizes,
        state_bytes=memory,
        batch=batch,
        activation_bytes=activations,
        work=work,
        reread=reread,
        asked=asked,
        flops=flops,
        machine=machine,
        notes=tuple(notes),
        data=data,
    )


def micro_batch(
    config: UnifiedConfig, work: Work, machine: Machine, reread: Work = NO_WORK
) -> MicroBatch:
    """Return an average micro-batch of a step's work, its rows padded as the run pads them.

    What is reread counts as more rows: its activations are kept beside the others.
    """
    once_more = reread.positions / work.positions if work.positions else 0.0
    parts = machine.num_gpus * config.engine.accumulation
    packed = config.data.row_length if config.data is not None else None
    length = packed or config.sequence_length or work.longest
    rows = work.positions / length if packed else config.samples_per_step
    return MicroBatch(
        rows=ceil(rows * (1 + once_more) / parts),
        length=length,
        tokens=ceil((work.tokens + reread.tokens) / parts),
        drawn=ceil(work.drawn / parts),
        loss_chunks=config.objective.loss_chunks,
    )


def data_lines(config: UnifiedConfig, model: UniMM) -> tuple[str, ...]:
    """Return what the files of a run hold; nothing for the miniature world."""
    source = open_source(config, model)
    if not isinstance(source, CorpusSource):
        return ()
    samples = config.run.num_steps * config.samples_per_step
    return tuple(summarise(source.corpus).lines(samples))


def open_source(config: UnifiedConfig, model: UniMM) -> ExampleSource:
    """Return a run's conversations, with pictures instead of cached latents."""
    template = CachedTemplate(load_tokenizer(config.model.tokenizer_dir()), model.config.chat)
    if config.data is not None:
        config = replace(config, data=replace(config.data, latent_cache=None))
    return build_source(config, model.config, template)


def missing_files(config: UnifiedConfig) -> list[str]:
    """Return what samples cannot be read without and is not there: data files, the tokenizer."""
    if config.data is None:
        return []
    places = [source.path for source in config.data.sources if source.kind != "hf_stream"]
    places.append(str(config.model.tokenizer_dir()))
    return [place for place in places if not Path(place).exists()]


_StepWork = tuple[Work, Work, Work]
"""Of a step, what it reads once more, and what goes through the models without a gradient."""


def _step_work(config: UnifiedConfig, model: UniMM) -> tuple[_StepWork, list[str]]:
    """Return the work of a run's first step, or the most it can be where files are missing."""
    missing = missing_files(config)
    if config.data is None or not missing:
        return _sampled_work(config, model), []
    length, count = config.data.max_length, config.samples_per_step
    work = Work(
        positions=count * length,
        squared=count * length**2,
        tokens=count * max(0, length - model.config.num_queries),
        drawn=count * config.objective.times_per_picture,
        seen=0,
        targets=count,
        longest=length,
    )
    note = (
        f"{', '.join(missing)}: not there; each sample counts as {length} positions and a picture "
        f"to draw, the most it can be, so steps will take less than this"
    )
    rereading = config.objective.rereading
    aligned = replace(work, drawn=0, seen=0, targets=0).scaled(rereading.aligned)
    share = rereading.read_back + (rereading.aligned if rereading.aligned_by_exit else 0)
    asked = replace(work, tokens=0, drawn=count, seen=0, targets=0).scaled(share)
    return (work, aligned, aligned + asked), [note]


def _sampled_work(config: UnifiedConfig, model: UniMM) -> _StepWork:
    examples = open_source(config, model).read(range(config.samples_per_step)).examples
    latents, num_queries = model.config.seen, model.config.num_queries
    copies = config.objective.times_per_picture
    work = work_of(examples, latents=latents, num_queries=num_queries, copies=copies)
    rereading = config.objective.rereading
    again = rereading_work(examples, rereading, latents=latents, num_queries=num_queries)
    return (work, *again)
