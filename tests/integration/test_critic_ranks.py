"""A critic over two processes: one critic, the one that a single process would have."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing.spawn as mp
from torch import Generator, Tensor

from training.config import OptimizerConfig
from training.losses.adversarial import adaptive_weight
from training.losses.critic import Critic, CriticConfig
from training.losses.discriminator import PatchDiscriminator

NUM_STEPS, BATCH = 2, 4


def pictures(seed: int) -> Tensor:
    return torch.rand(BATCH, 3, 16, 16, generator=Generator().manual_seed(seed)) * 2 - 1


def teach(rank: int, num_ranks: int, synchronise: bool) -> dict[str, Tensor]:
    """Teach a critic this rank's share of every batch."""
    torch.manual_seed(0)
    config = CriticConfig(
        kind="patch",
        augment=False,
        synchronise=synchronise,
        # A gradient that is zero but for rounding would be a whole step at AdamW's usual eps.
        optimizer=OptimizerConfig(lr=1e-2, eps=1e-2, warmup_steps=0),
    )
    critic = Critic(PatchDiscriminator(4), config, num_steps=10)
    own = slice(rank * BATCH // num_ranks, (rank + 1) * BATCH // num_ranks)
    for step in range(NUM_STEPS):
        real, fake = pictures(step), pictures(100 + step)
        critic.learn(real[own], fake[own], Generator())
    return critic.model.state_dict()


def balance(rank: int) -> Tensor:
    """Return the adaptive weight of losses that only together are 1 and 2 a weight."""
    weight = torch.ones(3, requires_grad=True)
    return adaptive_weight(weight.sum() * (1 + rank) / 1.5, weight.sum() * (1 + 2 * rank), weight)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {"one": teach(rank, 2, True), "own": teach(rank, 2, False), "weight": balance(rank)}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_share_the_critic_of_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    alone = teach(0, 1, True)
    for name, tensor in first["one"].items():
        assert torch.equal(tensor, second["one"][name]), name
        torch.testing.assert_close(tensor, alone[name], rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(t, second["own"][name]) for name, t in first["own"].items())
    assert first["weight"] == second["weight"] == pytest.approx(0.5)
