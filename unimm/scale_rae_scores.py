"""Scale-RAE's own scores of a candidate, and its rules for choosing (arXiv:2601.16208).

The released code computes nine numbers a candidate and sorts by one or three of them. They are
kept for comparison with its results; :mod:`unimm.verify` has the verifiers that the pipeline uses.

``confidence`` of a distribution p over V tokens is KL(uniform || p) = -mean(log(V p)): the sharper
the prediction, the higher.

Shape legend:
    L positions      V vocabulary      T tokens of an answer
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unimm.errors import UserError

Metric = Literal[
    "prompt_conf", "image_conf", "response_conf", "answer_logits", "answer_conf", "loss"
]


def confidence(logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """Return KL(uniform || p) of each distribution, in natural-log units."""
    return -(logits.float().log_softmax(dim=-1).mean(dim=-1) + log(logits.shape[-1]))


def prompt_token_losses(
    logits: Float[Tensor, "L V"], prompt: Int[Tensor, "k"], *, start: int
) -> Float[Tensor, "k-1"]:
    """Return the cross-entropy of the prompt's tokens but the first, which is not counted.

    Args:
        logits: Of a sequence that holds the prompt.
        prompt: Its tokens.
        start: Position of the first of them.
    """
    rows = logits[start : start + len(prompt) - 1].float()
    return F.cross_entropy(rows, prompt[1:], reduction="none")


def prompt_confidence(
    logits: Float[Tensor, "L V"], num_tokens: int, *, start: int
) -> Float[Tensor, ""]:
    """Return the mean confidence of the prompt's positions, the last of which looks beyond it."""
    return confidence(logits[start : start + num_tokens]).mean()


def image_confidence(logits: Float[Tensor, "L V"], *, start: int) -> Float[Tensor, ""]:
    """Return the mean confidence from ``start`` to the last position but one.

    The released code starts at the length of the generation prompt plus that of the text before
    the picture, and reads the sequence that ends in the picture and its end marker.
    """
    return confidence(logits[start:-1]).mean()


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """What a written yes-or-no answer says about a candidate.

    Args:
        score: 1 for yes, 0 for no and for neither.
        yes_logit: Logit of the last yes token written, 0 if none was.
        no_logit: The same of no.
        yes_conf_score: Confidence where that yes was written, 0 if none was.
        no_conf_score: The same of no.
        response_conf_score: Mean confidence over the answer.
    """

    score: float
    yes_logit: float
    no_logit: float
    yes_conf_score: float
    no_conf_score: float
    response_conf_score: float


def answer_scores(
    token_ids: Sequence[int],
    logits: Float[Tensor, "T V"],
    *,
    yes_ids: Collection[int],
    no_ids: Collection[int],
) -> AnswerScores:
    """Return the scores of an answer.

    Args:
        token_ids: What was written.
        logits: From which each token was chosen.
        yes_ids: Every token of every spelling of yes.
        no_ids: Every token of every spelling of no.
    """
    confidences = confidence(logits).tolist()
    chosen = [float(row[token]) for row, token in zip(logits, token_ids, strict=True)]
    yes = _last(token_ids, yes_ids)
    no = _last(token_ids, no_ids)
    return AnswerScores(
        score=float(yes is not None),
        yes_logit=0.0 if yes is None else chosen[yes],
        no_logit=0.0 if no is None else chosen[no],
        yes_conf_score=0.0 if yes is None else confidences[yes],
        no_conf_score=0.0 if no is None else confidences[no],
        response_conf_score=sum(confidences) / len(confidences) if confidences else 0.0,
    )


def _last(token_ids: Sequence[int], wanted: Collection[int]) -> int | None:
    places = [index for index, token in enumerate(token_ids) if token in wanted]
    return places[-1] if places else None


@dataclass(frozen=True, slots=True)
class ScaleRAEScores:
    """Everything that the released code records of a candidate.

    Args:
        answer: Of the written answer.
        prompt_loss: Mean cross-entropy of the prompt given the picture, in nats.
        prompt_conf_score: See :func:`prompt_confidence`.
        image_conf_score: See :func:`image_confidence`.
    """

    answer: AnswerScores
    prompt_loss: float
    prompt_conf_score: float
    image_conf_score: float


_KEYS: dict[Metric, Callable[[ScaleRAEScores], tuple[float, ...]]] = {
    "prompt_conf": lambda s: (s.prompt_conf_score,),
    "image_conf": lambda s: (s.image_conf_score,),
    "response_conf": lambda s: (s.answer.response_conf_score,),
    "answer_logits": lambda s: (s.answer.score, s.answer.yes_logit, -s.answer.no_logit),
    "answer_conf": lambda s: (s.answer.score, s.answer.yes_conf_score, -s.answer.no_conf_score),
    # An error of the released code: it reads the wrong column and never the prompt's loss.
    "loss": lambda s: (-s.answer.yes_conf_score,),
}


def rank(scores: Sequence[ScaleRAEScores], metric: Metric) -> list[int]:
    """Return the candidates' numbers, the best first; equals keep their order.

    ``loss`` repeats the released code's error: it prefers the *least* confident yes.

    Raises:
        UserError: There is no such metric.
    """
    if metric not in _KEYS:
        raise UserError(f"metric must be one of {', '.join(get_args(Metric))}, got {metric!r}")
    key = _KEYS[metric]
    return sorted(range(len(scores)), key=lambda i: key(scores[i]), reverse=True)
