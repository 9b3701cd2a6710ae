"""Planned peaks of memory and seconds beside measured ones, each of a real run in a fresh process.

A run loads its model, takes its steps on the built-in film reviews, the longest rows first, and tells the process's peak since the
model was there; the plan is asked for rows as long as the longest. For its seconds it is asked for rows of the mean length to which
the batches were padded.

python benchmarks/plan.py --steps 40
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from typing import Any

from record import RESULTS, fresh, save

from zerograd.machine import environment

TASK = "sentiment-movies"

BATCH = 32

CELLS = [
    {"row": "inference"},
    {"row": "mezo, full"},
    {"row": "per-example, upper"},
    {"row": "per-example, qk"},
    {"row": "per-example, full"},
    {"row": "per-example, lora"},
    {"row": "mezo, lora"},
    {"row": "per-example, upper", "batch_size": 4},
    {"row": "AdamW, lora"},
    {"row": "AdamW, lora, checkpointing"},
    {"row": "AdamW, lora", "batch_size": 8},
    {"row": "AdamW, full"},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--one", help="a cell as JSON, run in this process")
    parser.add_argument("--replan", action="store_true", help="plan anew beside the peaks that the record has")
    parser.add_argument("--name", default="plan")
    parsed = parser.parse_args()
    environment.prepare()
    if parsed.one:
        cell = json.loads(parsed.one)
        print(json.dumps(measure(parsed.model, parsed.steps, parsed.threads, **cell)))
        return

    cells = [cell for cell in CELLS if not parsed.rows or cell["row"] in parsed.rows]
    command = (__file__, "--model", parsed.model, "--steps", str(parsed.steps), "--threads", str(parsed.threads))
    found: list[dict[str, Any]] = []
    record = RESULTS / f"{parsed.name}.json"
    before = json.loads(record.read_text())["rows"] if parsed.replan else []
    for cell in cells:
        same = [row for row in before if (row["row"], row["batch_size"]) == (cell["row"], cell.get("batch_size", BATCH))]
        found.append(same[0] if same else cell | fresh(*command, "--one", json.dumps(cell)))
        found[-1] |= planned(parsed.model, parsed.threads, found[-1])
        found[-1]["over"] = found[-1]["planned_bytes"] / found[-1]["peak_bytes"] - 1
        print(told(found[-1]), flush=True)
        save(parsed.name, {"model": parsed.model, "task": TASK, "steps": parsed.steps, "rows": found})


def told(row: dict[str, Any]) -> str:
    """A cell of the comparison as a line."""
    measured, planned = (row[name] / 2**20 for name in ("peak_bytes", "planned_bytes"))
    peaks = f"measured {measured:6.0f} MiB   planned {planned:6.0f}   {100 * row['over']:+.1f} %"
    seconds = f"   {row['seconds_per_step']:5.2f} s   planned {row['planned_seconds']:5.2f}" if "seconds_per_step" in row else ""
    return f"{row['row']:28} batch {row['batch_size']:3}   {peaks}{seconds}"


def planned(model: str, threads: int, measured: dict[str, Any]) -> dict[str, Any]:
    """What the plan says of a row, from its command line in fresh processes."""

    def asked(tokens: int) -> dict[str, Any]:
        flags = ("--batch-size", str(measured["batch_size"]), "--tokens", str(tokens), "--threads", str(threads), "--device", "cpu")
        rows = fresh("-m", "zerograd", "plan", model, *flags, "--json")["rows"]
        return next(row for row in rows if row["name"] == measured["row"])

    most = asked(measured["longest"])
    said = {"planned_bytes": most["memory_bytes"], "parts": most["parts"]}
    if "seconds_per_step" in measured:
        said["planned_seconds"] = asked(round(measured["tokens"]))["seconds_per_step"]
    return said


def measure(model: str, steps: int, threads: int, row: str, batch_size: int = BATCH) -> dict[str, Any]:
    """The peak of a run that a row of the plan stands for."""
    method, *scheme = row.split(", ")
    if method == "inference":
        found = evaluated(model, threads)
    else:
        found = tuned(model, steps, threads, batch_size, method.lower(), scheme[0], checkpointing="checkpointing" in scheme)
    return {"batch_size": batch_size} | found


def evaluated(model: str, threads: int) -> dict[str, Any]:
    from zerograd.machine import memory, workers
    from zerograd.text.data import splits
    from zerograd.text.evaluation import option_scores
    from zerograd.text.models import loading as models
    from zerograd.text.scoring import Scorer

    workers.use(threads)
    task, loaded = splits.load(TASK), models.load(model)
    scorer = Scorer(loaded.model, loaded.tokenizer, task, loaded.head)
    scorer.choose_head_path(task.test[:2])
    memory.reset_peak()
    option_scores(scorer, task.test)
    return {"peak_bytes": memory.peak_bytes(), "longest": max(map(scorer.length, task.test))}


def tuned(model: str, steps: int, threads: int, batch_size: int, method: str, scheme: str, checkpointing: bool) -> dict[str, Any]:
    from zerograd.machine import memory
    from zerograd.text.data import order
    from zerograd.tune.loop import Loop
    from zerograd.tune.settings import TuneSettings
    from zerograd.tune.setup import set_up

    settings = TuneSettings(
        model=model,
        task=TASK,
        method=method,
        method_options=("checkpointing=True",) * checkpointing,
        scheme=scheme,
        minutes=0,
        steps=steps,
        evals=0,
        threads=threads,
        batch_size=batch_size,
        out="runs/of-no-plan",
    )
    tuning = set_up(settings)
    tuning.warm_up()
    memory.reset_peak()
    by_length = sorted(tuning.task.train, key=tuning.scorer.length)
    tuning.step(by_length[-batch_size:])
    seconds = Loop(tuning).run().seconds
    lengths = [tuning.scorer.length(example) for example in tuning.task.train]
    taken = itertools.islice(order.batches(lengths, batch_size, settings.seed), steps)
    padded = statistics.mean(max(lengths[i] for i in batch) for batch in taken)
    times = {"tokens": padded, "seconds_per_step": seconds / steps}
    return {"peak_bytes": memory.peak_bytes(), "longest": max(lengths)} | times


if __name__ == "__main__":
    main()
