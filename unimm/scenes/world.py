"""What a scene is made of: shapes, colours, sizes, textures, backgrounds and the scene itself.

Pictures are 64 x 64 pixels. Coordinates are in pixels, x to the right and y down; an integer
centre lies on the corner between pixels, so an object of radius 6 fills columns x-6 to x+5.
"""

from dataclasses import dataclass

PICTURE_SIZE = 64

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")

COLOURS = {
    "red": (220, 30, 30),
    "orange": (245, 130, 20),
    "yellow": (250, 220, 40),
    "green": (30, 150, 60),
    "blue": (40, 70, 220),
    "purple": (130, 40, 170),
    "pink": (255, 95, 175),
    "brown": (120, 65, 20),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
"""RGB, 0 to 255."""

BLEND_PARTS = 16
"""Parts that a blend of two colours is made of."""

SIZES = {"small": 6, "large": 10}
"""Radius in pixels: an object's box is two radii wide and high."""

TEXTURES = ("solid", "striped", "dotted")

SOLID_COLOURS = frozenset({"black", "white", "brown"})
"""Colours that are never striped or dotted, since stripes and dots are white."""

BACKGROUNDS = {
    "gray": (150, 150, 150),
    "sky": (165, 200, 220),
    "sand": (205, 195, 165),
    "mint": (175, 208, 172),
}
"""RGB, 0 to 255."""

STYLES = ("plain", "vertical", "horizontal", "checks")
"""How a background is filled: one colour, a gradient down or across, or a chessboard."""

RELATIONS = ("left of", "right of", "above", "below")

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

RELATION_MARGIN = 7
"""Pixels by which two centres differ more along a relation's axis than across it."""

OBJECT_GAP = 4
"""Least distance in pixels between what two objects cover, by half of a pixel or more."""

EDGE_MARGIN = 2
"""Fewest pixels between an object and the picture's edge."""

MAX_OBJECTS = 5

UNKNOWN = "unknown"
"""Shape, colour, size and texture that the detector gives to what is no object of the world."""

OUTLINE = {
    "circle": 1.0,
    "square": 1.42,
    "triangle": 1.42,
    "star": 1.08,
    "cross": 1.06,
    "ring": 1.0,
    "heart": 1.12,
    "diamond": 1.0,
}
"""Farthest point of a shape from its centre, in radii."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: its attributes by name and its centre in pixels.

    The colour may also be a blend, which has no name in the world and which no detector returns:
    see :func:`blended_colour`.
    """

    shape: str
    colour: str
    size: str
    texture: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects that do not touch, on a background."""

    objects: tuple[SceneObject, ...]
    background: str
    style: str


def blended_colour(first: str, second: str, parts: int) -> str:
    """Return what stands for a colour of which ``parts`` of 16 are the second one."""
    return first if first == second else f"{first}+{second}*{parts}"


def rgb_of(colour: str) -> tuple[float, float, float]:
    """Return a colour's or a blend's RGB, 0 to 255."""
    if colour in COLOURS:
        return COLOURS[colour]
    first, _, rest = colour.partition("+")
    second, _, parts = rest.partition("*")
    share = int(parts) / BLEND_PARTS
    red, green, blue = (
        (1 - share) * a + share * b for a, b in zip(COLOURS[first], COLOURS[second], strict=True)
    )
    return red, green, blue


def relation_between(first: tuple[int, int], second: tuple[int, int]) -> str | None:
    """Return how the first centre lies to the second, or None where no relation is clear."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    if abs(dx) - abs(dy) >= RELATION_MARGIN:
        return "left of" if dx < 0 else "right of"
    if abs(dy) - abs(dx) >= RELATION_MARGIN:
        return "above" if dy < 0 else "below"
    return None
