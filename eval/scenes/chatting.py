"""Gate 4: does the model draw what a person asks for in a chat, early and late in it?"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unimm.options import GenerationOptions
from unimm.pipeline import Pipeline
from unimm.scenes import Prompt, detect, judge
from unimm.session import ChatSession

from ..statistics import wilson_interval

WORDINGS = ("a picture of {}", "draw {}", "please draw {}", "can you draw {}?")
"""How pictures are asked for, by turns."""
_QUESTION = "how many objects are there?"


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """What became of one request.

    Args:
        place: Number of the request in its chat, from 1.
        wording: What stood around the prompt.
        drawn: Whether the model answered with one picture.
        restated: Whether its text was the prompt.
        right: The detector's verdict on the picture; False where there is none.
    """

    place: int
    wording: str
    drawn: bool
    restated: bool
    right: bool


@dataclass(frozen=True, slots=True)
class Requests:
    """Shares of some requests.

    Args:
        count: How many there were.
        drawn: Share answered with one picture.
        restated: Share answered with the prompt as text.
        right: Share answered with a picture that the detector accepts.
        right_interval: Its 95% Wilson interval.
    """

    count: int
    drawn: float
    restated: float
    right: float
    right_interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Chatting:
    """Requests of chats by their place, and by wording.

    Args:
        chats: Chats held; the first two requests follow each other, a question is asked before
            the third.
        by_place: Requests by number; every prompt comes once at every place.
        by_wording: The same requests by what stood around the prompt.
    """

    chats: int
    by_place: dict[str, Requests]
    by_wording: dict[str, Requests]


def hold_chat(
    pipeline: Pipeline, prompts: Sequence[Prompt], options: GenerationOptions, *, number: int
) -> list[RequestOutcome]:
    """Return what became of the three requests of a chat.

    Args:
        pipeline: The model.
        prompts: Of all chats, of which there are as many: each comes once at every place.
        options: How to draw.
        number: Of this chat, from 0.
    """
    count = len(prompts)
    session = pipeline.chat(options=options)
    wording = WORDINGS[number % len(WORDINGS)]
    outcomes = []
    for place in (1, 2, 3):
        if place == 3:
            session.send(_QUESTION)
        prompt = prompts[(number + (place - 1) * count // 3) % count]
        outcomes.append(_ask_for(session, prompt, wording, place))
    return outcomes


def _ask_for(session: ChatSession, prompt: Prompt, wording: str, place: int) -> RequestOutcome:
    reply = session.send(wording.format(prompt.text.removeprefix("a picture of ")))
    is_right = False
    if len(reply.images) == 1:
        is_right = judge(prompt, detect(np.asarray(reply.images[0]))).correct
    return RequestOutcome(
        place=place,
        wording=wording,
        drawn=len(reply.images) == 1,
        restated=reply.text.strip() == prompt.text,
        right=is_right,
    )


def summarise_chats(chats: Sequence[Iterable[RequestOutcome]]) -> Chatting:
    """Return the shares over all chats."""
    by_place: dict[str, list[RequestOutcome]] = defaultdict(list)
    by_wording: dict[str, list[RequestOutcome]] = defaultdict(list)
    for outcome in (outcome for chat in chats for outcome in chat):
        by_place[str(outcome.place)].append(outcome)
        by_wording[outcome.wording].append(outcome)
    return Chatting(
        chats=len(chats),
        by_place={place: _shares(some) for place, some in by_place.items()},
        by_wording={wording: _shares(some) for wording, some in by_wording.items()},
    )


def _shares(outcomes: Sequence[RequestOutcome]) -> Requests:
    num_right = sum(outcome.right for outcome in outcomes)
    return Requests(
        count=len(outcomes),
        drawn=float(np.mean([outcome.drawn for outcome in outcomes])),
        restated=float(np.mean([outcome.restated for outcome in outcomes])),
        right=num_right / len(outcomes),
        right_interval=wilson_interval(num_right, len(outcomes)),
    )
