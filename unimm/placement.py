"""Where the parts of a model are: on one device, on several, or waiting on the CPU."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from unimm.device import parse_device
from unimm.errors import UserError
from unimm.model import PARTS, Part, UniMM

MOVABLE = ("generator", "latents", "vision")
"""Parts that may have a device of their own; queries and projector stay with the language model."""


def parse_devices(devices: Mapping[str, str | torch.device] | None) -> dict[str, torch.device]:
    """Return the devices of parts that have one of their own.

    Raises:
        UserError: A part cannot have one, or there is no such device.
    """
    if unknown := [name for name in devices or {} if name not in MOVABLE]:
        raise UserError(
            f"a device can be given to {', '.join(MOVABLE)}, got {unknown[0]!r}; the other "
            f"parts ({', '.join(part for part in PARTS if part not in MOVABLE)}) are on `device`"
        )
    return {name: parse_device(device) for name, device in (devices or {}).items()}


def device_of(model: UniMM, part: Part) -> torch.device:
    """Return where a part is; one without parameters is where the model is."""
    parameter = next(model.part(part).parameters(), None)
    return model.device if parameter is None else parameter.device


@contextmanager
def in_use(model: UniMM, part: Part) -> Iterator[torch.device]:
    """Have a part where it can be used: one that waits on the CPU is brought and taken back.

    Yields:
        The device on which it takes its input.
    """
    if part not in model.offloaded:
        yield device_of(model, part)
        return
    module = model.part(part)
    home = device_of(model, part)
    module.to(model.device)
    try:
        yield model.device
    finally:
        module.to(home)
