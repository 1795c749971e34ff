"""The model that a run trains: from a directory, from a configuration, or both."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from metaquery.dit import DiTBlock, DiTStack
from unimm.assembly import Assembly, published_config
from unimm.checkpoint import load_model, read_config
from unimm.config import UniMMConfig
from unimm.config_io import from_dict, to_dict
from unimm.errors import UserError
from unimm.model import Part, UniMM

from .lora import LoRAConfig, add_lora

LanguageMode = Literal["full", "frozen", "lora"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecipe:
    """Where the model of a run comes from, and what of it is trained, how.

    Args:
        init: Model directory to begin with; None begins with random weights.
        assembled: What ``init`` is made of, where ``unimm assemble`` makes it: so that the run can
            be planned before it is there, and its absence be told with the command that makes it.
        tokenizer: Directory of the tokenizer; None takes that of ``init``.
        config: Overrides of ``init``'s configuration, or the whole of it.
        fresh: Parts, or modules inside them such as ``generator.dit.exit``, that begin with random
            weights whether or not ``init`` has them.
        language: Whether all of the language model is trained, nothing, or low-rank additions.
        lora: Size of the additions.
        attention: ``attn_implementation`` of transformers: ``sdpa``, ``eager``,
            ``flash_attention_2`` (with the extra flash) or ``flex_attention``.
        checkpoint_activations: Compute the inside of each block again in the backward pass.
        compile_blocks: Compile each block of the language model and the DiT.
    """

    init: Path | None = None
    assembled: Assembly | None = None
    tokenizer: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    language: LanguageMode = "full"
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    attention: str = "sdpa"
    checkpoint_activations: bool = False
    compile_blocks: bool = False

    def __post_init__(self) -> None:
        if self.init is None and not self.config:
            raise ValueError("name a model directory as init, or describe the model in config")

    @property
    def awaits_assembly(self) -> bool:
        """Whether ``init`` is not there yet, and it is known what it will be made of."""
        return self.assembled is not None and self.init is not None and not self.init.exists()

    def model_config(self) -> UniMMConfig:
        """Return the model's configuration.

        Raises:
            UserError: ``init`` is not there.
        """
        if self.init is not None and self.assembled is not None and self.awaits_assembly:
            raise UserError(
                f"there is no model directory {self.init}; train the stage that writes it, or "
                f"begin anew with: {self.assembled.command(self.init)}"
            )
        base = {} if self.init is None else to_dict(read_config(self.init)[0])
        return from_dict(UniMMConfig, merged(base, self.config))

    def planned_config(self) -> UniMMConfig:
        """Return the model's configuration, of published sizes where ``init`` is not there yet."""
        if self.assembled is None or not self.awaits_assembly:
            return self.model_config()
        base = to_dict(published_config(self.assembled))
        return from_dict(UniMMConfig, merged(base, self.config))

    def tokenizer_dir(self) -> Path:
        """Return where the tokenizer lies."""
        found = self.tokenizer or self.init
        if found is None:
            raise UserError("model.tokenizer must name a directory where model.init is not given")
        return found


def build_model(recipe: ModelRecipe, *, device: torch.device, dtype: torch.dtype) -> UniMM:
    """Return the model of a run, its trained parts marked.

    A model that is loaded whole goes to its device tensor by tensor, so that as many processes as
    a machine has GPUs do not each need its size in main memory.

    Raises:
        UserError: ``init`` has not the shapes that ``config`` asks for, or ``fresh`` names no
            module.
    """
    config = recipe.model_config()
    if recipe.init is not None and not recipe.fresh:
        model = load_model(
            recipe.init, config, device=device, dtype=dtype, attention=recipe.attention
        )
    else:
        with torch.device(device):
            model = UniMM(config, attention=recipe.attention)
        if recipe.init is not None:
            _load(model, recipe.init, recipe.fresh)
        model.to(device, dtype)
    prepare(model, recipe)
    return model


def prepare(model: UniMM, recipe: ModelRecipe) -> None:
    """Mark what is trained, and set up memory saving and compilation.

    Raises:
        UserError: The early exit is to be trained alone, and the language model too.
    """
    model.train_only(_trained_parts(model, recipe))
    if recipe.language == "lora":
        add_lora(model.language, recipe.lora)
    if recipe.checkpoint_activations:
        checkpoint_blocks(model)
    if recipe.compile_blocks:
        compile_blocks(model)


def _trained_parts(model: UniMM, recipe: ModelRecipe) -> list[Part]:
    if not model.config.generator.exit_only:
        parts: list[Part] = ["queries", "projector", "generator"]
        return parts if recipe.language == "frozen" else [*parts, "language"]
    if recipe.language != "frozen":
        raise UserError(
            f"generator.exit_only trains the early exit alone, but model.language is "
            f"{recipe.language!r}; make it frozen, or exit_only false"
        )
    return ["generator"]  # of which the model itself frees the exit only


def checkpoint_blocks(model: UniMM) -> None:
    """Let the blocks of language model and DiT keep only their inputs for the backward pass."""
    for module in model.generator.modules():
        if isinstance(module, DiTStack):
            module.checkpoint_activations = True
    language: Any = model.language
    language.train()  # transformers checkpoints in training mode only; no model here has dropout
    # Releases of transformers differ in the name and agree in the argument.
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    enable = getattr(language, new if hasattr(language, new) else old)
    enable({"use_reentrant": False})


MOST_SHAPES = 32
"""Compilations of a block: the joint stage with rewards has some twenty shapes of batches, half of
them without gradients."""


def compile_blocks(model: UniMM, *, dynamic: bool | None = None) -> None:
    """Compile each block where it stands; names of parameters stay.

    Args:
        model: The model.
        dynamic: Whether one compilation serves all batch shapes: False makes a faster one for
            each shape, None finds out.

    Raises:
        UserError: The blocks are on a CPU, and it has no C++ compiler.
    """
    if model.device.type == "cpu":
        _check_compiler()
    from torch._dynamo import config as dynamo  # seconds to import, for those who compile alone

    # Past torch's limit of 8 a block runs uncompiled in shapes that it has not met yet.
    dynamo.recompile_limit = max(MOST_SHAPES, dynamo.recompile_limit)
    for block in blocks(model):
        block.compile(dynamic=dynamic)


def _check_compiler() -> None:
    """Raise UserError unless there is the compiler that torch would call, many steps later."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise UserError(
            f"compile_blocks needs a C++ compiler and there is no {name}; install it, name another "
            f"in the variable CXX, or set compile_blocks=false"
        )


def blocks(model: UniMM) -> Sequence[nn.Module]:
    """Return the repeated blocks of the language model and the DiT."""
    found = [m for m in model.generator.modules() if isinstance(m, DiTBlock)]
    language = [m for m in model.language.modules() if type(m).__name__.endswith("DecoderLayer")]
    return [*language, *found]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with another's values in it, section by section."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, Mapping)
        result[key] = merged(old or {}, value) if both else value
    return result


def _load(model: UniMM, init: Path, fresh: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    for name in fresh:
        if name not in modules:
            raise UserError(f"model.fresh names {name!r}, which is no part or module of the model")
    stored, _ = read_config(init)
    before = load_model(init, stored, device=torch.device("cpu"), dtype=torch.float32)
    skipped = tuple(f"{part}." for part in fresh)
    kept = {n: t for n, t in before.state_dict().items() if not n.startswith(skipped)}
    try:
        missing = model.load_state_dict(kept, strict=False).missing_keys
    except RuntimeError as error:
        raise UserError(
            f"model.config changes shapes of {init}; name the changed parts in model.fresh"
        ) from error
    if lacking := [name for name in missing if not name.startswith(skipped)]:
        raise UserError(
            f"{init} lacks {lacking[:3]}; name their parts, or modules in them, in model.fresh"
        )
