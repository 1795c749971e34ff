"""Packed rows: every conversation is read as if it stood alone."""

from collections.abc import Sequence

import pytest
import torch

from training.fast_attention import use_fast_attention
from unimm.chat import ChatTemplate, Segment, TextSegment
from unimm.chat_style import ChatStyle
from unimm.layout import stack_layouts
from unimm.model import UniMM
from unimm.packing import Fork, fork_after_picture
from unimm.testing import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module", params=["sdpa", "eager", "grouped_eager"])
def model(request: pytest.FixtureRequest) -> UniMM:
    model = tiny_model()
    if request.param == "grouped_eager":
        use_fast_attention(model.language)
    else:
        model.language.set_attn_implementation(request.param)  # type: ignore[operator]
    return model


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(), ChatStyle())


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, 16, 48, generator=torch.Generator().manual_seed(0))


def questions(template: ChatTemplate) -> list[list[Segment]]:
    return [
        template.ask("what color is the circle", answer="red"),
        template.ask("is there a square", answer="no"),
        template.describe(answer="a red circle"),
    ]


def test_packed_losses_are_those_of_each_conversation_alone(
    model: UniMM, template: ChatTemplate
) -> None:
    asked = questions(template)
    chat = template.draw("a red circle", reply="ok")
    rows = [[fork_after_picture(asked), Fork(tuple(chat), ())], [fork_after_picture(asked[:2])]]
    pictures = latents(2)
    layout = model.lay_out_packed(rows, pad_id=template.pad_id, length=140)
    hidden = model(layout, pictures)
    losses, in_rows = model.token_losses(hidden, layout)
    first = [alone(model, template, turn, pictures[:1]) for turn in asked]
    first.append(alone(model, template, chat, None))
    second = [alone(model, template, turn, pictures[1:]) for turn in asked[:2]]
    torch.testing.assert_close(losses[in_rows == 0], torch.cat(first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses[in_rows == 1], torch.cat(second), rtol=1e-4, atol=1e-5)


def test_queries_in_a_packed_row_see_their_own_prompt_only(
    model: UniMM, template: ChatTemplate
) -> None:
    prompts = [template.draw(text) for text in ("a red circle", "two blue squares")]
    rows = [[Fork(tuple(turn), ()) for turn in prompts]]
    layout = model.lay_out_packed(rows, pad_id=template.pad_id, length=100)
    states = model.query_states(model(layout), layout)
    for state, turn in zip(states, prompts, strict=True):
        single = model.lay_out([turn], pad_id=template.pad_id)
        expected = model.query_states(model(single), single)[0]
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)


def alone(
    model: UniMM, template: ChatTemplate, turn: Sequence[Segment], pictures: torch.Tensor | None
) -> torch.Tensor:
    layout = model.lay_out([turn], pad_id=template.pad_id)
    return model.token_losses(model(layout, pictures), layout)[0]


def test_a_picture_is_laid_out_once(template: ChatTemplate) -> None:
    fork = fork_after_picture(questions(template))
    layout = tiny_model().lay_out_packed([[fork]], pad_id=template.pad_id, length=100)
    assert len(layout.image_index) == 16


def test_what_cannot_be_packed_is_refused(template: ChatTemplate) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="no picture"):
        fork_after_picture([template.say("hello", answer="hi")])
    with pytest.raises(ValueError, match="begin alike"):
        fork_after_picture([template.ask("a", answer="b"), template.verify("c", answer=True)])
    with pytest.raises(ValueError, match="row 0 does not fit into length 20"):
        model.lay_out_packed(
            [[fork_after_picture(questions(template))]], pad_id=template.pad_id, length=20
        )
    starts_supervised = Fork((TextSegment((1,)),), ((TextSegment((2,), supervised=True),),) * 2)
    with pytest.raises(ValueError, match="must not begin with a token"):
        model.lay_out_packed([[starts_supervised]], pad_id=template.pad_id, length=20)


def test_stacked_layouts_hold_both(template: ChatTemplate) -> None:
    model = tiny_model()
    layouts = [
        model.lay_out([turn], pad_id=template.pad_id, length=60) for turn in questions(template)[:2]
    ]
    pictures = latents(2)
    stacked = stack_layouts(*layouts)
    losses, _ = model.token_losses(model(stacked, pictures), stacked)
    each = [
        model.token_losses(model(layout, pictures[i : i + 1]), layout)[0]
        for i, layout in enumerate(layouts)
    ]
    torch.testing.assert_close(losses, torch.cat(each), rtol=1e-4, atol=1e-5)
