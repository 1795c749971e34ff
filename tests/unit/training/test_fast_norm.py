"""The quick RMSNorm is RMSNorm."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from training.fast_norm import FastRMSNorm, use_fast_norms

EPS = 1e-2  # large, so that leaving it out would show


def random_norm(dim: int, dtype: torch.dtype) -> Qwen2RMSNorm:
    norm = Qwen2RMSNorm(dim, eps=EPS).to(dtype)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    return norm


def forward_and_gradients(norm: torch.nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_(True)
    weight = norm.get_parameter("weight")
    weight.grad = None
    outputs: Tensor = norm(leaf)
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    torch.autograd.backward((outputs * target).sum())
    assert leaf.grad is not None
    assert weight.grad is not None
    return [outputs.detach(), leaf.grad, weight.grad.clone()]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # A few roundings of a product of three numbers.
    [(torch.float32, 4e-6), (torch.bfloat16, 4 * 2**-8)],
)
def test_outputs_and_gradients_are_those_of_transformers(
    dtype: torch.dtype, tolerance: float
) -> None:
    theirs = random_norm(24, dtype)
    ours = FastRMSNorm(theirs.weight, EPS)
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected, found = forward_and_gradients(theirs, x), forward_and_gradients(ours, x)
    for name, a, b in zip(("output", "dx", "dweight"), found, expected, strict=True):
        scale = b.abs().max().item()
        assert (a - b).abs().max().item() <= tolerance * max(scale, 1), name


def test_the_gradient_is_the_derivative() -> None:
    norm = FastRMSNorm(random_norm(6, torch.float64).weight, EPS)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = norm.weight.detach().clone().requires_grad_(True)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, weight))


def test_a_language_model_keeps_its_weights_and_its_outputs() -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model: torch.nn.Module = Qwen2ForCausalLM(config)
    model.eval()
    names = list(model.state_dict())
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        before = model(tokens).logits
        use_fast_norms(model)
        after = model(tokens).logits
    assert list(model.state_dict()) == names
    replaced = [module for module in model.modules() if isinstance(module, FastRMSNorm)]
    assert len(replaced) == 5  # two a layer and the last one
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
