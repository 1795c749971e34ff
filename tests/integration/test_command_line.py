"""The command line as a person meets it: real processes, exit statuses, one line on stderr."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

COMMANDS = ["generate", "ask", "verify", "chat", "info", "convert", "train", "eval", "serve"]


def unimm(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unimm", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def refused(cwd: Path, *arguments: str) -> str:
    """Return the one line that refuses a command; it must have written nothing."""
    before = sorted(cwd.rglob("*"))
    done = unimm(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert sorted(cwd.rglob("*")) == before
    (line,) = done.stderr.splitlines()
    assert line.startswith("unimm: ")
    return line


def test_help_names_every_command(tmp_path: Path) -> None:
    for done in (unimm(cwd=tmp_path), unimm("--help", cwd=tmp_path)):
        assert done.returncode == 0
        assert done.stderr == ""
        assert all(f" {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", ["generate", "ask", "verify", "chat", "info", "convert"])
def test_a_commands_help_has_an_example(tmp_path: Path, command: str) -> None:
    done = unimm(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"unimm {command}" in done.stdout.split("Example", maxsplit=1)[1]


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert unimm("--version", cwd=tmp_path).stdout.startswith("unimm 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generat"], "Did you mean 'generate'?"),
        (["generate"], "Missing argument 'PROMPT'"),
        (["generate", ""], "the prompt is empty"),
        (["generate", "  \n"], "the prompt is empty"),
        (["generate", "a star", "--best-of", "many"], "--best-of"),
        (["generate", "a star", "--best-of", "0"], "best_of must be a whole number of at least 1"),
        (["generate", "a star", "--steps", "0"], "num_steps must be a whole number of at least 1"),
        (["generate", "a star", "--guidance-scale", "nan"], "guidance_scale"),
        (["generate", "a star", "--seed", "-1"], "seed must be"),
        (["generate", "a star", "--device", "tpu"], "unknown device 'tpu'; this machine has"),
        (["generate", "a star", "--dtype", "int8"], "unknown dtype 'int8'; choose from"),
        (["generate", "a star", "--out", "absent/a.png"], "there is no folder absent"),
        (["generate", "a star", "--out", "a.jpg"], "must end in .png"),
        (["generate", "a star", "--out", "/proc/a.png"], "cannot write /proc/a.png"),
        (["generate", "a star", "--sheet", "folder.png"], "it is a folder"),
        (["generate", "a star", "--save-latents", "a.png"], "must end in .safetensors"),
        (["generate", "a star", "--model", "absent/model"], "absent/model"),
        (["generate", "a star", "--model", "folder.png"], "folder.png"),
        (["ask", "absent.png", "what is it?"], "there is no file absent.png"),
        (["ask", "text.png", "what is it?"], "text.png is no picture"),
        (["ask", "half.png", "what is it?"], "half.png is damaged or truncated"),
        (["ask", "whole.png", ""], "the question is empty"),
        (["verify", "a star", "text.safetensors"], "text.safetensors"),
        (["verify", "", "whole.png"], "the prompt is empty"),
        (["info", "absent"], "absent"),
        (["convert", "absent", "folder.png"], "folder.png exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "text.safetensors").write_text("not latents")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    half = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    assert message in refused(tmp_path, *arguments)
