"""Laying sequences out, and the embeddings, states and losses at the marked positions."""

from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from unimm.chat import ChatTemplate, ImageSegment, QuerySegment, Segment, TextSegment
from unimm.chat_style import ChatStyle
from unimm.layout import IGNORE, lay_out
from unimm.model import PARTS, UniMM
from unimm.testing import tiny_model, tiny_tokenizer

SIZES: dict[str, Any] = {"num_image_tokens": 2, "num_queries": 3, "pad_id": 0}


@pytest.fixture(scope="module")
def model() -> UniMM:
    return tiny_model()


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(), ChatStyle())


def latents(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 16, 48, generator=torch.Generator().manual_seed(seed))


def test_positions_of_everything() -> None:
    first: list[Segment] = [TextSegment((5, 6)), ImageSegment(), TextSegment((7,), supervised=True)]
    second: list[Segment] = [TextSegment((8,)), QuerySegment(), TextSegment((9,), supervised=True)]
    layout = lay_out([first, second], **SIZES, length=6)
    assert layout.token_ids.tolist() == [[0, 5, 6, 0, 0, 7], [0, 8, 0, 0, 0, 9]]
    assert layout.mask.tolist() == [[False, *[True] * 5], [False, *[True] * 5]]
    assert layout.labels.tolist() == [[IGNORE] * 5 + [7], [IGNORE] * 5 + [9]]
    assert layout.image_index.tolist() == [3, 4]
    assert layout.query_index.tolist() == [8, 9, 10]
    assert not layout.is_dense


def test_padding_right_keeps_rows_at_the_left() -> None:
    layout = lay_out([[TextSegment((5,))], [TextSegment((6, 7))]], **SIZES, padding_side="right")
    assert layout.token_ids.tolist() == [[5, 0], [6, 7]]
    assert layout.mask.tolist() == [[True, False], [True, True]]


def test_a_sequence_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="4 positions does not fit into length 3"):
        lay_out([[TextSegment((5, 6)), ImageSegment()]], **SIZES, length=3)


def test_embeddings_stand_where_the_layout_says(model: UniMM, template: ChatTemplate) -> None:
    sequences = [template.draw("a red circle", reply=""), template.ask("what?")]
    layout = model.lay_out(sequences, pad_id=template.pad_id)
    pictures = latents(1)
    embeds = model.embed(layout, pictures).flatten(0, 1)
    read = model.projector(pictures).flatten(0, 1)
    torch.testing.assert_close(embeds[layout.image_index], read, rtol=0, atol=0)
    torch.testing.assert_close(embeds[layout.query_index], model.queries.embeddings)
    marked = torch.cat([layout.image_index, layout.query_index])
    text = torch.ones(len(embeds), dtype=torch.bool).index_fill(0, marked, value=False)
    tokens = model.lm.embed(layout.token_ids).flatten(0, 1)
    torch.testing.assert_close(embeds[text], tokens[text], rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 2])
def test_pictures_must_be_as_many_as_their_places(
    model: UniMM, template: ChatTemplate, count: int
) -> None:
    layout = model.lay_out([template.ask("what?")], pad_id=template.pad_id)
    with pytest.raises(ValueError, match=f"1 pictures, got latents of {count}"):
        model.embed(layout, latents(count) if count else None)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_states_nor_losses(
    model: UniMM, template: ChatTemplate, side: str
) -> None:
    """A batch of two equals two batches of one, in reductions of another order."""
    short = template.draw("a red circle", reply="")
    long = template.ask("what color is the circle", answer="red", after=short)
    pictures = latents(1)
    layout = model.lay_out([short, long], pad_id=template.pad_id, padding_side=side)  # type: ignore[arg-type]
    hidden = model(layout, pictures)
    states = model.query_states(hidden, layout)
    losses, rows = model.token_losses(hidden, layout)
    for row, (sequence, images) in enumerate([(short, None), (long, pictures)]):
        alone = model.lay_out([sequence], pad_id=template.pad_id)
        expected = model(alone, images)
        torch.testing.assert_close(states[row], model.query_states(expected, alone)[0])
        torch.testing.assert_close(losses[rows == row], model.token_losses(expected, alone)[0])


def test_token_losses_are_the_cross_entropy_of_supervised_tokens(
    model: UniMM, template: ChatTemplate
) -> None:
    layout = model.lay_out([template.verify("a red circle", answer=True)], pad_id=template.pad_id)
    hidden = model(layout, latents(1))
    losses, rows = model.token_losses(hidden, layout)
    logprobs = model.lm.logits(hidden[0, -3:-1]).log_softmax(-1)
    yes, end = template.yes_ids[0], template.turn_end_id
    expected = -torch.stack([logprobs[0, yes], logprobs[1, end]])
    torch.testing.assert_close(losses, expected)
    assert rows.tolist() == [0, 0]


def test_frozen_parts_get_no_gradient_and_the_others_do(template: ChatTemplate) -> None:
    model = tiny_model()
    model.train_only(["queries", "generator"])
    layout = model.lay_out([template.draw("a red circle")], pad_id=template.pad_id)
    states = model.query_states(model(layout), layout)
    model.generator.loss(states, latents(1), generator=torch.Generator().manual_seed(0)).backward()
    assert set(model.parameter_groups()) == {"queries", "generator"}
    for name in PARTS:
        has_gradient = any(p.grad is not None for p in model.part(name).parameters())
        assert has_gradient == (name in ("queries", "generator")), name
    assert model.generator.training
    assert not model.language.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_the_weights_keeps_the_position_tables(dtype: torch.dtype) -> None:
    """Rotary frequencies of a cast and restored model are those it was built with."""
    model = tiny_model()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("inv_freq" in name for name in before)
    model.to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    model.float()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_an_unknown_part_is_refused(model: UniMM) -> None:
    with pytest.raises((ValueError, TypeCheckError), match="language"):
        model.part("decoder")  # type: ignore[arg-type]
