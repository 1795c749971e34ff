"""Records become the conversations that the model is trained on."""

from typing import Any

import pytest

from tests.unit.training.data.layouts import turns
from training.data.config import SourceConfig
from training.data.conversation import Conversation, build_conversation, cut_conversation
from training.data.sample import SampleError, task_of
from unimm.chat import ChatTemplate, ImageSegment, QuerySegment, Segment, TextSegment, Turn

SOURCE = SourceConfig(name="demo", kind="jsonl", path="demo.jsonl")


def build(
    template: ChatTemplate, fields: dict[str, Any], *, num_images: int = 0, **source: Any
) -> Conversation:
    config = SourceConfig(name="demo", kind="jsonl", path="demo.jsonl", **source)
    return build_conversation(fields, num_images=num_images, source=config, template=template)


def flat(segments: Any) -> list[Any]:
    """Return tokens with their supervision, one by one, and pictures by their kind."""
    units: list[Any] = []
    for segment in segments:
        if isinstance(segment, TextSegment):
            units += [(token, segment.supervised) for token in segment.token_ids]
        else:
            units.append(type(segment))
    return units


def test_drawing_is_what_inference_asks_for(template: ChatTemplate) -> None:
    built = build(template, {"conversations": turns("a red circle", "<image>ok")}, num_images=1)
    assert flat(built.segments) == flat(template.draw("a red circle", reply="ok"))
    assert (built.read, built.drawn) == ((), (0,))
    assert task_of(built.segments) == "generation"


def test_reading_is_what_inference_asks_for(template: ChatTemplate) -> None:
    built = build(
        template, {"conversations": turns("<image>\nwhat is it?", "a circle")}, num_images=1
    )
    assert flat(built.segments) == flat(template.ask("what is it?", answer="a circle"))
    assert (built.read, built.drawn) == ((0,), ())
    assert task_of(built.segments) == "understanding"


def test_several_turns_are_what_a_chat_lays_out(template: ChatTemplate) -> None:
    texts = turns("hello", "hi", "a red circle", "<image>ok", "what is it?", "red")
    expected = template.say("hello", answer="hi")
    expected = template.draw("a red circle", reply="ok", after=expected)
    expected = template.say("what is it?", answer="red", after=expected)
    built = build(template, {"conversations": texts}, num_images=1)
    assert flat(built.segments) == flat(expected)


def test_pictures_may_stand_anywhere(template: ChatTemplate) -> None:
    texts = turns("make <image> look like <image>, please", "here:\n<image>\ndone")
    built = build(template, {"conversations": texts}, num_images=3)
    kinds = [type(s) for s in built.segments if not isinstance(s, TextSegment)]
    assert kinds == [ImageSegment, ImageSegment, QuerySegment]
    assert (built.read, built.drawn) == ((0, 1), (2,))


def test_a_picture_without_a_mark_comes_first(template: ChatTemplate) -> None:
    marked = build(template, {"conversations": turns("<image>\nwhat?", "a")}, num_images=1)
    unmarked = build(template, {"conversations": turns("what?", "a")}, num_images=1)
    assert unmarked == marked


def test_messages_and_system_turns_are_read(template: ChatTemplate) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
    ]
    built = build(template, {"messages": messages})
    expected = template.converse(
        [Turn("user", ("hello",)), Turn("assistant", ("hi",))], system="be brief"
    )
    assert list(built.segments) == expected
    assert template.encode("be brief")[-1] in [t for t, _ in flat(built.segments)]


def test_what_data_says_has_no_power(template: ChatTemplate) -> None:
    built = build(template, {"conversations": turns("<|im_end|><im_start>", "no")})
    tokens = [token for token, _ in flat(built.segments)]
    # The system turn is empty in this style: two turns, each opened and closed once.
    assert tokens.count(template.turn_end_id) == 2
    assert template.image_start_id not in tokens


@pytest.mark.parametrize("task", ["generation", "understanding"])
def test_captions_draw_or_describe(template: ChatTemplate, task: str) -> None:
    built = build(template, {"text": "a circle"}, num_images=1, layout="caption", task=task)
    assert task_of(built.segments) == task
    # What is described is known to be what would draw the picture.
    asked = (tuple(template.draw("a circle")),)
    assert built.prompts == (asked if task == "understanding" else ())


@pytest.mark.parametrize(
    ("fields", "num_images", "reason"),
    [
        ({}, 0, "no list of turns"),
        ({"conversations": "hello"}, 0, "no list of turns"),
        ({"conversations": turns("hello")}, 0, "no answer"),
        ({"conversations": turns("a", "b", "c")}, 0, "no answer"),
        ({"conversations": turns("<image>", "b")}, 0, "1 <image> marks for 0 pictures"),
        ({"conversations": turns("<image>", "b")}, 2, "1 <image> marks for 2 pictures"),
        ({"conversations": [{"from": "gpt", "value": "a"}] * 2}, 0, "turn 1 is of 'assistant'"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, 0, "turn 1 is of 'robot'"),
        ({"conversations": [{"from": "human"}]}, 0, "turn 1 has no 'from' and 'value'"),
        ({"conversations": ["hello", "hi"]}, 0, "turn 1 is no object"),
    ],
)
def test_other_layouts_are_named(
    template: ChatTemplate, fields: dict[str, Any], num_images: int, reason: str
) -> None:
    with pytest.raises(SampleError, match=reason):
        build(template, fields, num_images=num_images)


def cut(segments: list[Segment], max_length: int) -> tuple[Segment, ...]:
    conversation = Conversation(tuple(segments), (), ())
    return cut_conversation(
        conversation, max_length=max_length, num_image_tokens=4, num_queries=4
    ).segments


def test_long_text_is_cut_and_a_picture_never(template: ChatTemplate) -> None:
    asked = TextSegment((1, 2))
    answer = TextSegment((3, 4, 5), supervised=True)
    assert cut([asked, answer], 4) == (asked, TextSegment((3, 4), supervised=True))
    assert cut([asked, QuerySegment(), answer], 6) == (asked, QuerySegment())
    with pytest.raises(SampleError, match="does not fit into 5"):
        cut([asked, ImageSegment(), answer], 5)
    with pytest.raises(SampleError, match="no answer within 2"):
        cut([asked, answer], 2)
