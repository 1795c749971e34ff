"""Building blocks against torch's own, and what they promise beyond them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaquery.layers import (
    Attention,
    Linear,
    RMSNorm,
    SwiGLU,
    Tables,
    TimeEmbedding,
    build_norm,
    modulate,
)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_rms_norm_is_torchs(rng: torch.Generator) -> None:
    norm = RMSNorm(16)
    nn.init.normal_(norm.weight, generator=rng)
    x = 3 * torch.randn(4, 5, 16, generator=rng)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (16,), norm.weight, 1e-6))


def test_rms_norm_has_float32_statistics_in_bfloat16() -> None:
    """The mean square of 1 and many small numbers vanishes if it is summed in bfloat16."""
    x = torch.full((1, 4096), 2.0**-6)
    x[0, 0] = 1.0
    normed = RMSNorm(4096).bfloat16()(x.bfloat16())
    expected = F.rms_norm(x, (4096,), eps=1e-6)
    torch.testing.assert_close(normed.float(), expected, rtol=2**-8, atol=0)


def test_rms_norm_of_zeros_is_zero_with_finite_gradients() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    torch.autograd.backward(RMSNorm(8)(x).sum())
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("shape", [(5, 24), (5, 7, 24), (5, 3, 7, 24)])
@torch.no_grad()
def test_a_linear_layer_is_torchs(shape: tuple[int, ...], rng: torch.Generator) -> None:
    layer, x = Linear(24, 40), torch.randn(shape, generator=rng)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("shape", [(16, 200), (16, 16, 200)])
@torch.no_grad()
def test_rows_of_a_linear_layer_do_not_know_their_batch(
    shape: tuple[int, ...], rng: torch.Generator
) -> None:
    layer, x = Linear(200, 300), torch.randn(shape, generator=rng)
    together = layer(x)
    for size in (1, 3, 8):
        parts = [layer(x[start : start + size]) for start in range(0, 16, size)]
        assert torch.equal(torch.cat(parts), together)


def test_attention_is_torchs(rng: torch.Generator) -> None:
    ours = Attention(16, 4)
    reference = nn.MultiheadAttention(16, 4, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = torch.randn(2, 9, 16, generator=rng)
    expected, _ = reference(x, x, x, need_weights=False)
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_trains_in_bfloat16_as_in_float32(qk_norm: bool, rng: torch.Generator) -> None:
    attention = Attention(32, 4, qk_norm=qk_norm)
    x = torch.randn(2, 9, 32, generator=rng)
    gradients = []
    for enabled in (False, True):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = attention(x).float().square().mean()
        torch.autograd.backward(loss)
        assert attention.qkv.weight.grad is not None
        gradients.append(attention.qkv.weight.grad.clone())
    # A handful of bfloat16 roundings, each 2**-9.
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert error < 0.03


def test_no_modulation_is_the_identity(rng: torch.Generator) -> None:
    x = torch.randn(2, 4, 8, generator=rng)
    zero = torch.zeros(2, 1, 8)
    assert torch.equal(modulate(x, zero, zero), x)


def test_swiglu_has_the_official_width() -> None:
    with torch.device("meta"):
        assert SwiGLU(2048).down.in_features == 5461
        assert SwiGLU(4096).down.in_features == 10922


def test_layer_norm_leaves_scale_and_shift_to_the_modulation() -> None:
    assert not list(build_norm("layer", 8).parameters())


@pytest.mark.parametrize("kind", ["fourier", "sinusoidal"])
def test_times_keep_float32_in_a_bfloat16_model(kind: str) -> None:
    embedding = TimeEmbedding(32, kind).to(torch.bfloat16)  # type: ignore[arg-type]
    before = TimeEmbedding(32, kind).frequencies  # type: ignore[arg-type]
    assert torch.equal(embedding.frequencies, before)
    # bfloat16 would round both times to 0.5.
    near = embedding(torch.tensor([0.5, 0.5009]))
    assert near.dtype == torch.bfloat16
    assert (kind == "sinusoidal") or not torch.equal(near[0], near[1])


def test_the_frequencies_are_scale_raes() -> None:
    """The first numbers of torch's generator at Scale-RAE's seed, checked against its fixtures."""
    drawn = torch.normal(0.0, 1.0, (256,), generator=torch.Generator().manual_seed(114514))
    assert torch.equal(TimeEmbedding(8).frequencies, drawn)


def test_tables_exist_in_a_model_built_without_memory() -> None:
    table = torch.arange(4.0)
    with torch.device("meta"):
        module = nn.Sequential(Tables(table), Linear(4, 4))
    module.to_empty(device="cpu")
    assert torch.equal(module[0](), table)
    assert module[1].weight.device.type == "cpu"
