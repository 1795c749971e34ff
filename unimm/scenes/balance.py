"""Shares of would-be questions that are asked, so that no answer dominates its kind.

Each share is the rarest answer's probability over this answer's, over scenes of sampled
training prompts; 1 for the rarest answer.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache

from unimm.scenes.grammar import Grammar, prompts, textures_of
from unimm.scenes.heldout import HELD_PAIRS
from unimm.scenes.spec import SKILLS
from unimm.scenes.text import PLACES
from unimm.scenes.world import EDGE_MARGIN, MAX_OBJECTS, PICTURE_SIZE, SIZES

_ZERO_SHARE = 0.15
"""Share of the counts asked on counting pictures that ask for a shape that is not there."""


def _shares(probabilities: Mapping[str, int] | Mapping[str, float]) -> dict[str, float]:
    """Return the rarest probability over each; 0 for what never happens."""
    rarest = min(p for p in probabilities.values() if p > 0)
    return {name: rarest / p if p > 0 else 0.0 for name, p in probabilities.items()}


@cache
def number_shares(grammar: Grammar) -> tuple[float, ...]:
    """Return shares by the number of objects, 0 to 5; 1 for numbers that training lacks."""
    probabilities: defaultdict[str, float] = defaultdict(float)
    pools = [pool for skill in SKILLS if (pool := prompts(grammar, skill))]
    for pool in pools:
        for prompt in pool:
            probabilities[str(len(prompt.spec.objects))] += 1 / len(pool) / len(pools)
    shares = _shares(probabilities)
    return tuple(shares.get(str(n), 1.0) for n in range(MAX_OBJECTS + 1))


@cache
def shape_count_shares(grammar: Grammar, *, is_counting: bool) -> tuple[float, float]:
    """Return the shares of pictures to ask for an absent shape, and for one that is there.

    Counting pictures, one skill of all, are always asked about; from the others come as many
    "one" and so many more "zero" that both are as frequent as the mean larger number.
    """
    pools = {skill: pool for skill in SKILLS if (pool := prompts(grammar, skill))}
    if "counting" not in pools or len(pools) == 1:
        return (_ZERO_SHARE, 1 - _ZERO_SHARE) if is_counting else (0.5, 0.5)
    if is_counting:
        return _ZERO_SHARE, 1 - _ZERO_SHARE
    numbers = len({len(prompt.spec.objects) for prompt in pools["counting"]})
    others = len(pools) - 1
    wanted = (1 - _ZERO_SHARE) / numbers / others
    return max(0.0, wanted - _ZERO_SHARE / others), wanted


@cache
def colour_shares(grammar: Grammar) -> dict[str, float]:
    """Return shares by colour: a colour comes in more or fewer shapes of the training split."""
    return _shares(
        {c: sum((c, shape) not in HELD_PAIRS for shape in grammar.shapes) for c in grammar.colours}
    )


@cache
def texture_shares(grammar: Grammar) -> dict[str, float]:
    """Return shares by texture; 0 for all where a grammar has one, which leaves nothing to ask."""
    if len(grammar.textures) == 1:
        return dict.fromkeys(grammar.textures, 0.0)
    probabilities = dict.fromkeys(grammar.textures, 0.0)
    for colour in grammar.colours:
        textures = textures_of(grammar, colour)
        for texture in textures:
            probabilities[texture] += 1 / len(textures) / len(grammar.colours)
    return _shares(probabilities)


@cache
def place_shares(size: str) -> dict[str, float]:
    """Return shares by place, over centres that are anywhere alike."""
    low = SIZES[size] + EDGE_MARGIN
    thirds = Counter(x * 3 // PICTURE_SIZE for x in range(low, PICTURE_SIZE - low + 1))
    return _shares(
        {
            PLACES[row][column]: thirds[row] * thirds[column]
            for row in range(3)
            for column in range(3)
        }
    )
