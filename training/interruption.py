"""Being told to stop: a scheduler sends SIGTERM and gives a run some seconds to save its work."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

ItemT = TypeVar("ItemT")


class StopRequest:
    """Remembers a SIGTERM instead of dying of it; use as a context manager.

    Outside the main thread, where Python handles no signals, nobody can ask.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._before: Any = None

    def until_asked(self, items: Iterable[ItemT]) -> Iterator[ItemT]:
        """Yield items until someone asks for a stop.

        A signal to the whole process group also ends a loader's workers; that the loader then
        fails is no error.
        """
        iterator = iter(items)
        while not self.is_asked:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError):
                if self.is_asked:
                    return
                raise
            yield item

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True


def leave_quietly(worker_id: int) -> None:
    """Let a loader's worker end on SIGTERM as if its work were done.

    A worker that dies of a signal makes torch raise in the middle of the main process's step,
    which could then not be finished.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
