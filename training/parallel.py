"""A run on one process or many: join the others, build stage and engine, train, export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .engine import Engine, LocalEngine
from .export import export_checkpoint
from .loop import train
from .ranks import ALONE, Ranks, connect, launched_ranks
from .stages.unified import UnifiedConfig, UnifiedStage, run_device


def train_unified(
    build: Callable[[Ranks], Any], config: UnifiedConfig, *, header: str
) -> Path | None:
    """Train as :func:`training.loop.train` does, with the engine that the configuration names.

    Args:
        build: Builds the stage for this process.
        config: The run.
        header: First line of the written configuration.
    """
    ranks = launched_ranks()
    device = run_device(config.run, ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    joins = ranks.size > 1 or config.engine.is_sharded
    ranks = connect(ranks, device=device.type) if joins else ALONE
    try:
        stage: UnifiedStage = build(ranks)
        engine = build_engine(stage, config, ranks)
        result = train(stage, config.run, config.optimizer, config, engine=engine, header=header)
        if result is not None and config.engine.is_sharded and ranks.is_main:
            export_checkpoint(config.run.output_dir, result)
        ranks.gather(None)
        return result
    finally:
        if joins and dist.is_initialized():
            dist.destroy_process_group()


def build_engine(stage: UnifiedStage, config: UnifiedConfig, ranks: Ranks) -> Engine:
    """Return the engine that a configuration names."""
    settings: Any = {"num_steps": config.run.num_steps, "ema_decay": config.run.ema_decay}
    if not config.engine.is_sharded:
        return LocalEngine(
            stage.groups(), config.optimizer, **settings, module=stage.objective, ranks=ranks
        )
    from .zero import DeepSpeedEngine

    return DeepSpeedEngine(
        stage.objective,
        stage.groups(),
        stage.names,
        config.optimizer,
        config.engine,
        **settings,
        ranks=ranks,
        device=stage.device,
        whole=stage.whole_parameters(),
    )
