"""Records as the official data has them, and the conversations they become.

A record is ``{"conversations": [{"from": "human", "value": "..."}, ...], "image": ...}``;
``<image>`` in a value stands for the next picture. In a human turn it is read, in the model's own
turn it is drawn. ``messages`` with ``role`` and ``content`` are read the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from unimm.chat import (
    ChatTemplate,
    QuerySegment,
    Segment,
    TextSegment,
    Turn,
)
from unimm.packing import segment_length

from .config import SourceConfig
from .sample import SampleError

IMAGE_MARK = "<image>"
Role = Literal["user", "assistant"]
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Record:
    """A sample as it is stored, its pictures still encoded.

    Args:
        key: Where it is, for a person.
        fields: Its JSON object or its columns.
        images: Files of its pictures, in order, with a name for each.
    """

    key: str
    fields: Mapping[str, Any]
    images: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation and which of a record's pictures it reads and draws.

    Args:
        segments: The conversation.
        read: Numbers of the pictures that it reads.
        drawn: Numbers of the pictures that it draws.
        prompts: What would draw each picture that it reads, up to the queries; empty where nobody
            knows.
    """

    segments: tuple[Segment, ...]
    read: tuple[int, ...]
    drawn: tuple[int, ...]
    prompts: tuple[tuple[Segment, ...], ...] = ()


def build_conversation(
    fields: Mapping[str, Any], *, num_images: int, source: SourceConfig, template: ChatTemplate
) -> Conversation:
    """Return the conversation that a record describes.

    Raises:
        SampleError: It has another layout, or pictures and marks do not agree.
    """
    if source.layout == "caption":
        return _caption(fields, num_images=num_images, source=source, template=template)
    system, turns = _turns(fields, source.conversations_column)
    if num_images and not any(IMAGE_MARK in text for _, text in turns):
        turns[0] = (turns[0][0], f"{IMAGE_MARK}\n{turns[0][1]}")
    marks = [role for role, text in turns for _ in range(text.count(IMAGE_MARK))]
    if len(marks) != num_images:
        raise SampleError(f"{len(marks)} {IMAGE_MARK} marks for {num_images} pictures")
    segments = template.converse(
        [Turn(role, tuple(text.split(IMAGE_MARK))) for role, text in turns], system=system
    )
    return Conversation(
        tuple(segments),
        tuple(i for i, role in enumerate(marks) if role == "user"),
        tuple(i for i, role in enumerate(marks) if role == "assistant"),
    )


def _caption(
    fields: Mapping[str, Any], *, num_images: int, source: SourceConfig, template: ChatTemplate
) -> Conversation:
    text = fields.get(source.text_column)
    if not isinstance(text, str) or not text.strip():
        raise SampleError(f"no text in {source.text_column!r}")
    if num_images != 1:
        raise SampleError(f"a caption needs one picture, got {num_images}")
    if source.task == "generation":
        return Conversation(tuple(template.draw(text.strip(), reply="")), (), (0,))
    prompt = tuple(template.draw(text.strip()))
    return Conversation(tuple(template.describe(answer=text.strip())), (0,), (), (prompt,))


def _turns(fields: Mapping[str, Any], column: str) -> tuple[str | None, list[tuple[Role, str]]]:
    """Return the system text, if there is one, and the turns as (role, text)."""
    entries = fields.get(column)
    if entries is None:
        entries = fields.get("messages")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise SampleError(f"no list of turns in {column!r}")
    parsed = [_turn(entry, place) for place, entry in enumerate(entries, start=1)]
    system = None
    if parsed[0][0] == "system":
        system = parsed.pop(0)[1]
    turns: list[tuple[Role, str]] = []
    for place, (role, text) in enumerate(parsed):
        expected: Role = "assistant" if place % 2 else "user"
        if role != expected:
            raise SampleError(f"turn {place + 1} is of {role!r}, expected {expected!r}")
        turns.append((expected, text))
    if not turns or len(turns) % 2:
        raise SampleError("the last turn has no answer")
    return system, turns


def _turn(entry: object, place: int) -> tuple[str, str]:
    if not isinstance(entry, Mapping):
        raise SampleError(f"turn {place} is no object")
    role = entry.get("from", entry.get("role"))
    text = entry.get("value", entry.get("content"))
    if not isinstance(role, str) or not isinstance(text, str):
        raise SampleError(f"turn {place} has no 'from' and 'value' that are text")
    if role == "system" and place == 1:
        return "system", text
    if role not in _ROLES:
        raise SampleError(f"turn {place} is of {role!r}; known are {', '.join(_ROLES)}")
    return _ROLES[role], text


def cut_conversation(
    conversation: Conversation, *, max_length: int, num_image_tokens: int, num_queries: int
) -> Conversation:
    """Return the conversation without the text beyond ``max_length`` positions.

    Raises:
        SampleError: A picture does not fit, or nothing that could be learned does.
    """
    kept: list[Segment] = []
    room = max_length
    sizes = {"num_image_tokens": num_image_tokens, "num_queries": num_queries}
    for segment in conversation.segments:
        length = segment_length(segment, **sizes)
        if length <= room:
            kept.append(segment)
        elif not isinstance(segment, TextSegment):
            raise SampleError(f"a picture does not fit into {max_length} positions")
        elif room:
            kept.append(TextSegment(segment.token_ids[:room], segment.supervised))
        room = max(0, room - length)
    if not any(_teaches(segment) for segment in kept):
        raise SampleError(f"no answer within {max_length} positions")
    return replace(conversation, segments=tuple(kept))


def _teaches(segment: Segment) -> bool:
    is_answer = isinstance(segment, TextSegment) and segment.supervised
    return is_answer or isinstance(segment, QuerySegment)
