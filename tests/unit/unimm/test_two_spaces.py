"""A model that draws a VAE's latents looks at pictures by way of pixels; others do not change."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from unimm.errors import LatentsError
from unimm.fingerprint import latent_space_id
from unimm.model import PARTS
from unimm.options import GenerationOptions, VerifierName
from unimm.pipeline import Pipeline
from unimm.testing import tiny_model, tiny_pipeline, tiny_tokenizer, tiny_two_space_config

OPTIONS = GenerationOptions(num_steps=2, best_of=3)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    pytest.importorskip("diffusers")
    return Pipeline(tiny_model(config=tiny_two_space_config()), tiny_tokenizer())


def picture(seed: int) -> Image.Image:
    pixels = torch.rand(40, 52, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((pixels * 255).byte().numpy())


@pytest.mark.parametrize("verifier", ["yes_no", "prompt_likelihood"])
def test_candidates_are_scored_by_the_pictures_they_decode_to(
    pipeline: Pipeline, verifier: VerifierName
) -> None:
    options = GenerationOptions(num_steps=2, best_of=3, verifier=verifier)
    (generation,) = pipeline.generate("a red circle", options)
    latents = torch.stack([candidate.latents for candidate in generation.candidates])
    pictures = pipeline.decode_images(latents)
    scores = pipeline.verify("a red circle", pictures, verifier=verifier)
    assert [candidate.score for candidate in generation.candidates] == scores
    assert pipeline.verify("a red circle", latents, verifier=verifier) == scores
    assert generation.pixel_decodes == 1 + 3
    assert generation.latents.shape == pipeline.latent_shape == (16, 12)
    assert generation.image.size == (16, 16)
    assert len(set(scores)) == 3


def test_pixel_decodes_are_each_prompts_own(pipeline: Pipeline) -> None:
    generations = pipeline.generate(["a red circle", "a red circle"], OPTIONS)
    assert [generation.pixel_decodes for generation in generations] == [4, 4]


def test_pictures_are_read_in_the_seen_space_and_encoded_in_the_drawn_one(
    pipeline: Pipeline,
) -> None:
    shown = picture(0)
    assert pipeline.latents_of([shown]).shape == (1, 25, 108)
    assert pipeline.encode([shown]).shape == (1, 16, 12)
    assert pipeline.decode(pipeline.encode([shown])).shape == (1, 3, 16, 16)
    layout = pipeline.model.lay_out([pipeline.reader.template.ask("what?")], pad_id=0)
    assert len(layout.image_index) == 25
    assert pipeline.ask(shown, "what color is the circle")
    with pytest.raises(LatentsError, match=r"must have shape \(16, 12\), got \(25, 108\)"):
        pipeline.verify("a red circle", [torch.zeros(25, 108)])


def test_a_conversation_goes_on_after_the_picture_that_was_drawn(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = pipeline.reader.template
    planned = [template.image_start_id, template.turn_end_id, template.turn_end_id]
    monkeypatch.setattr("unimm.session.choose_tokens", lambda *_: torch.tensor([planned.pop(0)]))
    seen: list[Any] = []

    def note(pictures: Any) -> Tensor:
        seen.extend(pictures)
        return pipeline.latents_of(pictures)

    session = pipeline.chat(GenerationOptions(num_steps=2))
    session._encode = note
    (generation,) = session.send("a red circle").generations
    assert generation.pixel_decodes == 2
    before = session.length
    session.send("what color is the circle")
    assert seen == [generation.image]  # already decoded: no second time
    assert session.length > before + 25


def test_a_directory_keeps_both_spaces(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    (expected,) = pipeline.generate("a red circle", OPTIONS)
    for options in ({}, {"offload": True}):
        again = Pipeline.from_pretrained(tmp_path / "model", **options)  # type: ignore[arg-type]
        assert again.model.config == pipeline.model.config
        assert again.model.parts == (*PARTS, "vision")
        (generation,) = again.generate("a red circle", OPTIONS)
        assert torch.equal(generation.latents, expected.latents)
        assert generation.score == expected.score


def test_each_space_has_an_identifier_of_its_own_without_decoders(pipeline: Pipeline) -> None:
    model = pipeline.model
    drawn, seen = latent_space_id(model), latent_space_id(model, seen=True)
    assert drawn.startswith("flux_vae-16x12-")
    assert seen.startswith("patches-25x108-")
    vae: Any = model.latents
    weights = {"decoder": vae.vae.decoder.conv_in.bias, "encoder": vae.vae.encoder.conv_in.bias}
    for name, weight in weights.items():
        weight.data += 1
        assert (latent_space_id(model) == drawn) == (name == "decoder")
        weight.data -= 1


def test_a_model_of_one_space_is_what_it_was(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    assert (
        pipeline.space == latent_space_id(pipeline.model, seen=True) == "patches-16x48-d3febde77cb0"
    )
    assert pipeline.model.parts == PARTS
    assert not any(name.startswith("vision") for name in pipeline.model.state_dict())
    assert pipeline.model.seen is pipeline.model.latents
    pipeline.save_pretrained(tmp_path / "model")
    assert "vision" not in json.loads((tmp_path / "model" / "config.json").read_text())
    (generation,) = pipeline.generate("a red circle", OPTIONS)
    assert generation.pixel_decodes == 1
