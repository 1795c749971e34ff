"""What the language model reads: turns of text, pictures and queries, in one place.

Training and inference build their sequences with the same functions, so they cannot drift apart.
The format is ChatML; a picture in it is ``<im_start>``, its N latent tokens, ``<im_end>``.
A picture to be drawn is ``<im_start>``, Q learnable queries, ``<im_end>``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerFast

from unimm.chat_style import ChatStyle
from unimm.errors import UserError
from unimm.tokenizer import (
    IMAGE_END,
    IMAGE_START,
    PAD,
    TURN_END,
    TURN_START,
    encode_text,
    special_id,
)

_IMAGE_FIELD = "{image}"


@dataclass(frozen=True, slots=True)
class TextSegment:
    """Text tokens; ``supervised`` ones are what a training loss asks the model to write."""

    token_ids: tuple[int, ...]
    supervised: bool = False


@dataclass(frozen=True, slots=True)
class ImageSegment:
    """The N latent tokens of a picture that the model reads."""


@dataclass(frozen=True, slots=True)
class QuerySegment:
    """The Q learnable queries whose hidden states condition the generator."""


Segment = TextSegment | ImageSegment | QuerySegment


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a recorded conversation.

    Args:
        role: Who speaks.
        texts: Its text, cut where a picture stands: n + 1 pieces for n pictures, which the user
            shows and the assistant draws.
    """

    role: Literal["user", "assistant"]
    texts: tuple[str, ...]


class ChatTemplate:
    """Turns, as segments, in one style and one tokenizer.

    Every method that makes a turn takes ``after``, the sequence that it continues; without one it
    opens a conversation (with the system turn, if the style has one). A turn that is given its
    answer is whole and supervised; without, it ends where the model has to go on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, style: ChatStyle) -> None:
        self.tokenizer = tokenizer
        self.style = style
        self.pad_id = special_id(tokenizer, PAD)
        self.turn_start_id = special_id(tokenizer, TURN_START)
        self.turn_end_id = special_id(tokenizer, TURN_END)
        self.image_start_id = special_id(tokenizer, IMAGE_START)
        self.image_end_id = special_id(tokenizer, IMAGE_END)
        self.yes_ids = tuple(self._answer_id(word) for word in style.yes)
        self.no_ids = tuple(self._answer_id(word) for word in style.no)

    def draw(
        self,
        prompt: str,
        *,
        reply: str | None = None,
        num_images: int = 0,
        after: Sequence[Segment] = (),
    ) -> list[Segment]:
        """Ask for a picture.

        Args:
            prompt: What to draw.
            reply: Text after the picture. None ends the sequence at the queries, whose hidden
                states are then its last Q.
            num_images: Pictures before the request. It is then worded as :meth:`ask` words a
                question, as a chat does where the turn before drew a picture.
            after: The sequence to continue.
        """
        if num_images:
            content = self._content(self.style.ask, num_images=num_images, question=prompt)
        else:
            content = self._content(self.style.draw, prompt=prompt)
        turn = [
            *self._user(content, after),
            TextSegment((self.image_start_id,), supervised=True),
            QuerySegment(),
        ]
        if reply is None:
            return turn
        ending = (self.image_end_id, *self.encode(reply), self.turn_end_id)
        return [*turn, TextSegment(ending, supervised=True)]

    def ask(
        self,
        question: str,
        *,
        answer: str | None = None,
        num_images: int = 1,
        after: Sequence[Segment] = (),
    ) -> list[Segment]:
        """Ask a question about pictures."""
        content = self._content(self.style.ask, num_images=num_images, question=question)
        return self._answered(self._user(content, after), answer)

    def verify(
        self, prompt: str, *, answer: bool | None = None, after: Sequence[Segment] = ()
    ) -> list[Segment]:
        """Ask whether a picture matches a prompt; the answer is yes or no."""
        content = self._content(self.style.verify, prompt=prompt)
        words = {True: self.style.yes[0], False: self.style.no[0], None: None}
        return self._answered(self._user(content, after), words[answer])

    def describe(
        self, *, answer: str | None = None, after: Sequence[Segment] = ()
    ) -> list[Segment]:
        """Ask for the text of a picture."""
        return self._answered(self._user(self._content(self.style.describe), after), answer)

    def say(
        self,
        text: str,
        *,
        answer: str | None = None,
        num_images: int = 0,
        after: Sequence[Segment] = (),
    ) -> list[Segment]:
        """Say something, with pictures before the text if there are any."""
        if num_images:
            return self.ask(text, answer=answer, num_images=num_images, after=after)
        return self._answered(self._user([TextSegment(self.encode(text))], after), answer)

    def user(self, parts: Sequence[str | None], *, after: Sequence[Segment] = ()) -> list[Segment]:
        """Say texts and show pictures (None) in any order.

        Pictures before one text, the usual order, are worded as :meth:`say` words them. Elsewhere
        a line ends between a picture and a text.
        """
        *shown, text = parts
        if text is not None and all(part is None for part in shown):
            return self.say(text, num_images=len(shown), after=after)
        content: list[Segment] = []
        for index, part in enumerate(parts):
            if index and (part is None) != (parts[index - 1] is None):
                content.append(TextSegment(self.encode("\n")))
            if part is None:
                content += self._picture()
            elif part:
                content.append(TextSegment(self.encode(part)))
        return self._user(content, after)

    def drawn(self, parts: Sequence[str | None]) -> list[Segment]:
        """Return a turn of the model's own, with the pictures (None) that it drew."""
        picture = (
            TextSegment((self.image_start_id,)),
            QuerySegment(),
            TextSegment((self.image_end_id,)),
        )
        turn: list[Segment] = []
        for part in parts:
            turn += picture if part is None else (TextSegment(self.encode(part)),)
        return [s for s in turn if not isinstance(s, TextSegment) or s.token_ids]

    def with_system(self, text: str) -> "ChatTemplate":
        """Return the same turns after another system turn."""
        return ChatTemplate(self.tokenizer, replace(self.style, system=text))

    def converse(self, turns: Sequence[Turn], *, system: str | None = None) -> list[Segment]:
        """Return a recorded conversation; the assistant's turns are whole and supervised.

        Args:
            turns: The user's and the assistant's by turns, the user's first.
            system: Text of the system turn in the place of the style's.
        """
        segments: list[Segment] = []
        for turn in turns:
            if turn.role == "user":
                content = self._interleaved(turn.texts, self._picture())
                segments = self._user(content, segments, system=system)
            else:
                drawing = (
                    TextSegment((self.image_start_id,), supervised=True),
                    QuerySegment(),
                    TextSegment((self.image_end_id,), supervised=True),
                )
                segments += self._interleaved(turn.texts, drawing, supervised=True)
                segments.append(TextSegment((self.turn_end_id,), supervised=True))
        return segments

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of plain text."""
        return tuple(encode_text(self.tokenizer, text))

    def _user(
        self, content: Sequence[Segment], after: Sequence[Segment], *, system: str | None = None
    ) -> list[Segment]:
        opening = [*after, TextSegment(self.encode("\n"))] if after else self._system(system)
        header = (self.turn_start_id, *self.encode("user\n"))
        return [*opening, TextSegment(header), *content, TextSegment(self._assistant())]

    def _assistant(self) -> tuple[int, ...]:
        """End the user's turn and open the model's."""
        header = self.encode("assistant\n")
        return (self.turn_end_id, *self.encode("\n"), self.turn_start_id, *header)

    def _system(self, content: str | None) -> list[Segment]:
        content = self.style.system if content is None else content
        if content is None:
            return []
        text = self.encode(f"system\n{content}")
        return [TextSegment((self.turn_start_id, *text, self.turn_end_id, *self.encode("\n")))]

    def _answered(self, turn: list[Segment], answer: str | None) -> list[Segment]:
        if answer is None:
            return turn
        text = (*self.encode(answer), self.turn_end_id)
        return [*turn, TextSegment(text, supervised=True)]

    def _content(self, template: str, *, num_images: int = 1, **fields: str) -> list[Segment]:
        """Fill a template; what a user wrote is never searched for ``{image}``."""
        before, image, after = template.partition(_IMAGE_FIELD)
        segments = [
            TextSegment(self.encode(before.format(**fields))),
            *(self._picture() * num_images if image else ()),
            TextSegment(self.encode(after.format(**fields))),
        ]
        return [s for s in segments if not isinstance(s, TextSegment) or s.token_ids]

    def _picture(self) -> tuple[Segment, ...]:
        """Return a picture that is read."""
        return (
            TextSegment((self.image_start_id,)),
            ImageSegment(),
            TextSegment((self.image_end_id,)),
        )

    def _interleaved(
        self, texts: Sequence[str], picture: Sequence[Segment], *, supervised: bool = False
    ) -> list[Segment]:
        """Return pieces of text with a picture between each two."""
        segments: list[Segment] = []
        for number, text in enumerate(texts):
            segments += picture if number else ()
            if text:
                segments.append(TextSegment(self.encode(text), supervised=supervised))
        return segments

    def _answer_id(self, word: str) -> int:
        token_ids = self.encode(word)
        if len(token_ids) != 1:
            raise UserError(
                f"the answer {word!r} must be one token to have a probability at one position, "
                f"but it is {len(token_ids)}; choose another spelling in the chat style"
            )
        return token_ids[0]
