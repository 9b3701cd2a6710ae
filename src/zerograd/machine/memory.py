"""Memory of the process and of the computer: the peak of a phase, and the free bytes."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

import torch

M_MMAP_THRESHOLD = -3
"""The option's number in glibc's malloc.h."""

PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
"""Linux's folders of processes and of control groups, which limit containers."""

FREE_WHERE_UNKNOWN = 4 << 30
"""Bytes that count as free if the system reports nothing."""

GROUP_FILES = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("memory.max", "memory.current", "inactive_file"),
)
"""For control groups of version 1 and 2: the files of limit and usage, and the field of memory.stat for file contents.
"""


def reset_peak() -> None:
    """Begin a new phase for `peak_bytes`.

    On Linux, freed memory goes back to the system and the peak falls to the resident memory; on other systems the peak
    stays that of the process.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back_at_once() -> None:
    """With glibc, return tensors of 1 MB and more to the system as soon as they are freed.

    Otherwise glibc keeps freed blocks, which the tensors of activation checkpointing fragment to two or three times
    their size.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def peak_bytes() -> int:
    """Peak resident bytes since the last reset; 0 if the system does not report it."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_bytes() -> int:
    """Bytes that can be allocated now without swapping, on the accelerator if there is one; 4 GB if nothing is
    reported.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = host_bytes()
    return FREE_WHERE_UNKNOWN if free is None else free


def host_bytes(proc: Path = PROC, groups: Path = CONTROL_GROUPS) -> int | None:
    """Bytes of the machine or its container that can be allocated now without swapping; None if nothing is reported."""
    limits = [left for _, left in container(proc, groups)]
    with contextlib.suppress(OSError, StopIteration):
        lines = (proc / "meminfo").read_text().splitlines()
        limits.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    return min(limits, default=None)


def container(proc: Path = PROC, groups: Path = CONTROL_GROUPS) -> list[tuple[int, int]]:
    """(limit, free part of it) in bytes, for each control group above this process with a memory limit.

    Cached file contents count as free, as in the machine's MemAvailable. proc, groups: the folders of processes, and of
    control groups of version 1 or 2.
    """
    with contextlib.suppress(OSError):
        lines = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
        kinds = [(kind, path) for _, kind, path in lines if not kind or "memory" in kind.split(",")]
        limits = [_left(folder, not kind) for kind, path in kinds for folder in _above(groups / ("memory" if kind else ""), path)]
        return [pair for pair in limits if pair is not None]
    return []


def _above(root: Path, path: str) -> list[Path]:
    """A control group's folder and those above it; a container may see itself as the root."""
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _left(group: Path, second: bool) -> tuple[int, int] | None:
    """(limit, free part of it) of a control group; None without a limit. second: whether the group is of version 2."""
    limit, used, old = GROUP_FILES[second]
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        most, now = (int((group / name).read_text()) for name in (limit, used))
        lines = (group / "memory.stat").read_text().splitlines() if (group / "memory.stat").exists() else []
        forgettable = sum(int(line.split()[1]) for line in lines if line.split()[0] == old)
        return most, max(0, most - max(0, now - forgettable))
    return None
