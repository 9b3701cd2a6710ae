"""Whether llama.cpp answers as zerograd does, on the untouched file and on the tuned one.

python benchmarks/gguf_out.py RUN ... --json

Each RUN is a finished packed run on options of one token. llama.cpp rounds activations to 8 bits, so the untouched file is the
yardstick: how often both agree there, and how far their log-odds differ, in units of their spread. It needs the package xllamacpp.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import provenance, save

from zerograd.machine import environment
from zerograd.runs.folder import Run, open_run, scorer_of
from zerograd.text import evaluation
from zerograd.text.data.tasks import Example
from zerograd.text.intervals import paired
from zerograd.text.models import loading
from zerograd.text.scoring import Scorer
from zerograd.tune.task import task_of

MOST = 400
"""Tokens of which llama.cpp gives the probability, the likeliest first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--rows", type=int, default=500, help="of the test split")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--name", help="save the result under this name")
    parsed = parser.parse_args()
    environment.prepare()
    torch.set_num_threads(parsed.threads)
    rows = []
    for folder in parsed.runs:
        rows.append(of_run(open_run(folder), parsed.rows, parsed.threads))
        print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    result = {"rows": rows}
    if parsed.name:
        print(save(parsed.name, result))
    if parsed.json:
        print(json.dumps(provenance() | result))


def of_run(run: Run, count: int, threads: int) -> dict[str, Any]:
    """A run's row."""
    task = task_of(run.settings)
    examples = task.test[:count]
    base = loading.demo_file() if run.settings.model == loading.DEMO else Path(run.settings.model)
    (tuned,) = loading.files_of(run.folder / "model") or [base]
    adapter = run.folder / "model" / "adapter.gguf"
    before, after = scorer_of(run.settings.model, run.settings, task), run.scorer("cpu", task)
    ours = [log_odds(scorer, examples) for scorer in (before, after)]
    theirs = [
        llama(base, None, before, examples, threads),
        llama(tuned, adapter if adapter.exists() else None, after, examples, threads),
    ]
    labels = np.array([example.label for example in examples])
    right = [[(odds > 0) == labels for odds in pair] for pair in (ours, theirs)]
    scheme = run.settings.scheme + (f", {run.settings.gguf_type}" if run.settings.scheme == "qk" else "")
    row: dict[str, Any] = {"way": scheme, "task": task.name, "seed": run.settings.seed, "rows": len(examples)}
    for suffix, (untouched, after_it) in zip(("", "_llama"), right, strict=True):
        row[f"gain{suffix}"] = float(100 * (after_it.mean() - untouched.mean()))
        row[f"ci_gain{suffix}"] = [100 * end for end in paired(untouched.astype(float).tolist(), after_it.astype(float).tolist())]
    for suffix, place in (("_untouched", 0), ("", 1)):
        row[f"agreement{suffix}"] = float(100 * ((ours[place] > 0) == (theirs[place] > 0)).mean())
        row[f"log_odds{suffix}"] = float(np.abs(ours[place] - theirs[place]).mean() / statistics.pstdev(ours[place].tolist()))
    return row | {"file_bytes": tuned.stat().st_size}


def log_odds(scorer: Scorer, examples: list[Example]) -> np.ndarray:
    """Those of the second option over the first, by zerograd."""
    scorer.choose_head_path(examples[:2])
    scores = np.array(evaluation.option_scores(scorer, examples))
    return scores[:, 1] - scores[:, 0]


def llama(file: Path, adapter: Path | None, scorer: Scorer, examples: list[Example], threads: int) -> np.ndarray:
    """The same by llama.cpp, of the same tokens."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup = 1024, 1, threads, False
    if adapter is not None:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = str(adapter), 1.0
        params.lora_adapters = [lora]
    server = xllamacpp.Server(params)
    options = [int(token) for token in scorer._columns]
    found = []
    for example in examples:
        asked = {"prompt": scorer.encoder.prompt_ids(example, 1), "n_predict": 1, "n_probs": MOST, "temperature": 0.0}
        said = server.handle_completions(asked | {"cache_prompt": False})
        top = {one["id"]: one["logprob"] for one in said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
        least = min(top.values())
        first, second = (top.get(token, least) for token in options)
        found.append(second - first)
    return np.array(found)


if __name__ == "__main__":
    main()
