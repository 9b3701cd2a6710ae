"""One worker per core, each on one thread, so that pools of threads do not compete by spinning.

torch's own threads run one operation at a time and spin in between, which starves a second pool that draws noise. A
worker here sleeps while it has nothing to do, and torch's operations in a worker run on its thread alone.
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
    os.register_at_fork(after_in_child=_pools.clear)  # a forked child has the pools without their threads


def count(device: torch.device) -> int:
    """The number of workers for a device: torch's number of threads for the CPU, else one."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def use(threads: int) -> None:
    """Set the number of threads; 0 for all cores."""
    torch.set_num_threads(threads or os.cpu_count() or 1)


def each(work: Callable[[T], object], items: Iterable[T], most: int | None = None) -> None:
    """work(item) for every item, in any order, on as many workers as torch has threads, at most `most`; with one
    worker, in this thread.

    The first error is raised after all workers have stopped; items that had not begun are left out.
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
        left.clear()  # an interrupt ends the wait; work that has begun completes
        wait(running)
    for one in running:
        one.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        pool = ThreadPoolExecutor(threads, "zerograd")
        together = threading.Barrier(threads)

        def settle() -> None:
            torch.get_num_threads()  # a thread reads the common number on first use; only then can it have its own
            torch.set_num_threads(1)
            torch.set_grad_enabled(False)
            together.wait()

        wait([pool.submit(settle) for _ in range(threads)])
        torch.set_num_threads(threads)  # new threads of torch take the number that was set last
        _pools[threads] = pool
    return _pools[threads]
