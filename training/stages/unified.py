"""Any model on any conversations: draw, read and write learn together, in one process or many.

Shape legend:
    I pictures read      A pictures drawn      N latent tokens      D latent channels
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from unimm.chat import ChatTemplate, QuerySegment, Segment
from unimm.checkpoint import save_checkpoint
from unimm.config import UniMMConfig
from unimm.errors import UserError
from unimm.fingerprint import latent_space_id
from unimm.model import UniMM
from unimm.scenes import Grammar
from unimm.tokenizer import load_tokenizer

from ..batch import LayOut, TrainingBatch
from ..build import ModelRecipe, build_model
from ..config import EngineConfig, OptimizerConfig, RunConfig
from ..cost import StepCost
from ..counts import StepCounts
from ..data.config import DataConfig
from ..data.corpus import Corpus, Sizes
from ..data.packed_layout import packed
from ..data.report import SkipReport
from ..data.scene_samples import SceneDataConfig, SceneSource
from ..data.scenes import CachedTemplate, pixels_of
from ..data.stream import CorpusSource, ExampleSource, StepBatch, StepPlan, right_padded
from ..engine import Engine, StepReport
from ..grids import picture_grid
from ..imperfect import noised_by_seed
from ..loop import LossReport
from ..lora import merge_lora
from ..objective import (
    TASKS,
    Imperfect,
    JointObjective,
    ObjectiveConfig,
    Pictures,
    Totals,
    check_objective,
    draw,
)
from ..optimizer import ParameterGroup, parameter_groups
from ..ranks import ALONE, Ranks, run_device

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


class UnifiedStage:
    """Train queries, projector, generator and as much of the language model as asked."""

    def __init__(self, config: UnifiedConfig, ranks: Ranks = ALONE) -> None:
        self.config, self.ranks = config, ranks
        self.plan = StepPlan(
            config.samples_per_step,
            config.engine.accumulation,
            ranks,
            config.objective.rereading,
        )
        check_objective(config.objective, config.model.model_config())
        self.device = run_device(config.run.device, ranks)
        dtype = getattr(torch, config.run.precision)
        self.unimm = build_model(config.model, device=self.device, dtype=dtype)
        self.objective = JointObjective(self.unimm, config.objective)
        self.names = {p: name for name, p in self.unimm.named_parameters() if p.requires_grad}
        self.cost = StepCost.of(self.unimm)
        self.tokenizer = load_tokenizer(config.model.tokenizer_dir())
        self.template = CachedTemplate(self.tokenizer, self.unimm.config.chat)
        caches = config.data is not None and config.data.latent_cache is not None
        space = latent_space_id(self.unimm) if caches else None
        self.source = build_source(config, self.unimm.config, self.template, space=space)
        self.lay_out = build_lay_out(config, self.unimm, pad_id=self.template.pad_id)
        self.report = build_report(config, ranks)
        self.origin, self.finished = (0, 0), 0

    @property
    def model(self) -> nn.Module:
        return self.unimm

    def groups(self) -> list[ParameterGroup]:
        return parameter_groups(self.unimm.parameter_groups().items())

    def whole_parameters(self) -> Sequence[nn.Parameter]:
        """Return parameters that are read outside of their own module's forward pass."""
        return [self.unimm.queries.embeddings, self.unimm.generator.dit.null_condition]

    def batch(self, step: int) -> StepBatch:
        return self.plan.batch(
            self.source, self._first_number(step), lay_out=self.lay_out, blank=self._blank()
        )

    def _first_number(self, step: int) -> int:
        """Return the number of a step's first conversation.

        Steps that an earlier part of the run took may have been of another size.
        """
        origin_step, origin_number = self.origin
        return origin_number + (step - origin_step) * self.config.samples_per_step

    def _blank(self) -> Tensor:
        """Return a picture of the run's form that stands in where there is none."""
        latents = self.unimm.config.latents
        if self.config.data is not None and self.config.data.latent_cache is not None:
            return torch.zeros((latents.num_tokens, latents.dim))
        return torch.zeros((3, latents.image_size, latents.image_size), dtype=torch.uint8)

    def take_step(
        self, engine: Engine, batch: StepBatch, *, step: int
    ) -> tuple[LossReport, StepReport]:
        """Return what one optimiser step over all processes did."""
        if self.report is not None:
            self.report.count(batch.num_read, batch.skipped)
        batches = batch.micro_batches
        counts = StepCounts.of(batches, engine.ranks)
        work, without_gradient = counts.work(self.config.objective.times_per_picture)
        names = ["loss", "flow", "text"]
        if self.config.objective.rereading.aligned:
            names.append("alignment")
        sums = torch.zeros(len(names) + len(TASKS), device=self.device)
        for micro in batches:
            output = self._forward(engine, micro.to(self.device), counts.totals)
            engine.backward(output["loss"])
            values = torch.stack([output[name].detach().float() for name in names])
            sums += torch.cat([values, output["by_task"].float()])
        done = engine.update(step)
        self.finished = step + 1
        values, task_sums = engine.ranks.sum(sums).split([len(names), len(TASKS)])
        parts = dict(zip(names, values, strict=True))
        tasks = zip(TASKS, task_sums, counts.by_task, strict=True)
        report = LossReport(
            parts.pop("loss"),
            parts | {f"text_{task}": value / count for task, value, count in tasks if count},
            int(counts.samples),
            int(counts.rows.positions),
            self.cost.flops(work, without_gradient=without_gradient),
        )
        return report, done

    def _forward(self, engine: Engine, batch: TrainingBatch, of: Totals) -> Mapping[str, Tensor]:
        with torch.no_grad():
            clean, drawn = self._latents(batch.read), self._latents(batch.drawn)
            read = noised_by_seed(clean, self.config.objective.read_noise, batch.read_seeds)
            draws = draw(batch.drawn_seeds, drawn, self.unimm, self.config.objective)
        pictures = Pictures(read, drawn, batch.is_drawn.float())
        imperfect = batch.rereading and Imperfect(batch.rereading, clean, batch.read_seeds)
        output: Mapping[str, Tensor] = engine(batch.layout, pictures, draws, of, imperfect)
        return output

    def _latents(self, pictures: Tensor) -> Tensor:
        """Return pictures as latents in float32; latents are taken as they are."""
        if pictures.dtype != torch.uint8:
            return pictures.float()
        latents: Tensor = self.unimm.latents.encode(pixels_of(pictures, self.unimm.dtype))
        return latents.float()

    def loss(self, batch: object, *, step: int, generator: Generator) -> LossReport:
        raise NotImplementedError("this stage takes its steps whole")

    def before_step(self, step: int, engine: Any) -> None:
        """Nothing to do between steps."""

    @torch.no_grad()
    def sample_grid(self, step: int) -> Image.Image:
        """Return drawings for the first prompts of the data, from fixed noise."""
        sequences: list[list[Segment]] = []
        for sample in self.source.read(range(20 * _GRID_PROMPTS)).examples:
            if sample.drawn and len(sequences) < _GRID_PROMPTS:
                end = next(i for i, s in enumerate(sample.segments) if isinstance(s, QuerySegment))
                sequences.append(list(sample.segments[: end + 1]))
        layout = self.unimm.lay_out(sequences, pad_id=self.template.pad_id).to(self.device)
        states = self.unimm.query_states(self.unimm(layout), layout)
        space = self.unimm.latents
        generator = Generator(self.device).manual_seed(0)
        shape = (len(sequences), space.num_tokens, space.dim)
        noise = torch.randn(shape, generator=generator, device=self.device)
        sampling = self.unimm.config.sampling
        latents = self.unimm.generator.sample(
            states,
            noise=noise,
            num_steps=sampling.num_steps,
            guidance_scale=sampling.guidance_scale,
            guidance_interval=sampling.guidance_interval,
            exit_scale=sampling.exit_scale,
            exit_interval=sampling.exit_interval,
        )
        return picture_grid(space.decode(latents.to(self.unimm.dtype)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.finished,
            "next_number": self._first_number(self.finished),
            "fingerprint": self.source.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the very next conversation, on any number of processes.

        Raises:
            UserError: The data is another.
        """
        if state["fingerprint"] != self.source.fingerprint:
            raise UserError(
                "the data is not what the checkpoint was trained on (files, weights, seed or "
                "shuffle settings differ), so its position means nothing; restore them or start a "
                "new run"
            )
        self.finished = int(state["step"])
        self.origin = (self.finished, int(state["next_number"]))

    def export(self, directory: Path) -> None:
        merge_lora(self.unimm.language)
        save_checkpoint(directory, self.unimm, self.tokenizer, readme="Unified stage.\n")


def build_source(
    config: UnifiedConfig, model: UniMMConfig, template: ChatTemplate, *, space: str | None = None
) -> ExampleSource:
    """Return the conversations of a run.

    Args:
        config: Of the run.
        model: Sizes and, for the miniature world, its grammar.
        template: Words the conversations.
        space: Identifier of the latent space, where latents come from a cache.

    Raises:
        UserError: Files are missing, or the model does not say which miniature world it is of.
    """
    seed = config.run.seed
    if config.data is not None:
        sizes = Sizes.of(model)
        return CorpusSource(
            Corpus(config.data, template=template, sizes=sizes, seed=seed, space=space)
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
