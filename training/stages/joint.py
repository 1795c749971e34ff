"""Stage (d): language model, queries, connector and DiT learn together to draw and to read.

The loss is 2.0 x flow matching + cross-entropy, as Scale-RAE's (arXiv:2601.16208). The yes/no
branch also sees what the generator makes, with the exact detector's verdict as the answer; with
``reward.num_prompts`` the generator learns from these verdicts too. With ``drawing: keep`` the
language model learns to read and to judge alone, and goes on telling the generator what it did.

Shape legend:
    B batch      N latent tokens      D latent channels      Q queries      H language-model width
    P prompts      K pictures of a prompt      R pictures asked about      C pictures of chats
"""

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from unimm.checkpoint import save_checkpoint
from unimm.layout import Layout, stack_layouts
from unimm.roc import area_under_roc
from unimm.scenes import Grammar, Prompt, load_prompts, parse_prompt, prompt_for, sample_scene
from unimm.tokenizer import load_tokenizer

from ..build import compile_blocks
from ..data.blending import draw_blends
from ..data.joint import (
    JointBatch,
    first_pictures,
    joint_batch,
    tile_states,
)
from ..data.scenes import (
    CachedTemplate,
    SceneSample,
    draw_prompt,
    pixels_of,
    render_samples,
    step_rng,
)
from ..engine import LocalEngine
from ..fast_attention import use_fast_attention
from ..fast_norm import use_fast_norms
from ..grids import picture_grid
from ..imperfect import noised
from ..loop import LossReport
from ..optimizer import ParameterGroup, parameter_groups
from ..ranks import ALONE, Ranks, run_device
from .bank import PictureBank, judge_latents
from .drawing import Drawer
from .joint_config import JointConfig, build_model
from .keeping import KeptConditions
from .rewards import Rollout, draw_rollout, reward_loss

STREAM = 4
REWARD_STREAM = 6
SHOWN_STREAM = 7


class JointStage:
    """Train everything but the latent space."""

    def __init__(self, config: JointConfig, ranks: Ranks = ALONE) -> None:
        self.config, self.ranks = config, ranks
        self.device = run_device(config.run.device, ranks)
        self.unimm = build_model(config)
        self.model = self.unimm
        self.unimm.to(self.device, getattr(torch, config.run.precision))
        self.unimm.train_only(config.trained)
        use_fast_norms(self.unimm.language)
        if self.device.type == "cpu":
            use_fast_attention(self.unimm.language)
        self.kept = KeptConditions(self.unimm) if config.drawing == "keep" else None
        if config.compile_blocks:
            compile_blocks(self.unimm, dynamic=False)  # all batches have one shape
        self.grammar = Grammar.from_dict(self.unimm.config.grammar or {})
        self.tokenizer = load_tokenizer(config.init)
        self.template = CachedTemplate(self.tokenizer, self.unimm.config.chat)
        self.drawer = Drawer(self.unimm, self.template, config.batch)
        self.bank = PictureBank(config.bank.capacity)
        self.weights = config.weights
        self.rollout: Rollout | None = None
        self.drawn_right = float("nan")
        self.auroc = float("nan")

    def groups(self) -> list[ParameterGroup]:
        return parameter_groups(self.unimm.parameter_groups().items(), self.unimm)

    def batch(self, step: int) -> JointBatch:
        return joint_batch(
            self.ranks.place(step),
            seed=self.config.run.seed,
            config=self.config.batch,
            grammar=self.grammar,
            template=self.template,
            model=self.unimm,
        )

    def loss(self, batch: JointBatch, *, step: int, generator: Generator) -> LossReport:
        with torch.no_grad():
            pixels = pixels_of(batch.pictures.to(self.device), self.unimm.dtype)
            latents = self.unimm.latents.encode(pixels)  # (P*K + R + C, N, D)
        drawn, read, chatted = latents.split(self.config.batch.num_pictures)
        drawing = batch.drawing.to(self.device)
        hidden = self.unimm(drawing)
        states = self.unimm.query_states(hidden, drawing)
        if batch.blends:
            states = self.drawer.moved(states, batch.blends.to(self.device))
        tiled = tile_states(states, self.config.batch.pictures_per_prompt)
        if self.config.language == "frozen":
            parts = self._flow_losses(tiled, drawn, generator)
        else:
            in_chats, chats = self._chat_loss(batch, chatted, generator)
            if self.kept:
                asked = stack_layouts(batch.drawing, batch.requests).to(self.device)
                parts = {"kept": self.kept.distance(torch.cat([states, in_chats]), asked)}
            else:
                pictures = torch.cat([drawn, chatted])
                parts = self._flow_losses(torch.cat([tiled, in_chats]), pictures, generator)
            parts["replies"] = self.unimm.token_losses(hidden, drawing)[0].mean()
            parts["chats"] = chats
            parts |= self._reading_losses(batch, drawn, read, step=step, generator=generator)
        loss = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        if self.rollout:
            parts["rewarded"] = self.rollout.judgement.correct.float().mean()
        if len(self.bank):
            parts["drawn_right"] = torch.tensor(self.drawn_right)
            parts["auroc"] = torch.tensor(self.auroc)
        return LossReport(loss, parts, len(drawn))

    def _flow_losses(
        self, states: Tensor, pictures: Tensor, generator: Generator
    ) -> dict[str, Tensor]:
        """Return the flow-matching loss, and the rewards' if there are any."""
        parts = {"flow": self.unimm.generator.loss(states, pictures, generator=generator)}
        if self.rollout:
            parts["reward"] = reward_loss(self.drawer, self.rollout)
        return parts

    def _chat_loss(
        self, batch: JointBatch, chatted: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the states at the queries of the chats, (C, Q, H), and the cross-entropy."""
        layout = batch.chats.to(self.device)
        hidden = self.unimm(layout, noised(chatted, self.config.read_noise, generator))
        losses, _ = self.unimm.token_losses(hidden, layout)
        return self.unimm.query_states(hidden, layout), losses.mean()

    def _reading_losses(
        self, batch: JointBatch, drawn: Tensor, read: Tensor, *, step: int, generator: Generator
    ) -> dict[str, Tensor]:
        """Return the cross-entropies on true pictures and on those of the bank."""
        most = self.config.read_noise
        read = noised(read, most, generator)
        matched = noised(first_pictures(drawn, self.config.batch), most, generator)
        return {
            "reading": self._reading_loss(batch.reading.to(self.device), read),
            **self._shown_losses(step),
            **self._matching_losses(batch.matching.to(self.device), matched, step),
        }

    def _reading_loss(self, layout: Layout, latents: Tensor) -> Tensor:
        hidden = self.unimm(layout, latents)
        losses, _ = self.unimm.token_losses(hidden, layout)
        return losses.mean()

    def _matching_losses(self, layout: Layout, latents: Tensor, step: int) -> dict[str, Tensor]:
        """Return the cross-entropy of yes/no on true pictures, and on drawn ones if there are."""
        if not len(self.bank):
            return {"matching": self._reading_loss(layout, latents)}
        rng = step_rng(self.config.run.seed, STREAM + 1, self.ranks.place(step))
        cases, drawn = self.bank.draw(
            self.config.bank.rows, rng, paired_share=self.config.bank.paired_share
        )
        both = stack_layouts(layout, self.drawer.verdicts(cases))
        hidden = self.unimm(both, torch.cat([latents, drawn.to(latents)]))
        losses, rows = self.unimm.token_losses(hidden, both)
        is_judged = rows >= self.config.batch.matching_rows
        return {"matching": losses[~is_judged].mean(), "judged": losses[is_judged].mean()}

    def _shown_losses(self, step: int) -> dict[str, Tensor]:
        """Return the cross-entropy on questions about what drawn pictures show."""
        count = self.config.bank.reading_rows
        if not count:
            return {}
        rng = step_rng(self.config.run.seed, SHOWN_STREAM, self.ranks.place(step))
        scenes, latents = self.bank.draw_shown(3 * count, rng)
        asked = [prompt_for(scene, rng, self.grammar) for scene in scenes]
        samples = {k: SceneSample(*sample) for k, sample in enumerate(asked) if sample}
        if not samples:
            return {}
        chosen = [*islice(cycle(samples), count)]  # always as many: batches of one shape
        layout = self.drawer.questions([samples[k] for k in chosen], rng, self.grammar)
        pictures = latents[chosen].to(self.device, self.unimm.dtype)
        return {"shown": self._reading_loss(layout, pictures)}

    def before_step(self, step: int, engine: LocalEngine) -> None:
        """Draw pictures to learn from, and judge them."""
        if self.config.reward.num_prompts:
            with engine.averaged():
                self.rollout = self._draw_rollout(step)
        bank = self.config.bank
        if step >= bank.start and step % bank.every == 0:
            with engine.averaged(), torch.no_grad():
                self._fill_bank(step)

    def _draw_rollout(self, step: int) -> Rollout:
        """Draw for the generator, whose pictures the yes/no branch learns from too."""
        config = self.config.reward
        rng = step_rng(self.config.run.seed, REWARD_STREAM, self.ranks.place(step))
        weights, num_plain = config.skill_weights, config.num_prompts - config.num_blends
        asked = [draw_prompt(rng, self.grammar, weights) for _ in range(num_plain)]
        blends = draw_blends(
            config.num_blends, rng, self.grammar, skill_weights=weights, to_judge=True
        )
        generator = Generator(self.device).manual_seed(int(rng.integers(2**62)))
        rollout = draw_rollout(self.drawer, asked, config, generator, blends=blends)
        kept = num_plain * config.pictures_per_prompt  # blends have no words to be judged by
        self.bank.add(rollout.prompts[:kept], rollout.latents[:kept], rollout.judgement.head(kept))
        return rollout

    def _fill_bank(self, step: int) -> None:
        """Draw with guidance for the yes/no branch, and see how well it judges."""
        bank = self.config.bank
        rng = step_rng(self.config.run.seed, STREAM, self.ranks.place(step))
        failed = self.bank.failed(round(bank.failed_share * bank.num_prompts), rng)
        asked = [parse_prompt(text, self.grammar) for text in failed]
        while len(asked) < bank.num_prompts:
            asked.append(draw_prompt(rng, self.grammar, self.config.batch.skill_weights))
        prompts = [prompt for prompt in asked for _ in range(bank.pictures_per_prompt)]
        generator = Generator(self.device).manual_seed(int(rng.integers(2**62)))
        latents = self.drawer.draw(
            asked,
            num_steps=bank.num_steps,
            guidance_scale=bank.guidance_scales[(step // bank.every) % len(bank.guidance_scales)],
            generator=generator,
            copies=bank.pictures_per_prompt,
        )
        judgement = judge_latents(self.unimm.latents, prompts, latents)
        log_odds = self.drawer.log_odds(prompts, latents)
        self.auroc = area_under_roc(log_odds.tolist(), judgement.correct.tolist())
        self.drawn_right = judgement.correct.float().mean().item()
        self.bank.add(prompts, latents, judgement)
        self._add_noised(asked, rng, generator)

    def _add_noised(self, prompts: list[Prompt], rng: Any, generator: Generator) -> None:
        """Add true pictures moved part of the way to noise, judged by what is left of them."""
        samples = [SceneSample(p, sample_scene(rng, self.grammar, p)) for p in prompts]
        pixels = pixels_of(render_samples(samples).to(self.device), self.unimm.dtype)
        clean = self.unimm.latents.encode(pixels).float()
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        t = torch.rand((len(prompts), 1, 1), generator=generator, device=self.device) * 0.9
        noised = torch.lerp(clean, noise, t)
        judgement = judge_latents(self.unimm.latents, prompts, noised)
        self.bank.add(prompts, noised, judgement, is_drawn=False)

    @torch.no_grad()
    def sample_grid(self, step: int) -> Image.Image:
        """Return a fixed set of frozen prompts, drawn from fixed noise."""
        name = "small" if self.grammar == Grammar.small() else "full"
        prompts = load_prompts(name, "train")[5::35][:16]
        generator = Generator(self.device).manual_seed(0)
        latents = self.drawer.draw(
            prompts,
            num_steps=self.config.bank.num_steps,
            guidance_scale=self.unimm.config.sampling.guidance_scale,
            generator=generator,
        )
        return picture_grid(self.unimm.latents.decode(latents))

    def state_dict(self) -> dict[str, Any]:
        # Every process has drawn a bank of its own.
        return {
            "banks": self.ranks.gather(self.bank.state_dict()),
            "seen": [self.drawn_right, self.auroc],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        banks = state["banks"]
        self.bank.load_state_dict(banks[self.ranks.rank % len(banks)])
        self.drawn_right, self.auroc = state["seen"]

    def export(self, directory: Path) -> None:
        save_checkpoint(
            directory, self.unimm, self.tokenizer, readme="Joint stage.\n", dtype=torch.bfloat16
        )
