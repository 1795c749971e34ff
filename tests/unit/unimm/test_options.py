"""Options: defaults, and messages that name the value and the limit."""

import re
from typing import Any

import pytest
from jaxtyping import TypeCheckError

from unimm.config import UniMMConfig
from unimm.config_io import from_dict, to_dict
from unimm.errors import ConfigError, UserError
from unimm.options import GenerationOptions, SamplingDefaults, TextOptions, resolve
from unimm.testing import tiny_config


def test_open_options_take_the_models_defaults() -> None:
    defaults = SamplingDefaults(num_steps=7, guidance_scale=2.5, sampler="heun")
    resolved = resolve(GenerationOptions(best_of=3), defaults)
    assert (resolved.best_of, resolved.num_steps, resolved.guidance_scale) == (3, 7, 2.5)
    assert (resolved.sampler, resolved.verifier) == ("heun", "yes_no")


def test_given_options_win() -> None:
    options = GenerationOptions(
        num_steps=2, guidance_scale=0.0, sampler="euler", guidance_interval=(0.1, 0.9)
    )
    resolved = resolve(options, SamplingDefaults(num_steps=7, guidance_scale=2.5))
    assert (resolved.num_steps, resolved.guidance_scale) == (2, 0.0)
    assert resolved.guidance_interval == (0.1, 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 0}, "best_of must be a whole number of at least 1, got 0"),
        ({"best_of": True}, "best_of must be a whole number of at least 1, got True"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be a whole number of at least 1, got -1"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a number of at least 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number of at least 0"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval must be two rising times"),
        ({"exit_scale": float("inf")}, "exit_scale must be a number of at least 0"),
        ({"exit_interval": (-0.1, 1.0)}, "exit_interval must be two rising times"),
        ({"seed": -1}, "seed must be a whole number from 0 to"),
        ({"seed": 2**64}, "seed must be a whole number from 0 to"),
    ],
)
def test_bad_generation_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        GenerationOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 2.0}, "best_of must be a whole number of at least 1, got 2.0"),
        ({"sampler": "ddim"}, "sampler must be one of euler, heun, midpoint, got 'ddim'"),
        ({"verifier": "clip"}, "verifier must be one of yes_no, prompt_likelihood, got 'clip'"),
    ],
)
def test_options_of_a_wrong_type_are_refused(options: dict[str, Any], message: str) -> None:
    """Or the shape check, where it is on, says so first and names the option."""
    (name,) = options
    with pytest.raises((UserError, TypeCheckError), match=f"{re.escape(message)}|{name}"):
        GenerationOptions(**options)


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_bad_text_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        TextOptions(**options)


def test_a_configuration_survives_json() -> None:
    config = tiny_config()
    assert from_dict(UniMMConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("generator.dit", {"latent_dim": 24}, "latent_dim (24) must equal channels"),
        ("generator.dit", {"num_latent_tokens": 4}, "num_latent_tokens (4) must equal tokens"),
        ("generator.connector", {"in_dim": 8}, "in_dim (8) must equal language.hidden_size (32)"),
        ("", {"num_queries": 5}, "num_queries must be 1 or one for each of the 16 latent tokens"),
        ("chat", {"draw": "draw!"}, "chat: draw must contain each of {prompt} once"),
        ("sampling", {"num_steps": 0}, "sampling: num_steps must be"),
        ("", {"grammer": {}}, "did you mean 'grammar'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    section: str, change: dict[str, Any], message: str
) -> None:
    tree: dict[str, Any] = to_dict(tiny_config())
    place = tree
    for key in section.split(".") if section else ():
        place = place[key]
    place.update(change)
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_dict(UniMMConfig, tree)


def test_a_language_config_needs_its_type() -> None:
    tree = to_dict(tiny_config())
    del tree["language"]["model_type"]
    with pytest.raises(ConfigError, match="must have a 'model_type'"):
        from_dict(UniMMConfig, tree)
