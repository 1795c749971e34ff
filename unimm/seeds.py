"""Candidates' own randomness: the same candidate whatever its company.

Shape legend:
    K candidates      N latent tokens      D latent channels
"""

import struct
from collections.abc import Sequence
from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor

# Programs that read seeds from JSON may hold numbers as doubles, which are exact up to 2**53.
_SEED_BITS = 53


def candidate_seed(seed: int, prompt_index: int, candidate_index: int) -> int:
    """Return the seed of one candidate: a stable hash of all three numbers."""
    key = struct.pack("<3Q", seed, prompt_index, candidate_index)
    digest = int.from_bytes(blake2b(key, digest_size=8).digest(), "little")
    return digest % (1 << _SEED_BITS)


def draw_noise(
    seeds: Sequence[int], num_tokens: int, dim: int
) -> Float[Tensor, "K {num_tokens} {dim}"]:
    """Return each seed's standard normal latents, drawn on the CPU so that devices agree."""
    return torch.stack(
        [
            torch.randn(num_tokens, dim, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
    )
