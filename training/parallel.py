"""A run on one process or many: join the others, build stage and engine, train, export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from .config import EngineConfig, OptimizerConfig, RunConfig
from .engine import Engine, LocalEngine
from .export import export_checkpoint
from .loop import Stage, train
from .ranks import ALONE, Ranks, connect, launched_ranks, run_device
from .stages.unified import UnifiedStage


class RunnableConfig(Protocol):
    """What the configurations of all stages have."""

    @property
    def run(self) -> RunConfig: ...

    @property
    def optimizer(self) -> OptimizerConfig: ...


def train_on_ranks(
    build: Callable[[Ranks], Stage], config: RunnableConfig, *, header: str
) -> Path | None:
    """Train as :func:`training.loop.train` does, on the processes that a launcher started.

    Args:
        build: Builds the stage for this process.
        config: The run; its ``engine`` says how a step is divided, where the stage knows of it.
        header: First line of the written configuration.
    """
    ranks = launched_ranks()
    device = run_device(config.run.device, ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    is_sharded = getattr(config, "engine", EngineConfig()).is_sharded
    joins = ranks.size > 1 or is_sharded
    ranks = connect(ranks, device=device) if joins else ALONE
    try:
        stage = build(ranks)
        engine = build_engine(stage, config, ranks)
        result = train(stage, config.run, config.optimizer, config, engine=engine, header=header)
        if result is not None and is_sharded and ranks.is_main:
            export_checkpoint(config.run.output_dir, result)
        ranks.gather(None)
        return result
    finally:
        if joins and dist.is_initialized():
            dist.destroy_process_group()


def build_engine(stage: Stage, config: RunnableConfig, ranks: Ranks) -> Engine:
    """Return the engine that a configuration names."""
    settings: Any = {"num_steps": config.run.num_steps, "ema_decay": config.run.ema_decay}
    if not isinstance(stage, UnifiedStage):
        return LocalEngine(stage.groups(), config.optimizer, **settings, ranks=ranks)
    divided: EngineConfig = stage.config.engine
    if not divided.is_sharded:
        return LocalEngine(
            stage.groups(), config.optimizer, **settings, module=stage.objective, ranks=ranks
        )
    from .zero import DeepSpeedEngine

    return DeepSpeedEngine(
        stage.objective,
        stage.groups(),
        stage.names,
        config.optimizer,
        divided,
        **settings,
        ranks=ranks,
        device=stage.device,
        whole=stage.whole_parameters(),
    )
