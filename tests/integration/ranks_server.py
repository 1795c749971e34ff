"""Runs ``unimm`` commands in several processes at once, as a launcher would.

One process imports everything once and forks for each rank of each command. An order is a line of
JSON on stdin; the answer is the ranks' exit statuses, a negative one being the signal that a rank
died of.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"

import deepspeed  # noqa: F401
import torch
import torch.utils.tensorboard

import unimm.cli
from training import checkpoint, fragments, parallel, zero  # noqa: F401
from training.metrics import Reporter


def main() -> None:
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        children = [start(order, rank) for rank in range(order["ranks"])]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(statuses) + "\n")
        sys.stdout.flush()


def start(order: dict[str, Any], rank: int) -> int:
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    environment = {
        "RANK": rank,
        "WORLD_SIZE": order["ranks"],
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": order["port"],
    }
    if order["ranks"] > 1:
        os.environ.update({name: str(value) for name, value in environment.items()})
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        path = f"{order['output']}.{rank}.{name}"
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    torch.set_num_threads(1)
    hook(order, rank)
    status = unimm.cli.run(order["arguments"])
    sys.stdout.flush()
    os._exit(status)


def hook(order: dict[str, Any], rank: int) -> None:
    """Let a rank signal itself once it has taken a step, or fail while it writes."""
    write, save = Reporter.write, fragments.write_fragments

    def write_then_signal(reporter: Reporter, step: int, values: dict[str, float]) -> None:
        write(reporter, step, values)
        if step == order.get("weigh_at"):
            Path(f"{order['output']}.{rank}.bytes").write_text(str(held_bytes()))
        if step == order.get("at_step") and rank in order.get("signalled", range(99)):
            os.kill(os.getpid(), order["signal"])

    def save_or_die(pieces: Any, path: Path) -> None:
        save(pieces, path)
        if f"step-{order.get('die_saving', -1):08d}" in str(path):
            os._exit(9)

    setattr(Reporter, "write", write_then_signal)  # noqa: B010 - a method is no variable
    setattr(zero, "write_fragments", save_or_die)  # noqa: B010


def held_bytes() -> int:
    """Return the memory of all tensors of this process."""
    gc.collect()
    held: dict[int, int] = {}
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and found.device.type == "cpu":
            storage = found.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


if __name__ == "__main__":
    main()
