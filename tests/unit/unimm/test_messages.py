"""Conversations in Qwen's message format."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unimm.chat import ChatTemplate, ImageSegment, QuerySegment, Segment, TextSegment
from unimm.chat_style import ChatStyle
from unimm.errors import ImageError, MissingExtraError, UserError
from unimm.image import MAX_PIXELS
from unimm.messages import Message, read_messages
from unimm.options import GenerationOptions, TextOptions
from unimm.picture_sources import SourceOptions
from unimm.pipeline import Pipeline
from unimm.testing import tiny_pipeline, tiny_tokenizer

CORE = SourceOptions(reader="core")


def picture(width: int = 6, height: int = 4) -> Image.Image:
    values = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(values)


def png(image: Image.Image, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    return content.getvalue()


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def show(source: Any) -> dict[str, Any]:
    return {"type": "image", "image": source}


def only_picture(source: Any, options: SourceOptions = CORE) -> Image.Image:
    (message,) = read_messages(user(show(source)), options)
    (image,) = message.pictures
    assert isinstance(image, Image.Image)
    return image


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


@pytest.mark.parametrize("form", ["path", "text", "uri", "data", "bytes", "PIL", "url"])
def test_every_form_of_a_picture_gives_the_same_pixels(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a picture.png"
    path.write_bytes(png(picture()))
    sources = {
        "path": path,
        "text": str(path),
        "uri": path.as_uri(),
        "data": data_uri(png(picture())),
        "bytes": png(picture()),
        "PIL": picture(),
        "url": {"url": data_uri(png(picture()))},
    }
    assert np.array_equal(np.asarray(only_picture(sources[form])), np.asarray(picture()))


def test_a_part_of_type_image_url_is_read_as_openai_writes_it() -> None:
    part = {"type": "image_url", "image_url": {"url": data_uri(png(picture()))}}
    (message,) = read_messages(user(part), CORE)
    assert len(message.pictures) == 1


@pytest.mark.parametrize("opened", [False, True], ids=["file", "opened image"])
def test_pictures_are_turned_upright(tmp_path: Path, opened: bool) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is at the right of what is stored
    picture(8, 4).save(path, exif=exif)
    source = Image.open(path) if opened else path
    assert only_picture(source).size == (4, 8)


def test_large_pictures_are_scaled_down_and_bombs_refused() -> None:
    small = only_picture(picture(64, 16), SourceOptions(reader="core", max_pixels=256))
    assert small.size == (32, 8)
    side = int(MAX_PIXELS**0.5) + 1
    bomb = png(Image.new("1", (side, side)))
    for source in (bomb, data_uri(bomb), Image.new("1", (side, side))):
        with pytest.raises(ImageError, match=r"limit|pixels"):
            only_picture(source)


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        ("https://example.org/a.png", CORE, "not fetched unless allowed"),
        ("HTTP://example.org/a.png", CORE, "not fetched unless allowed"),
        ("/etc/hostname", SourceOptions(reader="core", allow_files=False), "files are not read"),
        ("file:///etc/hostname", SourceOptions(reader="core", allow_files=False), "not read"),
        (Path("/etc/hostname"), SourceOptions(reader="core", allow_files=False), "not read"),
        ("file://other/a.png", CORE, "on another machine"),
        ("data:image/png,abc", CORE, "must be base64"),
        ("data:image/png;base64,@@@@", CORE, "no base64"),
        ("data:image/png;base64,aGVsbG8=", CORE, "is no picture"),
        (data_uri(png(picture())), SourceOptions(reader="core", max_bytes=50), "larger than 50"),
        (png(picture()), SourceOptions(reader="core", max_bytes=50), "larger than 50"),
        (3, CORE, "must be a path"),
        ("/nowhere/a.png", CORE, "there is no file"),
    ],
)
def test_what_may_not_or_cannot_be_read_is_refused(
    source: Any, options: SourceOptions, reason: str
) -> None:
    with pytest.raises(ImageError, match=reason):
        only_picture(source, options)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(picture()) + bytes(100))
    with pytest.raises(ImageError, match="larger than 99 bytes"):
        only_picture(path, SourceOptions(reader="core", max_bytes=99))


def test_pictures_are_counted_over_the_conversation() -> None:
    options = SourceOptions(reader="core", max_pictures=2)
    with pytest.raises(UserError, match="more than 2 pictures"):
        read_messages(user(*[show(picture())] * 3), options)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hello", "must be a list"),
        ([], "must be a list"),
        (["hello"], "message 0 must have role"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([{"role": "user", "content": 3}], "content must be text or a list"),
        ([{"role": "user", "content": " "}], "message 0 is empty"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "unknown type 'audio'"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "text must be text"),
        ([{"role": "assistant", "content": "x"}], "the user's turn is"),
        ([{"role": "user", "content": "x"}] * 2, "the assistant's turn is"),
        ([{"role": "system", "content": "x"}], "last message must be the user's"),
        ([{"role": "system", "content": [show(picture())]}, *user(show("x"))], "is text only"),
        (user({"type": "image", "image": picture(), "max_pixels": "9"}), "max_pixels"),
    ],
)
def test_malformed_messages_are_refused(messages: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_messages(messages, CORE)


def test_a_video_needs_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"unimm\[vl\]"):
        read_messages(user({"type": "video", "video": [picture()]}), CORE)


def test_a_message_knows_its_text_and_pictures() -> None:
    message = Message("user", ("left", picture(), "right"))
    assert message.text == "left\nright"
    assert len(message.pictures) == 1


def text_of(template: ChatTemplate, segments: list[Segment]) -> str:
    """Return a turn as text, a picture as @ and queries as #."""
    words = {ImageSegment: "@", QuerySegment: "#"}
    return "".join(
        str(template.tokenizer.decode(list(segment.token_ids)))
        if isinstance(segment, TextSegment)
        else words[type(segment)]
        for segment in segments
    )


def test_pictures_and_texts_stand_where_the_message_has_them() -> None:
    template = ChatTemplate(tiny_tokenizer(), ChatStyle())
    assert template.user([None, None, "which?"]) == template.ask("which?", num_images=2)
    assert template.user(["red"]) == template.say("red")
    content = text_of(template, template.user(["red", None, None, "blue", None]))
    read = "<im_start>@<im_end>"
    assert content.removeprefix("<|im_start|>user\n").startswith(
        f"red\n{read}{read}\nblue\n{read}<|im_end|>"
    )


@pytest.fixture
def pipeline() -> Pipeline:
    return tiny_pipeline()


def test_messages_equal_the_conversation_that_they_record(pipeline: Pipeline) -> None:
    """Text, a drawing and its latents, replayed as messages, are answered as in the session."""
    options = GenerationOptions(seed=1)
    text_options = TextOptions(max_new_tokens=4)
    latents = torch.randn(pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    replay = [
        Message("user", (picture(16, 16), "draw")),
        Message("assistant", ("red", latents)),
        Message("user", ("what color",)),
    ]
    replayed = pipeline.chat(options, text_options)
    replayed.answer(replay)

    session = pipeline.chat(options, text_options)
    template = pipeline.reader.template
    first = template.ask("draw")
    said = template.drawn(["red", None])
    shown = pipeline.encode([picture(16, 16)])
    session._state = pipeline.reader.read([[*first, *said]], shown)
    session._pictures = [latents]
    session.send("what color")

    assert replayed.length == session.length
    assert replayed._state is not None
    assert session._state is not None
    torch.testing.assert_close(replayed._state.last, session._state.last, rtol=1e-4, atol=1e-4)


def test_a_system_message_replaces_the_models_own(pipeline: Pipeline) -> None:
    base = [{"role": "user", "content": "red"}]
    plain, ordered = (pipeline.chat(text_options=TextOptions(max_new_tokens=1)) for _ in range(2))
    plain.answer(pipeline.read_messages(base))
    ordered.answer(pipeline.read_messages([{"role": "system", "content": "be brief"}, *base]))
    assert ordered.length > plain.length
    with pytest.raises(UserError, match="has begun"):
        plain.answer(pipeline.read_messages([{"role": "system", "content": "late"}, *base]))


def test_a_pipeline_answers_messages(pipeline: Pipeline) -> None:
    messages = user(show(picture(16, 16)), {"type": "text", "text": "what color"})
    options = TextOptions(max_new_tokens=3)
    by_messages = pipeline.answer(messages, text_options=options, sources=CORE)
    by_session = pipeline.chat(text_options=options).send("what color", [picture(16, 16)])
    assert by_messages.text == by_session.text


def test_the_last_message_needs_text(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="the message is empty"):
        pipeline.answer(user(show(picture())), sources=CORE)
