"""What a launcher says about this process."""

import pytest

from training.config import EngineConfig
from training.ranks import ALONE, launched_ranks, rendezvous
from unimm.errors import UserError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}


def test_every_launcher_is_understood() -> None:
    torchrun, slurm = launched_ranks(TORCHRUN), launched_ranks(SLURM)
    assert (torchrun.rank, torchrun.size, torchrun.local_rank) == (3, 8, 1)
    assert (slurm.rank, slurm.size, slurm.local_rank) == (5, 16, 1)
    assert launched_ranks({}) == ALONE
    # An interactive allocation describes the job, but started no processes.
    assert launched_ranks({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}) == ALONE


def test_jobs_of_slurm_meet_at_a_port_of_their_own() -> None:
    ranks = launched_ranks(SLURM)
    first = rendezvous(
        ranks, {**SLURM, "SLURM_JOB_ID": "7", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}
    )
    assert first["MASTER_ADDR"] == "10.0.0.1"
    assert first["MASTER_PORT"] != rendezvous(ranks, {"SLURM_JOB_ID": "8"})["MASTER_PORT"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"RANK": "8"}, "rank 8 of 8"), ({"LOCAL_RANK": "one"}, "must be numbers")],
)
def test_contradictions_are_named(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        launched_ranks({**TORCHRUN, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"accumulation": 0},
        {"offload_optimizer": "cpu"},
        {"kind": "deepspeed", "zero_stage": 2, "offload_parameters": "cpu"},
        {"kind": "deepspeed", "zero_stage": 3, "offload_parameters": "nvme"},
        {"kind": "deepspeed", "zero_stage": 1, "offload_optimizer": "nvme"},
    ],
)
def test_an_engine_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"accumulation|offload"):
        EngineConfig(**wrong)  # type: ignore[arg-type]
