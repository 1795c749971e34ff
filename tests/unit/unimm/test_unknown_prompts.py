"""What the command line says of prompts that a model has not learned."""

from types import SimpleNamespace
from typing import Any

import pytest

from unimm.cli.generate import warn_if_unknown
from unimm.scenes import Grammar, load_prompts


def said(prompt: str, capsys: pytest.CaptureFixture[str], grammar: dict[str, Any] | None) -> str:
    config = SimpleNamespace(grammar=grammar)
    pipeline: Any = SimpleNamespace(model=SimpleNamespace(config=config))
    warn_if_unknown(pipeline, prompt)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "warning"),
    [
        ("a picture of a blue circle and a red square", ""),
        ("a picture of a red circle", "held out of the training (split 'pair')"),
        ("a picture of a purple circle", "has not learned such a prompt"),
        ("a cat", "has not learned such a prompt"),
    ],
)
def test_a_prompt_outside_of_what_was_learned_is_warned_of(
    capsys: pytest.CaptureFixture[str], prompt: str, warning: str
) -> None:
    error = " ".join(said(prompt, capsys, Grammar.small().to_dict()).split())
    assert warning in error
    assert bool(warning) == bool(error)


def test_frozen_prompts_of_the_training_split_are_not_warned_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for prompt in load_prompts("small", "train")[::40]:
        assert not said(prompt.text, capsys, Grammar.small().to_dict())


def test_a_model_of_an_open_language_warns_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert not said("a cat", capsys, None)
