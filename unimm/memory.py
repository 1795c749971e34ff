"""Say that there is not enough memory before the system kills the process."""

from pathlib import Path

import torch

from unimm.errors import NotEnoughMemoryError

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def available_memory(device: torch.device) -> int | None:
    """Return the free bytes of a device; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    limits = [free for free in (_system_free(), _container_free()) if free is not None]
    return min(limits, default=None)


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise NotEnoughMemoryError if ``needed`` bytes are not free.

    Args:
        needed: Bytes.
        device: Where.
        what: What needs them, and the way out, as the sentence "WHAT needs 3.0 GiB".
    """
    free = available_memory(device)
    if free is not None and needed > free:
        raise NotEnoughMemoryError(
            f"{what} needs {format_bytes(needed)} of memory, but {device} has "
            f"{format_bytes(free)} free"
        )


def format_bytes(count: int) -> str:
    """Return a number of bytes for people."""
    mib = count / 2**20
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def _system_free() -> int | None:
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _container_free() -> int | None:
    """Return what the control group of a container leaves, caches not counted as used."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        statistics = (_CGROUP / "memory.stat").read_text().split()
    except OSError:
        return None
    if limit == "max":
        return None
    cached = int(statistics[statistics.index("inactive_file") + 1])
    return max(int(limit) - used + cached, 0)
