"""The rows of a plan: what inference, each method with each scheme, and back-propagation hold and take, and the command of each."""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from zerograd.evaluate.products import BUFFER, DEVICE_BUFFER
from zerograd.optim import METHODS
from zerograd.planner import activations, kept, quantities, seconds
from zerograd.planner.machine import Machine
from zerograd.planner.settings import PlanSettings
from zerograd.planner.shapes import Shape
from zerograd.runs.evaluate import PASS_ROWS
from zerograd.text.models import schemes
from zerograd.text.scoring import FORWARD_TOKENS
from zerograd.tune.settings import TuneSettings

TASK = 45 << 20
"""What a process adds to its libraries before it does anything: tokenizer, the model's own code, rows of text."""

KERNELS = 115 << 20
"""What training by evaluations adds: Numba's and oneDNN's compiled kernels, and what writes its journal."""

SPARE, KEPT, MOST = 20 << 20, 3.5, 200 << 20
"""What a pass on the CPU makes a process hold beside its tensors: so many bytes; and what the allocator keeps for the next pass, so
many for each byte of them, until they are so large that they go back to the system. Measured on models of 3 to 420 million
parameters (benchmarks/plan.py)."""

ALIKE = ("head", "device", "threads")
"""Settings of a plan that a run has too."""

OVER_DEVICE = 1.2
"""Bytes that an accelerator's allocator holds for each of a pass."""


@dataclass(frozen=True)
class Row:
    """One way to use a model on a machine.

    name: what it is. method, scheme: as `zerograd tune` names them; "" for what it does not do. parts: bytes by what holds them.
    seconds: of a step, of a batch where nothing is trained; None where rates are not known. trained: values. command: what to type.
    """

    name: str
    method: str
    scheme: str
    parts: dict[str, int]
    seconds: float | None
    trained: int
    command: str

    @property
    def memory(self) -> int:
        """Peak bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Planner:
    """Makes the rows of a plan. held: bytes of tensors of a pass by its rows and dtype, and clocks by dtype, as far as known."""

    settings: PlanSettings
    shape: Shape
    machine: Machine
    held: dict[tuple[int, torch.dtype], int] = field(default_factory=dict)
    clocks: dict[torch.dtype, seconds.Clock] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.float32 if self.settings.storage == "float32" else torch.bfloat16

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.shape.parameters * self.dtype.itemsize

    @property
    def process(self) -> int:
        """Bytes that the device's memory holds without the model."""
        return self.machine.libraries + (TASK if self.machine.is_cpu else 0)

    def rows(self) -> Iterator[Row]:
        """All rows: inference, every method of evaluations alone with every scheme, AdamW."""
        yield self.inference()
        for method in evaluating():
            for scheme in self.shape.trained:
                yield self.tuned(method, scheme)
        yield from self.propagated()

    def inference(self) -> Row:
        """A batch evaluated as `zerograd eval` loads a model, in 16 bits however training stores it."""
        rows = min(PASS_ROWS, max(1, FORWARD_TOKENS // self.settings.tokens))
        live = self._live(rows, torch.bfloat16)
        parts = {"process": self.process, "weights": 2 * self.shape.parameters, "pass": self._held(live)}
        clock = self._clock(torch.bfloat16)
        command = self._command("eval", {"data": "FILE"})
        return Row("inference", "", "", parts, clock.evaluated(self.settings.batch_size, rows), 0, command)

    def tuned(self, method: str, scheme: str) -> Row:
        """`zerograd tune` with a method and a scheme."""
        settings, trained = self.settings, self.shape.trained[scheme]
        optimizer, moved = kept.instance(method), self._kept(method, scheme)
        rows = self.rows_of_pass(optimizer.copies)
        buffer = BUFFER if self.machine.is_cpu else DEVICE_BUFFER
        below = 0  # states that enter the first trained layer, once for the batch and once for all branches
        if scheme in schemes.UPPER and self._cuts:
            below = (settings.batch_size + rows) * settings.tokens * self.shape.hidden * self.dtype.itemsize
        parts = self._standing(scheme, moved.state) | {"pass": self._held(self._live(rows, self.dtype)) + below + buffer}
        parts["process"] += KERNELS if self.machine.is_cpu else 0
        taken = self._clock(self.dtype).tuned(optimizer, scheme, moved, rows)
        return Row(f"{method}, {scheme}", method, scheme, parts, taken, trained, self._tune(method, scheme))

    def propagated(self) -> Iterator[Row]:
        """Back-propagation: AdamW on every parameter, and on a LoRA, its activations kept or made again."""
        settings, rows = self.settings, self.rows_of_pass(1)
        tokens, scored = settings.tokens, settings.answer_tokens
        for scheme, checkpointing in (("full", False), ("lora", False), ("lora", True)):
            if scheme not in self.shape.trained:
                continue
            trained, rank = self.shape.trained[scheme], settings.lora_rank if scheme == "lora" else 0
            held = activations.propagated(self.shape, rows, tokens, self.dtype, rank, checkpointing, scored)
            gradients = trained * (4 if scheme == "lora" else self.dtype.itemsize)
            state = self._kept("adamw", scheme).state
            parts = self._standing(scheme, state) | {"pass": self._propagated(held, gradients)}
            taken = self._clock(self.dtype).propagated(3 + checkpointing, rows, trained)
            command = self._tune("adamw", scheme) + " --method-options checkpointing=True" * checkpointing
            name = f"AdamW, {scheme}" + ", checkpointing" * checkpointing
            yield Row(name, "adamw", scheme, parts, taken, trained, command)

    def rows_of_pass(self, copies: int) -> int:
        """Rows of a forward pass: whole examples with their branches, within the tokens that a pass takes."""
        examples = max(1, FORWARD_TOKENS // (self.settings.tokens * copies))
        return copies * min(self.settings.batch_size, examples)

    def _standing(self, scheme: str, state: float) -> dict[str, int]:
        """What is there from step to step while a scheme is trained: bytes by what holds them."""
        trained, adapter = self.shape.trained[scheme], scheme == "lora"
        return {
            "process": self.process,
            "weights": self.weights + 4 * trained * adapter,
            "remainder": 2 * trained * (not adapter and self.settings.storage in ("auto", "split")),
            "state": round(state),
        }

    def _kept(self, method: str, scheme: str) -> kept.Kept:
        """What a method keeps and moves; of a model that only comes near its number of parameters, as much more or less."""
        tensors = self.shape.tensors[scheme]
        scale = self.shape.trained[scheme] / sum(map(math.prod, tensors.elements()))
        return kept.Kept(*(scale * count for count in kept.of(method, tensors)))

    @functools.cached_property
    def _cuts(self) -> bool:
        return activations.cuts(self.shape)

    def _clock(self, dtype: torch.dtype) -> seconds.Clock:
        if dtype not in self.clocks:
            settings = replace(self.settings, storage="float32" if dtype == torch.float32 else "auto")
            between = activations.moved(self.shape, settings.tokens, dtype)
            self.clocks[dtype] = seconds.Clock(self.shape, self.machine, settings, between, self._cuts)
        return self.clocks[dtype]

    def _live(self, rows: int, dtype: torch.dtype) -> int:
        if (rows, dtype) not in self.held:
            settings = self.settings
            self.held[rows, dtype] = activations.evaluated(self.shape, rows, settings.tokens, dtype, settings.answer_tokens)
        return self.held[rows, dtype]

    def _held(self, live: int) -> int:
        """What tensors of passes make a process hold."""
        return round(SPARE + live + min(KEPT * live, MOST)) if self.machine.is_cpu else round(OVER_DEVICE * live)

    def _propagated(self, held: activations.Kept, gradients: int) -> int:
        """What back-propagation makes a process hold: activations go as gradients come."""
        return self._held(max(held.between, gradients) + held.over)

    def _tune(self, method: str, scheme: str) -> str:
        """The command of a method and a scheme, without what it has by default."""
        settings, default, adapter = self.settings, TuneSettings(), scheme == "lora"
        options = {"data": "FILE", "method": method, "scheme": scheme, "batch_size": settings.batch_size}
        if adapter:
            options["lora_rank"] = settings.lora_rank
        if not (adapter and settings.storage in ("split", "bfloat16")):
            options["storage"] = settings.storage
        return self._command("tune", {name: value for name, value in options.items() if getattr(default, name) != value})

    def _command(self, verb: str, options: dict[str, object]) -> str:
        settings, default = self.settings, TuneSettings()
        named = {"model": "MODEL" if quantities.is_count(settings.model) else settings.model or "MODEL"} | options
        named |= {name: getattr(settings, name) for name in ALIKE if getattr(settings, name) != getattr(default, name)}
        if settings.tokens > default.max_tokens:
            named["max_tokens"] = settings.tokens
        return " ".join(["zerograd", verb, *(f"--{name.replace('_', '-')} {shlex.quote(str(v))}" for name, v in named.items())])


def evaluating() -> list[str]:
    """The methods of evaluations alone."""
    return [name for name, kind in METHODS.items() if kind.perturbs and not kind.takes_backward]
