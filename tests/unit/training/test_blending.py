"""Prompts between two prompts: what is drawn for them, and what they are judged by."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from training.config import RunConfig
from training.data.blending import blended_states, draw_blends
from training.data.joint import JointBatch, JointBatchConfig, joint_batch
from training.data.scenes import pixels_of, render_samples, sample_scenes, step_rng
from training.stages import rewards
from training.stages.bank import BankConfig, Judgement, judge_latents
from training.stages.decoder import STREAM, DecoderConfig, DecoderStage
from training.stages.joint import JointStage
from training.stages.joint_config import JointConfig
from training.stages.rewards import RewardConfig
from training.stages.vision import VisionStage
from unimm.scenes import COLOURS, BlendedPrompt, Grammar, Prompt, colours_of, render_batch
from unimm.tokenizer import decode_text

BATCH = JointBatchConfig(
    num_prompts=8,
    num_blends=4,
    pictures_per_prompt=2,
    matching_rows=2,
    reading_rows=1,
    pictures_per_row=1,
    chat_rows=1,
    pictures_per_chat=1,
)


def make_batch(stage: VisionStage, step: int, config: JointBatchConfig = BATCH) -> JointBatch:
    return joint_batch(
        step,
        seed=0,
        config=config,
        grammar=stage.grammar,
        template=stage.template,
        model=stage.unimm,
    )


def test_states_move_their_share_and_the_others_stay() -> None:
    states, others = torch.randn(4, 3, 5), torch.randn(2, 3, 5)
    moved = blended_states(states, others, torch.tensor([0.25, 1.0]))
    assert torch.equal(moved[:2], states[:2])
    torch.testing.assert_close(moved[2], 0.75 * states[2] + 0.25 * others[0])
    torch.testing.assert_close(moved[3], others[1])


def test_blends_are_the_last_prompts_and_differ_in_colours(vision_stage: VisionStage) -> None:
    for step in range(10):
        batch = make_batch(vision_stage, step)
        assert batch.blends
        assert len(batch.blends.shares) == 4
        assert len(batch.drawing.token_ids) == 8
        assert len(batch.pictures) == 8 * 2 + 1 + 1
        rows = batch.drawing.token_ids[-4:], batch.blends.others.token_ids
        for first, second in zip(*rows, strict=True):
            words = [decode_text(vision_stage.tokenizer, ids.tolist()) for ids in (first, second)]
            plain = [re.sub(rf"\b(an?|{'|'.join(COLOURS)})\b", "", text) for text in words]
            assert plain[0] == plain[1]
            assert any(colour in words[0] for colour in vision_stage.grammar.colours)


def test_a_batch_without_blends_has_none(vision_stage: VisionStage) -> None:
    batch = make_batch(vision_stage, 0, JointBatchConfig(num_prompts=2, matching_rows=1))
    assert batch.blends is None


def make_stage(model: Path, tmp_path: Path, **settings: Any) -> JointStage:
    run = RunConfig(output_dir=tmp_path, num_steps=4, precision="float32", ema_decay=0.5)
    config = JointConfig(
        run=run, init=model, batch=BATCH, bank=BankConfig(start=100, rows=2), **settings
    )
    return JointStage(config)


def test_the_generator_is_conditioned_on_what_lies_between(
    vision_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(vision_model, tmp_path, language="frozen")
    batch = stage.batch(0)
    seen: list[Tensor] = []

    def flow(states: Tensor, pictures: Tensor, generator: Generator) -> dict[str, Tensor]:
        seen.append(states[::2])  # two pictures of each prompt
        return {"flow": stage.unimm.generator.loss(states, pictures, generator=generator)}

    monkeypatch.setattr(stage, "_flow_losses", flow)
    stage.loss(batch, step=0, generator=Generator().manual_seed(0))
    assert batch.blends
    own, others = stage.drawer.states(batch.drawing), stage.drawer.states(batch.blends.others)
    torch.testing.assert_close(seen[0][:4], own[:4])
    shares = batch.blends.shares[:, None, None]
    torch.testing.assert_close(seen[0][4:], (1 - shares) * own[4:] + shares * others)


def test_pictures_of_blends_are_judged_by_their_colours_and_not_kept(
    vision_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = RewardConfig(num_prompts=4, num_blends=3, pictures_per_prompt=2, rows=8, num_steps=2)
    stage = make_stage(vision_model, tmp_path, reward=reward)
    judged: list[Prompt] = []

    def verdict(space: object, prompts: list[Prompt], latents: Tensor) -> Judgement:
        judged.extend(prompts)
        right = torch.zeros(len(prompts), dtype=torch.bool)
        return Judgement(right, right, [None] * len(prompts))

    monkeypatch.setattr(rewards, "judge_latents", verdict)
    rollout = stage._draw_rollout(0)
    assert rollout.blends
    assert len(judged) == 8
    assert len(stage.bank) == 2  # of the one prompt that is no blend
    assert all(one.colour in COLOURS for p in judged[:2] for one in p.spec.objects if one.colour)
    for prompt in judged[2:]:
        assert any(one.colour not in COLOURS for one in prompt.spec.objects)  # one may stay
        assert set(colours_of(prompt)) > {one.colour for one in prompt.spec.objects}


def test_rewards_draw_blends_that_can_be_judged() -> None:
    def draw(**settings: Any) -> list[BlendedPrompt]:
        return draw_blends(
            60, np.random.default_rng(0), Grammar.small(), skill_weights={}, **settings
        )

    assert all(blend.can_be_judged for blend in draw(to_judge=True))
    assert not all(blend.can_be_judged for blend in draw())


def test_a_blend_in_its_own_colours_is_right() -> None:
    """The judge of drawn pictures knows blends: what it calls them is asked for by the prompt."""
    rng = np.random.default_rng(0)
    blends = draw_blends(4, rng, Grammar.small(), skill_weights={}, pictures=1, to_judge=True)
    space: Any = SimpleNamespace(decode=lambda pictures: pictures)  # nothing is lost on the way
    pixels = torch.from_numpy(render_batch([blend.scenes[0] for blend in blends]))
    pixels = pixels_of(pixels.permute(0, 3, 1, 2), torch.float32)
    judged = judge_latents(space, [blend.judged for blend in blends], pixels)
    assert judged.correct.all()
    plain = judge_latents(space, [blend.prompt for blend in blends], pixels)
    assert not plain.correct.all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_prompts": 8, "matching_rows": 4, "num_blends": 5}, "num_blends must be from 0 to 4"),
        ({"num_blends": -1}, "num_blends must be from 0 to 16 here, got -1"),
        (
            {
                "num_blends": 1,
                "skill_weights": dict.fromkeys(
                    ("counting", "colors", "position", "color_attr"), 0.0
                ),
            },
            "num_blends=1 needs prompts that name colours",
        ),
    ],
)
def test_blends_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        JointBatchConfig(**settings)


def test_a_generator_that_stays_has_no_use_for_blends(vision_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="drawing=keep learns nothing from blends"):
        JointConfig(
            run=RunConfig(output_dir=tmp_path, num_steps=1),
            init=vision_model,
            batch=JointBatchConfig(pictures_per_prompt=1, num_blends=1),
            drawing="keep",
            keep_generator=True,
        )


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share: float, tmp_path: Path) -> None:
    run = RunConfig(output_dir=tmp_path, num_steps=1)
    with pytest.raises(ValueError, match="blend_share must be from 0 to 1"):
        DecoderConfig(run=run, init=tmp_path, blend_share=share)


def test_a_share_of_the_decoders_pictures_has_blended_colours(
    vision_model: Path, tmp_path: Path
) -> None:
    def batch(share: float) -> Tensor:
        run = RunConfig(output_dir=tmp_path, num_steps=1)
        config = DecoderConfig(run=run, init=vision_model, batch_size=64, blend_share=share)
        return DecoderStage(config).batch(0)

    def colours(pictures: Tensor) -> int:
        return len(np.unique(pictures.permute(0, 2, 3, 1).reshape(-1, 3).numpy(), axis=0))

    stage = DecoderStage(
        DecoderConfig(run=RunConfig(output_dir=tmp_path, num_steps=1), init=vision_model)
    )
    plain = render_samples(sample_scenes(step_rng(0, STREAM, 0), stage.grammar, 64))
    assert torch.equal(batch(0.0), plain)
    assert colours(batch(0.5)) > colours(plain)
