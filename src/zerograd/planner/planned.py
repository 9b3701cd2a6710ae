"""A plan: the rows of a model on a machine, which of them fit, and what we would run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zerograd.machine.format import quantity
from zerograd.optim import METHODS
from zerograd.planner.machine import Machine, machine
from zerograd.planner.rows import Planner, Row, evaluating
from zerograd.planner.settings import PlanSettings
from zerograd.planner.shapes import SCHEMES, Shape, shape
from zerograd.text.models import schemes

PREFERRED = tuple((method, scheme) for scheme in ("qk", "upper", "full", "lora") for method in ("per-example", "mezo"))
"""Methods and schemes in the order in which we would try them: what learns most in the same time comes first (docs/demo.md)."""

BESIDE = "on the demo it gains 10 points in five minutes, forward passes 6.5, at 1.6 times their memory (docs/demo.md)"

WHERE = "forward passes are for what has no gradient to back-propagate, a metric or generated answers"


@dataclass(frozen=True)
class Planned:
    """A model, a machine, and what one can do with the other."""

    settings: PlanSettings
    shape: Shape
    machine: Machine
    rows: tuple[Row, ...]

    def fits(self, row: Row) -> bool:
        """Whether the machine has the memory that a row needs."""
        return row.memory <= self.machine.free

    @property
    def advice(self) -> str:
        """What we would run here."""
        forward = next((row for row in self._by_preference() if self.fits(row)), None)
        back = next((row for row in self.rows if row.method == "adamw" and row.scheme == "lora" and self.fits(row)), None)
        if back is not None:
            also = f"; {WHERE}: {forward.command}" if forward else ""
            say = f"where the loss has a gradient, back-propagate: {back.name} fits, and is the better choice: {back.command}"
            return f"{say}; {BESIDE}{also}"
        if forward is not None:
            return f"no back-propagation fits, not even through an adapter; forward passes alone do: {forward.command}"
        least = min(self.rows, key=lambda row: row.memory)
        trained = min((row for row in self.rows if row.trained), key=lambda row: row.memory)
        if self.fits(least):
            return f"nothing that trains fits, {least.name} does; the least is {trained.name}, {_bytes(trained.memory)}"
        return f"nothing fits; {least.name} needs {_bytes(least.memory)}, and training {_bytes(trained.memory)} ({trained.name})"

    @property
    def basis(self) -> tuple[str, ...]:
        """What the numbers rest on."""
        settings = self.settings
        scored = f"{settings.answer_tokens} of them scored" if settings.answer_tokens else "scored at one option of one token"
        step = f"a step is {settings.batch_size} rows of {settings.tokens} tokens, {scored}, in passes of at most 4,096 tokens"
        if not self.machine.is_cpu:
            memory = "memory is the device's, not measured yet; the computer's own is about 1 GB, and the weights while they load"
        else:
            memory = "memory is the peak of the process once the model is loaded, within 10 % of the demo's (docs/numerics.md)"
        if settings.storage == "float32":
            memory += "; inference is in bfloat16, as zerograd eval has it" + ", at float32's rate" * (
                "flops" in self.machine.measured
            )
        if self.machine.flops and self.machine.bandwidth:
            checked = ", within a factor of two of the demo's (docs/numerics.md)" if self.machine.is_cpu else ", not measured yet"
            rates = f"seconds are an estimate{checked}, of a machine with no other work"
        else:
            rates = "seconds need the machine's rates: give --flops and --bandwidth"
        counted = {*evaluating(), "adamw"}
        names = [name for name in METHODS if name not in counted] + [name for name in schemes.SCHEMES if name not in SCHEMES]
        others = f"no rows: {', '.join(names)}; what their passes hold, or how much they train, is not counted here"
        return step, memory, others, rates

    def as_json(self) -> dict[str, Any]:
        """What is printed, for scripts: machine, model, rows, basis and advice; sizes in bytes, times in seconds."""
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
        told = {"name": row.name, "method": row.method, "scheme": row.scheme, "trained_parameters": row.trained}
        parts = {"memory_bytes": row.memory, "parts": row.parts, "fits": self.fits(row)}
        return told | parts | {"seconds_per_step": row.seconds, "command": row.command}

    def _by_preference(self) -> list[Row]:
        """The rows of forward passes, those that we prefer first, then the smaller ones."""
        order = {pair: place for place, pair in enumerate(PREFERRED)}
        ours = [row for row in self.rows if row.trained and row.method != "adamw"]
        return sorted(ours, key=lambda row: (order.get((row.method, row.scheme), len(order)), row.memory))


def planned(settings: PlanSettings, say: Callable[[str], None] = lambda line: None) -> Planned:
    """The plan that settings ask for. say: hears what takes a while.

    Raises ValueError or FileNotFoundError with the mend for what is wrong with them.
    """
    found = shape(settings)
    place = machine(settings, found, say)
    return Planned(settings, found, place, tuple(Planner(settings, found, place).rows()))


def _bytes(count: int) -> str:
    return quantity(count, "B")
