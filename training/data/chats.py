"""Chats of the joint stage: pictures asked for one after another, and talk about each."""

from collections.abc import Callable, Sequence

import numpy as np

from unimm.chat import ChatTemplate, Segment
from unimm.scenes import Grammar, Prompt, dense_caption, questions

from .scenes import SceneSample

REQUESTS = (
    "draw {}",
    "draw {}",
    "show me {}",
    "please draw {}",
    "can you draw {}?",
    "i want {}",
    "now {}",
)
_SMALL_TALK = (
    ("hello", "hello! what picture?"),
    ("hi", "hello! what picture?"),
    ("what can you do?", "a picture of circles and squares"),
    ("thanks", "ok"),
)
_MOST_EXTRAS = 3
"""Turns of talk that a chat could do without."""


def request(prompt: Prompt, rng: np.random.Generator, share: float) -> str:
    """Return the prompt, or in a share of cases what a person would say in a chat."""
    if rng.random() >= share:
        return prompt.text
    form = REQUESTS[int(rng.random() * len(REQUESTS))]
    text = prompt.text if rng.random() < 0.3 else prompt.text.removeprefix("a picture of ")
    return form.format(text)


def sample_chat(
    samples: Sequence[SceneSample],
    template: ChatTemplate,
    rng: np.random.Generator,
    grammar: Grammar,
    *,
    fits: Callable[[list[Segment]], bool],
) -> list[Segment]:
    """Return a chat that draws the samples, with as much talk as fits of what is sampled.

    Args:
        samples: What is drawn, in order.
        template: Of the chat.
        rng: Chooses words, questions and their places.
        grammar: Of the questions.
        fits: Whether a chat is short enough.
    """
    extras = int(rng.integers(_MOST_EXTRAS + 1))
    chat = _record(samples, template, rng, grammar, extras=extras)
    while extras and not fits(chat):
        extras -= 1
        chat = _record(samples, template, rng, grammar, extras=extras)
    return chat


def _record(
    samples: Sequence[SceneSample],
    template: ChatTemplate,
    rng: np.random.Generator,
    grammar: Grammar,
    *,
    extras: int,
) -> list[Segment]:
    """Return a chat as a session would hold it.

    Each picture is seen at the head of the turn after it. The last one is talked about; ``extras``
    are turns of talk besides, anywhere in the chat.
    """
    places = [int(place) for place in rng.integers(len(samples) + 1, size=extras)]
    turns: list[Segment] = []
    for _ in range(places.count(0)):
        turns = _small_talk(turns, template, rng, num_images=0)
    for number, sample in enumerate(samples, start=1):
        num_images = 0 if number == 1 or places.count(number - 1) else 1
        turns = template.draw(
            request(sample.prompt, rng, 0.7),
            reply=sample.prompt.text,
            num_images=num_images,
            after=turns,
        )
        num_turns = places.count(number) + (number == len(samples))
        for turn in range(num_turns):
            turns = _talk(turns, sample, template, rng, grammar, num_images=int(turn == 0))
    return turns


def _talk(
    turns: list[Segment],
    sample: SceneSample,
    template: ChatTemplate,
    rng: np.random.Generator,
    grammar: Grammar,
    *,
    num_images: int,
) -> list[Segment]:
    """Add a question about the picture drawn last, its description, or small talk."""
    kind = rng.random()
    if kind < 0.1:
        return _small_talk(turns, template, rng, num_images=num_images)
    if kind < 0.3:
        said, answer = "describe", dense_caption(sample.scene, rng)
    else:
        (asked,) = questions(sample.scene, sample.prompt, rng, grammar, 1)
        said, answer = asked.question, asked.answer
    return template.say(said, answer=answer, num_images=num_images, after=turns)


def _small_talk(
    turns: list[Segment], template: ChatTemplate, rng: np.random.Generator, *, num_images: int
) -> list[Segment]:
    said, answer = _SMALL_TALK[int(rng.random() * len(_SMALL_TALK))]
    return template.say(said, answer=answer, num_images=num_images, after=turns)
