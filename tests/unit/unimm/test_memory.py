"""Memory, before it is missing."""

import torch

from unimm.memory import available_memory, check_memory, format_bytes


def test_bytes_for_people() -> None:
    assert format_bytes(3 * 2**20) == "3 MiB"
    assert format_bytes(int(2.5 * 2**30)) == "2.5 GiB"


def test_this_machine_has_memory_but_not_infinitely_much() -> None:
    free = available_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    check_memory(1, torch.device("cpu"), "one byte")


def test_an_unknown_kind_of_device_is_not_second_guessed() -> None:
    assert available_memory(torch.device("meta")) is None
