"""The machine that a plan is for, found or described."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from zerograd.machine import memory
from zerograd.machine.format import quantity
from zerograd.machine.provenance import provenance
from zerograd.planner import quantities
from zerograd.planner.settings import PlanSettings
from zerograd.planner.shapes import Shape
from zerograd.text.models import loading

LIBRARIES = 480 << 20
"""What a process holds on Linux once torch for the CPU, transformers, PEFT and zerograd are loaded."""

CONTEXT = 500 << 20
"""What CUDA's context and kernels hold of a GPU."""

KINDS = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Machine:
    """Where a run would be.

    device: as `zerograd tune` takes it. memory, free: bytes, there and to be had. flops: FLOP/s of its matrix products, bandwidth:
    bytes/s of its memory; None where they are neither measured nor told. libraries: bytes that a process holds of its memory before
    there is a model. threads: CPU threads of a run. measured: what of it was measured here and now.
    """

    device: str
    name: str
    memory: int
    free: int
    flops: float | None
    bandwidth: float | None
    libraries: int
    threads: int
    measured: tuple[str, ...] = ()

    @property
    def is_cpu(self) -> bool:
        """Whether weights lie in the computer's own memory."""
        return self.device == "cpu"

    def __str__(self) -> str:
        free = f"{quantity(self.free, 'B')} free of {quantity(self.memory, 'B')}"
        rates = [
            f"{quantity(rate, unit)} {of}{' (measured)' if field in self.measured else ''}"
            for rate, unit, of, field in (
                (self.flops, "FLOP/s", "in matrix products", "flops"),
                (self.bandwidth, "B/s", "of memory bandwidth", "bandwidth"),
            )
            if rate
        ]
        return ", ".join([f"{self.name}: {free if self.free < self.memory else quantity(self.memory, 'B')}", *rates])


def machine(settings: PlanSettings, shape: Shape, say: Callable[[str], None] = lambda line: None) -> Machine:
    """The machine that the settings describe, measured where it is this one, with the products of a model's shape. say: hears when
    that begins.

    Raises ValueError for a device that is not there and whose memory is not told.
    """
    given = {
        field: quantities.read(field, getattr(settings, field), unit)
        for field, unit in (("memory", "B"), ("bandwidth", "B/s"), ("flops", "FLOPS"))
        if getattr(settings, field)
    }
    kind = settings.device.partition(":")[0]
    if kind not in (*KINDS, "auto"):
        raise ValueError(f"device is {settings.device!r}; choose auto, cpu, cuda, cuda:N or mps")
    threads = settings.threads or os.cpu_count() or 1
    try:
        device = loading.device_of(settings.device)
    except ValueError as error:
        if "memory" not in given:
            raise ValueError(f"{error}; describe it with --memory, --flops and --bandwidth") from None
        described = int(given["memory"])
        return Machine(
            settings.device, settings.device, described, described, given.get("flops"), given.get("bandwidth"), CONTEXT, threads
        )
    device = "cpu" if kind == "cpu" else device  # which has no numbers
    if "memory" in given:
        total = free = int(given["memory"])
    else:
        total, free = _memory(device)
    told = {"resident": LIBRARIES} | given
    if len(given) < 3:
        say("measuring this machine")
        told = probed(settings, shape, device, threads)
    rates = {field: given.get(field, told[field]) for field in ("flops", "bandwidth")}
    libraries = int(told["resident"]) if device == "cpu" else CONTEXT
    measured = tuple(field for field in rates if field not in given)
    return Machine(device, _name(device), total, free, rates["flops"], rates["bandwidth"], libraries, threads, measured)


def probed(settings: PlanSettings, shape: Shape, device: str, threads: int) -> dict[str, float]:
    """What `planner.probe` measures in a fresh process: resident bytes with the libraries of a run, FLOP/s and bytes/s."""
    asked = {
        "device": device,
        "dtype": "float32" if settings.storage == "float32" else "bfloat16",
        "threads": threads,
        "hidden": shape.hidden,
    }
    command = [sys.executable, "-m", "zerograd.planner.probe", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise OSError(f"measuring this machine failed ({why}); describe it with --memory, --flops and --bandwidth")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _memory(device: str) -> tuple[int, int]:
    """(all, free) bytes of a device's memory."""
    if device.startswith("cuda"):
        free, there = torch.cuda.mem_get_info(torch.device(device))
        return int(there), int(free)
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise ValueError("memory is not told by this system; give it, --memory 16GB") from None
    there = min([there, *(limit for limit, _ in memory.container())])
    told = memory.host_bytes()
    return there, there if told is None else min(there, told)


def _name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    processor = provenance()["machine"]["cpu"] or platform.machine()
    return f"{os.cpu_count()} cores of {processor}" if device == "cpu" else processor
