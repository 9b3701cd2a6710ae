"""Peak memory of training over that of evaluating the same examples at the same rows, each row in a fresh process.

Two measures: what is resident in the process, which its allocator's slack and fragmentation enter, and what torch's
tensors hold for the longest rows, which is exact.

python benchmarks/memory.py --steps 60
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from record import fresh, save

from zerograd.machine import environment

ROWS = [
    {"task": "sentiment-movies", "scheme": "upper"},
    {"task": "sentiment-products", "scheme": "upper"},
    {"task": "sentiment-movies", "scheme": "full"},
    {"task": "sentiment-movies", "scheme": "full", "method": "mezo", "lr": 1e-5},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help="a row as JSON, run in this process")
    parsed = parser.parse_args()
    environment.prepare()
    if parsed.one:
        print(json.dumps(measure(json.loads(parsed.one), parsed.steps)))
        return
    rows = []
    for row in ROWS * parsed.repeats:
        rows.append(fresh(__file__, "--one", json.dumps(row), "--steps", str(parsed.steps)))
        print(json.dumps(rows[-1]), flush=True)
        save("memory", {"steps": parsed.steps, "rows": rows})


def measure(row: dict[str, object], steps: int) -> dict[str, object]:
    from zerograd.machine import memory
    from zerograd.text.data import order
    from zerograd.text.evaluation import option_scores
    from zerograd.tune.loop import Loop
    from zerograd.tune.settings import TuneSettings
    from zerograd.tune.setup import set_up

    settings = TuneSettings(minutes=0, steps=steps, evals=0, **row)  # type: ignore[arg-type]
    tuning = set_up(settings)
    tuning.warm_up()
    batches = order.batches([tuning.scorer.length(e) for e in tuning.task.train], settings.batch_size, settings.seed)
    examples = [tuning.task.train[i] for _ in range(steps) for i in next(batches)]
    longest = sorted(tuning.task.train, key=tuning.scorer.length)[-tuning.rows :]
    held_evaluating = held(lambda: option_scores(tuning.scorer, longest, tuning.rows))
    held_training = held(lambda: tuning.step(longest[-settings.batch_size :]))
    memory.reset_peak()
    option_scores(tuning.scorer, examples, tuning.rows)
    evaluating = memory.peak_bytes()
    memory.reset_peak()
    Loop(tuning).run()
    training = memory.peak_bytes()
    return row | {
        "rows": tuning.rows,
        "weight_bytes": tuning.weight_bytes,
        "evaluation_bytes": evaluating,
        "training_bytes": training,
        "over_weights": (training - evaluating) / tuning.weight_bytes,
        "tensor_bytes_evaluating": held_evaluating,
        "tensor_bytes_training": held_training,
        "tensors_over_weights": (held_training - held_evaluating) / tuning.weight_bytes,
    }


def held(run: Callable[[], object]) -> int:
    """The most bytes that the tensors which `run` makes hold at one time."""
    from zerograd.evaluate.micro_batch import PeakBytes

    with PeakBytes() as live:
        run()
    return live.peak


if __name__ == "__main__":
    main()
