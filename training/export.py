"""From a checkpoint of a run to a model directory, on one process and without a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unimm.config_io import from_dict, read_tree
from unimm.errors import CheckpointError, UserError

from .checkpoint import latest_checkpoint, load_state
from .fragments import FragmentReader
from .stages.unified import UnifiedStage
from .stages.unified_config import UnifiedConfig
from .zero_optimizer import AVERAGE, MASTER


def export_checkpoint(run_dir: Path, out: Path, *, averaged: bool = True) -> Path:
    """Write the model of a run's last checkpoint.

    Args:
        run_dir: Directory of the run; any number of processes may have trained it.
        out: Directory of the model.
        averaged: Take the moving average of the weights where the run kept one.

    Raises:
        UserError: The directory is not that of a unified run, or has no checkpoint.
    """
    stage = _stage(run_dir)
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None:
        raise UserError(f"{run_dir} has no checkpoint yet; train it first")
    if any(checkpoint.glob("rank-*.safetensors")):
        _fill_from_fragments(stage, checkpoint, averaged=averaged)
    else:
        _fill_from_state(stage, checkpoint, averaged=averaged)
    out.parent.mkdir(parents=True, exist_ok=True)
    stage.export(out)
    return out


def _stage(run_dir: Path) -> UnifiedStage:
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir} has no config.yaml; it is not the directory of a run")
    tree = read_tree(path)
    if (name := tree.pop("stage", None)) != "unified":
        raise UserError(
            f"{run_dir} is a run of the stage {name!r}, which writes its model to "
            f"{run_dir / 'model'} when it ends; only unified runs are exported before"
        )
    config: UnifiedConfig = from_dict(UnifiedConfig, tree)
    run = replace(config.run, device="cpu", precision="float32")
    engine = replace(config.engine, accumulation=1)
    model = replace(config.model, compile_blocks=False, attention="sdpa")
    return UnifiedStage(replace(config, run=run, engine=engine, model=model))


@torch.no_grad()
def _fill_from_fragments(stage: UnifiedStage, checkpoint: Path, *, averaged: bool) -> None:
    with FragmentReader(checkpoint) as reader:
        kind = AVERAGE if averaged and AVERAGE in reader.kinds else MASTER
        if unknown := reader.names - set(stage.names.values()):
            raise CheckpointError(
                f"{checkpoint} has weights of {sorted(unknown)[:3]}, unknown here"
            )
        for parameter, name in stage.names.items():
            parameter.copy_(reader.read_whole(name, kind, parameter.shape))


@torch.no_grad()
def _fill_from_state(stage: UnifiedStage, checkpoint: Path, *, averaged: bool) -> None:
    engine: dict[str, Any] = load_state(checkpoint)["engine"]
    weights = (averaged and engine["averages"]) or engine["masters"]
    parameters = [p for group in stage.groups() for p in group.parameters]
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.copy_(weight)
