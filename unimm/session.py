"""A conversation in which the model itself decides when to draw, and sees what it drew.

Shape legend:
    N latent tokens      D latent channels
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from unimm.chat import QuerySegment, Segment, TextSegment
from unimm.drawing import StepHook
from unimm.errors import UserError
from unimm.generation import Generation, Stopwatch, draw_pictures
from unimm.language import State
from unimm.messages import Message
from unimm.options import ResolvedOptions, TextOptions, check_text
from unimm.reader import Reader, choose_tokens
from unimm.search import DrawingTask
from unimm.tokenizer import decode_text

MAX_PICTURES = 4
"""Most pictures in one reply; a model that wants more is going round in circles."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class PictureStarted:
    """The model has decided to draw; its picture follows."""

    number: int


@dataclass(frozen=True, slots=True)
class PictureFinished:
    """A picture of the reply."""

    generation: Generation


Picture = Image.Image | Tensor
"""A picture as a model can look at it: an image, or its latents (N, D)."""

Event = TextDelta | PictureStarted | PictureFinished


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered.

    Args:
        text: All its text.
        generations: The pictures it drew, in order.
    """

    text: str
    generations: tuple[Generation, ...]

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return tuple(generation.image for generation in self.generations)


class ChatSession:
    """A conversation. Each turn is read once: keys and values of earlier turns are kept.

    The model sees a picture of its own in the turn after it, as latents that were never decoded
    (as the decoded picture, if it draws in another space than it sees in).
    A turn that fails or is abandoned leaves the conversation as it was.

    Args:
        reader: Model and chat template.
        options: How pictures are drawn.
        text_options: How text is written.
        encode: Makes latents of pictures, (I, N, D).
    """

    def __init__(
        self,
        reader: Reader,
        *,
        options: ResolvedOptions,
        text_options: TextOptions,
        encode: Callable[[Sequence[Picture]], Tensor],
    ) -> None:
        self.reader = reader
        self._encode = encode
        self.options = options
        self.text_options = text_options
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self._state: State | None = None
        self._pictures: list[Picture] = []
        self.num_drawn = 0
        self.num_turns = 0

    @property
    def length(self) -> int:
        """Positions of the model's context in use."""
        return self._state.length if self._state else 0

    def send(
        self,
        text: str,
        pictures: Sequence[Picture] = (),
        *,
        on_step: StepHook | None = None,
    ) -> Reply:
        """Say something and return the whole reply.

        Args:
            text: What to say.
            pictures: Images or latents to show with it.
            on_step: Called after every denoising step.
        """
        return _gather(self.stream(text, pictures, on_step=on_step))

    @torch.no_grad()
    def stream(
        self,
        text: str,
        pictures: Sequence[Picture] = (),
        *,
        on_step: StepHook | None = None,
    ) -> Iterator[Event]:
        """Say something and yield the reply as it comes; arguments as in :meth:`send`."""
        check_text("message", text)
        yield from self.stream_messages([Message("user", (*pictures, text))], on_step=on_step)

    def answer(self, messages: Sequence[Message], *, on_step: StepHook | None = None) -> Reply:
        """Read messages and return the whole reply to the last; as :meth:`stream_messages`."""
        return _gather(self.stream_messages(messages, on_step=on_step))

    @torch.no_grad()
    def stream_messages(
        self, messages: Sequence[Message], *, on_step: StepHook | None = None
    ) -> Iterator[Event]:
        """Read messages and yield the reply to the last as it comes.

        Args:
            messages: Of a conversation, as :func:`unimm.messages.read_messages` returns them. A
                conversation that has begun goes on with the user's.
            on_step: Called after every denoising step.
        """
        if self._state and messages[0].role != "user":
            raise UserError("the conversation has begun; it goes on with a message of the user")
        text = messages[-1].text
        check_text("message", text)
        state = self._read_turns(messages)
        reply = _Reply(self, text, state, on_step=on_step)
        yield from reply.events()
        self._state = reply.state
        # A model that cannot read what it draws sees the picture itself.
        reads_latents = self.reader.model.vision is None
        self._pictures = [g.latents if reads_latents else g.image for g in reply.generations]
        self.num_drawn += len(reply.generations)
        self.num_turns += 1

    def _read_turns(self, messages: Sequence[Message]) -> State:
        template = self.reader.template
        turn: list[Segment] = []
        # What the model drew is shown at the head of the next turn of the user.
        drawn: Sequence[Picture] = self._pictures
        shown: list[Picture] = []
        # The model's own end of turn has not been read yet.
        after: list[Segment] = [TextSegment((template.turn_end_id,))] if self._state else []
        for message in messages:
            parts = [part if isinstance(part, str) else None for part in message.parts]
            match message.role:
                case "system":
                    template = template.with_system(message.text)
                case "assistant":
                    drawn = message.pictures
                    after = [*turn, *template.drawn(parts), TextSegment((template.turn_end_id,))]
                case "user":
                    turn = template.user([*(None for _ in drawn), *parts], after=after)
                    shown += [*drawn, *message.pictures]
        self.check_room(self.length, turn)
        model = self.reader.model
        images = self._encode(shown).to(model.device, model.dtype) if shown else None
        return self.reader.read([turn], images, after=self._state)

    def check_room(self, length: int, segments: Sequence[Segment]) -> None:
        """Raise UserError unless the segments and one more position fit into the context."""
        context = self.reader.model.lm.context_length
        needed = length + self.reader.length(segments) + 1
        if needed > context:
            raise UserError(
                f"the conversation needs {needed} positions, the model's context has {context}; "
                f"start a new conversation or say less"
            )


def _gather(stream: Iterator[Event]) -> Reply:
    events = list(stream)
    return Reply(
        text="".join(event.text for event in events if isinstance(event, TextDelta)),
        generations=tuple(e.generation for e in events if isinstance(e, PictureFinished)),
    )


class _Reply:
    """One reply while it is being made."""

    def __init__(
        self, session: ChatSession, text: str, state: State, *, on_step: StepHook | None
    ) -> None:
        self.session = session
        self.prompt = text
        self.state = state
        self.on_step = on_step
        self.generations: list[Generation] = []
        self.token_ids: list[int] = []
        self.shown = ""

    def events(self) -> Iterator[Event]:
        reader, options = self.session.reader, self.session.text_options
        template, lm = reader.template, reader.model.lm
        generator = torch.Generator().manual_seed(options.seed + self.session.num_turns)
        for _ in range(options.max_new_tokens):
            if self.state.length >= lm.context_length:
                break
            token = int(choose_tokens(lm.logits(self.state.last), options, generator))
            if token in (template.turn_end_id, template.pad_id):
                break
            if token == template.image_start_id:
                if len(self.generations) == MAX_PICTURES:
                    break
                yield PictureStarted(self.session.num_drawn + len(self.generations))
                yield PictureFinished(self._draw())
                continue
            self.token_ids.append(token)
            yield from self._text()
            self._read((TextSegment((token,)),))
        yield from self._text(last=True)

    def _text(self, *, last: bool = False) -> Iterator[TextDelta]:
        """Yield what has become readable; a character may need several tokens."""
        text = decode_text(self.session.reader.template.tokenizer, self.token_ids)
        if (last or not text.endswith("\N{REPLACEMENT CHARACTER}")) and text != self.shown:
            delta, self.shown = text.removeprefix(self.shown), text
            yield TextDelta(delta)

    def _draw(self) -> Generation:
        session = self.session
        template, model = session.reader.template, session.reader.model
        segments = (TextSegment((template.image_start_id,)), QuerySegment())
        session.check_room(self.state.length, [*segments, TextSegment((template.image_end_id,))])
        watch = Stopwatch(model.device)
        with watch.phase("prompt"):
            self._read(segments)
        task = DrawingTask(
            index=session.num_drawn + len(self.generations),
            prompt=self._restated() if template.style.restates else self.prompt,
            states=self.state.hidden[0, -model.config.num_queries :],
        )
        (generation,) = draw_pictures(
            session.reader, [task], session.options, watch, on_step=self.on_step
        )
        self.generations.append(generation)
        self._read((TextSegment((template.image_end_id,)),))
        return generation

    def _restated(self) -> str:
        """Return the text that is to follow the picture: the prompt, as the model words it.

        It does not depend on the picture, of which only the queries are read.
        """
        reader = self.session.reader
        after = reader.read([(TextSegment((reader.template.image_end_id,)),)], after=self.state)
        (token_ids,) = reader.write(after, TextOptions())
        return decode_text(reader.template.tokenizer, token_ids).strip() or self.prompt

    def _read(self, segments: Sequence[Segment]) -> None:
        self.state = self.session.reader.read([segments], after=self.state)
