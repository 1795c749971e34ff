"""What a launcher says about this process."""

import pytest
import torch

from training.config import EngineConfig
from training.ranks import ALONE, launched_ranks, rendezvous, run_device
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
    ports = {rendezvous(ranks, {"SLURM_JOB_ID": job})["MASTER_PORT"] for job in ("7", "8")}
    assert len(ports) == 2


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[003-010,012]", "gpu003"),
        ("gpu[12,3-4]", "gpu12"),
        ("rack1-gpu[08-10]-ib,rack2-gpu1", "rack1-gpu08-ib"),
        ("login1,gpu[1-2]", "login1"),
    ],
)
def test_processes_of_slurm_meet_where_the_first_of_them_runs(hosts: str, first: str) -> None:
    environment = {**SLURM, "SLURM_STEP_NODELIST": hosts, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}
    assert rendezvous(launched_ranks(SLURM), environment)["MASTER_ADDR"] == first


def test_processes_of_one_machine_meet_on_it() -> None:
    assert rendezvous(launched_ranks(TORCHRUN), TORCHRUN)["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(("visible", "index"), [(8, 1), (2, 1), (1, 0)])
def test_a_process_takes_the_gpu_of_its_number_or_the_only_one_it_sees(
    monkeypatch: pytest.MonkeyPatch, visible: int, index: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert run_device("cuda", launched_ranks(TORCHRUN)) == torch.device("cuda", index)
    assert run_device("cuda", ALONE) == torch.device("cuda")
    assert run_device("cpu", launched_ranks(TORCHRUN)) == torch.device("cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"process 2 of this machine has no GPU .* it sees 2"):
        run_device("cuda", launched_ranks({**TORCHRUN, "LOCAL_RANK": "2"}))


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
