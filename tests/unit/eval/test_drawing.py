"""Figures of drawing on outcomes made by hand."""

from typing import get_args

import pytest
from PIL import Image

from eval.scenes.drawing import PromptOutcome, draw_group, summarise
from unimm.options import GenerationOptions, VerifierName
from unimm.scenes import load_prompts
from unimm.testing import tiny_pipeline

R, W = True, False
BLANK = Image.new("RGB", (64, 64), (150, 150, 150))

# The first right candidate is the 2nd, the 1st, and none; the model prefers the 4th, 1st, 3rd.
OUTCOMES = [
    PromptOutcome("colors", (W, R, W, R), {"own": (0.1, 0.2, 0.3, 0.4)}),
    PromptOutcome("colors", (R, W, W, W), {"own": (2.0, -1.0, 0.0, 1.0)}),
    PromptOutcome("counting", (W, W, W, W), {"own": (-3.0, -2.0, -1.0, -1.5)}),
]


def test_the_choice_is_among_the_first_n() -> None:
    first = OUTCOMES[0]
    assert [first.best_of(n, "own") for n in (1, 2, 3, 4)] == [W, R, W, R]
    assert [first.oracle(n) for n in (1, 2, 3, 4)] == [W, R, R, R]


def test_the_first_of_equals_is_chosen() -> None:
    assert PromptOutcome("colors", (R, W), {"own": (1.0, 1.0)}).best_of(2, "own")


def test_shares_are_those_of_hand_counting() -> None:
    drawing = summarise(OUTCOMES)
    assert (drawing.prompts, drawing.pictures) == (3, 12)
    assert drawing.single == pytest.approx(3 / 12)
    assert drawing.single_interval[0] < 3 / 12 < drawing.single_interval[1]
    chosen = drawing.chosen["own"]
    assert chosen.best_of_n == pytest.approx({1: 1 / 3, 2: 2 / 3, 4: 2 / 3})
    assert drawing.oracle_of_n == pytest.approx({1: 1 / 3, 2: 2 / 3, 4: 2 / 3})
    assert drawing.by_skill == pytest.approx({"colors": 3 / 8, "counting": 0.0})
    assert chosen.by_skill == pytest.approx({"colors": 1.0, "counting": 0.0})
    # Right candidates score 0.2, 0.4 and 2.0; wrong ones below them are 7, 8 and 9 of 9.
    assert chosen.auroc == pytest.approx((7 + 8 + 9) / 27)
    # Of the first prompt's pairs 3 of 4 are in order, of the second's all; the third has none.
    assert chosen.auroc_within == pytest.approx((3 / 4 + 1) / 2)


def test_only_the_first_pictures_of_a_prompt_are_single_ones() -> None:
    assert summarise(OUTCOMES, singles=1).single == pytest.approx(1 / 3)


def test_recovered_is_the_way_from_single_to_the_oracle() -> None:
    """1/4 alone, 2/3 chosen, 2/3 possible: all of it. Choosing the worst: less than nothing."""
    assert summarise(OUTCOMES).chosen["own"].recovered == pytest.approx(1.0)
    worst = [
        PromptOutcome(o.skill, o.right, {"own": tuple(-s for s in o.scores["own"])})
        for o in OUTCOMES
    ]
    chosen = summarise(worst).chosen["own"]
    assert chosen.best_of_n[4] == 0.0
    assert chosen.recovered == pytest.approx((0 - 1 / 4) / (2 / 3 - 1 / 4))


def test_where_there_is_nothing_to_recover_everything_is() -> None:
    drawing = summarise([PromptOutcome("colors", (R, R), {"own": (0.0, 1.0)})])
    assert drawing.chosen["own"].recovered == 1.0


def test_outcomes_do_not_depend_on_how_prompts_are_grouped() -> None:
    prompts = load_prompts("small", "train")[:3]
    pipeline = tiny_pipeline()
    pipeline.decode_images = lambda latents: [BLANK] * len(latents)  # type: ignore[method-assign]
    options = GenerationOptions(best_of=2, num_steps=1, verifier="yes_no")
    grouped = draw_group(pipeline, prompts, options, first_index=5)
    assert [outcome.skill for outcome in grouped] == [prompt.skill for prompt in prompts]
    assert [outcome.right for outcome in grouped] == [(W, W)] * 3
    assert all(set(outcome.scores) == set(get_args(VerifierName)) for outcome in grouped)
    alone = [
        draw_group(pipeline, [prompt], options, first_index=5 + place)[0]
        for place, prompt in enumerate(prompts)
    ]
    assert alone == grouped
