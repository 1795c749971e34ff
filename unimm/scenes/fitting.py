"""Fit one object of the world to a window of a picture, over all shapes, colours and places.

`contrast` is the picture minus its background, so that an object with cover a, marks m and ink
colour c on background b is a * ((1 - m) * (c - b) + m * (white - b)).
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unimm.scenes.masks import shape_mask, texture_mask
from unimm.scenes.world import COLOURS, SHAPES, SOLID_COLOURS, TEXTURES, rgb_of

Float = NDArray[np.float32]

HALF_WINDOW = 13
"""Half the width of the window: a large object, one pixel of offset and two of blur."""

_OFFSETS = tuple((dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1))

BLURS_PX = (0.55, 0.9)
"""Blur of the templates, in the order to try: the first explains 0.9 and more of any object that
is rendered or blurred by 0.7 pixels, the second is for softer pictures."""

_MOST_MOVES = 5

_T = TypeVar("_T", bound=np.generic)

_WHITE = np.asarray(COLOURS["white"], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Fit:
    """The object of one size that leaves the least squared error."""

    shape: str
    colour: str
    size: str
    texture: str
    x: int
    y: int
    window: Float
    """Contrast that it was fitted to, (W, 3)."""
    drawn: Float
    """Contrast that it has itself, (W, 3)."""
    corner: tuple[int, int]
    """Column and row of the window's first pixel in the padded picture."""

    def error(self, seen: NDArray[np.bool_]) -> tuple[float, float]:
        """Return the squared error, and the square of the contrast, where either is.

        Args:
            seen: pixels of the padded picture that stand out.
        """
        left, top = self.corner
        width = 2 * HALF_WINDOW
        support = seen[top : top + width, left : left + width].ravel()
        support = support | (np.square(self.drawn).sum(-1) > 1)
        error = float(np.square(self.window - self.drawn)[support].sum())
        return error, float(np.square(self.window[support]).sum())


@dataclass(frozen=True, slots=True)
class _Templates:
    """Every shape at every offset, T in all, of one size; W pixels a window."""

    size: str
    weights: Float
    """(4 * T, W): cover without and with marks of stripes, then the same of dots."""
    energy: Float
    """(3 textures, T, 3): squares of the colour's part, of the marks' part, twice their product."""

    def parts(self, texture: str, template: int) -> tuple[Float, Float]:
        """Return the cover by colour and by marks of one template."""
        width = self.weights.shape[-1]
        striped, stripes, dotted, dots = self.weights.reshape(4, -1, width)[:, template]
        if texture == "solid":
            return striped + stripes, np.zeros_like(stripes)
        return (striped, stripes) if texture == "striped" else (dotted, dots)


@cache
def _templates(size: str, blur_px: float) -> _Templates:
    kinds: dict[str, list[Float]] = {"plain": [], "striped": [], "dotted": []}
    for shape in SHAPES:
        for dx, dy in _OFFSETS:
            cover = shape_mask(shape, size)
            kinds["plain"].append(_in_window(cover, dx, dy, blur_px))
            for texture in ("striped", "dotted"):
                kinds[texture].append(
                    _in_window(cover * texture_mask(texture, size), dx, dy, blur_px)
                )
    plain, stripes, dots = (np.stack(kind) for kind in kinds.values())
    coloured = np.stack([plain, plain - stripes, plain - dots])
    marked = np.stack([np.zeros_like(plain), stripes, dots])
    products = coloured**2, marked**2, 2 * coloured * marked
    energy = np.stack([product.sum(-1) for product in products], axis=-1)
    weights = np.concatenate([coloured[1], stripes, coloured[2], dots])
    return _Templates(size, np.ascontiguousarray(weights), energy)


def _in_window(mask: Float, dx: int, dy: int, blur_px: float) -> Float:
    window = np.zeros((2 * HALF_WINDOW, 2 * HALF_WINDOW))
    r = mask.shape[0] // 2
    top, left = HALF_WINDOW + dy - r, HALF_WINDOW + dx - r
    window[top : top + 2 * r, left : left + 2 * r] = mask
    kernel = np.exp(-np.square(np.arange(-3, 4)) / (2 * blur_px**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        shifted = [np.roll(window, k - 3, axis=axis) * w for k, w in enumerate(kernel)]
        window = np.sum(shifted, axis=0)
    return window.ravel().astype(np.float32)


@lru_cache(maxsize=1024)
def _palette(colours: tuple[str, ...]) -> tuple[Float, Float]:
    """Return the colours, (C, 3), and infinity where one has no such texture, (3, 1, C)."""
    is_wrong = [[t != "solid" and c in SOLID_COLOURS for c in colours] for t in TEXTURES]
    penalty = np.where(is_wrong, np.inf, 0).astype(np.float32)[:, None]
    return np.asarray([rgb_of(c) for c in colours], dtype=np.float32), penalty


def padded(plane: NDArray[_T]) -> NDArray[_T]:
    """Return a picture's plane with zeros around it, so that every window lies inside."""
    height, width, *rest = plane.shape
    shape = (height + 2 * HALF_WINDOW, width + 2 * HALF_WINDOW, *rest)
    result: NDArray[_T] = np.zeros(shape, dtype=plane.dtype)
    result[HALF_WINDOW:-HALF_WINDOW, HALF_WINDOW:-HALF_WINDOW] = plane
    return result


def fit_object(
    contrast: Float,
    background: Float,
    size: str,
    centre: tuple[int, int],
    *,
    blur_px: float,
    colours: tuple[str, ...],
) -> Fit:
    """Return the best object of one size, moving the window after it for a few pixels.

    Args:
        contrast: padded.
        background: mean colour behind the object, (3,).
        size: the object's.
        centre: where to begin, in the picture's pixels.
        blur_px: of the templates, one of `BLURS_PX`.
        colours: the object may have, names or blends.
    """
    height, width = (side - 2 * HALF_WINDOW for side in contrast.shape[:2])
    x, y = centre
    for _ in range(_MOST_MOVES):
        fit = _fit_window(contrast, background, _templates(size, blur_px), (x, y), colours)
        # What a model draws may lead the window out of the picture.
        nearest = min(max(fit.x, 0), width - 1), min(max(fit.y, 0), height - 1)
        if nearest == (x, y):
            break
        x, y = nearest
    return fit


def _fit_window(
    contrast: Float,
    background: Float,
    templates: _Templates,
    centre: tuple[int, int],
    colours: tuple[str, ...],
) -> Fit:
    """Return the best object whose centre is at most a pixel off.

    The squared error |window - drawn|^2 is worked out from the products of templates and window:
    what else it needs depends on no picture.
    """
    left, top = centre  # of the padded picture, where the window begins
    window = contrast[top : top + 2 * HALF_WINDOW, left : left + 2 * HALF_WINDOW].reshape(-1, 3)
    palette, penalty = _palette(colours)
    inks = palette - background  # (C, 3)
    white = _WHITE - background
    striped, stripes, dotted, dots = (templates.weights @ window).reshape(4, -1, 3)
    coloured = np.stack([striped + stripes, striped, dotted])  # (3, T, 3)
    marked = np.stack([np.zeros_like(stripes), stripes, dots])
    squares = np.stack([np.square(inks).sum(-1), np.full(len(inks), white @ white), inks @ white])
    error = templates.energy @ squares - 2 * coloured @ inks.T  # (3, T, C)
    error += penalty - 2 * (marked @ white)[..., None]
    texture, template, colour = (int(k) for k in np.unravel_index(error.argmin(), error.shape))
    cover, marks = templates.parts(TEXTURES[texture], template)
    dx, dy = _OFFSETS[template % len(_OFFSETS)]
    return Fit(
        shape=SHAPES[template // len(_OFFSETS)],
        colour=colours[colour],
        size=templates.size,
        texture=TEXTURES[texture],
        x=centre[0] + dx,
        y=centre[1] + dy,
        window=window,
        drawn=np.outer(cover, inks[colour]) + np.outer(marks, white),
        corner=(left, top),
    )
