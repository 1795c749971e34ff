"""Which updates are taken: none without a finite gradient, none whose gradient is a spike."""

from dataclasses import dataclass
from math import isfinite

_DECAY = 0.99
_MIN_STEPS = 50
"""Norms seen before the running mean is trusted: they fall steeply when training begins."""


@dataclass(slots=True)
class SpikeGuard:
    """Compare gradient norms with their running mean.

    Args:
        factor: A norm this many times the mean is a spike; 0 accepts every finite norm.
        mean: Of the norms of taken steps.
        count: Taken steps.
        skipped: Steps left out since the process began.
    """

    factor: float
    mean: float = 0.0
    count: int = 0
    skipped: int = 0

    def allows(self, norm: float) -> bool:
        """Return whether a step with this gradient norm should be taken; does not remember it."""
        if not isfinite(norm) or norm < 0:
            return False
        is_known = self.factor > 0 and self.count >= _MIN_STEPS
        return not is_known or norm <= self.factor * self.mean

    def note(self, norm: float, *, taken: bool) -> None:
        """Remember what became of a step."""
        if not taken:
            self.skipped += 1
            return
        decay = min(_DECAY, self.count / (self.count + 1))
        self.mean += (norm - self.mean) * (1 - decay)
        self.count += 1

    def state_dict(self) -> dict[str, float]:
        """Return what must outlive the process."""
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up where :meth:`state_dict` was called."""
        self.mean = float(state["mean"])
        self.count = int(state["count"])
