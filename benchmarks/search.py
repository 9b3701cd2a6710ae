"""The search behind the upper layers' rate: each row trains for its own steps on one thread and is judged on the dev split alone.

python benchmarks/search.py
python benchmarks/search.py --grid '[{"layers": 15, "lr": 0.04, "steps": 500}]'
"""

from __future__ import annotations

import argparse
import json
import time

from record import fresh, save

from zerograd.machine import environment

GRID = [
    {"layers": 5, "lr": 0.2, "eps": 0.03, "steps": 2000},
    {"layers": 5, "lr": 0.05, "eps": 0.03, "steps": 1500},
    {"layers": 10, "lr": 0.1, "steps": 1000},
    {"layers": 10, "lr": 0.05, "steps": 700},
    {"layers": 10, "lr": 0.025, "steps": 700},
    {"layers": 10, "lr": 0.07, "method_options": ["directions=4", "sides=1"], "steps": 350},
    {"layers": 15, "lr": 0.06, "steps": 500},
    {"layers": 15, "lr": 0.04, "steps": 500},
    {"layers": 20, "lr": 0.03, "eps": 0.015, "steps": 400},
    {"layers": 20, "lr": 0.05, "eps": 0.015, "steps": 400},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--one", help="a row as JSON, run in this process")
    parser.add_argument("--grid", help="rows as JSON in place of the default grid")
    parser.add_argument("--name", default="search")
    parsed = parser.parse_args()
    environment.prepare()
    if parsed.one:
        print(json.dumps(train(json.loads(parsed.one), parsed.seed)))
        return
    rows = []
    for row in json.loads(parsed.grid) if parsed.grid else GRID:
        rows.append(fresh(__file__, "--one", json.dumps(row), "--seed", str(parsed.seed)))
        print(json.dumps(rows[-1]), flush=True)
        save(parsed.name, {"seed": parsed.seed, "threads": 1, "rows": rows})


def train(row: dict[str, object], seed: int) -> dict[str, object]:
    from zerograd.text.evaluation import accuracy, cross_entropy, option_scores
    from zerograd.tune.loop import Loop
    from zerograd.tune.settings import TuneSettings
    from zerograd.tune.setup import set_up

    tuning = set_up(TuneSettings(minutes=0, seed=seed, evals=0, threads=1, **({"scheme": "upper"} | row)))  # type: ignore[arg-type]
    dev = tuning.task.dev
    before = option_scores(tuning.scorer, dev)
    tuning.warm_up()
    started = time.process_time()
    Loop(tuning).run()
    seconds = time.process_time() - started
    after = option_scores(tuning.scorer, dev)
    return row | {
        "cpu_seconds": seconds,
        "dev_accuracy_before": accuracy(before, dev),
        "dev_accuracy": accuracy(after, dev),
        "dev_loss_before": cross_entropy(before, dev),
        "dev_loss": cross_entropy(after, dev),
    }


if __name__ == "__main__":
    main()
