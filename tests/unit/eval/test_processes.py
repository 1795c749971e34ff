"""Work dealt out to processes."""

import os

import pytest

from eval.scenes.processes import workers
from unimm.errors import UserError


@pytest.mark.parametrize("count", [1, 2])
def test_answers_come_in_the_order_of_their_numbers(count: int) -> None:
    with workers(count) as team:
        assert team.each(abs, range(-5, 3), description="") == [5, 4, 3, 2, 1, 0, 1, 2]


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(UserError, match="lower --processes"), workers(2) as team:
        team.each(os._exit, range(2), description="")
