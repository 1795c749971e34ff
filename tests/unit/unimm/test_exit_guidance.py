"""Guidance by the early exit, from options to latents."""

from dataclasses import replace

import pytest
import torch

from unimm.config import UniMMConfig
from unimm.errors import UserError
from unimm.generation import Generation
from unimm.options import GenerationOptions, SamplingDefaults
from unimm.pipeline import Pipeline
from unimm.testing import tiny_config, tiny_model, tiny_pipeline, tiny_tokenizer

ALWAYS = (0.0, 1.0)


def config_with_exit(**sampling: float) -> UniMMConfig:
    config = tiny_config()
    dit = replace(config.generator.dit, exit_depth=1)
    return replace(
        config,
        generator=replace(config.generator, dit=dit),
        sampling=SamplingDefaults(num_steps=4, **sampling),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_model(config=config_with_exit()), tiny_tokenizer())


def draw(pipeline: Pipeline, **options: float | str | tuple[float, float]) -> Generation:
    (generation,) = pipeline.generate("a red circle", GenerationOptions(**options))  # type: ignore[arg-type]
    return generation


def test_it_is_the_generators_and_costs_no_evaluation(pipeline: Pipeline) -> None:
    guided = draw(pipeline, exit_scale=1.7, guidance_scale=2.0, exit_interval=ALWAYS)
    plain = draw(pipeline, guidance_scale=2.0)
    assert guided.nfe == plain.nfe == 8  # classifier-free guidance alone counts twice
    assert draw(pipeline, exit_scale=1.7).nfe == 4
    assert not torch.allclose(guided.latents, plain.latents)
    reader, generator = pipeline.reader, pipeline.model.generator
    states = reader.read([reader.template.draw("a red circle")]).hidden[:, -16:]
    noise = torch.Generator().manual_seed(guided.candidates[0].seed)
    expected = generator.sample(
        states,
        noise=torch.randn(1, 16, 48, generator=noise),
        num_steps=4,
        guidance_scale=2.0,
        exit_scale=1.7,
    )
    assert torch.equal(guided.latents, expected[0])


def test_off_is_bit_identical_and_the_interval_counts(pipeline: Pipeline) -> None:
    plain = draw(pipeline).latents
    assert torch.equal(draw(pipeline, exit_scale=1.0).latents, plain)
    # The sampler stops at a few times; between 0 and the last of them there is none.
    nowhere = draw(pipeline, exit_scale=3.0, exit_interval=(0.0, 1e-3)).latents
    torch.testing.assert_close(nowhere, plain, rtol=1e-5, atol=1e-5)
    first = draw(pipeline, exit_scale=3.0, exit_interval=(0.999, 1.0)).latents
    everywhere = draw(pipeline, exit_scale=3.0, exit_interval=ALWAYS).latents
    assert not torch.allclose(first, plain)
    assert not torch.allclose(first, everywhere)


def test_the_models_own_setting_holds_for_drawing_and_chat() -> None:
    model = tiny_model(config=config_with_exit(exit_scale=1.7))
    pipeline = Pipeline(model, tiny_tokenizer())
    assert torch.equal(draw(pipeline).latents, draw(pipeline, exit_scale=1.7).latents)
    assert not torch.equal(draw(pipeline).latents, draw(pipeline, exit_scale=1.0).latents)
    assert pipeline.chat().options.exit_scale == 1.7
    # The released sampler never guides.
    official = draw(pipeline, sampler="official")
    assert torch.equal(official.latents, draw(pipeline, sampler="official", exit_scale=1.0).latents)


def test_a_model_without_an_exit_refuses_it() -> None:
    plain = tiny_pipeline()
    for use in (plain.chat, lambda options: plain.generate("a red circle", options)):
        with pytest.raises(UserError, match=r"has no early exit, got 1\.5; train one with"):
            use(GenerationOptions(exit_scale=1.5))
    with pytest.raises(UserError, match=r"has no early exit, got 1\.5"):
        replace(tiny_config(), sampling=SamplingDefaults(exit_scale=1.5))
    assert draw(plain, exit_scale=1.0).nfe == 4
