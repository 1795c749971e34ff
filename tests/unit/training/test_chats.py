"""Chats that are learned from are chats as they are held."""

from collections.abc import Sequence

import numpy as np

from training.data.chats import sample_chat
from training.data.scenes import sample_scenes
from training.stages.vision import VisionStage
from unimm.chat import ChatTemplate, ImageSegment, QuerySegment, Segment, TextSegment
from unimm.tokenizer import decode_text

Turn = list[int | str]


def test_a_chat_is_what_a_session_reads_when_the_same_is_said(vision_stage: VisionStage) -> None:
    """A picture stands at the head of the turn after the one that drew it, and only there."""
    template, rng = vision_stage.template, np.random.default_rng(0)
    lengths = set()
    for _ in range(60):
        samples = sample_scenes(rng, vision_stage.grammar, 3)
        chat = flat(sample_chat(samples, template, rng, vision_stage.grammar, fits=lambda _: True))
        assert [item for item in chat if item in {"query", "image"}] == ["query", "image"] * 3
        again: list[Segment] = []
        num_unseen = 0
        turns = turns_of(chat, template)
        for number, (said, answer) in enumerate(turns):
            again = template.user([*[None] * num_unseen, text_of(said, template)], after=again)
            num_unseen = answer.count("query")
            parts = [*[None] * num_unseen, text_of(answer, template)]
            again += [*template.drawn(parts), TextSegment((template.turn_end_id,))]
            if num_unseen:
                prompt = samples[sum(a.count("query") for _, a in turns[:number])].prompt.text
                assert parts[-1] == prompt
                assert prompt.removeprefix("a picture of ") in str(text_of(said, template))
        assert flat(again) == chat
        lengths.add(len(turns))
    assert lengths == {4, 5, 6, 7}


def flat(segments: Sequence[Segment]) -> list[int | str]:
    items: list[int | str] = []
    for segment in segments:
        match segment:
            case TextSegment():
                items += segment.token_ids
            case QuerySegment():
                items.append("query")
            case ImageSegment():
                items.append("image")
    return items


def turns_of(chat: Turn, template: ChatTemplate) -> list[tuple[Turn, Turn]]:
    """Return what the user and the model say by turns, ends of turns left out."""
    turns: list[Turn] = []
    for item in chat:
        if item == template.turn_start_id:
            turns.append([])
        turns[-1].append(item)
    ended = [turn[: turn.index(template.turn_end_id)] for turn in turns]
    return list(zip(ended[::2], ended[1::2], strict=True))


def text_of(turn: Turn, template: ChatTemplate) -> str:
    """Return the words of a turn: without role, pictures, and the line end after a picture."""
    text = decode_text(template.tokenizer, [item for item in turn if isinstance(item, int)])
    return text.partition("\n")[2].removeprefix("\n")


def test_talk_that_does_not_fit_is_left_out(vision_stage: VisionStage) -> None:
    template, grammar = vision_stage.template, vision_stage.grammar
    lengths = []
    for fits in (lambda _: False, lambda _: True):
        rng = np.random.default_rng(1)
        samples = sample_scenes(rng, grammar, 1)
        chat = sample_chat(samples, template, rng, grammar, fits=fits)
        lengths.append(len(turns_of(flat(chat), template)))
    assert lengths[0] == 2 < lengths[1]
