"""Any model on any conversations: draw, read and write learn together, in one process or many.

Shape legend:
    I pictures read      A pictures drawn      N latent tokens      D latent channels
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, nn

from unimm.chat import QuerySegment, Segment
from unimm.checkpoint import save_checkpoint
from unimm.errors import UserError
from unimm.tokenizer import load_tokenizer

from ..batch import TrainingBatch
from ..build import build_model
from ..cost import StepCost
from ..counts import StepCounts
from ..data.scenes import CachedTemplate
from ..data.stream import StepBatch, StepPlan
from ..engine import Engine, StepReport
from ..grids import picture_grid
from ..imperfect import noised_by_seed
from ..loop import LossReport
from ..lora import merge_lora
from ..objective import (
    TASKS,
    Imperfect,
    JointObjective,
    Pictures,
    Totals,
    check_objective,
    draw,
)
from ..optimizer import ParameterGroup, parameter_groups
from ..pictures import PictureEncoder, blanks
from ..ranks import ALONE, Ranks, run_device
from .unified_config import UnifiedConfig, build_lay_out, build_report, build_source, space_names

_GRID_PROMPTS = 16


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
        self.encoder = PictureEncoder(self.unimm)
        self.caches = config.data is not None and config.data.latent_cache is not None
        spaces = space_names(self.unimm, config.model) if self.caches else None
        self.source = build_source(config, self.unimm.config, self.template, spaces=spaces)
        self.lay_out = build_lay_out(config, self.unimm, pad_id=self.template.pad_id)
        self.report = build_report(config, ranks)
        self.origin, self.finished = (0, 0), 0

    @property
    def model(self) -> nn.Module:
        return self.unimm

    def groups(self) -> list[ParameterGroup]:
        return parameter_groups(self.unimm.parameter_groups().items(), self.unimm)

    def whole_parameters(self) -> Sequence[nn.Parameter]:
        """Return parameters that are read outside of their own module's forward pass."""
        return [self.unimm.queries.embeddings, self.unimm.generator.dit.null_condition]

    def batch(self, step: int) -> StepBatch:
        return self.plan.batch(
            self.source,
            self._first_number(step),
            lay_out=self.lay_out,
            blanks=blanks(self.unimm.config, cached=self.caches),
        )

    def _first_number(self, step: int) -> int:
        """Return the number of a step's first conversation.

        Steps that an earlier part of the run took may have been of another size.
        """
        origin_step, origin_number = self.origin
        return origin_number + (step - origin_step) * self.config.samples_per_step

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

    def _forward(
        self, engine: Engine, batch: TrainingBatch, of: Totals
    ) -> Mapping[str, torch.Tensor]:
        with torch.no_grad():
            clean, drawn = self.encoder.read(batch), self.encoder.drawn(batch)
            read = noised_by_seed(clean, self.config.objective.read_noise, batch.read_seeds)
            draws = draw(batch.drawn_seeds, drawn, self.unimm, self.config.objective)
        pictures = Pictures(read, drawn, batch.is_drawn.float())
        imperfect = batch.rereading and Imperfect(batch.rereading, clean, batch.read_seeds)
        output: Mapping[str, torch.Tensor] = engine(batch.layout, pictures, draws, of, imperfect)
        return output

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
        # What a run leaves out of its training is no property of the model that it makes.
        generator = replace(self.unimm.config.generator, exit_only=False)
        self.unimm.config = replace(self.unimm.config, generator=generator)
        save_checkpoint(directory, self.unimm, self.tokenizer, readme="Unified stage.\n")
