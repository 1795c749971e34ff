"""Devices by name, and whether the work fits into them."""

import torch

from unimm.batching import exact_batch_size
from unimm.errors import UserError
from unimm.memory import check_memory
from unimm.model import UniMM

# Tensors of one width that a transformer block holds at once: residual stream, modulation (6),
# queries, keys, values, attention output, feed-forward (2 x 8/3), and as much again for slack.
_ACTIVATIONS = 36


def parse_device(name: str | torch.device) -> torch.device:
    """Return the device of that name.

    Raises:
        UserError: There is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; use cpu, cuda, cuda:1, ... or mps") from None
    if device.type == "cpu":
        return device
    available = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = available.get(device.type, 0)
    if (device.index or 0) >= count:
        raise UserError(f"there is no device {name} here ({device.type}: {count}); use cpu")
    return device


def check_generation_memory(model: UniMM, num_candidates: int, batch_size: int) -> None:
    """Raise NotEnoughMemoryError if so many candidates cannot be drawn.

    All candidates' latents are kept until one is chosen; a batch of them is denoised at once.
    """
    dit = model.config.generator.dit
    kept = num_candidates * dit.num_latent_tokens * dit.latent_dim * 4
    rows = min(num_candidates, exact_batch_size(batch_size, model.device, model.dtype))
    width = max(dit.hidden_dim, dit.ddt_dim if dit.ddt_depth else 0)
    # Guidance doubles the rows.
    working = 2 * rows * dit.num_latent_tokens * width * _ACTIVATIONS * model.dtype.itemsize
    check_memory(kept + working, model.device, f"drawing {num_candidates:,} candidates")
