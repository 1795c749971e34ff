"""Verifiers: how well do latents match a prompt, in the eyes of the model that drew them?

Shape legend:
    K candidates      N latent tokens      D latent channels
"""

from collections.abc import Iterator
from typing import Protocol, assert_never, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from unimm.batching import exact_batch_size
from unimm.chat import Segment, TextSegment
from unimm.language import State
from unimm.options import VerifierName
from unimm.reader import Reader, split_at_image


@runtime_checkable
class Verifier(Protocol):
    """Scores how well latents match a prompt, in natural-log units; higher is better."""

    def score(self, prompt: str, latents: Float[Tensor, "K N D"]) -> Float[Tensor, "K"]: ...


class YesNoVerifier:
    """Log-odds of yes against no, read at the one position where the answer begins.

    The text before the picture is read once and its keys and values are shared by all candidates.

    Args:
        reader: Model and chat template.
        batch_size: Most candidates to read at once.
    """

    def __init__(self, reader: Reader, *, batch_size: int = 32) -> None:
        self.reader = reader
        self.batch_size = batch_size

    @torch.no_grad()
    def score(self, prompt: str, latents: Float[Tensor, "K N D"]) -> Float[Tensor, "K"]:
        template, lm = self.reader.template, self.reader.model.lm
        turn = template.verify(prompt)
        scores = []
        for state in read_candidates(self.reader, turn, latents, batch_size=self.batch_size):
            logits = lm.logits(state.last)
            yes = logits[:, list(template.yes_ids)].logsumexp(dim=-1)
            no = logits[:, list(template.no_ids)].logsumexp(dim=-1)
            scores.append(yes - no)
        return torch.cat(scores)


class PromptLikelihoodVerifier:
    """Mean log-probability of the prompt's tokens as the description of the picture.

    Args:
        reader: Model and chat template.
        batch_size: Most candidates to read at once.
    """

    def __init__(self, reader: Reader, *, batch_size: int = 32) -> None:
        self.reader = reader
        self.batch_size = batch_size

    @torch.no_grad()
    def score(self, prompt: str, latents: Float[Tensor, "K N D"]) -> Float[Tensor, "K"]:
        template, lm = self.reader.template, self.reader.model.lm
        token_ids = template.encode(prompt)
        turn = [*template.describe(), TextSegment(token_ids)]
        target = torch.tensor(token_ids, device=self.reader.model.device)
        scores = []
        for state in read_candidates(self.reader, turn, latents, batch_size=self.batch_size):
            # The state before a token predicts it.
            logprobs = lm.logits(state.hidden[:, -len(token_ids) - 1 : -1]).log_softmax(dim=-1)
            index = target.expand(len(logprobs), -1)[..., None]
            scores.append(logprobs.gather(-1, index)[..., 0].mean(dim=-1))
        return torch.cat(scores)


class EnsembleVerifier:
    """Sum of the log-odds of yes and the log-probability of the whole prompt.

    Two readings of the same picture that err differently: one judges, the other describes.

    Args:
        reader: Model and chat template.
        batch_size: Most candidates to read at once.
    """

    def __init__(self, reader: Reader, *, batch_size: int = 32) -> None:
        self.reader = reader
        self.yes_no = YesNoVerifier(reader, batch_size=batch_size)
        self.likelihood = PromptLikelihoodVerifier(reader, batch_size=batch_size)

    def score(self, prompt: str, latents: Float[Tensor, "K N D"]) -> Float[Tensor, "K"]:
        num_tokens = len(self.reader.template.encode(prompt))
        likelihood = num_tokens * self.likelihood.score(prompt, latents)  # of a mean, the sum
        return self.yes_no.score(prompt, latents) + likelihood


def build_verifier(name: VerifierName, reader: Reader, *, batch_size: int = 32) -> Verifier:
    """Return the verifier of that name."""
    match name:
        case "yes_no":
            return YesNoVerifier(reader, batch_size=batch_size)
        case "prompt_likelihood":
            return PromptLikelihoodVerifier(reader, batch_size=batch_size)
        case "ensemble":
            return EnsembleVerifier(reader, batch_size=batch_size)
        case _:
            assert_never(name)


def verifier_sequence(name: VerifierName, reader: Reader, prompt: str) -> list[Segment]:
    """Return the longest sequence that a verifier reads, to know its length beforehand."""
    template = reader.template
    judged = template.verify(prompt)
    described = [*template.describe(), TextSegment(template.encode(prompt))]
    match name:
        case "yes_no":
            return judged
        case "prompt_likelihood":
            return described
        case "ensemble":
            return max(judged, described, key=reader.length)
        case _:
            assert_never(name)


def read_candidates(
    reader: Reader, turn: list[Segment], latents: Float[Tensor, "K N D"], *, batch_size: int
) -> Iterator[State]:
    """Read a turn with each candidate as its picture; what comes before it is read once."""
    model = reader.model
    shared, rest = split_at_image(turn)
    beginning = reader.read([shared])
    size = exact_batch_size(batch_size, model.device, model.dtype)
    for chunk in torch.split(latents, size):
        images = chunk.to(model.device, model.dtype)
        yield reader.read([rest] * len(chunk), images, after=beginning.expand(len(chunk)))
