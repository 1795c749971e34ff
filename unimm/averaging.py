"""The mean of models that began as one: model soups (arXiv:2203.05482)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import isfinite
from pathlib import Path

import torch

from unimm.checkpoint import unique_state
from unimm.config_io import to_dict
from unimm.errors import UserError
from unimm.model import UniMM
from unimm.pipeline import Pipeline


def average(places: Sequence[str | Path], weights: Sequence[float] | None = None) -> Pipeline:
    """Return the mean of models, computed in float32, with the settings of the first.

    Runs that went different ways from one model, or steps of one run, often have a mean that is
    better than each. What all have the same stays the same bit for bit. Two models are in memory
    at a time.

    Args:
        places: Directories or hub ids.
        weights: Of each, in any scale; alike when None.

    Raises:
        UserError: There are fewer than two, the weights are not as many or not positive, or the
            models differ in shape, tokenizer or latent space.
    """
    weights = _checked([1.0] * len(places) if weights is None else weights, places)
    mean = Pipeline.from_pretrained(places[0])
    totals = [*accumulate(weights)]
    for place, weight, total in zip(places[1:], weights[1:], totals[1:], strict=True):
        other = Pipeline.from_pretrained(place)
        _check_alike(mean, other, where=f"{places[0]} and {place}")
        _move(mean.model, other.model, weight / total)
    shares = (f"- {w / totals[-1]:.3f} {place}" for place, w in zip(places, weights, strict=True))
    mean.card = "\n".join(["# Mean of models", "", *shares, ""])
    return mean


def _checked(weights: Sequence[float], places: Sequence[str | Path]) -> Sequence[float]:
    if len(places) < 2:
        raise UserError(f"a mean takes at least 2 models, got {len(places)}; name another")
    if len(weights) != len(places):
        raise UserError(f"got {len(weights)} weights for {len(places)} models; give each one")
    for weight in weights:
        if not (weight > 0 and isfinite(weight)):
            raise UserError(f"a weight must be positive and finite, got {weight}")
    return weights


def _check_alike(first: Pipeline, second: Pipeline, *, where: str) -> None:
    sampling = first.model.config.sampling  # which may differ
    trees = [to_dict(replace(one.model.config, sampling=sampling)) for one in (first, second)]
    differ = [key for key in trees[0] if trees[0][key] != trees[1][key]]
    vocabularies = [one.reader.template.tokenizer.get_vocab() for one in (first, second)]
    if vocabularies[0] != vocabularies[1]:
        differ.append("tokenizer")
    if first.space != second.space:
        differ.append("latent space")
    if differ:
        raise UserError(
            f"{where} differ in {', '.join(differ)}; only models that were trained from the same "
            "one have a mean"
        )


@torch.no_grad()
def _move(model: UniMM, towards: UniMM, share: float) -> None:
    there = unique_state(towards)
    for name, tensor in unique_state(model).items():
        if tensor.is_floating_point():
            tensor.lerp_(there[name], share)
