"""Packed rows under flash and flex attention see what they see under torch's own.

On a CPU there is no flash kernel, so a written-out one stands in for that one function and all of
transformers' code around it runs; flex attention runs as itself, not compiled, forward only.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash_utils
from torch import Tensor
from transformers.utils.import_utils import is_flash_attn_2_available

from unimm.chat import ChatTemplate
from unimm.chat_style import ChatStyle
from unimm.errors import MissingExtraError, UserError
from unimm.language import LanguageModel, build_language_model
from unimm.layout import Layout
from unimm.model import UniMM
from unimm.packed_attention import sequence_starts
from unimm.packing import Fork, fork_after_picture
from unimm.testing import tiny_model, tiny_tokenizer

TEMPLATE = ChatTemplate(tiny_tokenizer(), ChatStyle())


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    **_: Any,
) -> Tensor:
    """Attend within each sequence of one long row, (T, H, d), as flash-attn's function does."""
    groups, starts = q.shape[1] // k.shape[1], cu_seqlens_q.tolist()
    assert causal
    assert starts == cu_seqlens_k.tolist()
    longest = max(b - a for a, b in itertools.pairwise(starts))
    assert max_seqlen_q == max_seqlen_k == longest
    outputs = []
    for start, stop in itertools.pairwise(starts):
        query = q[start:stop].transpose(0, 1)
        key, value = (
            x[start:stop].repeat_interleave(groups, dim=1).transpose(0, 1) for x in (k, v)
        )
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        )
    return torch.cat(outputs, dim=1).transpose(0, 1)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> UniMM:
    # What the first model with flash attention loads, kept in the module for all that come after.
    for name in ("_loaded_implementation", "_flash_varlen_fn", "_process_flash_kwargs_fn"):
        monkeypatch.setattr(flash_utils, name, None)
    kernels = (None, varlen_attention, None, None, None)
    monkeypatch.setattr(flash_utils, "_lazy_imports", lambda *_, **__: kernels)
    model = tiny_model()
    language: Any = model.language
    language.config._attn_implementation = "flash_attention_2"  # unchecked: nothing is installed
    return model


@pytest.fixture
def flex() -> Iterator[UniMM]:
    model = tiny_model()
    model.language.set_attn_implementation("flex_attention")  # type: ignore[operator]
    with torch.compiler.set_stance("force_eager"):
        yield model


def latents(count: int) -> Tensor:
    return torch.randn(count, 16, 48, generator=torch.Generator().manual_seed(0))


def plain_rows() -> list[list[Fork]]:
    """Rows of several conversations, the last with most of its length unused."""
    turns = [
        TEMPLATE.ask("what color is the circle", answer="red"),
        TEMPLATE.draw("a red circle", reply="ok"),
        TEMPLATE.say("hello", answer="hi"),
    ]
    forks = [Fork(tuple(turn), ()) for turn in turns]
    return [forks, [forks[2], forks[0]], [forks[2]]]


def forked_rows() -> list[list[Fork]]:
    asked = [TEMPLATE.ask(f"is there a {shape}", answer="no") for shape in ("star", "ring")]
    return [[fork_after_picture(asked), Fork(tuple(TEMPLATE.say("hello", answer="hi")), ())]]


def lay_out(model: UniMM, rows: Sequence[Sequence[Fork]]) -> Layout:
    return model.lay_out_packed(rows, pad_id=TEMPLATE.pad_id, length=150)


def test_flash_attention_sees_what_sdpa_sees_and_learns_the_same(flash: UniMM) -> None:
    plain = tiny_model()
    layout = lay_out(plain, plain_rows())
    gradients, hidden = [], []
    for model in (plain, flash):
        states = model(layout, latents(2))
        losses, _ = model.token_losses(states, layout)
        losses.mean().backward()
        hidden.append(states[layout.mask].detach())
        weight = next(iter(model.language.parameters())).grad
        assert weight is not None
        gradients.append(weight)
    torch.testing.assert_close(*hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_flash_attention_refuses_a_shared_picture(flash: UniMM) -> None:
    with pytest.raises(UserError, match=r"share one reading .* flex_attention or sdpa"):
        flash(lay_out(flash, forked_rows()), latents(1))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("rows", [plain_rows(), forked_rows()], ids=["plain", "forked"])
def test_flex_attention_sees_what_sdpa_sees(flex: UniMM, rows: list[list[Fork]]) -> None:
    plain = tiny_model()
    layout = lay_out(plain, rows)
    with torch.no_grad():
        expected, found = (
            model(layout, latents(2)[: _num_images(layout)]) for model in (plain, flex)
        )
    torch.testing.assert_close(found[layout.mask], expected[layout.mask], rtol=1e-4, atol=1e-5)


def _num_images(layout: Layout) -> int:
    return len(layout.image_index) // 16


def test_sequences_begin_where_numbers_change_and_at_each_row() -> None:
    fork = torch.tensor([[1, 1, 2, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert sequence_starts(fork).tolist() == [0, 2, 3, 4, 8, 12]


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed")
def test_flash_attention_that_is_not_installed_is_one_line() -> None:
    config: dict[str, Any] = {"model_type": "qwen2", "hidden_size": 32, "num_attention_heads": 2}
    with pytest.raises(MissingExtraError, match=r"pip install 'unimm\[flash\]'"):
        build_language_model(config, attention="flash_attention_2")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_gpu_kernels_see_what_sdpa_sees(attention: str) -> None:
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        pytest.skip("needs flash-attn")
    layout = lay_out(tiny_model(), plain_rows()).to("cuda")
    assert layout.packing is not None
    outputs = []
    for name in ("sdpa", attention):
        model = tiny_model().to("cuda", torch.bfloat16)
        model.language.set_attn_implementation(name)  # type: ignore[operator]
        embeds = LanguageModel(model.language).embed(layout.token_ids)
        outputs.append(model.lm.packed_hidden_states(embeds, layout.packing)[layout.mask].float())
    error = (outputs[0] - outputs[1]).norm() / outputs[0].norm()
    assert error < 0.02
