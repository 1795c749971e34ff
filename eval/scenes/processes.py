"""Work that is dealt out to processes, each of which loads the model once."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track

from unimm.errors import UserError
from unimm.pipeline import Pipeline

from .settings import Settings

T = TypeVar("T")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@lru_cache(maxsize=1)
def load_pipeline(settings: Settings) -> Pipeline:
    """Return the model, loaded once in each process.

    Raises:
        UserError: The precision is unknown, or the model cannot be loaded.
    """
    if settings.dtype not in _DTYPES:
        raise UserError(f"dtype must be one of {', '.join(_DTYPES)}, got {settings.dtype!r}")
    return Pipeline.from_pretrained(
        settings.model, device=settings.device, dtype=_DTYPES[settings.dtype]
    )


@dataclass(frozen=True, slots=True)
class Workers:
    """Calls functions with numbers.

    Args:
        spread: As the built-in ``map``, in one process or many.
    """

    spread: Callable[[Callable[[int], Any], Sequence[int]], Iterator[Any]]

    def each(
        self, function: Callable[[int], T], numbers: Sequence[int], *, description: str
    ) -> list[T]:
        """Return what a function says of each number, in their order; show how far it is.

        Args:
            function: One that processes can import by its name; its arguments can be pickled.
            numbers: What it is called with.
            description: Of the progress bar.
        """
        done: Iterator[T] = self.spread(function, numbers)
        console = Console(file=sys.stderr)
        return [*track(done, description=description, total=len(numbers), console=console)]


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Yield so many processes, which share the threads of this one; one is this one itself.

    Raises:
        UserError: One of them was killed.
    """
    if count == 1:
        yield Workers(map)
        return
    pool = ProcessPoolExecutor(
        count,
        mp_context=get_context("spawn"),
        initializer=_start,
        initargs=(max(1, torch.get_num_threads() // count),),
    )
    try:
        yield Workers(pool.map)
    except BrokenProcessPool:
        raise UserError(
            "a process that measured was ended from outside, most often for want of memory; "
            "lower --processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C nothing more is begun


def _start(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process says when to stop
