"""Chat messages as Qwen's tools and OpenAI's write them, read into text and pictures.

A message is ``{"role": ..., "content": ...}``; its content is text, or a list of parts such as
``{"type": "text", "text": ...}``, ``{"type": "image", "image": ...}``,
``{"type": "image_url", "image_url": {"url": ...}}`` and ``{"type": "video", "video": ...}``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from PIL import Image
from torch import Tensor

from unimm.errors import UserError
from unimm.picture_sources import SourceOptions, read_source, shrink
from unimm.video import prepare, read_frames

Role = Literal["system", "user", "assistant"]
Part = str | Image.Image | Tensor
"""Text, an image, or a picture's latents (N, D)."""

_KINDS = {"text": "text", "image": "image", "image_url": "image_url", "video": "video"}


@dataclass(frozen=True, slots=True)
class Message:
    """What one side says in one turn.

    Args:
        role: Who speaks.
        parts: Texts and pictures, in order. A picture of the assistant is one that it drew.
    """

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """All its text."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Image.Image | Tensor, ...]:
        return tuple(part for part in self.parts if not isinstance(part, str))


def read_messages(
    messages: Sequence[Mapping[str, Any]], options: SourceOptions, *, patch_size: int = 14
) -> list[Message]:
    """Return a conversation with its pictures read.

    A video becomes its frames, one picture each.

    Args:
        messages: An optional system message, then the user and the assistant in turn; the last
            is the user's.
        options: What may be read, and by whom.
        patch_size: Of the model; qwen-vl-utils scales sides to multiples of twice that.

    Raises:
        UserError: A message is malformed or out of turn; it names which.
        ImageError: A picture cannot be read, is too large or comes from where none may.
        MissingExtraError: There is a video, and qwen-vl-utils is not installed.
    """
    given: Any = messages
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence) or not given:
        raise UserError("messages must be a list of at least one message with role and content")
    roles = [_role(message, index) for index, message in enumerate(messages)]
    _check_turns(roles)
    reader = _Reader(options, patch_size)
    return [
        Message(role, reader.parts(message.get("content"), role, where=f"message {index}"))
        for index, (role, message) in enumerate(zip(roles, messages, strict=True))
    ]


def _role(message: Any, index: int) -> Role:
    if not isinstance(message, Mapping):
        raise UserError(f"message {index} must have role and content, got {type(message).__name__}")
    role = message.get("role")
    if role not in get_args(Role):
        raise UserError(
            f"message {index} has the role {role!r}; known are {', '.join(get_args(Role))}"
        )
    return cast("Role", role)


def _check_turns(roles: Sequence[Role]) -> None:
    turns = roles[1:] if roles[0] == "system" else roles
    first = len(roles) - len(turns)
    for index, role in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            raise UserError(
                f"message {first + index} is by the {role} where the {expected}'s turn is; after "
                f"an optional system message, user and assistant take turns"
            )
    if not turns or turns[-1] != "user":
        raise UserError("the last message must be the user's: the model answers it")


class _Reader:
    """Reads the parts of messages, counting pictures over all of them."""

    def __init__(self, options: SourceOptions, patch_size: int) -> None:
        self.options = options
        self.patch_size = patch_size
        self.num_pictures = 0

    def parts(self, content: Any, role: Role, *, where: str) -> tuple[Part, ...]:
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, Sequence) or not content:
            raise UserError(f"{where}: content must be text or a list of parts, got {content!r}")
        parts = [
            part
            for index, item in enumerate(content)
            for part in self._part(item, where=f"{where}, part {index}")
        ]
        if role == "system" and not all(isinstance(part, str) for part in parts):
            raise UserError(f"{where}: a system message is text only; show pictures as the user")
        if not any(not isinstance(part, str) or part.strip() for part in parts):
            raise UserError(f"{where} is empty; say something or show a picture")
        return tuple(parts)

    def _part(self, item: Any, *, where: str) -> Sequence[Part]:
        kind = _kind(item, where)
        value = item.get(_KINDS[kind])
        if kind == "text":
            if not isinstance(value, str):
                raise UserError(f"{where}: text must be text, got {type(value).__name__}")
            return [value]
        if kind == "video":
            frames = read_frames(item, self.options, patch_size=self.patch_size, name=where)
            self._count(len(frames), where)
            return frames
        self._count(1, where)
        if isinstance(value, Mapping):  # OpenAI's {"url": ...}
            value = value.get("url")
        if isinstance(value, Tensor):
            return [value]
        image = read_source(value, self.options, name=where)
        limit = _max_pixels(item, self.options, where)
        return [prepare(shrink(image, limit), item, self.options, patch_size=self.patch_size)]

    def _count(self, number: int, where: str) -> None:
        self.num_pictures += number
        if self.num_pictures > self.options.max_pictures:
            raise UserError(
                f"{where}: the conversation shows more than {self.options.max_pictures} pictures "
                f"(each frame of a video is one); show fewer"
            )


def _kind(item: Any, where: str) -> str:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in _KINDS:
        raise UserError(f"{where}: unknown type {kind!r}; known are {', '.join(_KINDS)}")
    return str(kind)


def _max_pixels(item: Mapping[str, Any], options: SourceOptions, where: str) -> int:
    value = item.get("max_pixels", options.max_pixels)
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: max_pixels must be a positive number, got {value!r}")
    return min(value, options.max_pixels)
