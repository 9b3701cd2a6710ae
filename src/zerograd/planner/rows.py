"""The rows of a plan: memory, seconds and command of inference, of each method with each scheme, and of
back-propagation.
"""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from zerograd.evaluate.products import BUFFER, DEVICE_BUFFER
from zerograd.optim import METHODS, method_of
from zerograd.planner import activations, method_cost, quantities, seconds
from zerograd.planner.machine import Machine
from zerograd.planner.settings import PlanSettings
from zerograd.planner.shapes import Shape
from zerograd.runs.evaluate import PASS_ROWS
from zerograd.text.models import schemes
from zerograd.text.scoring import FORWARD_TOKENS
from zerograd.tune.settings import TuneSettings

TASK_BYTES = 45 << 20
"""Memory of a process beside its libraries before a run: tokenizer, the model's own code, rows of text."""

KERNEL_BYTES = 115 << 20
"""Additional memory of zeroth-order training: compiled kernels of Numba and oneDNN, and the journal's writer."""

PASS_BYTES, ALLOCATOR_FACTOR, MAX_ALLOCATOR_BYTES = 20 << 20, 3.5, 200 << 20
"""Memory of a process on the CPU beside the tensors of a pass: PASS_BYTES, and bytes that the allocator keeps for the
next pass, ALLOCATOR_FACTOR per byte of tensors and at most MAX_ALLOCATOR_BYTES. Measured on models of 3 to 420 million
parameters (benchmarks/plan.py).
"""

SHARED_SETTINGS = ("head", "device", "threads")
"""Settings that a plan and a run share."""

UNPACKING_SECONDS = 3e-10
"""CPU seconds to unpack a weight, for each pass (benchmarks/results/quantised-unpacking.json)."""

PACKED = (("per-example", "qk"), ("per-example", "upper"), ("per-example", "scales"), ("mezo", "scales"), ("per-example", "lora"))
"""Methods and schemes of a model that stays packed."""

DEVICE_ALLOCATOR_FACTOR = 1.2
"""Bytes that an accelerator's allocator reserves per byte of tensors."""


@dataclass(frozen=True)
class Row:
    """One use of a model on a machine.

    name: for people. method, scheme: the names in `zerograd tune`; "" for inference. parts: bytes by their purpose.
    seconds: of a step, or of a batch in inference; None if the machine's rates are not known. trained: number of
    trained values. command: the command line.
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

    @property
    def is_packed(self) -> bool:
        """Whether the model stays packed."""
        return self.command.endswith(" --packed")


@dataclass(frozen=True)
class Planner:
    """Computes the rows of a plan.

    tensor_bytes: a cache of the peak bytes of a pass, by rows and dtype. clocks: a cache of clocks by dtype.
    """

    settings: PlanSettings
    shape: Shape
    machine: Machine
    tensor_bytes: dict[tuple[int, torch.dtype], int] = field(default_factory=dict)
    clocks: dict[torch.dtype, seconds.Clock] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return torch.float32 if self.settings.precision == "float32" else torch.bfloat16

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.shape.parameters * self.dtype.itemsize

    @property
    def process(self) -> int:
        """Bytes of the process on the device without the model."""
        return self.machine.libraries + (TASK_BYTES if self.machine.is_cpu else 0)

    def rows(self) -> Iterator[Row]:
        """All rows: inference, every gradient-free method with every scheme, and AdamW."""
        yield self.inference()
        for method in gradient_free_methods():
            for scheme in self.shape.trained:
                yield self.zeroth_order(method, scheme)
        for method, scheme in PACKED if self.shape.packed else ():
            if ("qk" if scheme == "scales" else scheme) in self.shape.trained:
                yield self.packed(method, scheme)
        yield from self.backpropagation()

    def packed(self, method: str, scheme: str) -> Row:
        """The row of `zerograd tune --packed`: what is not trained, or trained by its scales, stays in its blocks."""
        file = self.shape.packed
        assert file is not None
        row = self.zeroth_order(method, "qk" if scheme == "scales" else scheme)
        trained, others = row.trained, 2 * (self.shape.parameters - file.weights)
        weights = file.nbytes + others
        parts = dict(row.parts)
        if scheme == "scales":
            trained = round(trained / file.block)
            weights, parts["remainder"] = weights + 4 * trained, 0
        elif scheme == "lora":
            weights += 4 * trained
        else:
            weights += round(trained * (self.dtype.itemsize - file.of_weight))
        parts["weights"] = weights
        passes = -(-self.settings.batch_size // self.rows_of_pass(1))
        unpacking = passes * self.shape.body * UNPACKING_SECONDS / self.machine.threads if self.machine.is_cpu else 0.0
        seconds_of_step = None if row.seconds is None else row.seconds + unpacking
        command = self._tune(method, scheme) + " --packed"
        return Row(f"{method}, {scheme}, packed", method, scheme, parts, seconds_of_step, trained, command)

    def inference(self) -> Row:
        """The row of `zerograd eval`, which loads the model in 16 bits whatever the precision of training."""
        rows = min(PASS_ROWS, max(1, FORWARD_TOKENS // self.settings.tokens))
        tensors = self._pass_tensor_bytes(rows, torch.bfloat16)
        parts = {"process": self.process, "weights": 2 * self.shape.parameters, "pass": self._process_bytes(tensors)}
        clock = self._clock(torch.bfloat16)
        command = self._command("eval", {"data": "FILE"})
        return Row("inference", "", "", parts, clock.batch(self.settings.batch_size, rows), 0, command)

    def zeroth_order(self, method: str, scheme: str) -> Row:
        """The row of `zerograd tune` with a method and a scheme."""
        settings, trained = self.settings, self.shape.trained[scheme]
        optimizer, cost = method_cost.small_optimizer(method), self._method_cost(method, scheme)
        rows = self.rows_of_pass(optimizer.branches)
        buffer = BUFFER if self.machine.is_cpu else DEVICE_BUFFER
        prefix = 0  # hidden states at the first trained layer, for the batch and for all branches of a pass
        if scheme in schemes.UPPER and self._can_share_prefix:
            prefix = (settings.batch_size + rows) * settings.tokens * self.shape.hidden * self.dtype.itemsize
        in_pass = self._process_bytes(self._pass_tensor_bytes(rows, self.dtype)) + prefix + buffer
        parts = self._resident_parts(scheme, cost.state) | {"pass": in_pass}
        parts["process"] += KERNEL_BYTES if self.machine.is_cpu else 0
        step_seconds = self._clock(self.dtype).step(optimizer, scheme, cost, rows)
        return Row(f"{method}, {scheme}", method, scheme, parts, step_seconds, trained, self._tune(method, scheme))

    def backpropagation(self) -> Iterator[Row]:
        """The rows of AdamW: on every parameter, on a LoRA, and on a LoRA with activation checkpointing."""
        settings, rows = self.settings, self.rows_of_pass(1)
        tokens, scored = settings.tokens, settings.answer_tokens
        for scheme, checkpointing in (("full", False), ("lora", False), ("lora", True)):
            if scheme not in self.shape.trained:
                continue
            trained, rank = self.shape.trained[scheme], settings.lora_rank if scheme == "lora" else 0
            memory = activations.backpropagation(self.shape, rows, tokens, self.dtype, rank, checkpointing, scored)
            gradients = trained * (4 if scheme == "lora" else self.dtype.itemsize)
            state = self._method_cost("adamw", scheme).state
            parts = self._resident_parts(scheme, state) | {"pass": self._backpropagation_bytes(memory, gradients)}
            step_seconds = self._clock(self.dtype).backpropagation_step(3 + checkpointing, rows, trained)
            command = self._tune("adamw", scheme) + " --method-options checkpointing=True" * checkpointing
            name = f"AdamW, {scheme}" + ", checkpointing" * checkpointing
            yield Row(name, "adamw", scheme, parts, step_seconds, trained, command)

    def rows_of_pass(self, copies: int) -> int:
        """Rows of a forward pass: whole examples, each `copies` times, within FORWARD_TOKENS."""
        examples = max(1, FORWARD_TOKENS // (self.settings.tokens * copies))
        return copies * min(self.settings.batch_size, examples)

    def _resident_parts(self, scheme: str, state: float) -> dict[str, int]:
        """Bytes, by purpose, that stay from step to step while a scheme is trained."""
        trained, adapter = self.shape.trained[scheme], scheme == "lora"
        return {
            "process": self.process,
            "weights": self.weights + 4 * trained * adapter,
            "remainder": 2 * trained * (not adapter and self.settings.precision in ("auto", "split")),
            "state": round(state),
        }

    def _method_cost(self, method: str, scheme: str) -> method_cost.MethodCost:
        """The cost of a method, scaled to the given number of parameters where the built model only approximates it."""
        tensors = self.shape.tensors[scheme]
        scale = self.shape.trained[scheme] / sum(map(math.prod, tensors.elements()))
        return method_cost.MethodCost(*(scale * count for count in method_cost.cost_of(method, tensors)))

    @functools.cached_property
    def _can_share_prefix(self) -> bool:
        return activations.can_share_prefix(self.shape)

    def _clock(self, dtype: torch.dtype) -> seconds.Clock:
        if dtype not in self.clocks:
            settings = replace(self.settings, precision="float32" if dtype == torch.float32 else "auto")
            traffic = activations.layer_traffic(self.shape, settings.tokens, dtype)
            self.clocks[dtype] = seconds.Clock(self.shape, self.machine, settings, traffic, self._can_share_prefix)
        return self.clocks[dtype]

    def _pass_tensor_bytes(self, rows: int, dtype: torch.dtype) -> int:
        if (rows, dtype) not in self.tensor_bytes:
            settings = self.settings
            self.tensor_bytes[rows, dtype] = activations.evaluation_peak(
                self.shape, rows, settings.tokens, dtype, settings.answer_tokens
            )
        return self.tensor_bytes[rows, dtype]

    def _process_bytes(self, tensors: int) -> int:
        """Memory of a process for passes. tensors: the peak bytes of their tensors."""
        if not self.machine.is_cpu:
            return round(DEVICE_ALLOCATOR_FACTOR * tensors)
        return round(PASS_BYTES + tensors + min(ALLOCATOR_FACTOR * tensors, MAX_ALLOCATOR_BYTES))

    def _backpropagation_bytes(self, memory: activations.BackpropagationMemory, gradients: int) -> int:
        """Memory of a process for back-propagation, which frees activations while it allocates gradients."""
        return self._process_bytes(max(memory.activations, gradients) + memory.temporary)

    def _tune(self, method: str, scheme: str) -> str:
        """The command of a method and a scheme, without default settings."""
        settings, default, adapter = self.settings, TuneSettings(), scheme == "lora"
        options = {"data": "FILE", "method": method, "scheme": scheme, "batch_size": settings.batch_size}
        if adapter:
            options["lora_rank"] = settings.lora_rank
        if not (adapter and settings.precision in ("split", "bfloat16")):
            options["precision"] = settings.precision
        return self._command("tune", {name: value for name, value in options.items() if getattr(default, name) != value})

    def _command(self, verb: str, options: dict[str, object]) -> str:
        settings, default = self.settings, TuneSettings()
        named = {"model": "MODEL" if quantities.is_count(settings.model) else settings.model or "MODEL"} | options
        named |= {name: getattr(settings, name) for name in SHARED_SETTINGS if getattr(settings, name) != getattr(default, name)}
        if settings.tokens > default.max_tokens:
            named["max_tokens"] = settings.tokens
        return " ".join(["zerograd", verb, *(f"--{name.replace('_', '-')} {shlex.quote(str(v))}" for name, v in named.items())])


def gradient_free_methods() -> list[str]:
    """The methods that train with evaluations alone."""
    return [name for name in METHODS if (method := method_of(name)).perturbs and not method.takes_backward]
