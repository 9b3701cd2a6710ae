"""Runs every command of the tour and writes the page with their output: python docs/tour.py [--out docs/tour.md]

It works in an empty folder. The data comes from installed packages: first sentences of the docstrings of five libraries, and the
sentiment sentences of zerograd. It fails if a command ends with another exit code than expected. With --quick, runs take two
steps on a few rows, which shows that every command ends as it should and no more.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import inspect
import json
import os
import pkgutil
import random
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from zerograd.text.data import splits
from zerograd.text.models import loading as models

LIBRARIES = ("matplotlib", "pandas", "scipy", "sympy", "torch")
ROWS, QUICK_ROWS = 60, 12
"""Rows of each library."""

TOUR = """
# A tour

`python docs/tour.py` ran every command of this page, in this order, on two CPU cores. Below each command is its output.
The runs take a few steps only, to show the commands; [the demo](demo.md) shows the results of five minutes.

## A table of your own

The table has five columns. A row is the first sentence of a docstring and its library, one of five.

$ head -n 3 topics.csv

A model answers fastest in words of one token, so `options` gives each label such a word. `--dry-run` trains nothing: it
checks the rows, tries two steps, and prints the time, memory and disk space of a run.

$ cat topics.yaml
$ zerograd tune --config topics.yaml --dry-run
$ zerograd tune --config topics.yaml --steps 60 --evals 3 --out runs/topics
$ ls runs/topics
$ zerograd eval runs/topics --split dev
$ zerograd predict runs/topics --data new.csv --out answers.csv
$ cat answers.csv

## A run is its journal

The journal records every step. The base model and the journal together give the tuned model. After an interruption,
`zerograd tune --resume runs/topics` continues the run ([journal.md](journal.md)).

$ zerograd journal show runs/topics
$ zerograd ship runs/topics --out tuned.zg
$ wc -c tuned.zg runs/topics/model/model.safetensors
$ zerograd predict --model tuned.zg --data new.csv --out again.csv
$ cmp answers.csv again.csv && echo the same

## A metric of your own

A metric needs no gradient. It may be any function of predictions and references, in a file beside the data.

$ cat mine.py
$ zerograd tune --config topics.yaml --objective mine.py:found --mix 0.5 --metric accuracy --method mezo --steps 9 --out runs/m
$ zerograd report runs/topics runs/m --out both.html

## Instructions

Conversations are written in the model's own chat template. Training uses the answers only; here it trains a LoRA adapter.

$ head -n 1 instructions.jsonl
$ zerograd tune --data instructions.jsonl --scheme lora --batch-size 8 --steps 8 --evals 1 --out runs/instructions
$ ls runs/instructions/model

## Your own model

`--model` takes a folder that transformers loads, for example the folder of the first run, or a GGUF file.

$ zerograd eval --config topics.yaml --model runs/topics/model
$ zerograd eval --model smollm2.gguf --task stars.yaml --shots 4

## A quantised model

With `--packed` the matrices of a GGUF file stay in its blocks, and the run ends with such a file ([quantised.md](quantised.md)).

$ zerograd tune --model smollm2.gguf --packed --task stars.yaml --steps 20 --evals 1 --out runs/packed
$ ls runs/packed/model
$ zerograd replay runs/packed --out again.gguf
$ cmp again.gguf runs/packed/model/smollm2.gguf && echo the same

## A task as a file

$ cat stars.yaml
$ zerograd eval --task stars.yaml --calibrate

## Settings as a file

A flag overrides the same field of the file.

$ zerograd tune --task stars.yaml --scheme norms --lr 0.02 --out runs/norms --show-config > norms.yaml
$ grep -E "^(task|scheme|lr|out):" norms.yaml
$ zerograd tune --config norms.yaml --steps 10 --evals 1

## An error is one line

! zerograd tune --data topics.csv --text review --label library
! zerograd tune --data topics.csv --text body --label library --template "Is it torch?"
! zerograd tune --data topics.csv --text body --label library --options a b
! zerograd tune --data broken.jsonl --text body --label library
! zerograd tune --config topics.yaml --device cuda:9
! zerograd tune --config topics.yaml --metric mine.py:words --steps 1 --evals 0 --out runs/words
! zerograd eval runs/nothing
"""
"""Text, `$ ` before a command that succeeds, `! ` before one that ends with exit code 2."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(Path(__file__).with_name("tour.md")))
    parser.add_argument("--quick", action="store_true", help="two steps a run, few rows")
    parsed = parser.parse_args()
    tour = TOUR.strip()
    if parsed.quick:
        tour = shortened(tour)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), QUICK_ROWS if parsed.quick else ROWS)
        written = "\n".join(typed(tour, Path(folder)))
    Path(parsed.out).write_text(written + "\n", encoding="utf-8")


def shortened(tour: str) -> str:
    """The same commands on small batches and one thread, since others run beside them, and at most two steps a run."""
    tour = re.sub(r"--steps \d+", "--steps 2", re.sub(r"--evals \d+", "--evals 1", tour))
    tour = re.sub(r"^(\$ zerograd tune (?!.*show-config).*)$", r"\1 --batch-size 8 --threads 1", tour, flags=re.MULTILINE)
    return re.sub(r"^(\$ zerograd (eval|predict) .*)$", r"\1 --threads 1", tour, flags=re.MULTILINE)


def typed(tour: str, folder: Path) -> Iterator[str]:
    """The lines of the page: the text, and each command with its output."""
    for line in tour.splitlines():
        if line[:2] not in ("$ ", "! "):
            yield line
            continue
        command = line[2:]
        print(line, flush=True)
        said = run(command, folder, 2 if line[0] == "!" else 0)
        yield "\n".join(["```console", f"$ {command}", *said, "```"])


def run(command: str, folder: Path, code: int) -> list[str]:
    """The output of a command, as the screen shows it at the end. Exits if the command's exit code is not `code`."""
    environment = os.environ | {
        "COLUMNS": "110",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != code:
        raise SystemExit(f"{command} ended with {done.returncode}, not {code}:\n{done.stdout}")
    lines = [line.rstrip() for line in done.stdout.splitlines() if "━━━" not in line]
    return "\n".join(lines).strip("\n").splitlines()


def make(folder: Path, each: int) -> None:
    """Write the files that the tour's commands read, with `each` rows of each library."""
    rows = topics(each)
    new, rows = rows[:2], rows[2:]
    write(folder / "topics.csv", rows)
    write(folder / "new.csv", [{"body": row["body"]} for row in new])
    (folder / "broken.jsonl").write_text('{"body": "a", "library": "torch"}\n{"body": "b"\n')
    (folder / "mine.py").write_text(
        'def found(predictions, references):\n    """The share of torch\'s rows that are found."""\n'
        '    answers = [p for p, r in zip(predictions, references) if r == "tensors"]\n'
        '    return answers.count("tensors") / max(1, len(answers))\n\n\n'
        'def words(predictions, references):\n    return "many"\n'
    )
    (folder / "topics.yaml").write_text(
        "data: [topics.csv]\ntext: body\nlabel: library\ntemplate: '{{ body }} This is about'\n"
        "options: [matplotlib=plots, pandas=tables, scipy=signals, sympy=algebra, torch=tensors]\n"
    )
    asked = "Which library is this from? "
    talks = [[("user", asked + row["body"]), ("assistant", f"It is from {row['library']}.")] for row in rows[:200]]
    with (folder / "instructions.jsonl").open("w") as file:
        for talk in talks:
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in talk]}) + "\n")
    (folder / "stars.yaml").write_text(
        "prompt: |-\n  {{ text | trim }}\n  Would the writer come again? Yes or No?\noptions: [' No', ' Yes']\nlabel: liked\n"
        f"data: stars.jsonl\nrows: {{test: {min(100, each * 2)}}}\n"
    )
    with (folder / "stars.jsonl").open("w") as file:
        for example in splits.load("sentiment-products").train[: 5 * each]:
            file.write(json.dumps({"text": example.row["text"], "liked": example.label}) + "\n")
    (folder / "smollm2.gguf").symlink_to(models.demo_file())


def topics(each: int) -> list[dict[str, str]]:
    """First sentences of docstrings, shuffled, the libraries in equal numbers."""
    draw, rows = random.Random(0), []
    for library in LIBRARIES:
        found = sorted(set(sentences(library)))
        for name, sentence in draw.sample(found, each):
            rows.append({"id": f"{library}-{len(rows)}", "name": name, "kind": "function", "body": sentence, "library": library})
    draw.shuffle(rows)
    return rows


def sentences(library: str) -> Iterator[tuple[str, str]]:
    """(name, first sentence) of a library's documented functions and classes, without sentences that name the library."""
    module = importlib.import_module(library)
    modules = [module]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for info in pkgutil.iter_modules(module.__path__):
            if not info.name.startswith("_") and info.name not in ("tests", "testing", "conftest", "pylab"):
                try:
                    modules.append(importlib.import_module(f"{library}.{info.name}"))
                except Exception:  # a module that needs a package that is not installed
                    continue
        for one in modules:
            for name, thing in inspect.getmembers(one, callable):
                text = inspect.getdoc(thing) if str(getattr(thing, "__module__", "")).startswith(library) else None
                first = re.split(r"(?<=\.)\s|\n\n", text or "")[0].replace("\n", " ").strip()
                if not name.startswith("_") and 30 < len(first) < 160 and library not in first.lower():
                    yield name, first


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
