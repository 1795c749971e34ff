"""The processes of one run: who is who, and what all of them must agree on.

torchrun and the deepspeed launcher describe the processes in RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT; Slurm in variables of its own; without either there is one process.
"""

import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unimm.errors import UnimmError, UserError

_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of this process among those of the run.

    Args:
        rank: Number of this process, from 0.
        size: Processes in all.
        local_rank: Number among those of the same machine, which is also the GPU it uses.
        control: Group on the CPU for decisions, so that they need not wait for a GPU; None for
            a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: Any = field(default=None, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def place(self, step: int) -> int:
        """Return the number of this process's part of a step among the parts of all steps.

        What is drawn by this number differs between processes as it does between steps.
        """
        return step * self.size + self.rank

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, as a new tensor."""
        total = values.detach().clone()
        if self.size > 1:
            dist.all_reduce(total, group=None if total.is_cuda else self.control)
        return total

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, few messages for many tensors.

        Args:
            tensors: All of one dtype and device.
        """
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat, group=None if flat.is_cuda else self.control)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the mean over all processes of what each of them has measured."""
        if self.size == 1:
            return dict(values)
        own = torch.tensor(list(values.values()), dtype=torch.float64)
        return dict(zip(values, (self.sum(own) / self.size).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether any process says yes: the same answer everywhere."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))).item())

    def share(self, value: Any) -> Any:
        """Return the main process's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def raise_together(self, error: Exception | None) -> None:
        """Raise in all processes if one has failed, so that none waits for the others forever."""
        failures = self.gather(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, message in enumerate(failures):
            if message is not None:
                raise UnimmError(f"process {rank} failed: {message}")


ALONE = Ranks()


def run_device(device: str, ranks: Ranks) -> torch.device:
    """Return the device of this process: the GPU of its own number, where it sees several.

    Raises:
        UserError: This machine runs more processes than it has GPUs.
    """
    if device != "cuda" or ranks.size == 1:
        return torch.device(device)
    visible = torch.cuda.device_count()
    if visible == 1:  # all there are, or the one that the scheduler bound this process to
        return torch.device("cuda", 0)
    if ranks.local_rank >= visible:
        raise UserError(
            f"process {ranks.local_rank} of this machine has no GPU of its own: it sees {visible}; "
            f"start as many processes as there are GPUs"
        )
    return torch.device("cuda", ranks.local_rank)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield runs of tensors of about 100 MB in float32."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel()
        if size >= 25_000_000:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def launched_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return the place that a launcher gave this process; alone without a launcher.

    Raises:
        UserError: The variables contradict each other.
    """
    names = {name: name for name in _SLURM}
    if "RANK" not in environment and _is_slurm_step(environment):
        names = _SLURM
    elif "RANK" not in environment or "WORLD_SIZE" not in environment:
        return ALONE
    values = {name: environment.get(source, "0") for name, source in names.items()}
    try:
        rank, size, local = (int(values[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError:
        raise UserError(f"the launcher's variables must be numbers, got {values}") from None
    if not 0 <= rank < size:
        raise UserError(f"the launcher gave rank {rank} of {size} processes; start the run anew")
    return Ranks(rank, size, local)


def _is_slurm_step(environment: Mapping[str, str]) -> bool:
    # An interactive allocation sets SLURM_NTASKS too; only a step started by srun has a number.
    return "SLURM_PROCID" in environment and environment.get("SLURM_STEP_ID", "") != ""


def connect(ranks: Ranks, *, device: torch.device) -> Ranks:
    """Join the other processes and return the ranks with a control group.

    A single process joins itself, too: libraries such as DeepSpeed need a group.
    """
    for name, value in rendezvous(ranks).items():
        os.environ.setdefault(name, value)
    if device.index is not None:  # DeepSpeed takes the GPU of this number
        os.environ["LOCAL_RANK"] = str(device.index)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.size)
    control = dist.new_group(backend="gloo") if ranks.size > 1 else None
    return Ranks(ranks.rank, ranks.size, ranks.local_rank, control)


def rendezvous(ranks: Ranks, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that torch's ``env://`` rendezvous reads."""
    # Not where srun was typed, which may be a login node: where the first process runs.
    address = _first_host(environment.get("SLURM_STEP_NODELIST", "")) or "127.0.0.1"
    if ranks.size == 1:
        port = _free_port()
    else:
        # All processes must choose the same port; jobs on one machine must not.
        port = 20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000
    return {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.size),
        "LOCAL_RANK": str(ranks.local_rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def _first_host(hosts: str) -> str:
    """Return the first host of a list as Slurm writes it, such as ``gpu[03-10,12]-ib,login1``."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^\[,]*))?", hosts)
    return "".join(part or "" for part in found.groups()) if found else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
