"""``unimm chat``: a conversation in the terminal, with pictures both ways."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unimm.cli.inputs import read_picture
from unimm.cli.options import (
    AllowUrlsOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    OffloadOption,
    QuantizeOption,
    load_pipeline,
)
from unimm.cli.output import stderr, stdout, working
from unimm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from unimm.generation import Generation
    from unimm.pipeline import Pipeline
    from unimm.session import ChatSession

COMMANDS = {
    "/image FILE": "show the model a picture with your next message",
    "/history": "print the conversation so far",
    "/reset": "forget the conversation",
    "/help": "print this list",
    "/quit": "leave; Ctrl-D does too",
}


def chat(
    *,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where pictures are saved.", show_default="pictures-DATE-TIME"
        ),
    ] = None,
    best_of: Annotated[
        int, typer.Option("--best-of", "-n", metavar="N", help="Candidates of each picture.")
    ] = 1,
    seed: Annotated[int, typer.Option(metavar="I", help="Same seed, same pictures.")] = 0,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    offload: OffloadOption = False,
    allow_urls: AllowUrlsOption = False,
) -> None:
    """Talk with the model; it draws when you ask it to, and can look at what it drew.

    Type `/help` inside for the commands.

    **Example:** `unimm chat --pictures pictures`
    """
    folder = pictures or Path(f"pictures-{datetime.now():%Y%m%d-%H%M%S}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot save pictures in {folder}: it is a file")
    from unimm.options import GenerationOptions

    options = GenerationOptions(best_of=best_of, seed=seed)
    with working("loading the model"):
        pipeline = load_pipeline(
            model, device=device, dtype=dtype, quantize=quantize, offload=offload
        )
        session = pipeline.chat(options)
    stderr.print("Say what to draw, or ask. /help lists the commands.", style="dim")
    conversation = Conversation(
        pipeline=pipeline, session=session, folder=folder, allow_urls=allow_urls
    )
    converse(conversation, read_line)


@dataclass(kw_only=True, slots=True)
class Conversation:
    """One terminal conversation.

    Attributes:
        pipeline: The model.
        session: What the model remembers.
        folder: Where its pictures are saved.
        allow_urls: Whether pictures are fetched from URLs.
        attached: Pictures that go with the next message.
        history: What was said, one entry a line.
        num_saved: Pictures saved so far.
    """

    pipeline: "Pipeline"
    session: "ChatSession"
    folder: Path
    allow_urls: bool = False
    attached: "list[Image]" = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    num_saved: int = 0


def converse(conversation: Conversation, next_line: Callable[[], str]) -> None:
    """Answer lines until there are no more or one says /quit."""
    while True:
        try:
            line = next_line().strip()
        except EOFError:
            return
        if line == "/quit":
            return
        try:
            if line.startswith("/"):
                _obey(conversation, line)
            elif line:
                _answer(conversation, line)
        except UserError as error:
            # A slip in one message does not end the conversation.
            stderr.print(f"unimm: {error}", style="red", markup=False)


def read_line() -> str:
    """Return the next line of the person, with editing and history at a terminal.

    Raises:
        EOFError: There is none.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    return input("> ")


def _answer(conversation: Conversation, text: str) -> None:
    from unimm.session import PictureFinished, PictureStarted, TextDelta

    conversation.history.append(f"you: {text}")
    said = ""
    for event in conversation.session.stream(text, conversation.attached):
        match event:
            case TextDelta(text=delta):
                stdout.print(delta, end="", markup=False)
                said += delta
            case PictureStarted():
                stderr.print("drawing ...", style="dim")
            case PictureFinished(generation=generation):
                path = _save(conversation, generation)
                stdout.print(f"[picture {path}]", markup=False)
                conversation.history.append(f"model: [picture {path}]")
    if said:
        stdout.print()
        conversation.history.append(f"model: {said}")
    conversation.attached.clear()


def _save(conversation: Conversation, generation: "Generation") -> Path:
    from unimm.files import check_writable
    from unimm.image import save_png

    conversation.folder.mkdir(parents=True, exist_ok=True)
    conversation.num_saved += 1
    path = conversation.folder / f"{conversation.num_saved:03d}.png"
    check_writable(path)
    notes = {"prompt": generation.prompt, "seed": str(generation.seed)}
    save_png(generation.image, path, text=notes)
    return path


def _obey(conversation: Conversation, line: str) -> None:
    command, _, argument = line.partition(" ")
    match command:
        case "/help":
            for usage, meaning in COMMANDS.items():
                stdout.print(f"{usage:<14}{meaning}", markup=False)
        case "/history":
            stdout.print("\n".join(conversation.history) or "nothing yet", markup=False)
        case "/reset":
            conversation.session.reset()
            conversation.history.clear()
            conversation.attached.clear()
            stdout.print("forgotten", markup=False)
        case "/image":
            _attach(conversation, argument.strip())
        case _:
            raise UserError(f"unknown command {command}; /help lists them")


def _attach(conversation: Conversation, argument: str) -> None:
    if not argument:
        raise UserError("name a picture: /image FILE")
    conversation.attached.append(read_picture(argument, allow_urls=conversation.allow_urls))
    stdout.print(f"{argument} goes with your next message", markup=False)
