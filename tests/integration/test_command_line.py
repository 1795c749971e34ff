"""The command line as a person meets it: exit statuses, one line on stderr, files that appear."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unimm.cli
from unimm.image import read_image
from unimm.options import GenerationOptions
from unimm.pipeline import Pipeline
from unimm.testing import tiny_model, tiny_tokenizer

COMMANDS = [
    *("generate", "ask", "verify", "chat", "info", "convert", "assemble", "average"),
    *("train", "cache-latents", "export", "eval", "serve"),
]
PROMPT = "a picture of a red circle"
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    Pipeline(tiny_model(), tiny_tokenizer()).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder of the test, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Outcome:
    """What a command in this process left behind."""

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        self.status, self.stdout, self.stderr = status, stdout, stderr


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> "Call":
    return Call(capsys)


class Call:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> Outcome:
        self.capsys.readouterr()
        status = unimm.cli.run(arguments)
        captured = self.capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    def json(self, *arguments: str) -> dict[str, object]:
        """Return the document that a command prints; nothing else may be on stdout."""
        outcome = self(*arguments, "--json")
        assert outcome.status == 0, outcome.stderr
        document: dict[str, object] = json.loads(outcome.stdout)
        return document


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unimm", *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    for done in (process(cwd=tmp_path), process("--help", cwd=tmp_path)):
        assert done.returncode == 0
        assert done.stderr == ""
        assert all(f" {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "command", ["generate", "ask", "verify", "chat", "info", "convert", "assemble", "average"]
)
def test_a_commands_help_has_an_example(call: Call, command: str) -> None:
    outcome = call(command, "--help")
    assert outcome.status == 0
    assert f"unimm {command}" in outcome.stdout.split("Example", maxsplit=1)[1]


def test_the_version_is_printed(call: Call) -> None:
    assert call("--version").stdout == f"unimm {unimm.__version__}\n"


def test_a_process_ends_with_status_2_and_one_line_on_a_mistake(tmp_path: Path) -> None:
    done = process("generate", "", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "unimm: the prompt is empty; say what to draw\n"


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "import unimm.cli, unimm.cli.info as info\n"
        "info.describe = lambda *a, **k: int('x')\n"
        "unimm.cli.main(['info'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_only_our_own_raise_statement_means_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least 1") as ours:
        GenerationOptions(best_of=0)
    assert unimm.cli.raised_by_us(ours.value)
    with pytest.raises(ValueError, match="invalid literal") as built_in:
        int("x")
    assert not unimm.cli.raised_by_us(built_in.value)
    # A library that fails on what our code gave it, and a built-in that our code called.
    with pytest.raises(ValueError, match="not in list") as called:
        exec("[].index(1)", {"__name__": "unimm.example"})
    assert not unimm.cli.raised_by_us(called.value)


def test_ctrl_c_ends_with_status_130(model: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "unimm", "chat", "--model", model],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as chat:
        assert chat.stderr is not None
        while "/help" not in chat.stderr.readline():
            assert chat.poll() is None
        chat.send_signal(signal.SIGINT)
        assert chat.wait() == 130
        assert "Traceback" not in chat.stderr.read()


def test_a_drawn_picture_is_described_by_one_json_document(
    call: Call, model: str, folder: Path
) -> None:
    document = call.json(
        *("generate", PROMPT, "--best-of", "3", "--steps", "2", "--seed", "7", "--model", model),
        *("--out", "a.png", "--sheet", "sheet.png", "--save-latents", "a.safetensors"),
    )
    assert list(document) == [
        *("prompt", "seed", "chosen", "candidates", "image", "latents", "nfe", "pixel_decodes"),
        "seconds",
    ]
    assert (document["prompt"], document["seed"]) == (PROMPT, 7)
    assert (document["image"], document["latents"]) == ("a.png", "a.safetensors")
    candidates = document["candidates"]
    assert isinstance(candidates, list)
    assert [list(candidate) for candidate in candidates] == [
        ["index", "seed", "score", "nfe", "pruned_at"]
    ] * 3
    scores = [candidate["score"] for candidate in candidates]
    assert document["chosen"] == int(np.argmax(scores))
    assert document["nfe"] == sum(candidate["nfe"] for candidate in candidates) == 6
    # The winner, and all three for the sheet.
    assert document["pixel_decodes"] == 4
    assert list(document["seconds"]) == ["prompt", "denoise", "verify", "decode"]  # type: ignore[call-overload]
    with Image.open("a.png") as image:
        assert image.info == {
            "prompt": PROMPT,
            "seed": "7",
            "candidate": str(document["chosen"]),
        }
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.png",
        "a.safetensors",
        "sheet.png",
    ]


def test_only_the_winner_is_decoded_when_no_sheet_is_asked_for(
    call: Call, model: str, folder: Path
) -> None:
    document = call.json("generate", PROMPT, "--best-of", "3", "--steps", "2", "--model", model)
    assert document["pixel_decodes"] == 1
    assert document["image"] == "a-picture-of-a-red-circle-0.png"
    assert read_image(folder / "a-picture-of-a-red-circle-0.png").size == (16, 16)


def test_without_json_the_path_is_the_first_line(call: Call, model: str, folder: Path) -> None:
    outcome = call("generate", PROMPT, "--steps", "2", "--model", model, "--out", "a.png")
    assert outcome.stdout.splitlines()[0] == "a.png"
    assert outcome.stderr == ""


def test_the_same_seed_draws_the_same_picture(call: Call, model: str, folder: Path) -> None:
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        call("generate", PROMPT, "--steps", "2", "--model", model, "--out", name, "--seed", seed)
    a, b, c = (np.asarray(read_image(folder / name)) for name in ("a.png", "b.png", "c.png"))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_pictures_and_latents_are_read_back(call: Call, model: str, folder: Path) -> None:
    document = call.json(
        *("generate", PROMPT, "--steps", "2", "--model", model),
        *("--out", "a.png", "--save-latents", "a.safetensors"),
    )
    verified = call.json("verify", PROMPT, "a.safetensors", "a.png", "--model", model)
    scores = verified["scores"]
    assert isinstance(scores, list)
    assert [row["file"] for row in scores] == ["a.safetensors", "a.png"]
    # The same latents under the same question: the score of the search itself.
    assert scores[0]["score"] == pytest.approx(document["candidates"][0]["score"], abs=1e-5)  # type: ignore[index]
    files = ("a.safetensors", "--model", model, "--verifier")
    described, both = (
        call.json("verify", PROMPT, *files, name)["scores"][0]["score"]  # type: ignore[index]
        for name in ("prompt_likelihood", "ensemble")
    )
    assert described < 0
    assert both < scores[0]["score"]
    answer = call.json("ask", "a.safetensors", "what color is it?", "--model", model)
    assert list(answer) == ["image", "question", "answer"]


def test_info_adds_up(call: Call, model: str) -> None:
    document = call.json("info", model)
    parts = document["parts"]
    assert isinstance(parts, list)
    total = sum(part["parameters"] for part in parts)
    assert total == document["parameters"] == sum(p.numel() for p in tiny_model().parameters())
    assert document["bytes"] == {"float32": 4 * total, "bfloat16": 2 * total}


def test_a_converted_model_is_half_as_large_and_works(call: Call, model: str, folder: Path) -> None:
    assert call("convert", model, "half", "--dtype", "bfloat16").status == 0
    size = (folder / "half" / "model.safetensors").stat().st_size
    assert size < 0.6 * (Path(model) / "model.safetensors").stat().st_size
    assert call.json("info", "half")["latent_space"] == call.json("info", model)["latent_space"]


def test_a_conversation_goes_on_after_a_slip(
    call: Call, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (16, 16), "red").save("red.png")
    lines = ["/image absent.png", "/dance", "/image red.png", "what is it?", "/history", "/quit"]
    monkeypatch.setattr("unimm.cli.chat.read_line", iter(lines).__next__)
    outcome = call("chat", "--model", model)
    assert outcome.status == 0
    assert "there is no file absent.png" in outcome.stderr
    assert "unknown command /dance" in outcome.stderr
    assert "you: what is it?" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generat"], "Did you mean 'generate'?"),
        (["generate"], "Missing argument 'PROMPT'"),
        (["generate", "  \n"], "the prompt is empty"),
        (["generate", "star " * 999, "-m", "MODEL"], "positions"),
        (["generate", "star", "--best-of", "many"], "--best-of"),
        (["generate", "star", "--best-of", "0"], "best_of must be a whole number of at least 1"),
        (["generate", "star", "--best-of", "99999999", "-m", "MODEL"], "of memory"),
        (["generate", "star", "--steps", "0"], "num_steps must be a whole number of at least 1"),
        (["generate", "star", "--guidance-scale", "nan"], "guidance_scale must be"),
        (["generate", "star", "--exit-scale", "1.5", "-m", "MODEL"], "has no early exit"),
        (["generate", "star", "--seed", "-1"], "seed must be"),
        (["generate", "star", "--device", "tpu"], "unknown device 'tpu'"),
        (["generate", "star", "--device", "cuda:99"], "no device cuda:99 here"),
        (["generate", "star", "--dtype", "int8"], "unknown dtype 'int8'; choose from"),
        (["generate", "star", "--out", "absent/a.png"], "there is no folder absent"),
        (["generate", "star", "--out", "a.jpg"], "must end in .png"),
        (["generate", "star", "--out", "/proc/a.png"], "cannot write /proc/a.png"),
        (["generate", "star", "--sheet", "folder.png"], "it is a folder"),
        (["generate", "star", "--save-latents", "a.png"], "must end in .safetensors"),
        (["generate", "star", "--model", "absent"], "there is no model directory absent"),
        (["generate", "star", "--model", "folder.png"], "folder.png has no config.json"),
        (["ask", "absent.png", "what is it?"], "there is no file absent.png"),
        (["ask", "text.png", "what is it?"], "text.png is no picture"),
        (["ask", "half.png", "what is it?"], "half.png is damaged or truncated"),
        (["ask", "whole.png", ""], "the question is empty"),
        (["ask", "foreign.safetensors", "what?", "-m", "MODEL"], "latent space elsewhere"),
        (["verify", "star", "text.safetensors"], "no safetensors file or is damaged"),
        (["verify", "star", "foreign.safetensors", "-m", "MODEL"], "latent space elsewhere"),
        (["verify", "", "whole.png"], "the prompt is empty"),
        (["verify", "star", "whole.png", "--verifier", "clip"], "yes_no, prompt_likelihood, ens"),
        (["generate", "star", "--verifier", "clip"], "verifier must be one of yes_no"),
        (["info", "absent"], "there is no model directory absent"),
        (["convert", "absent", "folder.png"], "folder.png exists"),
        (["chat", "--pictures", "whole.png"], "it is a file"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(
    call: Call, model: str, folder: Path, arguments: list[str], message: str
) -> None:
    make_files(folder)
    before = sorted(folder.rglob("*"))
    outcome = call(*(model if argument == "MODEL" else argument for argument in arguments))
    assert outcome.status == 2
    assert outcome.stdout == ""
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("unimm: ")
    assert message in line
    assert sorted(folder.rglob("*")) == before


def make_files(folder: Path) -> None:
    import torch

    from unimm.latents_file import save_latents

    (folder / "folder.png").mkdir()
    (folder / "text.png").write_text("not a picture")
    (folder / "text.safetensors").write_text("not latents")
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    half = (folder / "whole.png").read_bytes()
    (folder / "half.png").write_bytes(half[: len(half) // 2])
    save_latents(folder / "foreign.safetensors", torch.zeros(1, 16, 48), space="elsewhere")
