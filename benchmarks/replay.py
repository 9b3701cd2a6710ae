"""How long a replay of many steps takes, by family and precision: seconds of wall and CPU, on the threads OMP_NUM_THREADS allows.

python benchmarks/replay.py --steps 20000
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from record import save

from zerograd import journal
from zerograd.directions import Draws
from zerograd.journal import Step
from zerograd.optim import MeZO, PerExample
from zerograd.spaces import collect
from zerograd.text.models import loading as models
from zerograd.text.models import schemes
from zerograd.update import Memory

CASES = {
    "rademacher": (MeZO.Settings(), "float32", 1),
    "gaussian": (MeZO.Settings(distribution="gaussian"), "float32", 0.05),
    "rademacher, split": (MeZO.Settings(), "split", 0.2),
    "rademacher, bfloat16": (MeZO.Settings(), "bfloat16", 0.02),
    "rank 1 of 32 examples": (PerExample.Settings(), "float32", 0.005),
    "rademacher, weight decay": (MeZO.Settings(), "float32", 0.02),
}
"""Name: (settings of a method, precision, share of the steps that is replayed; the seconds are for that share)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--name", default="replay")
    parsed = parser.parse_args()
    rows = []
    for name in parsed.cases:
        settings, precision, share = CASES[name]
        method = settings.build()
        steps = max(1, round(parsed.steps * share))
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        spaces = collect(schemes.select(models.load("demo", dtype).model, "full"), precision)
        directions = 32 if method.per_example else 1
        decays = np.float32([1 - 1e-6]) if "decay" in name else None
        draw = np.random.default_rng(0)
        records = [
            Step(i, 0.5, draw.normal(0, 10, directions).astype(np.float32), np.float32([1e-6]), np.float32([1e-2]), decays)
            for i in range(steps)
        ]
        memory = Memory(method.rule, method.query, Draws(method.draw, 1), spaces, [0] * len(spaces), 1)
        journal.replay(memory, records[:2])  # kernels are loaded
        wall, cpu = time.perf_counter(), time.process_time()
        journal.replay(memory, records)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        values = sum(space.numel for space in spaces)
        rows.append({"case": name, "steps": steps, "values": values, "directions": directions, "wall": wall, "cpu": cpu})
        print(f"{name}: {steps} steps of {values:,} values in {wall:.0f} s, {cpu:.0f} CPU s, {wall / steps * 1e3:.1f} ms a step")
        print(save(parsed.name, {"threads": torch.get_num_threads(), "rows": rows}), flush=True)


if __name__ == "__main__":
    main()
