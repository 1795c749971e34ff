import pytest
import torch

from metaquery.official import sample_official
from unimm.chat import QuerySegment, TextSegment
from unimm.drawing import read_prompts
from unimm.options import GenerationOptions
from unimm.seeds import draw_noise
from unimm.testing import tiny_pipeline


def test_it_is_the_released_sampler_and_ignores_guidance() -> None:
    pipeline = tiny_pipeline()
    plain = GenerationOptions(num_steps=5, sampler="official")
    guided = GenerationOptions(num_steps=5, sampler="official", guidance_scale=4.0)
    (first,), (second,) = (pipeline.generate("a red circle", each) for each in (plain, guided))
    assert torch.equal(first.latents, second.latents)
    assert first.nfe == second.nfe == 4
    reader, generator = pipeline.reader, pipeline.model.generator
    (task,) = read_prompts(reader, ["a red circle"], first_index=0, batch_size=1)
    latents = pipeline.model.config.latents
    expected = sample_official(
        generator.velocity_fn(task.states[None]),
        draw_noise([first.candidates[0].seed], latents.num_tokens, latents.dim),
        num_steps=5,
        shift=generator.config.timestep_shift,
    )
    assert torch.equal(first.latents, expected[0])
    (euler,) = pipeline.generate("a red circle", GenerationOptions(num_steps=5, sampler="euler"))
    assert euler.nfe == 5
    assert not torch.allclose(euler.latents, first.latents)


def test_one_step_is_too_few_for_it() -> None:
    with pytest.raises(ValueError, match="num_steps must be from 2 to 1000, got 1"):
        tiny_pipeline().generate("a red circle", GenerationOptions(num_steps=1, sampler="official"))


def test_what_the_model_says_before_a_picture_is_read_with_it() -> None:
    pipeline = tiny_pipeline()
    reader = pipeline.reader
    turn = reader.template.draw("a red circle")
    assert reader.with_preface(turn) == turn  # the style asks for none
    object.__setattr__(reader.template.style, "preface", 3)
    spoken = reader.with_preface(turn)
    assert spoken[: len(turn) - 2] == turn[:-2]
    assert isinstance(spoken[-1], QuerySegment)
    assert spoken[-2] == TextSegment((reader.template.image_start_id,), supervised=True)
    words = [s for s in spoken[len(turn) - 2 : -2] if isinstance(s, TextSegment)]
    assert sum(len(segment.token_ids) for segment in words) <= 3
