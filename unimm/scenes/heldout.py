"""What training never shows: the rules behind the held-out splits.

Pairs and counts hold for every object of a training picture, whether the prompt names them or
not. A relation triple is held out in its own wording: "a circle above a triangle" is held out
while "a triangle below a circle" is trained on; where a prompt leaves the arrangement open, a
training picture shows neither. Two objects of one shape never form a triple, since a position
prompt names two kinds.
"""

import hashlib

from unimm.scenes.world import OPPOSITE, RELATIONS, SHAPES

HELD_PAIRS = frozenset(
    {
        ("black", "circle"),
        ("blue", "cross"),
        ("brown", "ring"),
        ("brown", "square"),
        ("green", "ring"),
        ("green", "square"),
        ("orange", "diamond"),
        ("orange", "star"),
        ("pink", "triangle"),
        ("purple", "diamond"),
        ("purple", "star"),
        ("red", "circle"),
        ("white", "diamond"),
        ("white", "star"),
        ("yellow", "heart"),
    }
)
"""(colour, shape)."""

HELD_COUNTS = frozenset({(2, "diamond"), (3, "cross"), (3, "heart"), (4, "ring"), (4, "star")})
"""(number, shape); five of anything is held out too, as a split of its own."""

HELD_NUMBER = 5


def _hash_byte(shape: str, relation: str, other: str) -> int:
    return hashlib.sha256(f"{shape}|{relation}|{other}".encode()).digest()[0]


HELD_TRIPLES = frozenset(
    (shape, relation, other)
    for shape in SHAPES
    for relation in RELATIONS
    for other in SHAPES
    if shape != other and _hash_byte(shape, relation, other) < 26
)
"""(shape, relation, shape): about a tenth, by hash."""

HELD_ARRANGEMENTS = HELD_TRIPLES | {
    (other, OPPOSITE[relation], shape) for shape, relation, other in HELD_TRIPLES
}
"""Held triples and the same arrangements told from the other side."""
