"""From a recipe to a finished run: the only place that knows all stages."""

import ctypes
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, assert_never, get_args

import torch

from unimm.checkpoint import CONFIG_NAME, read_config
from unimm.config_io import apply_override, from_dict, read_tree
from unimm.errors import ConfigError, UserError

from .config import RunConfig
from .loop import Stage
from .parallel import train_on_ranks
from .processor import slow_settings
from .ranks import Ranks, launched_ranks
from .run_dir import check_run_dir

logger = logging.getLogger(__name__)

StageName = Literal["vision", "decoder", "rae_decoder", "reading", "joint", "unified"]


def run_recipe(path: Path, overrides: Sequence[str]) -> Path | None:
    """Train what a recipe describes and return the directory of the final model.

    None where the run was told to stop before its end; the same recipe goes on.

    Raises:
        ConfigError: A key is unknown or a value is wrong; nothing was started.
        UserError: The device is not there, or the output directory cannot be written.
    """
    name, tree = read_recipe(path, overrides)
    try:
        config = from_dict(_config_class(name), tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    prepare_machine(config.run)
    check_run_dir(config.run.output_dir)
    if launched_ranks().is_main:
        for line in slow_settings(config.run, config.optimizer):
            logger.warning(line)
    header = f"stage: {name}\n"
    return train_on_ranks(lambda ranks: _build(name, config, ranks), config, header=header)


def read_recipe(path: Path, overrides: Sequence[str]) -> tuple[StageName, dict[str, Any]]:
    """Return the stage that a recipe names, and the rest of it with overrides applied.

    Raises:
        ConfigError: The file cannot be read or names no stage.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    name = tree.pop("stage", None)
    if name not in get_args(StageName):
        raise ConfigError(f"{path}: stage must be one of {get_args(StageName)}, got {name!r}")
    return name, tree


def _config_class(name: StageName) -> type[Any]:
    match name:
        case "vision":
            from .stages.vision import VisionConfig

            return VisionConfig
        case "decoder":
            from .stages.decoder import DecoderConfig

            return DecoderConfig
        case "rae_decoder":
            from .stages.rae_decoder_config import RAEDecoderStageConfig

            return RAEDecoderStageConfig
        case "reading":
            from .stages.reading import ReadingConfig

            return ReadingConfig
        case "joint":
            from .stages.joint_config import JointConfig

            return JointConfig
        case "unified":
            from .stages.unified_config import UnifiedConfig

            return UnifiedConfig
        case _:
            assert_never(name)


def _refuse_two_spaces(name: StageName, config: Any) -> None:
    """Raise UserError if a stage of the miniature world would have to read what it cannot."""
    if name in ("unified", "rae_decoder"):
        return
    init: Path | None = getattr(config, "init", None)
    if init is not None and not (init / CONFIG_NAME).is_file():
        return  # the stage says what is missing
    model = config.model if init is None else read_config(init)[0]
    if model.vision is not None:
        raise UserError(
            f"the stage {name!r} trains models that read what they draw, and this one sees in "
            f"another latent space than it draws in; train it by the stage 'unified'"
        )


def _build(name: StageName, config: Any, ranks: Ranks) -> Stage:
    _refuse_two_spaces(name, config)
    torch.manual_seed(config.run.seed)  # the initial weights; everything later draws explicitly
    match name:
        case "vision":
            from .stages.vision import VisionStage

            return VisionStage(config, ranks)
        case "decoder":
            from .stages.decoder import DecoderStage

            return DecoderStage(config, ranks)
        case "rae_decoder":
            from .stages.rae_decoder import RAEDecoderStage

            return RAEDecoderStage(config, ranks)
        case "reading":
            from .stages.reading import ReadingStage

            return ReadingStage(config, ranks)
        case "joint":
            from .stages.joint import JointStage

            return JointStage(config, ranks)
        case "unified":
            from .stages.unified import UnifiedStage

            return UnifiedStage(config, ranks)
        case _:
            assert_never(name)


def prepare_machine(run: RunConfig) -> None:
    """Set threads and the C allocator, and check that the device exists."""
    if run.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"run.device is {run.device!r}, but torch sees no GPU; use run.device=cpu")
    if run.num_threads:
        torch.set_num_threads(run.num_threads)
    if run.device == "cpu" and sys.platform == "linux":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: giving it back makes every step fault its pages in anew."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_* in malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc only
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**28)
        libc.mallopt(mmap_max, 0)
