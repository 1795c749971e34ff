"""Batches that leave a candidate's bits alone, where the model and the machine allow them."""

from collections.abc import Iterator

import pytest
import torch

from metaquery.connector import ConnectorConfig
from metaquery.dit import DiTConfig
from metaquery.generator import GeneratorConfig, LatentGenerator
from unimm.batching import denoising_batch_size


def generator(width: int = 64, tokens: int = 16) -> LatentGenerator:
    dit = DiTConfig(
        num_latent_tokens=tokens,
        latent_dim=32,
        cond_dim=32,
        hidden_dim=width,
        depth=2,
        num_heads=4,
        mlp_ratio=3.0,
    )
    connector = ConnectorConfig(kind="linear", in_dim=48, out_dim=32)
    model = LatentGenerator(GeneratorConfig(connector=connector, dit=dit)).eval()
    rng = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        shape = parameter.shape
        parameter.data = torch.randn(shape, generator=rng) * max(1, shape[-1]) ** -0.5
    return model


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_where_a_batch_is_allowed_it_does_not_change_a_bit(guidance_scale: float) -> None:
    model = generator()
    assert denoising_batch_size(64, model) == 64
    rng = torch.Generator().manual_seed(1)
    states = torch.randn(37, 16, 48, generator=rng)
    noise = torch.randn(37, 16, 32, generator=rng)

    def draw(start: int, stop: int) -> torch.Tensor:
        return model.sample(
            states[start:stop],
            noise=noise[start:stop],
            num_steps=3,
            guidance_scale=guidance_scale,
        )

    alone = torch.cat([draw(i, i + 1) for i in range(37)])
    for size in (2, 3, 5, 9, 17, 37):
        together = torch.cat([draw(i, min(i + size, 37)) for i in range(0, 37, size)])
        assert torch.equal(together, alone), size


def test_other_widths_and_more_threads_draw_one_by_one() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert denoising_batch_size(8, generator(width=48)) == 1
        assert denoising_batch_size(8, generator(width=48).bfloat16()) == 8
        torch.set_num_threads(3)
        assert denoising_batch_size(8, generator()) == 1
    finally:
        torch.set_num_threads(before)
