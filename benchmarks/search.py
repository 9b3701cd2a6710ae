"""The search behind the demo's defaults: each row trains for the same minutes and is judged on the dev split alone.

python benchmarks/search.py --minutes 3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from record import save

GRID = [
    {"scheme": "full", "batch_size": 32, "lr": 2e-2},
    {"scheme": "full", "batch_size": 32, "lr": 3e-2},
    {"scheme": "full", "batch_size": 32, "lr": 5e-2},
    {"scheme": "full", "batch_size": 16, "lr": 2e-2},
    {"scheme": "full", "batch_size": 64, "lr": 5e-2},
    {"scheme": "full", "batch_size": 32, "lr": 3e-2, "eps": 3e-2},
    {"scheme": "norms", "batch_size": 16, "lr": 3e-2},
    {"scheme": "norms", "batch_size": 32, "lr": 5e-2},
    {"scheme": "full", "method": "mezo", "batch_size": 32, "lr": 1e-5},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--one", help="a row as JSON, run in this process")
    parser.add_argument("--grid", help="rows as JSON in place of the default grid")
    parser.add_argument("--name", default="search")
    parsed = parser.parse_args()
    if parsed.one:
        print(json.dumps(train(json.loads(parsed.one), parsed.minutes, parsed.seed)))
        return
    rows = []
    for row in json.loads(parsed.grid) if parsed.grid else GRID:
        command = [sys.executable, __file__, "--one", json.dumps(row), "--minutes", str(parsed.minutes), "--seed", str(parsed.seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
        save(parsed.name, {"minutes": parsed.minutes, "seed": parsed.seed, "rows": rows})


def train(row: dict[str, object], minutes: float, seed: int) -> dict[str, object]:
    from zerograd.text.evaluation import accuracy, cross_entropy, option_scores
    from zerograd.train.settings import TuneSettings
    from zerograd.train.tune import Tuning

    started = time.perf_counter()
    tuning = Tuning(TuneSettings(minutes=minutes, seed=seed, evals=0, **row))  # type: ignore[arg-type]
    dev = tuning.task.dev
    before = option_scores(tuning.scorer, dev)
    tuning.train()
    after = option_scores(tuning.scorer, dev)
    return row | {
        "steps": tuning.optimizer.steps,
        "dev_accuracy_before": accuracy(before, dev),
        "dev_accuracy": accuracy(after, dev),
        "dev_loss_before": cross_entropy(before, dev),
        "dev_loss": cross_entropy(after, dev),
        "seconds_total": time.perf_counter() - started,
    }


if __name__ == "__main__":
    main()
