"""The mean of models: as written, exact where nothing differs, and of models of one kind only."""

from pathlib import Path

import pytest
import torch

from unimm.averaging import average
from unimm.checkpoint import unique_state
from unimm.cli import run
from unimm.errors import UserError
from unimm.pipeline import Pipeline
from unimm.testing import tiny_config, tiny_model, tiny_pipeline, tiny_tokenizer


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Three models that differ in generator and language model, as runs from one would."""
    generator = torch.Generator().manual_seed(0)
    places = []
    for k in range(3):
        pipeline = tiny_pipeline()
        for part in (pipeline.model.generator, pipeline.model.language):
            for parameter in part.parameters():
                parameter.data += k * torch.randn(parameter.shape, generator=generator)
        places.append(str(tmp_path / f"model{k}"))
        pipeline.save_pretrained(places[-1])
    return places


def states(places: list[str]) -> list[dict[str, torch.Tensor]]:
    return [unique_state(Pipeline.from_pretrained(place).model) for place in places]


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_each_tensor_is_the_weighted_mean(models: list[str], weights: list[float] | None) -> None:
    shares = torch.tensor(weights or [1.0, 1.0, 1.0], dtype=torch.float64)
    mean = unique_state(average(models, weights).model)
    first, *others = states(models)
    assert mean.keys() == first.keys()
    for name in first:
        stacked = torch.stack([first[name], *(other[name] for other in others)]).double()
        expected = torch.einsum("k,k...->...", shares / shares.sum(), stacked)
        torch.testing.assert_close(mean[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_what_all_have_stays_bit_for_bit(models: list[str]) -> None:
    pipeline = average(models, [0.1, 0.3, 0.7])
    assert pipeline.space == Pipeline.from_pretrained(models[0]).space
    (same,) = states(models[:1])
    for name, tensor in unique_state(average([models[0]] * 3, [0.1, 0.3, 0.7]).model).items():
        assert torch.equal(tensor, same[name]), name


def test_the_command_writes_a_model_that_draws(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "mean")
    arguments = ["average", *models[:2], out, "--weight", "3", "--weight", "1"]
    assert run([*arguments, "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    mean = Pipeline.from_pretrained(out)
    expected = unique_state(average(models[:2], [3, 1]).model)
    for name, tensor in unique_state(mean.model).items():
        assert torch.equal(tensor, expected[name].bfloat16().float()), name
    assert f"0.750 {models[0]}" in mean.card
    (drawn,) = mean.generate(["a picture of a red circle"])
    assert drawn.latents.isfinite().all()


@pytest.mark.parametrize(
    ("count", "weights", "message"),
    [
        (1, None, "a mean takes at least 2 models, got 1"),
        (2, [1.0], "got 1 weights for 2 models"),
        (2, [1.0, 0.0], "a weight must be positive and finite, got 0.0"),
        (2, [1.0, float("inf")], "a weight must be positive and finite, got inf"),
    ],
)
def test_weights_that_make_no_mean_are_refused(
    models: list[str], count: int, weights: list[float] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        average(models[:count], weights)


def test_models_of_another_shape_or_space_are_refused(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_pipeline()
    other.space = "patches-16x48-of-another"
    other.save_pretrained(tmp_path / "space")
    with pytest.raises(UserError, match="differ in latent space; only models that were trained"):
        average([models[0], tmp_path / "space"])
    wide = tiny_model(config=tiny_config(hidden_size=48))
    Pipeline(wide, tiny_tokenizer()).save_pretrained(tmp_path / "wide")
    out = tmp_path / "mean"
    assert run(["average", models[0], str(tmp_path / "wide"), str(out)]) == 2
    error = capsys.readouterr().err
    assert "differ in language, generator" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_too_few_places_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["average", "model", "mean"]) == 2
    assert "at least three places, got 2" in capsys.readouterr().err
