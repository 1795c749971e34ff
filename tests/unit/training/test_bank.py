"""The verifier's pool of judged pictures."""

import io
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.config import RunConfig
from training.data.joint import JointBatchConfig
from training.stages.bank import BankConfig, Judgement, PictureBank, judge_latents
from training.stages.joint import JointStage
from training.stages.joint_config import JointConfig
from unimm.errors import CheckpointError
from unimm.latents import PatchLatents
from unimm.scenes import (
    Grammar,
    Prompt,
    Scene,
    judge,
    parse_prompt,
    render,
    sample_prompt,
    sample_scene,
)

A_CIRCLE = sample_prompt(np.random.default_rng(0), Grammar.small(), skill="single_object")


def add(bank: PictureBank, texts: list[str], latents: Tensor, correct: Tensor) -> None:
    prompts = [replace(A_CIRCLE, text=text) for text in texts]
    bank.add(prompts, latents, Judgement(correct, torch.zeros_like(correct), [None] * len(texts)))


def fill(bank: PictureBank, numbers: range, *, right_every: int = 3) -> None:
    """Add pictures whose latents, prompt and verdict all tell their number."""
    latents = torch.tensor([[[float(n)]] for n in numbers])
    verdicts = torch.tensor([n % right_every == 0 for n in numbers])
    add(bank, [f"picture {n}" for n in numbers], latents, verdicts)


def drawn_numbers(bank: PictureBank, count: int, *, seed: int = 0) -> list[int]:
    """Return the numbers of drawn cases after checking that latents and prompt belong together."""
    cases, latents = bank.draw(count, np.random.default_rng(seed))
    numbers = [int(prompt.removeprefix("picture ")) for prompt, _ in cases]
    assert latents.flatten().tolist() == numbers
    assert [verdict for _, verdict in cases] == [n % 3 == 0 for n in numbers]
    return numbers


def test_the_newest_are_kept() -> None:
    bank = PictureBank(10)
    for start in range(0, 24, 4):
        fill(bank, range(start, start + 4))
        assert len(bank) == min(start + 4, 10)
    assert set(drawn_numbers(bank, 200)) == set(range(14, 24))


def test_more_than_fits_at_once_keeps_the_last() -> None:
    bank = PictureBank(5)
    fill(bank, range(12))
    assert set(drawn_numbers(bank, 100)) == set(range(7, 12))


def test_half_of_a_draw_is_right_however_rare_right_ones_are() -> None:
    bank = PictureBank(100)
    fill(bank, range(1, 100))
    numbers = drawn_numbers(bank, 40)
    assert sum(n % 3 == 0 for n in numbers) == 20
    assert len(set(numbers)) > 25  # and not always the same


@pytest.mark.parametrize("right_every", [1, 1000])
def test_one_kind_alone_fills_the_draw(right_every: int) -> None:
    bank = PictureBank(8)
    fill(bank, range(1, 9), right_every=right_every)
    cases, _ = bank.draw(6, np.random.default_rng(0))
    assert [verdict for _, verdict in cases] == [right_every == 1] * 6


def test_a_restored_bank_draws_the_same() -> None:
    bank, restored = PictureBank(10), PictureBank(10)
    fill(bank, range(14))
    stored = io.BytesIO()
    torch.save(bank.state_dict(), stored)
    stored.seek(0)
    restored.load_state_dict(torch.load(stored, weights_only=True))
    assert drawn_numbers(restored, 30, seed=4) == drawn_numbers(bank, 30, seed=4)
    fill(bank, range(14, 17))
    fill(restored, range(14, 17))
    assert drawn_numbers(restored, 30, seed=5) == drawn_numbers(bank, 30, seed=5)


def test_the_state_of_another_version_is_refused() -> None:
    with pytest.raises(CheckpointError, match="earlier version of unimm"):
        PictureBank(10).load_state_dict({"latents": torch.empty(0), "prompts": []})
    earlier = {"prompt": "a picture", "is_right": True, "is_drawn": True, "scene": None}
    with pytest.raises(CheckpointError, match="earlier version of unimm"):
        PictureBank(10).load_state_dict({"latents": torch.empty(1), "cases": [earlier]})


def test_a_restored_empty_bank_is_empty() -> None:
    restored = PictureBank(10)
    restored.load_state_dict(PictureBank(10).state_dict())
    assert len(restored) == 0
    fill(restored, range(3))
    assert set(drawn_numbers(restored, 20)) == {0, 1, 2}


@pytest.mark.parametrize("name", ["every", "num_prompts", "pictures_per_prompt", "rows"])
def test_a_bank_that_never_draws_is_refused(name: str) -> None:
    settings: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        BankConfig(**settings)
    with pytest.raises(ValueError, match="guidance_scales must hold at least one"):
        BankConfig(guidance_scales=())
    with pytest.raises(ValueError, match=r"failed_share must be from 0 to 1, got 1\.5"):
        BankConfig(failed_share=1.5)


def test_pictures_are_judged_by_their_own_prompts() -> None:
    """Through exact latents a true picture is right, and wrong for another picture's prompt."""
    rng = np.random.default_rng(0)
    grammar = Grammar.small()
    prompts: list[Prompt] = [sample_prompt(rng, grammar, skill="colors") for _ in range(6)]
    others = [sample_prompt(rng, grammar, skill="counting") for _ in range(6)]
    pictures = np.stack([render(sample_scene(rng, grammar, prompt)) for prompt in prompts])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    space = PatchLatents(64, 16)
    latents = space.encode(pixels)
    judgement = judge_latents(space, prompts, latents)
    assert judgement.correct.all()
    assert not judgement.held_out.any()
    for scene, prompt in zip(judgement.scenes, prompts, strict=True):
        assert scene is not None
        assert judge(prompt, scene.objects).correct
    assert not judge_latents(space, others, latents).correct.any()
    blank = judge_latents(space, prompts, torch.zeros_like(latents))
    assert not blank.correct.any()
    assert blank.scenes == [None] * 6


def test_right_and_wrong_pictures_of_a_draw_share_their_prompts() -> None:
    """Or a verifier could do well by knowing which prompts are hard."""
    bank = PictureBank(100)
    verdicts = torch.tensor([True, True, True, False, True, False, False, False])
    prompts = ["easy"] * 3 + ["mixed"] * 2 + ["other"] + ["hard"] * 2
    add(
        bank, [*prompts, "other"], torch.zeros(9, 1, 1), torch.cat([verdicts, torch.tensor([True])])
    )
    cases, _ = bank.draw(40, np.random.default_rng(0))
    assert {prompt for prompt, _ in cases} == {"mixed", "other"}
    for first, second in zip(cases[::2], cases[1::2], strict=True):
        assert (first[0], first[1], second[1]) == (second[0], True, False)


def test_a_case_comes_in_every_wording_of_its_prompt() -> None:
    """And pictures of two prompts that say the same are those of one prompt."""
    said = "a picture of a cross above a square", "a picture of a square below a cross"
    prompts = [parse_prompt(text, Grammar.small()) for text in said]
    bank = PictureBank(100)
    verdicts = torch.tensor([True, False])
    bank.add(
        prompts,
        torch.zeros(2, 1, 1),
        Judgement(verdicts, torch.zeros(2, dtype=torch.bool), [None] * 2),
    )
    cases, _ = bank.draw(40, np.random.default_rng(0))
    assert {*cases} == {(text, verdict) for text in said for verdict in (True, False)}


def test_prompts_that_failed_come_by_how_often_they_did() -> None:
    bank, rng = PictureBank(100), np.random.default_rng(0)
    assert bank.failed(4, rng) == []
    texts = ["never"] * 4 + ["half"] * 20 + ["always"] * 2
    verdicts = torch.tensor([True] * 4 + [True, False] * 10 + [False] * 2)
    add(bank, texts, torch.zeros(26, 1, 1), verdicts)
    wrong = Judgement(torch.tensor([False]), torch.tensor([False]), [None])
    bank.add([replace(A_CIRCLE, text="noised")], torch.zeros(1, 1, 1), wrong, is_drawn=False)
    found = Counter(bank.failed(3000, rng))
    assert set(found) == {"half", "always"}
    assert 1.7 < found["always"] / found["half"] < 2.3  # its share counts, not its pictures
    right = PictureBank(100)
    add(right, ["never"], torch.zeros(1, 1, 1), torch.tensor([True]))
    assert right.failed(4, rng) == []


@pytest.mark.parametrize("failed_share", [0.0, 1.0])
def test_the_joint_stage_draws_again_for_what_failed(
    vision_model: Path, tmp_path: Path, failed_share: float
) -> None:
    """An untrained model draws every prompt wrongly."""
    lengths = JointBatchConfig(num_prompts=2, matching_rows=1)
    run = RunConfig(output_dir=tmp_path, num_steps=4, precision="float32")
    bank = BankConfig(
        start=0,
        every=1,
        num_prompts=8,
        pictures_per_prompt=1,
        num_steps=1,
        failed_share=failed_share,
    )
    stage = JointStage(JointConfig(run=run, init=vision_model, batch=lengths, bank=bank))
    engine: Any = SimpleNamespace(averaged=nullcontext)
    stage.before_step(0, engine)
    first = {min(case.wordings) for case in stage.bank.cases}
    before = len(stage.bank)
    stage.before_step(1, engine)
    second = {min(case.wordings) for case in stage.bank.cases[before:]}
    assert (second <= first) is (failed_share == 1.0)


def test_pictures_of_held_out_content_are_not_kept() -> None:
    """A model may draw what training must not show: a red circle where any circle will do."""
    bank = PictureBank(100)
    prompts = [replace(A_CIRCLE, text=f"picture {n}") for n in range(4)]
    held_out = torch.tensor([False, True, True, False])
    correct = torch.tensor([True, True, False, False])
    bank.add(prompts, torch.arange(4.0).view(4, 1, 1), Judgement(correct, held_out, [None] * 4))
    assert [case.wordings for case in bank.cases] == [("picture 0",), ("picture 3",)]
    assert bank.latents.flatten().tolist() == [0, 3]
    assert [case.is_right for case in bank.cases] == [True, False]
    bank.add(prompts[1:3], torch.zeros(2, 1, 1), Judgement(correct[1:3], held_out[1:3], [None] * 2))
    assert len(bank) == 2


def test_a_share_of_a_draw_compares_pictures_of_different_prompts() -> None:
    """Hard prompts then come with wrong pictures more often than easy ones."""
    bank = PictureBank(100)
    prompts = ["easy"] * 10 + ["hard"] * 10
    add(bank, prompts, torch.zeros(20, 1, 1), torch.tensor([True] * 9 + [False] * 10 + [True]))

    def share_of_hard(paired_share: float) -> float:
        cases, _ = bank.draw(2000, np.random.default_rng(0), paired_share=paired_share)
        assert sum(is_right for _, is_right in cases) == 1000
        return sum(prompt == "hard" for prompt, is_right in cases if not is_right) / 1000

    assert share_of_hard(1.0) == pytest.approx(0.5, abs=0.05)
    assert share_of_hard(0.0) == pytest.approx(0.9, abs=0.05)
    assert share_of_hard(0.5) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_lies_between_nothing_and_all(share: float) -> None:
    with pytest.raises(ValueError, match="paired_share must be from 0 to 1"):
        BankConfig(paired_share=share)


def test_noised_pictures_are_no_match_for_drawn_ones() -> None:
    """They would make most pairs easy."""
    bank = PictureBank(100)
    add(
        bank,
        ["all right"] * 3 + ["mixed"] * 2,
        torch.zeros(5, 1, 1),
        torch.tensor([1, 1, 1, 1, 0]) > 0,
    )
    noised = Judgement(torch.tensor([False]), torch.tensor([False]), [None])
    bank.add([replace(A_CIRCLE, text="all right")], torch.ones(1, 1, 1), noised, is_drawn=False)
    cases, _ = bank.draw(50, np.random.default_rng(0))
    assert {prompt for prompt, _ in cases} == {"mixed"}
    cases, latents = bank.draw(200, np.random.default_rng(0), paired_share=0.0)
    assert {("mixed", False), ("all right", False)} == {case for case in cases if not case[1]}
    assert latents.any()


def test_what_is_shown_is_known_and_half_of_it_wrong() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, Grammar.small(), A_CIRCLE) for _ in range(9)]
    known: list[Scene | None] = [*scenes, None]
    correct = torch.tensor([True] * 7 + [False] * 3)
    bank = PictureBank(100)
    assert bank.draw_shown(4, rng)[0] == []
    judgement = Judgement(correct, torch.zeros_like(correct), known)
    bank.add([A_CIRCLE] * 10, torch.arange(10.0).view(10, 1, 1), judgement)
    bank.add([A_CIRCLE] * 10, torch.full((10, 1, 1), 99.0), judgement, is_drawn=False)
    shown, latents = bank.draw_shown(60, rng)
    numbers = latents.flatten().int().tolist()
    assert shown == [scenes[number] for number in numbers]
    assert sum(number >= 7 for number in numbers) == 30
    assert set(numbers) == set(range(9))
