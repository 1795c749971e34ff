"""Accuracy that no frequent answer can lift, and answers that are really compared."""

from dataclasses import replace

import pytest
from PIL import Image

from eval.scenes.reading import balanced, measure_reading
from eval.scenes.reconstruction import measure_reconstruction
from eval.scenes.samples import frozen_prompts, true_samples
from unimm.errors import UserError
from unimm.scenes import Grammar, judge, load_prompts


def test_balanced_accuracy_weighs_answers_alike() -> None:
    """Always saying yes is right 9 times of 10 and yet no better than chance."""
    outcomes = [("exists", "yes", True)] * 9 + [("exists", "no", False)]
    assert balanced(outcomes) == {"exists": 0.5}


def test_balanced_accuracy_is_by_kind() -> None:
    outcomes = [
        ("size", "small", True),
        ("color", "red", True),
        ("color", "red", False),
        ("color", "blue", True),
        ("color", "green", False),
    ]
    assert balanced(outcomes) == pytest.approx({"color": (0.5 + 1 + 0) / 3, "size": 1.0})


def test_samples_are_the_same_every_time_and_true() -> None:
    grammar = Grammar.small()
    samples = true_samples(grammar, 20, seed=3, split="train")
    assert samples == true_samples(grammar, 20, seed=3, split="train")
    assert samples != true_samples(grammar, 20, seed=4, split="train")
    assert all(judge(s.prompt, s.scene.objects).correct for s in samples)


@pytest.mark.parametrize("name", ["small", "full"])
def test_a_listed_grammar_is_asked_its_whole_list(name: str) -> None:
    grammar = {"small": Grammar.small(), "full": Grammar.full()}[name]
    assert frozen_prompts(grammar, "pair") == list(load_prompts(name, "pair"))


def test_a_grammar_inside_a_listed_one_is_asked_what_it_knows() -> None:
    unknown, *known = Grammar.small().colours
    asked = frozen_prompts(replace(Grammar.small(), colours=tuple(known)), "train")
    left_out = [p for p in load_prompts("small", "train") if p not in asked]
    assert left_out
    assert all(f" {unknown} " in prompt.text for prompt in left_out)
    assert not any(f" {unknown} " in prompt.text for prompt in asked)


def test_a_split_without_prompts_is_named() -> None:
    with pytest.raises(UserError, match="no frozen prompts small/count_five"):
        frozen_prompts(Grammar.small(), "count_five")
    with pytest.raises(UserError, match="has no prompt of split 'relation'"):
        frozen_prompts(replace(Grammar.small(), max_objects=1), "relation")


class KnowingPipeline:
    """Stands in for a model: answers and scores are looked up, or all the same."""

    def __init__(self, answer: str | None) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def encode(self, pictures: list[object]) -> list[object]:
        return list(range(len(pictures)))

    def ask_many(self, latents: list[object], questions: list[str]) -> list[str]:
        assert len(latents) == len(questions)
        self.asked = questions
        return [self.answer or ""] * len(questions)

    def verify(self, prompt: str, latents: list[object], *, verifier: str) -> list[float]:
        return [0.0] * len(latents)


def test_one_answer_to_everything_reads_nothing() -> None:
    grammar = Grammar.small()
    samples = true_samples(grammar, 120, seed=0, split="train")
    pipeline = KnowingPipeline("yes")
    reading = measure_reading(pipeline, samples, grammar, seed=0, per_picture=4)  # type: ignore[arg-type]
    assert reading.count == len(pipeline.asked) == 480
    assert reading.by_kind["exists"] == 0.5
    assert reading.by_kind["color"] == 0.0
    assert reading.balanced_accuracy < 0.3
    assert reading.match_auroc == 0.5


class EchoPipeline:
    """Stands in for a latent space: gives back the very pictures, or always the same one."""

    def __init__(self, always: Image.Image | None = None) -> None:
        self.always = always

    def encode(self, pictures: list[Image.Image]) -> list[Image.Image]:
        return pictures

    def decode_images(self, latents: list[Image.Image]) -> list[Image.Image]:
        return [self.always or picture for picture in latents]


def test_an_exact_space_passes_the_first_gate_and_a_blank_one_does_not() -> None:
    samples = true_samples(Grammar.small(), 6, seed=0, split="train")
    exact = measure_reconstruction(EchoPipeline(), samples, batch_size=4)  # type: ignore[arg-type]
    assert (exact.count, exact.pass_rate) == (6, 1.0)
    assert exact.psnr_db == pytest.approx(100.0)  # where the error is floored
    blank = EchoPipeline(Image.new("RGB", (64, 64), (150, 150, 150)))
    failed = measure_reconstruction(blank, samples, batch_size=4)  # type: ignore[arg-type]
    assert failed.pass_rate == 0.0
    assert failed.psnr_db < 30
