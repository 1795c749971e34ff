"""Count and name the samples that could not be used, and stop where they are too many."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unimm.errors import UnimmError

from .config import DataConfig
from .sample import Skipped


class SkipReport:
    """What a rank could not use: a line of JSON for each in a file of its own.

    Args:
        path: The report; lines of an earlier part of the run stay.
        config: Which share is too much, and from how many samples on.
    """

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self._max_share = config.max_skipped_share
        self._grace = config.skipped_grace
        self._named = _named(path)
        _end_line(path)
        self.num_read = 0
        self.num_skipped = 0

    def count(self, num_read: int, skipped: Sequence[Skipped]) -> None:
        """Count conversations that were asked for, and name those of them that were left out.

        Raises:
            UnimmError: More than the allowed share of all samples could not be used.
        """
        self.num_read += num_read
        self.num_skipped += len(skipped)
        new = [one for one in skipped if one.number not in self._named]
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(one)) + "\n" for one in new)
            self._named |= {one.number for one in new}
        share = self.num_skipped / max(1, self.num_read)
        if skipped and self.num_read >= self._grace and share > self._max_share:
            last = skipped[-1]
            raise UnimmError(
                f"{self.num_skipped} of {self.num_read} samples could not be used, more than "
                f"data.max_skipped_share={self._max_share:g}; the last is {last.key}: "
                f"{last.reason}; all are in {self.path}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"num_read": self.num_read, "num_skipped": self.num_skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_read = int(state["num_read"])
        self.num_skipped = int(state["num_skipped"])


def _end_line(path: Path) -> None:
    """End the half line that a killed run may have left."""
    if path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


def _named(path: Path) -> set[int]:
    """Return the numbers in a report."""
    if not path.is_file():
        return set()
    numbers: set[int] = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            numbers.add(int(json.loads(line)["number"]))
        except (ValueError, KeyError, TypeError):
            continue
    return numbers
