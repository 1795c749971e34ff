"""The whole loop on random weights: draw, read back, choose, decode."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image
from torch import Tensor

from unimm.errors import LatentsError, NotEnoughMemoryError, UserError
from unimm.generation import PHASES, Generation
from unimm.options import GenerationOptions
from unimm.pipeline import Pipeline
from unimm.testing import tiny_pipeline

PROMPT = "a picture of a red circle left of a blue square"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture
def calls(pipeline: Pipeline) -> Iterator[dict[str, list[tuple[int, ...]]]]:
    """Record the shapes that reach the language model, the DiT and the decoder."""
    shapes: dict[str, list[tuple[int, ...]]] = {"language": [], "dit": [], "decode": []}
    base: Any = pipeline.model.language.base_model
    space: Any = pipeline.model.latents
    handles = [
        base.register_forward_pre_hook(
            lambda module, args, kwargs: shapes["language"].append(
                tuple(kwargs["inputs_embeds"].shape)
            ),
            with_kwargs=True,
        ),
        pipeline.model.generator.dit.register_forward_pre_hook(
            lambda module, args: shapes["dit"].append(tuple(args[0].shape))
        ),
    ]
    decode = space.decode

    def recorded(latents: Tensor) -> Tensor:
        shapes["decode"].append(tuple(latents.shape))
        pixels: Tensor = decode(latents)
        return pixels

    space.decode = recorded
    yield shapes
    del space.decode
    for handle in handles:
        handle.remove()


def draw(pipeline: Pipeline, prompt: str = PROMPT, **options: Any) -> Generation:
    (generation,) = pipeline.generate(prompt, GenerationOptions(**options))
    return generation


def test_a_generation_is_complete(pipeline: Pipeline) -> None:
    generation = draw(pipeline, best_of=3, num_steps=5, seed=7)
    assert (generation.prompt, generation.seed) == (PROMPT, 7)
    assert generation.image.size == (16, 16)
    assert len(generation.candidates) == 3
    assert [candidate.index for candidate in generation.candidates] == [0, 1, 2]
    assert generation.nfe == 3 * 5
    assert generation.pixel_decodes == 1
    assert set(generation.seconds) == set(PHASES)
    assert all(seconds > 0 for seconds in generation.seconds.values())
    winner = generation.candidates[generation.chosen]
    assert torch.equal(generation.latents, winner.latents)
    assert generation.score == winner.score == max(c.score or -1e9 for c in generation.candidates)
    assert generation.latents.isfinite().all()


@pytest.mark.parametrize(
    ("options", "nfe"),
    [
        ({"guidance_scale": 1.0}, 4),
        ({"guidance_scale": 2.0}, 8),
        ({"sampler": "midpoint"}, 8),
        # The last step, to t = 0, is an Euler step.
        ({"sampler": "heun"}, 7),
        ({"sampler": "heun", "guidance_scale": 2.0}, 14),
    ],
)
def test_nfe_counts_guidance_and_both_stages_of_a_step(
    pipeline: Pipeline,
    calls: dict[str, list[tuple[int, ...]]],
    options: dict[str, Any],
    nfe: int,
) -> None:
    generation = draw(pipeline, num_steps=4, best_of=2, **options)
    assert [candidate.nfe for candidate in generation.candidates] == [nfe, nfe]
    assert sum(shape[0] for shape in calls["dit"]) == generation.nfe == 2 * nfe


def test_prompt_and_queries_run_through_the_language_model_once(
    pipeline: Pipeline, calls: dict[str, list[tuple[int, ...]]]
) -> None:
    """One pass with the queries; the verifier's shared text once; its pictures one by one."""
    draw(pipeline, best_of=6)
    template, reader = pipeline.reader.template, pipeline.reader
    lengths = [shape[1] for shape in calls["language"]]
    assert lengths[0] == reader.length(template.draw(PROMPT))
    assert len(lengths) == 1 + 1 + 6
    assert lengths[1] + lengths[2] == reader.length(template.verify(PROMPT))


def test_only_the_winner_is_decoded(
    pipeline: Pipeline, calls: dict[str, list[tuple[int, ...]]]
) -> None:
    generation = draw(pipeline, best_of=6)
    assert calls["decode"] == [(1, 16, 48)]
    image = pipeline.decode_images(generation.latents[None])[0]
    assert image.tobytes() == generation.image.tobytes()


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_candidate_is_bit_identical_whatever_n_and_batch(
    pipeline: Pipeline, guidance_scale: float
) -> None:
    options: dict[str, Any] = {"guidance_scale": guidance_scale, "seed": 11, "num_steps": 2}
    widest = draw(pipeline, best_of=16, **options)
    for n, batch_size in ((1, 32), (2, 1), (3, 2), (5, 3), (8, 5)):
        generation = draw(pipeline, best_of=n, batch_size=batch_size, **options)
        for one, same in zip(generation.candidates, widest.candidates, strict=False):
            assert torch.equal(one.latents, same.latents)
            assert (one.seed, one.score) == (same.seed, same.score)


def test_a_prompt_is_bit_identical_whatever_its_company(pipeline: Pipeline) -> None:
    """The position in the list is part of the seed, the other prompts are not."""
    options = GenerationOptions(best_of=2, seed=3)
    together = pipeline.generate(["a star", PROMPT, "a blue square"], options)
    (alone,) = pipeline.generate("a star", options)
    assert torch.equal(together[0].latents, alone.latents)
    other = pipeline.generate(["a red circle", PROMPT], options)[1]
    assert torch.equal(together[1].latents, other.latents)
    assert together[1].candidates[0].seed != alone.candidates[0].seed
    (piece,) = pipeline.generate(PROMPT, options, first_index=1)
    assert torch.equal(together[1].latents, piece.latents)


def test_off_float32_candidates_share_batches(
    calls: dict[str, list[tuple[int, ...]]], pipeline: Pipeline
) -> None:
    pipeline.model.bfloat16()
    try:
        generation = draw(pipeline, best_of=5, batch_size=3, num_steps=2)
    finally:
        pipeline.model.float()
    assert [shape[0] for shape in calls["dit"]] == [3, 3, 2, 2]
    assert generation.latents.dtype == torch.float32


def test_in_double_precision_a_batch_of_prompts_equals_single_ones() -> None:
    """Prompts of different lengths share a left-padded batch; only rounding may differ."""
    double = tiny_pipeline()
    double.model.double()
    prompts = ["a star", PROMPT, "a red circle"]
    options = GenerationOptions(best_of=2)
    for index, generation in enumerate(double.generate(prompts, options)):
        padded = [*["a blue square"] * index, prompts[index]]
        alone = double.generate(padded, GenerationOptions(best_of=2, batch_size=1))[index]
        torch.testing.assert_close(generation.latents, alone.latents, rtol=1e-4, atol=1e-4)


def test_prompt_seed_and_guidance_change_the_picture(pipeline: Pipeline) -> None:
    base = draw(pipeline)
    for other in (
        draw(pipeline, seed=1),
        draw(pipeline, prompt="a blue square"),
        draw(pipeline, guidance_scale=3.0),
    ):
        assert not torch.allclose(base.latents, other.latents)
    assert torch.equal(base.latents, draw(pipeline).latents)


def test_progress_counts_every_step_and_can_stop_the_work(pipeline: Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    options = GenerationOptions(best_of=2, num_steps=3)
    pipeline.generate(["a star", "a ring"], options, progress=lambda *done: seen.append(done))
    assert seen == [(done, 12) for done in range(1, 13)]

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.generate("a star", options, progress=stop)


def test_encode_inverts_decode(pipeline: Pipeline) -> None:
    """The tiny latent space is exact up to the eight bits of a picture."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 16, 16, 3), generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(array.numpy()) for array in pixels]
    latents = pipeline.encode(images)
    assert latents.shape == (2, 16, 48)
    assert [i.tobytes() for i in pipeline.decode_images(latents)] == [i.tobytes() for i in images]


def test_pictures_and_their_latents_are_read_alike(pipeline: Pipeline) -> None:
    image = draw(pipeline).image
    latents = pipeline.encode([image])[0]
    assert pipeline.ask(image, "what") == pipeline.ask(latents, "what")
    scores = pipeline.verify(PROMPT, [image, latents])
    assert scores[0] == scores[1]
    assert scores == pipeline.verify(PROMPT, torch.stack([latents, latents]))


def test_the_score_of_a_generation_is_what_verify_says(pipeline: Pipeline) -> None:
    generation = draw(pipeline, best_of=3)
    scores = pipeline.verify(PROMPT, [c.latents for c in generation.candidates])
    assert scores == [c.score for c in generation.candidates]


def test_many_questions_are_answered_as_one_by_one(pipeline: Pipeline) -> None:
    pictures = [draw(pipeline, seed=seed).latents for seed in range(3)]
    questions = ["what", "what color is the circle", "a red"]
    together = pipeline.ask_many(pictures, questions)
    assert together == [
        pipeline.ask(picture, question)
        for picture, question in zip(pictures, questions, strict=True)
    ]


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_an_empty_prompt_is_refused(pipeline: Pipeline, prompt: str) -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        pipeline.generate(prompt)
    with pytest.raises(UserError, match="the prompt is empty"):
        pipeline.generate(["a star", prompt])
    with pytest.raises(UserError, match="the prompt is empty"):
        pipeline.verify(prompt, torch.zeros(1, 16, 48))


def test_a_prompt_must_be_text(pipeline: Pipeline) -> None:
    """Or the shape check, where it is on, says so first."""
    bad: Any = [7]
    with pytest.raises((UserError, TypeCheckError), match=r"got int|\[7\]"):
        pipeline.generate(bad)


def test_a_long_prompt_is_refused_before_anything_is_drawn(
    pipeline: Pipeline, calls: dict[str, list[tuple[int, ...]]]
) -> None:
    with pytest.raises(UserError, match=r"at most .* fit into the model's context of 256"):
        pipeline.generate(["a star", " circle" * 300])
    with pytest.raises(UserError, match=r"at most .* fit into the model's context of 256"):
        pipeline.ask(torch.zeros(16, 48), " circle" * 300)
    assert calls == {"language": [], "dit": [], "decode": []}


@pytest.mark.parametrize("shape", [(16, 47), (15, 48), (1, 16, 48), (48,)])
def test_latents_of_another_space_are_refused(pipeline: Pipeline, shape: tuple[int, ...]) -> None:
    with pytest.raises(LatentsError, match=r"must have shape \(16, 48\)"):
        pipeline.ask(torch.zeros(shape), "what")


def test_nothing_to_look_at_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="no picture to look at"):
        pipeline.verify(PROMPT, [])
    with pytest.raises(UserError, match="got 1 pictures for 2 questions"):
        pipeline.ask_many([torch.zeros(16, 48)], ["what", "why"])


def test_more_candidates_than_memory_are_refused_with_the_need(pipeline: Pipeline) -> None:
    with pytest.raises(NotEnoughMemoryError, match=r"drawing 10,000,000,000 .* needs .* GiB"):
        draw(pipeline, best_of=10**10)
