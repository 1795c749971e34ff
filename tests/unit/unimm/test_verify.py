"""Verifiers against brute force: whole sequences, no cache, no batch."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from unimm.chat import ChatTemplate, TextSegment
from unimm.chat_style import ChatStyle
from unimm.options import VerifierName
from unimm.reader import Reader
from unimm.testing import tiny_pipeline
from unimm.verify import (
    PromptLikelihoodVerifier,
    Verifier,
    YesNoVerifier,
    build_verifier,
    verifier_sequence,
)

PROMPT = "a picture of a red circle"
STYLES = {
    "text first": ChatStyle(),
    "picture first": ChatStyle(
        system="You are helpful.", verify="{image}\nmatch {prompt}?", yes=("yes", "a"), no=("no",)
    ),
}


@pytest.fixture(scope="module", params=list(STYLES))
def reader(request: pytest.FixtureRequest) -> Reader:
    base = tiny_pipeline().reader
    template = ChatTemplate(base.template.tokenizer, STYLES[request.param])
    return Reader(base.model, template)


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(5, 16, 48, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_yes_no_score_is_the_log_odds_at_the_answer(reader: Reader, latents: Tensor) -> None:
    scores = YesNoVerifier(reader).score(PROMPT, latents)
    layout = reader.model.lay_out([reader.template.verify(PROMPT)], pad_id=0)
    for score, picture in zip(scores, latents, strict=True):
        embeds = reader.model.embed(layout, picture[None])
        probabilities = reader.model.lm.next_token_logprobs(embeds)[0].exp()
        yes = probabilities[list(reader.template.yes_ids)].sum()
        no = probabilities[list(reader.template.no_ids)].sum()
        torch.testing.assert_close(score, torch.log(yes / no))


@torch.no_grad()
def test_likelihood_is_the_mean_log_probability_of_the_prompt(
    reader: Reader, latents: Tensor
) -> None:
    scores = PromptLikelihoodVerifier(reader).score(PROMPT, latents)
    token_ids = reader.template.encode(PROMPT)
    for score, picture in zip(scores, latents, strict=True):
        logprobs = []
        for position, token in enumerate(token_ids):
            turn = [*reader.template.describe(), TextSegment(token_ids[:position])]
            layout = reader.model.lay_out([turn], pad_id=0)
            embeds = reader.model.embed(layout, picture[None])
            logprobs.append(reader.model.lm.next_token_logprobs(embeds)[0, token])
        torch.testing.assert_close(score, torch.stack(logprobs).mean())


@pytest.mark.parametrize("name", get_args(VerifierName))
def test_scores_do_not_depend_on_company(
    reader: Reader, latents: Tensor, name: VerifierName
) -> None:
    verifier = build_verifier(name, reader)
    assert isinstance(verifier, Verifier)
    together = verifier.score(PROMPT, latents)
    alone = torch.cat([verifier.score(PROMPT, picture[None]) for picture in latents])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", get_args(VerifierName))
def test_scores_depend_on_picture_and_prompt(
    reader: Reader, latents: Tensor, name: VerifierName
) -> None:
    verifier = build_verifier(name, reader)
    scores = verifier.score(PROMPT, latents)
    assert len(set(scores.tolist())) == len(latents)
    assert not torch.equal(scores, verifier.score("a blue square", latents))


def test_a_batch_in_double_precision_gives_the_same_scores(latents: Tensor) -> None:
    """Off float32, candidates share a batch: the scores agree to rounding."""
    reader = tiny_pipeline().reader
    reader.model.double()
    batched = YesNoVerifier(reader, batch_size=3).score(PROMPT, latents)
    alone = YesNoVerifier(reader, batch_size=1).score(PROMPT, latents)
    torch.testing.assert_close(batched, alone, rtol=1e-5, atol=1e-5)


def test_the_text_before_the_picture_is_read_once(latents: Tensor) -> None:
    """A prefill of the shared text, then one call for each candidate."""
    reader = tiny_pipeline().reader
    calls: list[int] = []
    base_model: nn.Module = reader.model.language.base_model  # type: ignore[assignment]
    base_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    YesNoVerifier(reader).score(PROMPT, latents)
    whole = reader.length(reader.template.verify(PROMPT))
    assert len(calls) == 1 + len(latents)
    assert calls[0] + calls[1] == whole
    assert len(set(calls[1:])) == 1


def test_sequence_lengths_are_those_that_are_read(reader: Reader) -> None:
    assert verifier_sequence("yes_no", reader, PROMPT) == reader.template.verify(PROMPT)
    described = verifier_sequence("prompt_likelihood", reader, PROMPT)
    spelled = len(reader.template.encode(PROMPT))
    assert reader.length(described) == reader.length(reader.template.describe()) + spelled
    longer = max(reader.length(reader.template.verify(PROMPT)), reader.length(described))
    assert reader.length(verifier_sequence("ensemble", reader, PROMPT)) == longer


def test_the_ensemble_adds_the_odds_of_yes_and_the_probability_of_the_prompt(
    reader: Reader, latents: Tensor
) -> None:
    odds, mean_logprob, both = (
        build_verifier(name, reader).score(PROMPT, latents)
        for name in ("yes_no", "prompt_likelihood", "ensemble")
    )
    num_tokens = len(reader.template.encode(PROMPT))
    torch.testing.assert_close(both, odds + num_tokens * mean_logprob)
