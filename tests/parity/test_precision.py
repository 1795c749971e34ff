"""Half precision against the official end points in float32."""

from pathlib import Path

import pytest
import torch

from metaquery.official import official_grid
from metaquery.sampler import integrate
from tests.parity import scale_rae_flow as flow
from tests.parity.harness import Fixture, kind_of, to_tokens
from tests.parity.test_fixtures import PATHS

ENDPOINT = 0.02
"""Largest error of an end point, relative to its root mean square."""

ODES = [path for path in PATHS if kind_of(path).startswith("ode") and "scale_rae" in path.parts]


@pytest.mark.skipif(not ODES, reason="this folder holds no trajectory of Scale-RAE")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("path", ODES, ids=lambda path: path.stem)
@torch.no_grad()
def test_a_trajectory_ends_where_float32_does(path: Path, dtype: torch.dtype) -> None:
    """Parameters and products are rounded; times, frequencies and the sampler's state are not."""
    fixture = Fixture.load(path)
    config = fixture.config
    dit = flow.build(fixture, flow._projector_config(config), flow._strip(fixture.weights))
    for parameter in dit.parameters():
        parameter.data = parameter.data.to(dtype)
    z = fixture.input("z").to(dtype)
    shift = flow._flow_shift(config)
    grid = official_grid(config["steps"], shift).flip(0)
    times = torch.cat([grid, grid.new_zeros(1)])
    end = integrate(lambda x, t: dit(x, t, z), to_tokens(fixture.input("x_end")), times)
    assert end.dtype == torch.float32
    expected = fixture.output("samples_textbook")
    error = float((end - expected).norm() / expected.norm())
    assert 1e-5 < error < ENDPOINT
