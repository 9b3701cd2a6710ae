"""The loss of a transformers model as one loss an example, where one of the usual formulas gives it.

A `Trainer` takes whatever loss its model or its `compute_loss` returns. Which formula that is stands nowhere, so it is found by
its value: the formula that gives the model's own loss on a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

SAME, SAME_16 = 1e-4, 4e-3
"""How far two computations of a loss from the same logits may differ, relative to 1 + the loss: in float32, and where one
of them is rounded to 16 bits.
"""

LABELS = ("labels", "start_positions", "end_positions")
"""What a batch calls the answers that the formulas read."""

PerExample = tuple[torch.Tensor, torch.Tensor]
"""(sums, weights), float32 (examples,): the loss of a batch is the quotient of their totals."""


@dataclass(frozen=True)
class Formula:
    """One loss an example. name: as messages say it. losses: of a model's outputs and a batch; None where they do not fit it."""

    name: str
    losses: Callable[[Any, Mapping[str, Any]], PerExample | None]

    def mean(self, outputs: Any, batch: Mapping[str, Any]) -> float | None:
        """The loss of a batch, or None where the formula does not fit."""
        found = self.losses(outputs, batch)
        return None if found is None else float(found[0].double().sum() / found[1].double().sum())


def matching(loss: torch.Tensor, outputs: Any, batch: Mapping[str, Any], tolerance: float = SAME) -> Formula | None:
    """The formula that gives a model's own loss on a batch, from the same outputs; None when none does.

    loss: a scalar; where it has 16 bits its rounding is allowed for.
    """
    return next((formula for formula in FORMULAS if agrees(formula.mean(outputs, batch), loss, tolerance)), None)


def agrees(mine: float | None, loss: torch.Tensor, tolerance: float = SAME) -> bool:
    """Whether a loss is the model's own within rounding."""
    own = float(loss)
    allowed = tolerance if loss.dtype == torch.float32 else max(tolerance, SAME_16)
    return mine is not None and abs(mine - own) <= allowed * (1 + abs(own))


def nearest(loss: float, outputs: Any, batch: Mapping[str, Any]) -> str:
    """The formula that comes nearest to a loss, with its value, for messages; "" when none fits."""
    values = {formula.name: formula.mean(outputs, batch) for formula in FORMULAS}
    fitting = {name: value for name, value in values.items() if value is not None}
    if not fitting:
        return ""
    name = min(fitting, key=lambda name: abs(fitting[name] - loss))
    return f"{name} gives {fitting[name]:.4g}"


def _logits(outputs: Any) -> torch.Tensor | None:
    found = getattr(outputs, "logits", None)
    return found if isinstance(found, torch.Tensor) and found.is_floating_point() and found.ndim else None


def _of_tokens(outputs: Any, batch: Mapping[str, Any], shift: int) -> PerExample | None:
    logits, labels = _logits(outputs), _classes(batch)
    if logits is None or labels is None or labels.ndim != 2 or logits.ndim != 3 or len(logits) != len(labels):
        return None
    virtual = logits.shape[1] - labels.shape[1]  # tokens of a trained prompt, before those of the batch
    if virtual < 0 or int(labels.max()) >= logits.shape[2]:
        return None
    labels = F.pad(labels, (virtual, 0), value=-100)
    logits, labels = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return losses.sum(1), (labels != -100).sum(1).float()


def _of_classes(outputs: Any, batch: Mapping[str, Any]) -> PerExample | None:
    logits, labels = _logits(outputs), _classes(batch)
    if logits is None or labels is None or logits.ndim != 2 or labels.numel() != len(logits):
        return None
    labels = labels.view(-1)
    if int(labels.max()) >= logits.shape[1]:
        return None
    losses = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=-100)
    return losses, (labels != -100).float()


def _of_values(outputs: Any, batch: Mapping[str, Any], error: Callable[..., torch.Tensor]) -> PerExample | None:
    logits, labels = _logits(outputs), batch.get("labels")
    if logits is None or not isinstance(labels, torch.Tensor) or labels.numel() != logits.numel() or len(labels) != len(logits):
        return None
    losses = error(logits.float(), labels.float().view(logits.shape), reduction="none").view(len(logits), -1).mean(1)
    return losses, torch.ones_like(losses)


def _of_spans(outputs: Any, batch: Mapping[str, Any]) -> PerExample | None:
    ends = [(getattr(outputs, f"{end}_logits", None), batch.get(f"{end}_positions")) for end in ("start", "end")]
    losses = []
    for logits, positions in ends:
        if not isinstance(logits, torch.Tensor) or not isinstance(positions, torch.Tensor) or logits.ndim != 2:
            return None
        if positions.numel() != len(logits) or int(positions.max()) >= logits.shape[1] or int(positions.min()) < 0:
            return None  # a position outside the text is left out of the model's mean
        losses.append(F.cross_entropy(logits.float(), positions.view(-1), reduction="none"))
    return (losses[0] + losses[1]) / 2, torch.ones_like(losses[0])


def _classes(batch: Mapping[str, Any]) -> torch.Tensor | None:
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor) or not labels.ndim or not labels.numel() or labels.is_floating_point():
        return None
    return labels


FORMULAS = (
    Formula("cross entropy of the next tokens", lambda outputs, batch: _of_tokens(outputs, batch, 1)),
    Formula("cross entropy of the tokens", lambda outputs, batch: _of_tokens(outputs, batch, 0)),
    Formula("cross entropy of the classes", _of_classes),
    Formula("squared error", lambda outputs, batch: _of_values(outputs, batch, F.mse_loss)),
    Formula("cross entropy of several labels", lambda o, batch: _of_values(o, batch, F.binary_cross_entropy_with_logits)),
    Formula("cross entropy of spans", _of_spans),
)
"""In the order in which they are tried."""
