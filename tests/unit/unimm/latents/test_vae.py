"""A VAE's latents are diffusers' own, shifted, scaled and cut into tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor

from metaquery.flow import dimension_shift
from unimm.latents import LatentSpace, LatentSpaceConfig, build_latent_space
from unimm.testing import tiny_vae_space

pytest.importorskip("diffusers")
GRID, PATCH, CHANNELS = 8, 2, 3


@pytest.fixture(scope="module")
def space() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_latent_space(tiny_vae_space()).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def tokens_by_hand(planes: Tensor) -> Tensor:
    """Cut (B, C, h, w) into tokens whose channels are (C, p, p), by loops."""
    rows = []
    for plane in planes:
        for top in range(0, GRID, PATCH):
            for left in range(0, GRID, PATCH):
                values = [
                    float(plane[channel, top + y, left + x])
                    for channel in range(CHANNELS)
                    for y in range(PATCH)
                    for x in range(PATCH)
                ]
                rows.append(values)
    return torch.tensor(rows).view(len(planes), -1, CHANNELS * PATCH**2)


def test_encoding_is_the_shifted_and_scaled_mean_cut_channel_first(
    space: Any, pixels: Tensor
) -> None:
    mean = space.vae.encode(pixels * 2 - 1).latent_dist.mode()
    latents = space.encode(pixels)
    assert isinstance(space, LatentSpace)
    assert latents.shape == (2, space.num_tokens, space.dim) == (2, 16, 12)
    torch.testing.assert_close(latents, tokens_by_hand((mean - 0.1159) * 0.3611))


def test_a_sample_is_diffusers_own_from_the_same_generator(space: Any, pixels: Tensor) -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    drawn = space.sample(pixels, [generator(5), generator(6)])
    for i, seed in enumerate((5, 6)):
        posterior = space.vae.encode(pixels[i : i + 1] * 2 - 1).latent_dist
        z = posterior.sample(generator=generator(seed))
        torch.testing.assert_close(drawn[i : i + 1], tokens_by_hand((z - 0.1159) * 0.3611))
    alone = space.sample(pixels[1:], [generator(6)])
    torch.testing.assert_close(alone, drawn[1:])  # a picture's draw does not know its company
    assert not torch.allclose(drawn, space.encode(pixels), atol=0.01)


def test_decoding_inverts_the_cut_the_scale_and_the_shift(space: Any, pixels: Tensor) -> None:
    z = space.vae.encode(pixels * 2 - 1).latent_dist.mode()
    expected = (space.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(space.decode(space.encode(pixels)), expected)
    with pytest.raises(ValueError, match=r"latents must have shape \(batch, 16, 12\)"):
        space.decode(torch.zeros(1, 16, 13))


def test_half_precision_weights_still_give_latents_of_the_pixels_type(
    space: Any, pixels: Tensor
) -> None:
    half = build_latent_space(tiny_vae_space())
    half.load_state_dict(space.state_dict())
    half.to(torch.bfloat16)
    latents = half.encode(pixels.bfloat16())
    assert latents.dtype == torch.bfloat16
    torch.testing.assert_close(latents.float(), space.encode(pixels), atol=0.05, rtol=0.05)
    assert half.decode(latents).dtype == torch.float32


FLUX = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def test_flux_on_256_pixels_is_256_tokens_of_64_channels_at_shift_2() -> None:
    config = LatentSpaceConfig(kind="flux_vae", image_size=256, patch_size=16, tower=FLUX)
    assert (config.num_tokens, config.dim, config.stride) == (256, 64, 8)
    assert dimension_shift(config.num_tokens, config.dim) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 4}, r"patch_size \(4\) must be a multiple of 8"),
        ({"tower": {}}, "tower must have 'latent_channels'"),
        ({"statistics": True}, "statistics must not be given"),
        ({"image_mean": (0.4, 0.5, 0.5)}, "must be 0.5"),
    ],
)
def test_what_an_autoencoder_has_not_is_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"kind": "flux_vae", "image_size": 256, "patch_size": 16, "tower": FLUX, **changes}
    with pytest.raises(ValueError, match=message):
        LatentSpaceConfig(**settings)


def test_a_configuration_of_something_else_is_refused() -> None:
    wrong = {**tiny_vae_space().tower, "hidden_size": 3}
    config = LatentSpaceConfig(kind="flux_vae", image_size=16, patch_size=4, tower=wrong)
    with pytest.raises(ValueError, match=r"no configuration of an AutoencoderKL: .*hidden_size"):
        build_latent_space(config)


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'unimm\[vae\]'"):
        build_latent_space(tiny_vae_space())
