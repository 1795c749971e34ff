"""How much memory a model needs, from the headers of its files: nothing is loaded."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from unimm import memory
from unimm.checkpoints.assemble import Source
from unimm.checkpoints.keymap import place
from unimm.checkpoints.tensors import Shape
from unimm.errors import CheckpointError, NotEnoughMemoryError
from unimm.memory import format_bytes

PARTS = ("language", "queries", "projector", "generator", "latents")
# Fixed tables and statistics: stored, but no parameters.
_BUFFERS = re.compile(
    r"generator\.dit\.time_embed\.frequencies|latents\.(latent_(mean|scale)|decoder\.positions)"
)
_EMBEDDINGS = re.compile(r".*(embed_tokens|lm_head|wte|embed_out)\.weight")
BITS = {"8bit": 8, "4bit": 4}


@dataclass(frozen=True, slots=True)
class Footprint:
    """Parameters of each part of a model.

    Args:
        where: The model's directory.
        parameters: By part.
        linear: Of the language model, those that quantisation shrinks: its matrices without the
            embeddings.
    """

    where: Path
    parameters: Mapping[str, int]
    linear: int

    @property
    def total(self) -> int:
        """Parameters of all parts."""
        return sum(self.parameters.values())

    def size(self, part: str, dtype: torch.dtype, quantize: str | None = None) -> int:
        """Return the bytes of a part, without the scales of quantised matrices (a few per cent)."""
        count = self.parameters[part]
        if part != "language" or quantize is None:
            return count * dtype.itemsize
        return (count - self.linear) * dtype.itemsize + self.linear * BITS[quantize] // 8

    def check(
        self,
        dtype: torch.dtype,
        device: torch.device,
        *,
        parts: Mapping[str, torch.device] | None = None,
    ) -> None:
        """Raise NotEnoughMemoryError unless every part fits on its device.

        Args:
            dtype: Of the parameters.
            device: Of parts that ``parts`` does not name.
            parts: Device by part.
        """
        placed: dict[torch.device, list[str]] = {}
        for part in self.parameters:
            placed.setdefault((parts or {}).get(part, device), []).append(part)
        for target, names in placed.items():
            needed = sum(self.size(name, dtype) for name in names)
            free = memory.available_memory(target)
            if free is not None and needed > free:
                raise NotEnoughMemoryError(self._message(target, names, dtype, needed, free))

    def _message(
        self,
        device: torch.device,
        names: Sequence[str],
        dtype: torch.dtype,
        needed: int,
        free: int,
    ) -> str:
        shares = ", ".join(
            f"{name} {format_bytes(self.size(name, dtype))}"
            for name in names
            if self.size(name, dtype) > 0.01 * needed
        )
        half = sum(self.parameters[name] for name in names) * 2
        ways = [f"dtype bfloat16 ({format_bytes(half)})"] if dtype.itemsize > 2 else []
        ways += ["quantize 4bit for its language model", "another device"]
        return (
            f"the model in {self.where} needs {format_bytes(needed)} of memory in "
            f"{str(dtype).removeprefix('torch.')} ({shares}), but {device} has "
            f"{format_bytes(free)} free; try {' or '.join(ways)}"
        )


def footprint(where: Path, stored: Iterable[tuple[str, Shape]]) -> Footprint:
    """Return the footprint of tensors under our names."""
    counts: Counter[str] = Counter(dict.fromkeys(PARTS, 0))
    linear = 0
    for name, shape in stored:
        if _BUFFERS.fullmatch(name):
            continue
        part = name.partition(".")[0]
        counts[part] += prod(shape)
        if part == "language" and len(shape) == 2 and not _EMBEDDINGS.fullmatch(name):
            linear += prod(shape)
    return Footprint(where, dict(counts), linear)


def foreign_shapes(sources: Iterable[Source]) -> Iterable[tuple[str, Shape]]:
    """Yield our names and the shapes of another system's tensors, dropped ones left out.

    Raises:
        CheckpointError: A file holds a tensor that its layout does not know.
    """
    for source in sources:
        for key, shape in source.weights.shapes.items():
            try:
                name = place(source.clean(key), source.rules).key
            except CheckpointError as error:
                raise CheckpointError(f"{source.weights.where(key)}: {error}") from None
            if name is not None:
                yield name, shape
