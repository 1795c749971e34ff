"""A language model that goes on reading says to the generator what it said before."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.config import OptimizerConfig, RunConfig
from training.data.joint import JointBatchConfig
from training.data.scenes import SceneSample
from training.engine import LocalEngine
from training.loop import step_generator
from training.stages.bank import BankConfig, Judgement
from training.stages.joint import JointStage
from training.stages.joint_config import JointConfig
from training.stages.keeping import KeptConditions
from training.stages.rewards import RewardConfig
from unimm.layout import Layout
from unimm.scenes import sample_prompt, sample_scene

ONE_PICTURE = JointBatchConfig(pictures_per_prompt=1)


def make_stage(model: Path, tmp_path: Path, **settings: Any) -> JointStage:
    lengths = JointBatchConfig(
        num_prompts=4, pictures_per_prompt=1, matching_rows=2, reading_rows=1, pictures_per_row=1
    )
    run = RunConfig(output_dir=tmp_path, num_steps=20, precision="float32", ema_decay=0.5)
    bank = BankConfig(start=0, every=10, num_prompts=2, pictures_per_prompt=2, rows=2, num_steps=2)
    settings = {"drawing": "keep", "keep_generator": True, "bank": bank, **settings}
    optimizer = OptimizerConfig(lr=3e-3, warmup_steps=1)
    return JointStage(
        JointConfig(run=run, init=model, batch=lengths, optimizer=optimizer, **settings)
    )


@pytest.fixture
def stage(vision_model: Path, tmp_path: Path) -> JointStage:
    return make_stage(vision_model, tmp_path)


@pytest.fixture
def layout(stage: JointStage) -> Layout:
    return stage.batch(0).drawing


def test_a_model_that_has_not_changed_is_no_distance_away(
    stage: JointStage, layout: Layout
) -> None:
    states = stage.drawer.states(layout)
    assert KeptConditions(stage.unimm).distance(states, layout) == 0


def test_conditions_that_no_longer_tell_prompts_apart_are_one_away(
    stage: JointStage, layout: Layout
) -> None:
    states = stage.drawer.states(layout)
    mean = states.mean(0, keepdim=True).expand_as(states)
    distance = KeptConditions(stage.unimm).distance(mean, layout).item()
    assert distance == pytest.approx(1, abs=1e-4)


def test_what_the_model_becomes_does_not_move_what_it_was(
    stage: JointStage, layout: Layout
) -> None:
    kept = KeptConditions(stage.unimm)
    before = stage.drawer.states(layout).detach()
    with torch.no_grad():
        for parameter in stage.unimm.language.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    now = stage.drawer.states(layout)
    assert kept.distance(before, layout) == 0
    assert kept.distance(now, layout) > 1e-3
    kept.distance(now, layout).backward()
    assert any(p.grad is not None and p.grad.any() for p in stage.unimm.language.parameters())
    assert all(p.grad is None for p in stage.unimm.generator.parameters())


def train(stage: JointStage, num_steps: int) -> list[dict[str, float]]:
    config = stage.config
    engine = LocalEngine(stage.groups(), config.optimizer, num_steps=num_steps, ema_decay=0.5)
    parts = []
    for step in range(num_steps):
        stage.before_step(step, engine)
        generator = step_generator(config.run, step)
        report = stage.loss(stage.batch(step), step=step, generator=generator)
        engine.step(report.loss, step)
        parts.append({name: float(part.detach()) for name, part in report.parts.items()})
    return parts


def test_only_what_reads_is_trained_and_judges_what_is_drawn(stage: JointStage) -> None:
    before = deepcopy(stage.unimm.state_dict())
    (parts,) = train(stage, 1)
    assert {"kept", "reading", "matching", "judged"} <= set(parts)
    assert not {"flow", "reward"} & set(parts)
    changed = {n for n, p in stage.unimm.state_dict().items() if not torch.equal(p, before[n])}
    assert {name.split(".")[0] for name in changed} == {"language", "queries", "projector"}


def test_the_weight_holds_the_conditions(vision_model: Path, tmp_path: Path) -> None:
    """Reading pulls them away where nothing holds them."""
    loose = train(make_stage(vision_model, tmp_path, keep_weight=0.0), 12)[-1]
    held = train(make_stage(vision_model, tmp_path, keep_weight=30.0), 12)[-1]
    assert held["kept"] < 0.3 * loose["kept"]


def test_a_request_late_in_a_chat_comes_to_mean_what_it_means_alone(
    vision_model: Path, tmp_path: Path
) -> None:
    stage = make_stage(vision_model, tmp_path, keep_weight=30.0)
    batch = stage.batch(1000)

    def distance() -> float:
        space, count = stage.unimm.latents, len(batch.requests.token_ids)
        with torch.no_grad():
            hidden = stage.unimm(batch.chats, torch.zeros(count, space.num_tokens, space.dim))
            states = stage.unimm.query_states(hidden, batch.chats)
            return kept.distance(states, batch.requests).item()

    kept = KeptConditions(stage.unimm)
    before = distance()
    train(stage, 40)
    assert distance() < 0.85 * before


def test_drawn_pictures_are_asked_about_by_what_they_show(
    vision_model: Path, tmp_path: Path
) -> None:
    bank = BankConfig(start=9, rows=2, reading_rows=3)
    stage = make_stage(vision_model, tmp_path, bank=bank)
    rng = np.random.default_rng(0)
    prompts = [sample_prompt(rng, stage.grammar) for _ in range(4)]
    scenes = [sample_scene(rng, stage.grammar, prompt) for prompt in prompts]
    space = stage.unimm.latents
    latents = torch.randn(4, space.num_tokens, space.dim)
    wrong = torch.zeros(4, dtype=torch.bool)
    stage.bank.add(prompts, latents, Judgement(wrong, wrong, [None] * 4))
    assert "shown" not in train(stage, 1)[0]  # nothing that has a name
    stage.bank.add(prompts, latents, Judgement(wrong, wrong, scenes))
    (parts,) = train(stage, 1)
    assert 0 < parts["shown"] < 20
    layout = stage.drawer.questions(
        [SceneSample(*pair) for pair in zip(prompts, scenes, strict=True)], rng, stage.grammar
    )
    assert layout.token_ids.shape[0] == 4
    template = stage.template
    for row, prompt in zip(layout.labels, prompts, strict=True):
        said = [int(label) for label in row if label >= 0]
        text = [*template.encode(prompt.text)]
        assert any(said[k : k + len(text)] == text for k in range(len(said)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "frozen"}, "set language=full and keep_generator=true"),
        ({"keep_generator": False}, "set language=full and keep_generator=true"),
        (
            {"reward": RewardConfig(num_prompts=2, rows=4), "batch": ONE_PICTURE},
            "set reward.num_prompts=0",
        ),
        (
            {"batch": JointBatchConfig(pictures_per_prompt=2)},
            "set batch.pictures_per_prompt to 1, got 2",
        ),
        (
            {"batch": JointBatchConfig(num_prompts=1, matching_rows=1)},
            "set batch.num_prompts to at least 2, got 1",
        ),
        ({"keep_weight": -1.0}, "keep_weight must not be negative, got -1.0"),
    ],
)
def test_keeping_needs_a_reader_and_a_generator(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = {"drawing": "keep", "keep_generator": True, **settings}
    with pytest.raises(ValueError, match=message):
        JointConfig(run=RunConfig(output_dir=tmp_path, num_steps=1), init=tmp_path, **settings)
