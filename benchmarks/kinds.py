"""Which of a model's matrices are worth perturbing: signal against noise and curvature, by layer and kind, by back-propagation.

A step of B examples, each along a direction of its own with D its covariance, lowers a quadratic loss at the best learning rate by

    B (g' D g)^2 / (2 E[g_i' D g_i] tr(D H))

where g is the mean gradient, g_i an example's, H the curvature (Gauss-Newton of the two options' margin), and D the square of each
tensor's rms, as with directions that are relative. The first factor is estimated without its noise, by pairs of different examples.

Much of g, of g_i and of H is one direction: that which favours an option whatever the prompt. What is learnt is beside it, so that
the margins are first shifted to the rows' own shares of the options (`calibrated`); without that they are mostly of the shift.

    python benchmarks/kinds.py
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from record import save

from zerograd.machine import environment

KINDS = ("q", "k", "v", "o", "gate", "up", "down")
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["sentiment-tweets", "sentiment-movies"])
    parser.add_argument("--evaluations", type=int, nargs="+", default=[0, 60], help="of the upper layers, before it is measured")
    parser.add_argument("--rows", type=int, default=192, help="of the training split, the last ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="kinds")
    parsed = parser.parse_args()
    environment.prepare()
    found = [measured(task, count, parsed) for task in parsed.tasks for count in parsed.evaluations]
    print(save(parsed.name, {"arguments": vars(parsed), "rows": found}))


def measured(task: str, evaluations: int, parsed: argparse.Namespace) -> dict[str, Any]:
    """A task's numbers after so many evaluations, with which the upper layers were trained."""
    import torch

    from zerograd.tune.hidden_states import cached_hidden_states
    from zerograd.tune.loop import Loop
    from zerograd.tune.settings import TuneSettings
    from zerograd.tune.setup import set_up

    with tempfile.TemporaryDirectory() as folder:
        settings = TuneSettings(
            model="demo", task=task, scheme="upper", batch_size=BATCH, evaluations=max(1, evaluations), minutes=0, evals=0,
            keep="last", schedule="constant", threads=parsed.threads, out=str(Path(folder) / "run"),
        )  # fmt: skip
        torch.set_num_threads(parsed.threads)
        tuning = set_up(settings)
        tuning.warm_up()
        tuning.folder.mkdir(parents=True)
        if evaluations:
            with cached_hidden_states(tuning):
                Loop(tuning).run()
        scorer, rows = tuning.scorer, tuning.task.train[-parsed.rows :]
        matrices = {name: p for name, p in tuning.model.named_parameters() if kind(name)}
        margins = torch.tensor([_margin(scorer, row) for row in rows], dtype=torch.float64)
        right = torch.tensor([row.label == 1 for row in rows], dtype=torch.float64)
        shift = _shift(margins, right)
        print(f"{task}, {evaluations} evaluations: options are shifted by {shift:+.2f}", flush=True)
        cells = {"as it is": 0.0, "calibrated": shift}
        sums = _sums(scorer, rows, matrices, margins, right, list(cells.values()))
    by_cell = {name: _by_cell(part, matrices, len(rows)) for name, part in zip(cells, sums, strict=True)}
    sets = {name: _sets(cell) for name, cell in by_cell.items()}
    for name, worth in sets.items():
        print(f"  {name}: a step of the best rate lowers the loss by", flush=True)
        for what, value in worth.items():
            print(f"    {what}: {value:.5f}", flush=True)
    return {
        "task": task, "evaluations": evaluations, "shift": shift,
        "sets": sets,
        "cells": {name: [[*key, *values] for key, values in cell.items()] for name, cell in by_cell.items()},
    }  # fmt: skip


def kind(name: str) -> tuple[int, str] | None:
    """The layer and the kind of a matrix, from its name."""
    found = re.search(rf"layers\.(\d+)\..*\b({'|'.join(KINDS)})_proj\.weight", name)
    return (int(found[1]), found[2]) if found else None


def _margin(scorer: Any, row: Any) -> float:
    """By how much option 1 is ahead."""
    import torch

    with torch.no_grad():
        loss = float(scorer.losses(scorer.batch([row], for_training=True)).double().sum())
    odds = -torch.log(torch.expm1(torch.tensor(max(loss, 1e-7), dtype=torch.float64)))
    return float(odds if row.label == 1 else -odds)


def _shift(margins: Any, right: Any) -> float:
    """What is added to all margins so that their probabilities are right on average: Newton's method."""
    import torch

    shift = torch.zeros((), dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(margins + shift)
        shift = shift - (p - right).mean() / (p * (1 - p)).mean()
    return float(shift)


def _sums(
    scorer: Any, rows: Sequence[Any], matrices: Mapping[str, Any], margins: Any, right: Any, shifts: Sequence[float]
) -> list[dict[str, list[Any]]]:
    """For each shift, by matrix: the sum of the gradients, of their squares, and the trace of the curvature."""
    import torch

    for parameter in scorer.model.parameters():
        parameter.requires_grad_(False)
    for matrix in matrices.values():
        matrix.requires_grad_(True)
    sums: list[dict[str, list[Any]]] = [
        {name: [torch.zeros_like(p, dtype=torch.float32), 0.0, 0.0] for name, p in matrices.items()} for _ in shifts
    ]
    for i, row in enumerate(rows):
        with torch.enable_grad():
            loss = scorer.losses(scorer.batch([row], for_training=True)).sum()
            gradients = torch.autograd.grad(loss, list(matrices.values()))
        slope = float(torch.sigmoid(margins[i]) - right[i])  # of the loss in the margin, as the gradient has it
        for part, shift in zip(sums, shifts, strict=True):
            p = torch.sigmoid(margins[i] + shift)
            scale, curvature = float(p - right[i]) / slope, float(p * (1 - p)) / slope**2
            for name, gradient in zip(matrices, gradients, strict=True):
                square = float(gradient.float().square().sum())
                part[name][0].add_(gradient, alpha=scale)
                part[name][1] += scale**2 * square
                part[name][2] += curvature * square
    return sums


def _by_cell(part: Mapping[str, Any], matrices: Mapping[str, Any], n: int) -> dict[tuple[int, str], tuple[float, float, float]]:
    """By layer and kind: |g|^2 of the mean gradient, of an example's, and the trace of the curvature, in units of the rms."""
    found = {}
    for name, (total, squares, trace) in part.items():
        key = kind(name)
        assert key is not None, name
        rms = float(matrices[name].detach().float().square().mean())
        signal = (float(total.square().sum()) - squares) / (n * (n - 1))
        found[key] = (rms * signal, rms * squares / n, rms * trace / n)
    return found


def _sets(cell: Mapping[tuple[int, str], tuple[float, float, float]]) -> dict[str, float]:
    """By how much a step lowers the loss, for what may be trained."""
    half = (1 + max(layer for layer, _ in cell)) // 2
    chosen = {"full": set(cell), "upper": {key for key in cell if key[0] >= half}}
    chosen["qk"] = {key for key in chosen["upper"] if key[1] in ("q", "k")}
    chosen |= {f"upper, {kind} alone": {key for key in chosen["upper"] if key[1] == kind} for kind in KINDS}
    sums = {what: [sum(cell[key][i] for key in keys) for i in range(3)] for what, keys in chosen.items()}
    return {what: BATCH * max(0.0, a) ** 2 / (2 * g * t) for what, (a, g, t) in sums.items()}


if __name__ == "__main__":
    main()
