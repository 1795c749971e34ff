"""Turns as segments: what stands where, and what is supervised."""

from collections.abc import Sequence

import pytest

from unimm.chat import ChatTemplate, ImageSegment, QuerySegment, Segment, TextSegment
from unimm.chat_style import ChatStyle
from unimm.errors import UserError
from unimm.testing import tiny_tokenizer
from unimm.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(), ChatStyle())


def spell(template: ChatTemplate, segments: Sequence[Segment]) -> str:
    """Return a sequence for the eye: supervised text in brackets, [P] a picture, [Q] queries."""
    parts = []
    for segment in segments:
        match segment:
            case TextSegment():
                text = template.tokenizer.decode(list(segment.token_ids))
                parts.append(f"[{text}]" if segment.supervised else text)
            case ImageSegment():
                parts.append("[P]")
            case QuerySegment():
                parts.append("[Q]")
    return "".join(str(part) for part in parts)


def test_draw_ends_at_the_queries(template: ChatTemplate) -> None:
    assert spell(template, template.draw("a red circle")) == (
        "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n[<im_start>][Q]"
    )


def test_draw_with_a_reply_supervises_what_the_model_writes(template: ChatTemplate) -> None:
    text = spell(template, template.draw("a red circle", reply="done"))
    assert text.endswith("assistant\n[<im_start>][Q][<im_end>done<|im_end|>]")


def test_ask_shows_the_picture_first(template: ChatTemplate) -> None:
    assert spell(template, template.ask("what?", answer="red")) == (
        "<|im_start|>user\n<im_start>[P]<im_end>\nwhat?<|im_end|>\n"
        "<|im_start|>assistant\n[red<|im_end|>]"
    )


def test_verify_shows_the_picture_last(template: ChatTemplate) -> None:
    assert spell(template, template.verify("a red circle", answer=False)) == (
        "<|im_start|>user\na red circle\n<im_start>[P]<im_end>\nmatch?<|im_end|>\n"
        "<|im_start|>assistant\n[no<|im_end|>]"
    )


def test_describe(template: ChatTemplate) -> None:
    assert spell(template, template.describe(answer="a star")) == (
        "<|im_start|>user\n<im_start>[P]<im_end>\ndescribe<|im_end|>\n"
        "<|im_start|>assistant\n[a star<|im_end|>]"
    )


def test_turns_follow_each_other_as_in_chatml(template: ChatTemplate) -> None:
    first = template.say("hello", answer="hi")
    both = template.say("bye", after=first)
    expected = template.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "bye"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert spell(template, both).replace("[", "").replace("]", "") == expected


def test_several_pictures_in_one_turn(template: ChatTemplate) -> None:
    segments = template.say("which?", num_images=3)
    assert sum(isinstance(segment, ImageSegment) for segment in segments) == 3


@pytest.mark.parametrize("text", ["{image}", "{prompt}", "{0}", "<im_start>", "{", "%s"])
def test_what_a_user_writes_has_no_power(template: ChatTemplate, text: str) -> None:
    for turn in (template.draw(text), template.ask(text), template.verify(text)):
        assert text in spell(template, turn)
    assert sum(isinstance(s, ImageSegment) for s in template.verify(text)) == 1


def test_scale_rae_style_asks_after_the_picture() -> None:
    words = [" yes", " no", " Yes", " No", " YES", " NO", "yes", "Yes", "YES", "no", "No", "NO"]
    tokenizer = train_tokenizer(words * 50, vocab_size=300)
    template = ChatTemplate(tokenizer, ChatStyle.scale_rae())
    assert spell(template, template.verify("a dog")) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<im_start>[P]<im_end>\nDoes this image align with the prompt: a dog?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(template.yes_ids) == len(template.no_ids) == 6


def test_an_answer_of_several_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="must be one token"):
        ChatTemplate(tiny_tokenizer(), ChatStyle(yes=("absolutely",)))


@pytest.mark.parametrize(
    "wording",
    [
        {"draw": "draw something"},
        {"verify": "{prompt} match?"},
        {"ask": "{image} {question} {extra}"},
        {"yes": ()},
        {"yes": ("no",)},
    ],
)
def test_a_style_that_cannot_be_filled_is_refused(wording: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        ChatStyle(**wording)  # type: ignore[arg-type]
