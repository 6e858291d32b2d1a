"""Signals and child processes: how a long piece of work is asked to stop, and how a child ends with its parent.

1. `StopRequest` notes the first signal and does nothing else. The work looks at it where it can stop without loss.
2. `end_with_parent` makes a child process receive SIGTERM when its parent ends, however it ends.
3. `run_in_processes` does independent work in fresh processes.
"""

import contextlib
import ctypes
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

# Source: linux/prctl.h.
_PR_SET_PDEATHSIG = 1

Result = TypeVar("Result")


class StopRequest:
    """Notes that a signal asked this process to stop.

    An exception raised inside a handler can be lost inside a library's calls, and a checkpoint written there could be
    that of half a step. So the handler only notes the signal's number. A second Ctrl-C stops at once.

    Attributes:
        number: the first signal's number, or None.
    """

    def __init__(self, notice: str = "stopping after this step") -> None:
        self.number: int | None = None
        self._notice = notice
        self._on_request: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: Any) -> None:
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        if self.number is None:
            self.number = number
            more = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            print(f"\n{signal.Signals(number).name}: {self._notice}{more}", file=sys.stderr, flush=True)
            if self._on_request:
                self._on_request()

    def watch(self, *numbers: signal.Signals) -> None:
        """Note these signals from now on, inside `watching`. Outside the main thread, Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            self._before.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def watching(
        self, *numbers: signal.Signals, on_request: Callable[[], object] | None = None
    ) -> Iterator["StopRequest"]:
        """Note these signals inside the block; restore the earlier handlers at its end, those of `watch` too.

        Args:
            numbers: the signals.
            on_request: also called, inside the handler, with the first signal.
        """
        self._on_request = on_request
        self.watch(*numbers)
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}
            self._on_request = None


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends: a `preexec_fn` for subprocesses. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def run_in_processes(tasks: Iterable[Callable[[], Result]], workers: int = 1) -> Iterator[Result]:
    """Yield the result of each task, in their order, from fresh processes that end with this one.

        totals = list(run_in_processes([functools.partial(add_up, path) for path in paths], workers=2))

    Args:
        tasks: called without arguments; they and their results are pickled. Each starts as soon as `tasks` yields it,
            so this process can work for a later one while the earlier ones run.
        workers: number of processes.
    """
    # Fork would copy the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        try:
            yield from pool.map(_call, tasks)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start_worker() -> None:
    end_with_parent()
    # Ctrl-C reaches every process of the terminal; this one ends with its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _call(task: Callable[[], Result]) -> Result:
    return task()
