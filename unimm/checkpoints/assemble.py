"""Fill a model tensor by tensor, so that memory never holds it twice."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unimm.checkpoints.keymap import Rule, place
from unimm.checkpoints.names import canonical
from unimm.checkpoints.tensors import Shape, TensorFolder
from unimm.errors import CheckpointError

LoadProgress = Callable[[int, int], None]
"""Called with (bytes placed, of all)."""


@dataclass(frozen=True, slots=True)
class Source:
    """Tensors in files and where in a model they go.

    Args:
        weights: The files.
        rules: From keys of the files to keys of the model.
        strip: Prefixes that training wrappers left inside keys; removed wherever they stand.
    """

    weights: TensorFolder
    rules: tuple[Rule, ...]
    strip: tuple[str, ...] = ()

    def clean(self, key: str) -> str:
        """Return a key without what training wrappers added to it."""
        for text in self.strip:
            key = key.replace(text, "")
        return key


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Build modules whose parameters take no memory; buffers, which files leave out, are real.

    As accelerate's context of that purpose, it stands in for ``register_parameter`` while it
    lasts; torch's own ``meta`` device would leave the buffers without values, too.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class Slots:
    """The parameters and saved buffers of an empty model, waiting for their tensors.

    Args:
        model: Built under :func:`empty_parameters`.
        device: Where tensors go.
        dtype: Of floating-point parameters; buffers keep theirs.
        parts: Devices of the model's children that are elsewhere.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        dtype: torch.dtype,
        parts: Mapping[str, torch.device] | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.parts = parts or {}
        self.dtype = dtype
        state = model.state_dict()
        self._installed = {canonical(name): name for name in state}
        self.expected: dict[str, Tensor] = {canonical(name): t for name, t in state.items()}
        self.filled: dict[str, Tensor] = {}
        self._blocks: dict[str, set[int]] = {}
        self._names: dict[int, list[str]] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), []).append(canonical(name))
            self._parameters[canonical(name)] = parameter

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of what a file should hold: tied parameters once, under their first name."""
        return {
            key: tuple(tensor.shape)
            for key, tensor in self.expected.items()
            if self._aliases(key)[0] == key
        }

    def put(
        self, key: str, tensor: Tensor, *, rows: tuple[int, int] | None = None, where: str
    ) -> None:
        """Copy a tensor, or one of n blocks of rows, into its place.

        Raises:
            CheckpointError: The model has no such key, or one of another shape.
        """
        if key not in self.expected:
            raise CheckpointError(f"{where} does not belong to this model: it has no {key!r}")
        target = self._target(key)
        part = target
        if rows is not None:
            size = len(target) // rows[1]
            part = target[rows[0] * size : (rows[0] + 1) * size]
            self._blocks.setdefault(key, set(range(rows[1]))).discard(rows[0])
        if part.shape != tensor.shape:
            raise CheckpointError(
                f"{where} has shape {tuple(tensor.shape)}, the model's {key} takes "
                f"{tuple(part.shape)}; its config.json belongs to another model"
            )
        part.copy_(tensor)

    def _target(self, key: str) -> Tensor:
        if key not in self.filled:
            model = self.expected[key]
            dtype = self.dtype if key in self._parameters else model.dtype
            device = self.parts.get(key.partition(".")[0], self.device)
            self.filled[key] = torch.empty(model.shape, dtype=dtype, device=device)
        return self.filled[key]

    def finish(self, *, where: Path, optional: Collection[str] = ()) -> None:
        """Give the model its tensors.

        Args:
            where: The model, for the message.
            optional: Keys that may be absent: buffers, or parameters that stay zero.

        Raises:
            CheckpointError: A tensor is missing; the message lists them.
        """
        parts = [key for key, left in self._blocks.items() if left]
        tied = {name for key in self.filled for name in self._aliases(key)}
        missing = [key for key in self.expected if key not in tied and key not in optional]
        if missing or parts:
            names = ", ".join((missing + parts)[:6])
            more = len(missing) + len(parts) - 6
            raise CheckpointError(
                f"{where} lacks tensors for {names}{f' and {more} more' if more > 0 else ''}; "
                f"the model is incomplete"
            )
        for key in optional:
            if key in self.expected and key not in tied and key in self._parameters:
                self._target(key).zero_()
        for key, tensor in self.filled.items():
            is_parameter = key in self._parameters
            # One parameter for all names: a copy each would come apart when the model is cast.
            value = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
            for name in self._aliases(key):
                _assign(self.model, self._installed[name], value)
        if not self.parts:
            self.model.to(self.device)
            return
        for name, child in self.model.named_children():
            child.to(self.parts.get(name, self.device))

    def _aliases(self, key: str) -> list[str]:
        """Return every name of a tied parameter."""
        if key not in self._parameters:
            return [key]
        return self._names[id(self._parameters[key])]


def _assign(model: nn.Module, name: str, value: Tensor | nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(value, nn.Parameter):
        module._parameters[leaf] = value  # noqa: SLF001
    else:
        module._buffers[leaf] = value  # noqa: SLF001


def fill(slots: Slots, sources: Iterable[Source], *, progress: LoadProgress | None = None) -> None:
    """Copy every tensor of every source into its slot.

    Raises:
        CheckpointError: A file is corrupt, holds a tensor that its layout does not know, or one
            of the wrong shape; the message names file and key.
    """
    sources = list(sources)
    total = sum(torch.Size(s).numel() for source in sources for s in source.weights.shapes.values())
    done = 0
    for source in sources:
        for key, tensor in source.weights.read():
            where = f"{source.weights.where(key)}: {key}"
            try:
                placed = place(source.clean(key), source.rules)
            except CheckpointError as error:
                raise CheckpointError(f"{source.weights.where(key)}: {error}") from None
            if placed.key is not None:
                converted = tensor if placed.convert is None else placed.convert(tensor)
                slots.put(placed.key, converted, rows=placed.rows, where=where)
            done += tensor.numel()
            if progress is not None:
                progress(done, total)
