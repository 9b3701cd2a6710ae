"""How long a replay of many steps takes, by family and storage: seconds of wall and CPU, on the threads OMP_NUM_THREADS allows.

python benchmarks/replay.py --steps 20000
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from record import save

from zerograd import journal
from zerograd.directions.family import Family
from zerograd.journal import Step
from zerograd.spaces import weights
from zerograd.text.models import loading as models
from zerograd.text.models import schemes
from zerograd.update.state import State

CASES = {
    "rademacher": (Family(), "float32", 1),
    "gaussian": (Family("gaussian"), "float32", 0.05),
    "rademacher, split": (Family(), "split", 0.2),
    "rademacher, bfloat16": (Family(), "bfloat16", 0.02),
    "rank 1 of 32 examples": (Family(rank=1), "float32", 0.005),
    "rademacher, weight decay": (Family(), "float32", 0.02),
}
"""Name: (family, storage, share of the steps that is replayed; the seconds are for that share)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--name", default="replay")
    parsed = parser.parse_args()
    rows = []
    for name in parsed.cases:
        family, storage, share = CASES[name]
        steps = max(1, round(parsed.steps * share))
        dtype = torch.float32 if storage == "float32" else torch.bfloat16
        slots = weights.collect(schemes.select(models.load("demo", dtype).model, "full"), storage)
        directions = 32 if family.rank else 1
        decays = np.float32([1 - 1e-6]) if "decay" in name else None
        draw = np.random.default_rng(0)
        records = [
            Step(i, 0.5, np.float32([1e-6]), decays, draw.normal(0, 1e-5, (1, directions)).astype(np.float32)) for i in range(steps)
        ]
        journal.replay(slots, [0] * len(slots), family, State(), 1, records[:2])  # kernels are loaded
        wall, cpu = time.perf_counter(), time.process_time()
        journal.replay(slots, [0] * len(slots), family, State(), 1, records)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        values = sum(slot.parameter.numel() for slot in slots)
        rows.append({"case": name, "steps": steps, "values": values, "directions": directions, "wall": wall, "cpu": cpu})
        print(f"{name}: {steps} steps of {values:,} values in {wall:.0f} s, {cpu:.0f} CPU s, {wall / steps * 1e3:.1f} ms a step")
        print(save(parsed.name, {"threads": torch.get_num_threads(), "rows": rows}), flush=True)


if __name__ == "__main__":
    main()
