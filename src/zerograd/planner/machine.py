"""The machine of a plan, measured or described."""

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

LIBRARY_BYTES = 480 << 20
"""Memory of a Linux process after importing torch for the CPU, transformers, PEFT and zerograd."""

CUDA_BYTES = 500 << 20
"""GPU memory of CUDA's context and kernels."""

KINDS = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Machine:
    """A machine to run on.

    device: as for `zerograd tune`. memory, free: total and free bytes. flops: FLOP/s of matrix products. bandwidth:
    bytes/s of memory. Both are None if they are neither measured nor given. libraries: bytes of a process before it
    loads a model. threads: CPU threads of a run. measured: the names of measured fields.
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
        """Whether weights are in the computer's own memory."""
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
    """The machine that the settings describe; this machine is measured, with matrix products of the model's shape.

    say: takes a line when the measurement begins.
    Raises ValueError for a device that is not there and has no --memory.
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
            settings.device, settings.device, described, described, given.get("flops"), given.get("bandwidth"), CUDA_BYTES, threads
        )
    device = "cpu" if kind == "cpu" else device  # cpu:0 is cpu
    if "memory" in given:
        total = free = int(given["memory"])
    else:
        total, free = _memory(device)
    rates_and_bytes = {"resident": LIBRARY_BYTES} | given
    if len(given) < 3:
        say("measuring this machine")
        rates_and_bytes = measure(settings, shape, device, threads)
    rates = {field: given.get(field, rates_and_bytes[field]) for field in ("flops", "bandwidth")}
    libraries = int(rates_and_bytes["resident"]) if device == "cpu" else CUDA_BYTES
    measured = tuple(field for field in rates if field not in given)
    return Machine(device, _name(device), total, free, rates["flops"], rates["bandwidth"], libraries, threads, measured)


def measure(settings: PlanSettings, shape: Shape, device: str, threads: int) -> dict[str, float]:
    """Measure this machine in a fresh process, by `planner.probe`: resident bytes of the libraries, FLOP/s and bytes/s."""
    request = {
        "device": device,
        "dtype": "float32" if settings.precision == "float32" else "bfloat16",
        "threads": threads,
        "hidden": shape.hidden,
    }
    command = [sys.executable, "-m", "zerograd.planner.probe", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"measuring this machine failed ({why}); describe it with --memory, --flops and --bandwidth")
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def _memory(device: str) -> tuple[int, int]:
    """(total, free) bytes of a device's memory."""
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(torch.device(device))
        return int(total), int(free)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise ValueError("memory is not reported by this system; give it, such as --memory 16GB") from None
    total = min([total, *(limit for limit, _ in memory.container())])
    available = memory.host_bytes()
    return total, total if available is None else min(total, available)


def _name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    processor = provenance()["machine"]["cpu"] or platform.machine()
    return f"{os.cpu_count()} cores of {processor}" if device == "cpu" else processor
