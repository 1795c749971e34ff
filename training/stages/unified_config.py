"""A run of the unified stage: its configuration, and the conversations that it names."""

from dataclasses import dataclass, field

from unimm.chat import ChatTemplate
from unimm.checkpoint import read_config
from unimm.config import UniMMConfig
from unimm.errors import UserError
from unimm.fingerprint import latent_space_id
from unimm.model import UniMM
from unimm.scenes import Grammar

from ..batch import LayOut
from ..build import ModelRecipe
from ..config import EngineConfig, OptimizerConfig, RunConfig
from ..data.config import DataConfig
from ..data.corpus import Corpus, Sizes, SpaceNames
from ..data.packed_layout import packed
from ..data.report import SkipReport
from ..data.scene_samples import SceneDataConfig, SceneSource
from ..data.stream import CorpusSource, ExampleSource, right_padded
from ..objective import (
    ObjectiveConfig,
)
from ..ranks import Ranks

_GRID_PROMPTS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class UnifiedConfig:
    """A run of the unified stage.

    Args:
        run: Length, place, machine.
        model: What is trained.
        optimizer: AdamW and its schedule.
        engine: How a step is divided.
        objective: The loss.
        scenes: The miniature world as data, where ``data`` is None.
        data: Files to learn from.
        samples_per_step: Conversations of a step, over all processes and micro-batches.
        sequence_length: Positions that rows are padded to; None pads to the longest of a batch.
            With ``data.row_length`` rows are packed to that length.
    """

    run: RunConfig
    model: ModelRecipe
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    scenes: SceneDataConfig = field(default_factory=SceneDataConfig)
    data: DataConfig | None = None
    samples_per_step: int = 64
    sequence_length: int | None = None

    def __post_init__(self) -> None:
        if self.samples_per_step < 1:
            raise ValueError(f"samples_per_step must be at least 1, got {self.samples_per_step}")
        if self.model.compile_blocks and self.engine.is_sharded and self.engine.zero_stage == 3:
            raise ValueError("model.compile_blocks needs engine.zero_stage 1 or 2")
        if self.engine.is_sharded and self.optimizer.hidden == "muon":
            raise ValueError(
                "optimizer.hidden=muon works on whole matrices, which ZeRO cuts up; take "
                "optimizer.hidden=adamw or another engine.kind"
            )


def space_names(model: UniMM, recipe: ModelRecipe) -> SpaceNames:
    """Return the identifiers of what a model sees and draws in.

    Args:
        model: The model, in the precision of the run.
        recipe: Where it comes from. The identifier in that directory is of the weights as they
            were trained, and what a cache of latents is named by.
    """
    is_fresh = any(name.partition(".")[0] == "latents" for name in recipe.fresh)
    if recipe.init is None or is_fresh:
        drawn = latent_space_id(model)
    else:
        _, drawn = read_config(recipe.init)
    return SpaceNames(drawn if model.vision is None else latent_space_id(model, seen=True), drawn)


def build_source(
    config: UnifiedConfig,
    model: UniMMConfig,
    template: ChatTemplate,
    *,
    spaces: SpaceNames | None = None,
) -> ExampleSource:
    """Return the conversations of a run.

    Args:
        config: Of the run.
        model: Sizes and, for the miniature world, its grammar.
        template: Words the conversations.
        spaces: Identifiers of the latent spaces, where latents come from a cache.

    Raises:
        UserError: Files are missing, or the model does not say which miniature world it is of.
    """
    seed = config.run.seed
    if config.data is not None:
        sizes = Sizes.of(model)
        return CorpusSource(
            Corpus(config.data, template=template, sizes=sizes, seed=seed, spaces=spaces)
        )
    if model.grammar is None:
        raise UserError(
            "a model without a grammar has no miniature world; name files in data, or give "
            "model.config.grammar"
        )
    grammar = Grammar.from_dict(model.grammar)
    return SceneSource(config.scenes, grammar, template, seed=config.run.seed)


def build_lay_out(config: UnifiedConfig, model: UniMM, *, pad_id: int) -> LayOut:
    """Return how a run's conversations become rows: one each, or packed."""
    if config.data is not None and config.data.row_length is not None:
        return packed(model, pad_id=pad_id, length=config.data.row_length)
    return right_padded(model, pad_id=pad_id, length=config.sequence_length)


def build_report(config: UnifiedConfig, ranks: Ranks) -> SkipReport | None:
    """Return where this process names what it cannot use; files alone can be damaged."""
    if config.data is None:
        return None
    path = config.run.output_dir / "skipped" / f"rank-{ranks.rank:04d}.jsonl"
    return SkipReport(path, config.data)
