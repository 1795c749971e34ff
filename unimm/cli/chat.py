"""``unimm chat``: a conversation in the terminal, with pictures both ways."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unimm.cli.options import DeviceOption, DtypeOption, ModelOption, load_pipeline
from unimm.cli.output import stderr, stdout, working
from unimm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from unimm.pipeline import Pipeline

COMMANDS = {
    "/image FILE": "show the model a picture with your next message",
    "/history": "print the conversation so far",
    "/reset": "forget the conversation",
    "/help": "print this list",
    "/quit": "leave; Ctrl-D does too",
}


def chat(
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where pictures are saved.", show_default="pictures-DATE-TIME"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="I", help="Same seed, same pictures.")] = 0,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Talk with the model; it draws when you ask it to, and can look at what it drew.

    Type `/help` inside for the commands.

    **Example:** `unimm chat --pictures pictures`
    """
    folder = pictures or Path(f"pictures-{datetime.now():%Y%m%d-%H%M%S}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot save pictures in {folder}: it is a file")
    with working("loading the model"):
        pipeline = load_pipeline(model, device=device, dtype=dtype)
    stderr.print("Say what to draw or ask. /help lists the commands.", style="dim")
    converse(Conversation(pipeline=pipeline, folder=folder, seed=seed), _read_line)


@dataclass(kw_only=True, slots=True)
class Conversation:
    """One terminal conversation: the session, its history, and the pictures not yet sent."""

    pipeline: "Pipeline"
    folder: Path
    seed: int = 0
    attached: "list[Image]" = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    saved: int = 0
    session: object = None


def converse(conversation: Conversation, read_line: Callable[[], str]) -> None:
    """Answer lines until they end or one says /quit."""
    while True:
        try:
            line = read_line().strip()
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
            # A slip in one message must not end the conversation.
            stderr.print(f"unimm: {error}", style="red", markup=False)


def _answer(conversation: Conversation, text: str) -> None:
    if conversation.session is None:
        conversation.session = conversation.pipeline.chat(seed=conversation.seed)
    with working("thinking"):
        reply = conversation.session.send(text, images=tuple(conversation.attached))
    conversation.attached.clear()
    conversation.history += [f"you: {text}", f"model: {reply.text}"]
    if reply.text:
        stdout.print(reply.text, markup=False)
    for image in reply.images:
        path = _save(conversation, image, text)
        conversation.history.append(f"model: [picture {path}]")
        stdout.print(f"[picture] {path}", markup=False)


def _save(conversation: Conversation, image: "Image", prompt: str) -> Path:
    from unimm.files import check_writable
    from unimm.image import save_png

    conversation.folder.mkdir(parents=True, exist_ok=True)
    conversation.saved += 1
    path = conversation.folder / f"{conversation.saved:03d}.png"
    check_writable(path)
    save_png(image, path, text={"prompt": prompt, "seed": str(conversation.seed)})
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
            conversation.session = None
            conversation.history.clear()
            conversation.attached.clear()
            stdout.print("forgotten", markup=False)
        case "/image":
            _attach(conversation, argument.strip())
        case _:
            raise UserError(f"unknown command {command}; /help lists them")


def _attach(conversation: Conversation, argument: str) -> None:
    from unimm.image import read_image

    if not argument:
        raise UserError("name a picture: /image FILE")
    conversation.attached.append(read_image(Path(argument).expanduser()))
    stdout.print(f"{argument} goes with your next message", markup=False)


def _read_line() -> str:
    import sys

    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    return input("> ")
