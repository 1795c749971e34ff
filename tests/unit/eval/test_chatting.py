"""Requests in chats, early and late, and what became of them."""

from collections import Counter
from typing import Any

import pytest

from eval.scenes.chatting import WORDINGS, RequestOutcome, hold_chat, summarise_chats
from unimm.options import GenerationOptions
from unimm.pipeline import Pipeline
from unimm.scenes import load_prompts
from unimm.session import ChatSession, Reply

PROMPTS = load_prompts("small", "train")[::69]


def outcome(place: int, wording: str, *, drawn: bool, right: bool) -> RequestOutcome:
    return RequestOutcome(place=place, wording=wording, drawn=drawn, restated=drawn, right=right)


def hold_chats(options: GenerationOptions) -> list[list[RequestOutcome]]:
    pipeline = Pipeline.from_pretrained()
    return [hold_chat(pipeline, PROMPTS, options, number=k) for k in range(len(PROMPTS))]


def test_shares_are_those_of_hand_counting() -> None:
    chatting = summarise_chats(
        [
            [outcome(1, "draw {}", drawn=True, right=True)],
            [
                outcome(1, "now {}", drawn=True, right=False),
                outcome(2, "now {}", drawn=False, right=False),
            ],
        ]
    )
    assert chatting.chats == 2
    first, second = chatting.by_place["1"], chatting.by_place["2"]
    assert (first.count, first.drawn, first.restated, first.right) == (2, 1.0, 1.0, 0.5)
    assert first.right_interval[0] < 0.5 < first.right_interval[1]
    assert (second.count, second.drawn, second.right) == (1, 0.0, 0.0)
    assert {name: shares.count for name, shares in chatting.by_wording.items()} == {
        "draw {}": 1,
        "now {}": 2,
    }


def test_every_prompt_is_asked_for_at_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, str]] = []
    send = ChatSession.send

    def listened(session: ChatSession, text: str, *rest: Any, **options: Any) -> Reply:
        said.append((session.num_turns, text))
        return send(session, text, *rest, **options)

    monkeypatch.setattr(ChatSession, "send", listened)
    chats = hold_chats(GenerationOptions(num_steps=1))
    assert [[o.place for o in chat] for chat in chats] == [[1, 2, 3]] * len(PROMPTS)
    names = [prompt.text.removeprefix("a picture of ") for prompt in PROMPTS]
    for turn in (0, 1, 3):
        asked = [text for number, text in said if number == turn]
        expected = [
            WORDINGS[chat % len(WORDINGS)].format(name)
            for chat, name in enumerate(names[turn_start(turn) :] + names[: turn_start(turn)])
        ]
        assert asked == expected
    assert {text for number, text in said if number == 2} == {"how many objects are there?"}


def turn_start(turn: int) -> int:
    """Return the number of the prompt that the first chat asks for in a turn."""
    place = {0: 0, 1: 1, 3: 2}[turn]
    return place * len(PROMPTS) // 3


def test_pictures_of_the_shipped_model_are_seen_and_judged() -> None:
    chats = hold_chats(GenerationOptions())
    firsts = [chat[0] for chat in chats]
    assert all(outcome.drawn for outcome in firsts)
    counts = Counter(outcome.right for outcome in firsts)
    assert counts[True] > counts[False]
    assert any(outcome.restated for outcome in firsts)
