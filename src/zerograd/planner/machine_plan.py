"""A plan: rows of memory and time for each method on a machine, which rows fit, and a recommendation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zerograd.machine.format import quantity
from zerograd.optim import METHODS
from zerograd.planner.machine import Machine, machine
from zerograd.planner.rows import Planner, Row, gradient_free_methods
from zerograd.planner.settings import PlanSettings
from zerograd.planner.shapes import SCHEMES, Shape, shape
from zerograd.text.models import schemes

PREFERENCE = tuple((method, scheme) for scheme in ("qk", "upper", "full", "lora") for method in ("per-example", "mezo"))
"""Methods and schemes to recommend, in the order of what they learn in the same time (docs/demo.md)."""

BACKPROPAGATION_GAIN = (
    "in five minutes on the demo it gains 10 points, forward passes 6.5; it takes 1.6 times their memory (docs/demo.md)"
)

FORWARD_PASSES_USE = "for objectives without a gradient, such as a metric or generated answers, use forward passes"


@dataclass(frozen=True)
class MachinePlan:
    """The plan of a model on a machine: its rows, and a recommendation."""

    settings: PlanSettings
    shape: Shape
    machine: Machine
    rows: tuple[Row, ...]

    def fits(self, row: Row) -> bool:
        """Whether a row's memory is free on the machine."""
        return row.memory <= self.machine.free

    @property
    def advice(self) -> str:
        """The recommendation, in words."""
        forward = next((row for row in self._by_preference() if self.fits(row)), None)
        back = next((row for row in self.rows if row.method == "adamw" and row.scheme == "lora" and self.fits(row)), None)
        if back is not None:
            also = f"; {FORWARD_PASSES_USE}: {forward.command}" if forward else ""
            best = f"if the loss has a gradient, back-propagate: {back.name} fits, and is the better choice: {back.command}"
            return f"{best}; {BACKPROPAGATION_GAIN}{also}"
        if forward is not None:
            return f"no back-propagation fits, not even through an adapter; forward passes fit: {forward.command}"
        least = min(self.rows, key=lambda row: row.memory)
        trained = min((row for row in self.rows if row.trained), key=lambda row: row.memory)
        if self.fits(least):
            needed = f"the smallest is {trained.name}, which needs {_bytes(trained.memory)}"
            return f"{least.name} fits, but no training does; {needed}"
        return f"nothing fits: {least.name} needs {_bytes(least.memory)}, training {_bytes(trained.memory)} ({trained.name})"

    @property
    def basis(self) -> tuple[str, ...]:
        """The assumptions and the accuracy of the numbers, line by line."""
        settings = self.settings
        scored = f"{settings.answer_tokens} scored tokens per row" if settings.answer_tokens else "options of one token"
        step = f"step: {settings.batch_size} rows of {settings.tokens} tokens, {scored}; passes of at most 4,096 tokens"
        if not self.machine.is_cpu:
            memory = "memory: of the device, not validated yet; the computer needs about 1 GB, and the weights while they load"
        else:
            memory = (
                "memory: the peak of the process after loading; within 10 % of measured peaks on CPUs with bfloat16 instructions, "
                "up to 20 % too much on others"
            )
        if settings.precision == "float32":
            memory += "; inference is in bfloat16, as in zerograd eval" + ", at float32's rate" * ("flops" in self.machine.measured)
        if self.machine.flops and self.machine.bandwidth:
            checked = "within a factor of two on the demo (docs/numerics.md)" if self.machine.is_cpu else "not validated yet"
            rates = f"seconds: an estimate for a machine without other work, {checked}"
        else:
            rates = "seconds: unknown without the machine's rates; give --flops and --bandwidth"
        counted = {*gradient_free_methods(), "adamw"}
        modelled = {*SCHEMES, *(row.scheme for row in self.rows)}
        names = [name for name in METHODS if name not in counted] + [name for name in schemes.SCHEMES if name not in modelled]
        others = f"no rows: {', '.join(names)}; the planner does not model their passes or their number of trained parameters"
        return step, memory, others, rates

    def as_json(self) -> dict[str, Any]:
        """The plan for scripts: machine, model, rows, basis and advice; sizes in bytes, times in seconds."""
        shape, machine = self.shape, self.machine
        return {
            "machine": {
                "device": machine.device,
                "name": machine.name,
                "memory_bytes": machine.memory,
                "free_bytes": machine.free,
                "flops": machine.flops,
                "bytes_per_second": machine.bandwidth,
                "threads": machine.threads,
                "measured": list(machine.measured),
            },
            "model": {
                "name": self.settings.model or self.settings.parameters or "described",
                "parameters": shape.parameters,
                "layers": shape.layers,
                "hidden": shape.hidden,
                "vocabulary": shape.vocabulary,
            },
            "rows": [self._row(row) for row in self.rows],
            "basis": list(self.basis),
            "advice": self.advice,
        }

    def _row(self, row: Row) -> dict[str, Any]:
        names = {"name": row.name, "method": row.method, "scheme": row.scheme, "trained_parameters": row.trained}
        parts = {"memory_bytes": row.memory, "parts": row.parts, "fits": self.fits(row)}
        return names | parts | {"seconds_per_step": row.seconds, "command": row.command}

    def _by_preference(self) -> list[Row]:
        """The rows of forward passes: by PREFERENCE, what is unpacked before what stays packed, then by memory."""
        order = {pair: place for place, pair in enumerate(PREFERENCE)}
        ours = [row for row in self.rows if row.trained and row.method != "adamw"]
        return sorted(ours, key=lambda row: (order.get((row.method, row.scheme), len(order)), row.is_packed, row.memory))


def make_plan(settings: PlanSettings, say: Callable[[str], None] = lambda line: None) -> MachinePlan:
    """The plan of settings. say: takes a line about work that takes a while.

    Raises ValueError or FileNotFoundError for wrong settings.
    """
    model = shape(settings)
    place = machine(settings, model, say)
    return MachinePlan(settings, model, place, tuple(Planner(settings, model, place).rows()))


def _bytes(count: int) -> str:
    return quantity(count, "B")
