"""What each way of training a packed model learns, at the same steps and rows: test accuracy by way, task and seed.

python benchmarks/quantised_learning.py RUNS --name quantised-learning

RUNS is the folder of the runs. A finished run is not run again, so a study can be cut off, continued, and shared by two processes.
The untouched model answers a task alike in all runs, so it is asked once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from record import save

import zerograd.tune.run as tuning
from zerograd.machine import environment
from zerograd.quantised.write import write
from zerograd.runs import replayed
from zerograd.runs.folder import Run, open_run
from zerograd.runs.journals import find_journal, read_journal
from zerograd.text.evaluation import answers
from zerograd.text.intervals import paired
from zerograd.text.models import loading
from zerograd.text.scoring import Scorer
from zerograd.tune.baseline import Baseline, baseline
from zerograd.tune.settings import TuneSettings
from zerograd.tune.setup import Setup
from zerograd.tune.task import task_of

WAYS: dict[str, dict[str, Any]] = {
    "qk": {"scheme": "qk"},
    "scales": {"scheme": "scales"},
    "lora": {"scheme": "lora"},
    "scales-lora": {"scheme": "scales-lora"},
    "qzo": {"scheme": "scales", "method": "qzo"},
    # lr 1e-7, eps 1e-3 and clip 100 of an absolute scale, for blocks whose scale is 0.008, the demo's median
    "qzo, published": {
        "scheme": "scales",
        "method": "qzo",
        "lr": 1.6e-3,
        "eps": 0.125,
        "schedule": "constant",
        "method_options": ["clip=0.8", "distribution=gaussian"],
    },
}
PROMPT = "{kind}: {{{{ text | trim }}}}\nSentiment:"
TASKS = {"movies": "Review", "tweets": "Tweet"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUNS", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows", type=int, nargs=3, default=[400, 60, 300], help="of train, dev and test")
    parser.add_argument("--finished", action="store_true", help="run none: report those that are there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--name", help="save the result under this name")
    parsed = parser.parse_args()
    environment.prepare()
    torch.set_num_threads(parsed.threads)
    parsed.runs.mkdir(parents=True, exist_ok=True)
    tuning.baseline = asked_once()  # type: ignore[attr-defined]
    rows = []
    for seed in range(parsed.seeds):
        for task in parsed.tasks:
            for way in parsed.ways:
                for row in run(parsed, way, task, seed):
                    rows.append(row)
                    print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    result = {"steps": parsed.steps, "splits": parsed.rows, "rows": rows}
    if parsed.name:
        print(save(parsed.name, result))
    if parsed.json:
        print(json.dumps(result))


def asked_once() -> Any:
    """`baseline`, which asks the untouched model once a task."""
    found: dict[str, Baseline] = {}

    def of_task(setup: Setup, *rest: Any) -> Baseline:
        if setup.task.name not in found:
            found[setup.task.name] = baseline(setup, *rest)
        return found[setup.task.name]

    return of_task


def task_file(parsed: argparse.Namespace, task: str) -> Path:
    """The task of a kind of text: positive or negative, with the neutral ones left out."""
    train, dev, test = parsed.rows
    path: Path = parsed.runs / f"{task}.yaml"
    lines = [
        "prompt: " + json.dumps(PROMPT.format(kind=TASKS[task])),
        'options: [" negative", " positive"]',
        "label: score > 0",
        "labels: [false, true]",
        "where: score | abs >= 1",
        "cut: text",
        f"data: sentiment/{task}.jsonl.gz",
        f"rows: {{train: {train}, dev: {dev}, test: {test}}}",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(parsed: argparse.Namespace, way: str, task: str, seed: int) -> Iterator[dict[str, Any]]:
    """The rows of a run; a run on queries and keys also has one without rounding and one in the base's own types."""
    folder = parsed.runs / f"{way.replace(', ', '-')}-{task}-{seed}"
    if parsed.finished and not (folder / "result.json").exists():
        return
    if not (folder / "result.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        common = {"model": loading.DEMO, "packed": True, "task": str(task_file(parsed, task)), "seed": seed, "out": str(folder)}
        length = {"minutes": 0.0, "steps": parsed.steps, "batch_size": 16, "evals": 2, "threads": parsed.threads}
        settings: dict[str, Any] = common | length | WAYS[way]
        tuning.tune(TuneSettings(**settings))
    done = open_run(str(folder))
    result = done.result
    row = {"way": way, "task": task, "seed": seed, "before": result["value_before"], "after": result["value_after"]}
    losses = {"loss_before": result["loss_before"], "loss_after": result["loss_after"]}
    yield row | {"ci_gain": result["ci_gain"]} | losses | {"seconds": result["seconds"], "peak_bytes": result["peak_bytes"]}
    if way == "qk":
        yield from ({**row, **more} for more in as_otherwise_written(done))


def as_otherwise_written(run: Run) -> Iterator[dict[str, Any]]:
    """The same weights without rounding, as an unpacked run has them, and in the base's own types, with a run's folder of that."""
    kept = run.folder / "otherwise.json"
    if not kept.exists():
        settings = dataclasses.replace(run.settings, gguf_type="same")
        loaded, spaces = replayed.rebuilt(read_journal(find_journal(str(run.folder))))
        task = task_of(run.settings)
        scorer = Scorer(loaded.model, loaded.tokenizer, task, loaded.head, settings.max_tokens)
        rows = [{"way": "qk, not rounded", **judged(run, scorer)}]
        folder = Path(f"{run.folder}-same")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("*.gguf", "tensorboard"))
        write(loaded.model, spaces, folder / "model" / next((run.folder / "model").glob("*.gguf")).name, "same")
        (folder / "settings.json").write_text(json.dumps(dataclasses.asdict(settings)))
        rows.append({"way": "qk, same types", **judged(run, scorer)})
        kept.write_text(json.dumps(rows))
    yield from json.loads(kept.read_text())


def judged(run: Run, scorer: Scorer) -> dict[str, Any]:
    """Accuracy and loss of a scorer on a run's test rows, and the gain's interval over the untouched model's answers."""
    examples = scorer.task.test
    scorer.choose_head_path(examples[:2])
    found = answers(scorer, examples)
    right = [float(row.index(max(row)) == example.label) for row, example in zip(found.scores, examples, strict=True)]
    before = [float(row["right_before"]) for row in run.predictions]
    return {"after": sum(right) / len(right), "ci_gain": paired(before, right), "loss_after": found.loss}


if __name__ == "__main__":
    main()
