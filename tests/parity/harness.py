"""What a parity check gets to see: the tensors and the facts of one fixture.

A fixture is NAME_x.safetensors (`weight.*`, `input.*`, `output.*` of the official code) beside
NAME_x.json (configuration and meaning); the letter x counts instances of one kind.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FORWARD = 1e-5
"""Relative tolerance of one forward pass in float32."""

TRAJECTORY = 2e-4
"""Relative tolerance of a sampled trajectory of up to 50 steps."""


@dataclass(frozen=True, slots=True)
class Fixture:
    """Tensors and facts recorded from the official code."""

    kind: str
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> "Fixture":
        facts = json.loads(path.with_suffix(".json").read_text())
        return cls(kind=kind_of(path), facts=facts, tensors=load_file(path))

    def input(self, name: str) -> Tensor:
        return self.tensors[f"input.{name}"]

    def output(self, name: str) -> Tensor:
        return self.tensors[f"output.{name}"]

    def has(self, key: str) -> bool:
        return key in self.tensors

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below a prefix such as ``weight.``, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.under("weight.")

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.facts["config"]
        return config


Check = Callable[[Fixture], None]


def kind_of(path: Path) -> str:
    """Return the name before ``_a``, ``_b`` and so on."""
    return re.sub(r"_[a-z]$", "", path.stem)


def to_tokens(grid: Tensor) -> Tensor:
    """Turn (B, D, h, w) into (B, h*w, D), row-major."""
    return grid.flatten(2).mT.contiguous()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert that the largest error is small against the root mean square of what is expected.

    An element near zero has no relative precision of its own.
    """
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    error = (actual.double() - expected.double()).abs().max().item()
    scale = expected.double().square().mean().sqrt().item()
    limit = tolerance * scale
    assert error <= limit, f"largest error {error:.3g}, allowed {limit:.3g}"
