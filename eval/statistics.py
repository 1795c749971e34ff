"""Small statistics with their uncertainty."""

from math import sqrt


def wilson_interval(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95% interval of a proportion; (0, 1) where nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    centre = share + z * z / (2 * count)
    spread = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (centre - spread) / scale, (centre + spread) / scale
