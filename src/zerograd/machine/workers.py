"""One worker a core: each does its share on one thread, so that no two pools of threads spin against each other.

torch's own threads serve an operation at a time and spin between them; a second pool that draws noise meanwhile is starved by
them. A worker here sleeps when it has nothing to do, and torch's operations inside it run on that worker alone.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")

_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a child has the parent's pools without their threads


def count(device: torch.device) -> int:
    """How many workers share what is done on a device: as many as torch has threads for the CPU, else one."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def use(threads: int) -> None:
    """Work on so many threads; 0 for as many as there are cores."""
    torch.set_num_threads(threads or os.cpu_count() or 1)


def each(work: Callable[[T], object], items: Iterable[T], most: int | None = None) -> None:
    """work(item) for every item, in no order, on as many workers as torch has threads, or `most`; here when that is one.

    The first error is raised when all workers have stopped; items not begun by then stay undone.
    """
    left = deque(items)
    threads = min(torch.get_num_threads() if most is None else most, len(left))
    if threads <= 1:
        for item in left:
            work(item)
        return

    def run() -> None:
        try:
            while True:
                try:
                    item = left.popleft()
                except IndexError:
                    return
                work(item)
        except BaseException:
            left.clear()
            raise

    running = [_pool(torch.get_num_threads()).submit(run) for _ in range(threads)]
    try:
        wait(running)
    finally:
        left.clear()  # an interrupt ends the wait, not the work: what has begun completes
        wait(running)
    for one in running:
        one.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        pool = ThreadPoolExecutor(threads, "zerograd")
        together = threading.Barrier(threads)

        def settle() -> None:
            torch.get_num_threads()  # a thread takes the common number when it is first asked; only then one of its own
            torch.set_num_threads(1)
            torch.set_grad_enabled(False)
            together.wait()

        wait([pool.submit(settle) for _ in range(threads)])
        torch.set_num_threads(threads)  # threads that torch has not seen yet take the number that was set last
        _pools[threads] = pool
    return _pools[threads]
