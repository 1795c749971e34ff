"""The generator learns from verdicts on its own pictures as DiffusionNFT has it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from metaquery.flow import reinforced_target
from training.config import RunConfig
from training.data.joint import JointBatchConfig
from training.data.scenes import CachedTemplate
from training.engine import LocalEngine
from training.loop import step_generator
from training.stages import rewards
from training.stages.bank import BankConfig, Judgement
from training.stages.drawing import Drawer
from training.stages.joint import JointStage
from training.stages.joint_config import JointConfig
from training.stages.rewards import (
    RewardConfig,
    draw_rollout,
    group_advantages,
    most_telling,
    reward_loss,
)
from unimm.scenes import Grammar, Prompt, sample_prompt

SHAPE = (5, 4, 3)  # B, N, D


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_the_target_gives_the_gradient_of_the_papers_loss(beta: float) -> None:
    rng = Generator().manual_seed(0)
    old, target, start = torch.randn(3, *SHAPE, generator=rng, dtype=torch.float64)
    rewards = torch.rand(SHAPE[0], generator=rng, dtype=torch.float64)
    velocity = start.clone().requires_grad_()
    r = rewards.view(-1, 1, 1)
    better, worse = old + beta * (velocity - old), old - beta * (velocity - old)
    (r * (better - target).square() + (1 - r) * (worse - target).square()).sum().backward()
    assert velocity.grad is not None
    wanted, velocity.grad = velocity.grad, None
    aim = reinforced_target(old, target, 2 * rewards - 1, strength=1 / beta)
    (beta**2 * (velocity - aim).square()).sum().backward()
    torch.testing.assert_close(velocity.grad, wanted)


def test_pictures_are_compared_with_those_of_their_prompt() -> None:
    verdicts = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    advantages = group_advantages(verdicts, torch.ones(4, 4, dtype=torch.bool))
    assert not advantages[:2].any()
    assert advantages[2].tolist() == [0.75, -0.25, -0.25, -0.25]  # a rare success counts most
    assert advantages[3].tolist() == [0.25, 0.25, 0.25, -0.75]


def test_a_step_without_a_difference_teaches_nothing() -> None:
    same = torch.ones(3, 4, dtype=torch.bool)
    assert not group_advantages(same, same).any()


def test_what_is_held_out_is_neither_praised_nor_compared_with() -> None:
    correct = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1]]).bool()
    is_judged = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]).bool()
    advantages = group_advantages(correct, is_judged)
    assert advantages.sign().tolist() == [[1, -1, 0, 0], [0, 0, 0, 0]]


def test_pictures_that_teach_something_come_first() -> None:
    advantages = torch.tensor([0.0, 0.5, 0.0, -0.5, 0.0, 1.0])
    for seed in range(5):
        order = most_telling(advantages, 4, Generator().manual_seed(seed)).tolist()
        assert set(order[:3]) == {1, 3, 5}
        assert len(set(order)) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_prompts": -1}, "num_prompts must not be negative, got -1"),
        ({"num_prompts": 2, "pictures_per_prompt": 1}, "pictures_per_prompt must be at least 2"),
        ({"num_prompts": 2, "rows": 30}, "rows must be from 1 to the 24 pictures drawn, got 30"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"strength": 0.0}, "strength must be positive"),
        ({"weight": -1.0}, "weight must be positive"),
        ({"skill_weights": {"size": 1.0}}, "skill_weights has no 'size'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(**settings)


REWARD = RewardConfig(num_prompts=3, pictures_per_prompt=4, rows=6, num_steps=2)


def make_stage(model: Path, tmp_path: Path, **settings: Any) -> JointStage:
    lengths = JointBatchConfig(
        num_prompts=2, pictures_per_prompt=1, matching_rows=1, reading_rows=1, pictures_per_row=1
    )
    run = RunConfig(output_dir=tmp_path, num_steps=4, precision="float32", ema_decay=0.5)
    bank = BankConfig(start=100, rows=2)
    config = JointConfig(run=run, init=model, batch=lengths, bank=bank, reward=REWARD, **settings)
    stage = JointStage(config)
    generator = Generator().manual_seed(0)
    with torch.no_grad():  # a fresh DiT draws the same picture always
        for parameter in stage.unimm.generator.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return stage


@pytest.fixture
def stage(vision_model: Path, tmp_path: Path) -> JointStage:
    return make_stage(vision_model, tmp_path)


@pytest.fixture
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [sample_prompt(rng, Grammar.full()) for _ in range(3)]


def half_right(space: object, prompts: list[Prompt], latents: Tensor) -> Judgement:
    """Judge a random model's pictures so that there is something to learn."""
    correct = torch.arange(len(latents)) % 2 == 0
    return Judgement(correct, torch.zeros_like(correct), [None] * len(latents))


def test_a_rollout_belongs_to_its_prompts(
    stage: JointStage, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "judge_latents", half_right)
    rollout = draw_rollout(stage.drawer, prompts, REWARD, Generator().manual_seed(1))
    assert [p.text for p in rollout.prompts] == [p.text for p in prompts for _ in range(4)]
    assert rollout.latents.shape[0] == len(rollout.judgement.correct) == 12
    assert rollout.target.shape == rollout.sample.x_t.shape == (6, *rollout.latents.shape[1:])
    noise = rollout.sample.x_t + (1 - rollout.sample.t.view(-1, 1, 1)) * rollout.sample.velocity
    clean = noise - rollout.sample.velocity  # the latents that the rows were made from
    nearest = torch.cdist(clean.flatten(1), rollout.latents.flatten(1)).argmin(1)
    assert torch.equal(nearest // 4, rollout.prompt_index)


def test_the_loss_is_zero_where_no_picture_is_better_than_another(
    stage: JointStage, prompts: list[Prompt]
) -> None:
    """A random model's pictures are all wrong: it stays what it was when it drew them."""
    rollout = draw_rollout(stage.drawer, prompts, REWARD, Generator().manual_seed(1))
    assert not rollout.judgement.correct.any()
    assert reward_loss(stage.drawer, rollout).item() == pytest.approx(0, abs=1e-9)


def test_good_pictures_attract_and_bad_ones_repel(
    stage: JointStage, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some steps on one rollout, the velocity is nearer to the right pictures' and further
    from the wrong ones' than the velocity that drew them."""
    monkeypatch.setattr(rewards, "judge_latents", half_right)
    rollout = draw_rollout(stage.drawer, prompts, REWARD, Generator().manual_seed(1))
    losses = []
    optimizer = torch.optim.Adam(stage.unimm.generator.parameters(), lr=3e-3)
    for _ in range(30):
        loss = reward_loss(stage.drawer, rollout)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_step_reports_and_keeps_its_rollout(stage: JointStage) -> None:
    config = stage.config
    engine = LocalEngine(stage.groups(), config.optimizer, num_steps=4, ema_decay=0.5)
    for step in range(2):
        batch = stage.batch(step)
        stage.before_step(step, engine)
        report = stage.loss(batch, step=step, generator=step_generator(config.run, step))
        assert {"reward", "rewarded", "judged"} <= set(report.parts)
        assert len(stage.bank) == 12 * (step + 1)
        engine.step(report.loss, step)


def test_the_same_step_draws_the_same_rollout(stage: JointStage) -> None:
    first, again, other = (stage._draw_rollout(step) for step in (3, 3, 4))
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.latents, other.latents)


def test_a_drawer_draws_what_the_stage_would(stage: JointStage, prompts: list[Prompt]) -> None:
    """Pictures of a prompt stand side by side, and drawing one prompt more changes none of them."""
    drawer = Drawer(stage.unimm, CachedTemplate(stage.tokenizer, stage.unimm.config.chat),
                    stage.config.batch)  # fmt: skip

    def drawn(count: int) -> Tensor:
        generator = Generator().manual_seed(5)
        return drawer.draw(
            prompts[:count], num_steps=2, guidance_scale=2.0, generator=generator, copies=2
        )

    torch.testing.assert_close(drawn(3)[:4], drawn(2), atol=1e-4, rtol=1e-4)
    assert drawer.log_odds([p for p in prompts for _ in range(2)], drawn(3)).shape == (6,)


def test_with_a_frozen_language_model_only_the_generator_learns(
    vision_model: Path, tmp_path: Path
) -> None:
    stage = make_stage(vision_model, tmp_path, language="frozen")
    config = stage.config
    before = {name: p.detach().clone() for name, p in stage.unimm.named_parameters()}
    engine = LocalEngine(stage.groups(), config.optimizer, num_steps=4, ema_decay=0.5)
    stage.before_step(0, engine)
    report = stage.loss(stage.batch(0), step=0, generator=step_generator(config.run, 0))
    assert {"flow", "reward", "rewarded"} <= set(report.parts)
    assert not {"reading", "replies", "matching", "judged"} & set(report.parts)
    engine.step(report.loss, 0)
    changed = {n for n, p in stage.unimm.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(name.startswith("generator.") for name in changed)
