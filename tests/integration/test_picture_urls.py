"""Pictures by URL: fetched from a real server on this machine, when and only when allowed."""

import io
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

import unimm.cli
from unimm.errors import ImageError
from unimm.picture_sources import SourceOptions, read_source
from unimm.pipeline import Pipeline
from unimm.testing import tiny_model, tiny_tokenizer

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
ALLOWED = SourceOptions(allow_urls=True)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """A good picture, and the ways in which a server disappoints."""

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/picture.png?size=1")
            self.end_headers()
            return
        if self.path == "/to-a-file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        content = b"<html>no picture</html>" if self.path == "/page" else png()
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: -len(content) // 2] if self.path == "/cut" else content)

    def log_message(self, *_: object) -> None:
        """Say nothing: the tests' output is for failures."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["/picture.png", "/moved"])
def test_a_picture_is_fetched(site: str, path: str) -> None:
    image = read_source(site + path, ALLOWED, name="picture")
    assert np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/missing", "cannot fetch .*404"),
        ("/to-a-file", "cannot fetch"),
        ("/cut", "picture"),
        ("/page", "is no picture"),
    ],
)
def test_a_bad_answer_is_one_clear_line(site: str, path: str, said: str) -> None:
    with pytest.raises(ImageError, match=said) as refusal:
        read_source(site + path, ALLOWED, name="picture")
    assert "\n" not in str(refusal.value)


def test_a_download_is_bounded(site: str) -> None:
    options = SourceOptions(allow_urls=True, max_bytes=50)
    with pytest.raises(ImageError, match="larger than 50 bytes"):
        read_source(f"{site}/picture.png", options, name="picture")


def test_nothing_is_fetched_unless_allowed(site: str) -> None:
    with pytest.raises(ImageError, match="--allow-urls"):
        read_source(f"{site}/picture.png", SourceOptions(), name="picture")


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ImageError, match=r"cannot fetch http://127\.0\.0\.1:9/a\.png"):
        read_source("http://127.0.0.1:9/a.png", ALLOWED, name="picture")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    Pipeline(tiny_model(), tiny_tokenizer()).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("command", [("ask",), ("verify", "a picture of a red circle")])
def test_commands_fetch_when_told_to(
    site: str, model: str, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{site}/picture.png"
    words = (*command, url, *(("what is it?",) if command == ("ask",) else ()), "--model", model)
    assert unimm.cli.run((*words, "--allow-urls", "--json")) == 0
    assert url in capsys.readouterr().out
    assert unimm.cli.run(words) == 2
    assert "--allow-urls" in capsys.readouterr().err


@pytest.mark.parametrize("is_allowed", [True, False])
def test_a_chat_fetches_when_told_to(
    site: str,
    model: str,
    is_allowed: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/image {site}/picture.png\n/quit\n"))
    flags = ("--allow-urls",) if is_allowed else ()
    assert unimm.cli.run(("chat", "--model", model, *flags)) == 0
    captured = capsys.readouterr()
    assert ("goes with your next message" in captured.out) == is_allowed
    assert ("--allow-urls" in captured.err) != is_allowed


def test_latents_are_not_fetched(site: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{site}/latents.safetensors"
    assert unimm.cli.run(("ask", url, "what?", "--model", model)) == 2
    assert "URLs are not fetched unless allowed" in " ".join(capsys.readouterr().err.split())
