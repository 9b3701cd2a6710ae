"""What each way of training on rewards learns, what it forgets, and what it costs; GRPO with LoRA among them.

python benchmarks/rewards.py RUNS --json

RUNS is the folder of the runs. A finished run is not run again, so a study can be cut off and continued. Each run is a process
of its own, one at a time. `--part ways` gives each way the same minutes, and GRPO also as many answers as evolution made. `--part
forgetting` trains each scheme until the dev prompts reach a share of right answers, with and without decay towards the base.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from record import fresh, save

from zerograd.machine import environment, memory
from zerograd.rewards.builtin import BUILT_IN, names_topic
from zerograd.text.data.order import batches
from zerograd.text.data.tasks import Example
from zerograd.tune.off_task import OffTask
from zerograd.tune.run import tune
from zerograd.tune.settings import TuneSettings
from zerograd.tune.setup import Setup, set_up

ANSWERS = 64
"""Of a step of every way."""

WAYS: dict[str, dict[str, Any]] = {
    "evolution": {},
    "evolution, qk": {"scheme": "qk"},
    "evolution, shared": {"method_options": ("shared=true", "directions=8"), "batch_size": 4},
    "per-example": {"method": "per-example", "batch_size": 32},
    "mezo": {"method": "mezo", "batch_size": 32},
}
GRPO = "GRPO, LoRA"
SCHEMES = ("qk", "upper", "full", "lora")
ANCHORS = (0.0, 1.0)
ENOUGH = {"json": 0.85, "brief": 0.75}
"""Shares of right dev answers at which what was forgotten is compared."""

LOOK_EVERY, MOST_STEPS = 5, 100

NAMED = ("part", "way", "scheme", "anchor", "reward", "seed", "answers")
"""What a run is called by."""

OF_A_RUN = (
    "success_before", "success_after", "names_topic_before", "names_topic_after", "kl", "off_task_before", "off_task_after",
    "off_task_rows", "steps", "generations", "seconds", "peak_bytes",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUNS", type=Path)
    parser.add_argument("--part", nargs="+", choices=("ways", "forgetting"), default=["ways", "forgetting"])
    parser.add_argument("--rewards", nargs="+", choices=ENOUGH, default=list(ENOUGH))
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, GRPO], default=[*WAYS, GRPO])
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--finished", action="store_true", help="run none: report those that are there")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a run in this process, as JSON
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--name", help="save the result under this name")
    parsed = parser.parse_args()
    if parsed.one:
        environment.prepare()
        print(json.dumps(run(json.loads(parsed.one))))
        return
    parsed.runs.mkdir(parents=True, exist_ok=True)
    rows = []
    for wanted in asked(parsed):
        path = parsed.runs / ("-".join(str(wanted[name]) for name in NAMED if name in wanted).replace(", ", "-") + ".json")
        if not path.exists() and not parsed.finished:
            settings = wanted | {"out": str(path.with_suffix(""))}
            path.write_text(json.dumps(fresh(__file__, str(parsed.runs), "--one", json.dumps(settings))))
        if path.exists():
            rows.append(json.loads(path.read_text()))
            print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    result = {"minutes": parsed.minutes, "enough": ENOUGH, "rows": rows}
    if parsed.name:
        print(save(parsed.name, result))
    if parsed.json:
        print(json.dumps(result))


def asked(parsed: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The runs of a study, those of the first seed first."""
    common = {"minutes": parsed.minutes, "threads": parsed.threads}
    for seed in range(parsed.seeds):
        for reward in parsed.rewards:
            one = common | {"reward": reward, "seed": seed}
            if "ways" in parsed.part:
                yield from ({"part": "ways", "way": way} | one for way in parsed.ways)
                made = parsed.runs / f"ways-evolution-{reward}-{seed}.json"
                if GRPO in parsed.ways and made.exists():
                    yield {"part": "ways", "way": GRPO} | one | {"answers": json.loads(made.read_text())["generations"]}
            if "forgetting" in parsed.part:
                for scheme in parsed.schemes:
                    yield from ({"part": "forgetting", "scheme": scheme, "anchor": anchor} | one for anchor in ANCHORS)


def run(wanted: dict[str, Any]) -> dict[str, Any]:
    """A run and what it came to. peak_bytes: of training, the whole process's: torch and the libraries are some 0.5 GB of it."""
    of = {name: wanted[name] for name in NAMED if name in wanted}
    common = {name: wanted[name] for name in ("seed", "minutes", "out", "threads")}
    settings: dict[str, Any] = {"model": "demo", "reward": (wanted["reward"],)} | common
    if wanted["part"] == "ways" and wanted["way"] != GRPO:
        result = tune(TuneSettings(**settings, **WAYS[wanted["way"]], evals=0, keep="last"))
        return of | {name: result[name] for name in OF_A_RUN}
    if wanted["part"] == "forgetting":
        settings |= {"scheme": wanted["scheme"], "method_options": (f"anchor={wanted['anchor']}",)}
    setup = set_up(TuneSettings(**settings))
    apart, before = OffTask(setup.scorer, setup.settings.off_task), shares(setup)
    memory.reset_peak()
    found = grpo(setup, wanted) if wanted.get("way") == GRPO else to_a_share(setup, ENOUGH[wanted["reward"]])
    found["peak_bytes"] = memory.peak_bytes()
    told = {f"{name}_before": share for name, share in before.items()}
    told |= {f"{name}_after": share for name, share in shares(setup).items()}
    return of | told | apart.after(setup.scorer) | found


def shares(setup: Setup) -> dict[str, float]:
    """The shares of answers to the test prompts that are right, and that name the topic."""
    texts, rows = setup.answers(setup.task.test, "test").texts, [example.row for example in setup.task.test]
    named = [names_topic(text, str(row["topic"])) for text, row in zip(texts, rows, strict=True)]
    return {"success": right(setup, setup.task.test, texts), "names_topic": sum(named) / len(named)}


def right(setup: Setup, examples: Sequence[Example], texts: Sequence[str]) -> float:
    """The share of answers that are right."""
    is_right = BUILT_IN[setup.settings.reward[0]].is_right
    assert is_right is not None
    return sum(is_right(text, dict(example.row)) for text, example in zip(texts, examples, strict=True)) / len(texts)


def to_a_share(setup: Setup, enough: float) -> dict[str, Any]:
    """Train at a constant rate until a share of the dev answers is right, or for MOST_STEPS; reached says which."""
    share, train = 0.0, setup.task.train
    lengths = [setup.scorer.length(example) for example in train]
    for number, batch in enumerate(batches(lengths, setup.settings.batch_size, setup.settings.seed), 1):
        setup.step([train[i] for i in batch])
        if number % LOOK_EVERY == 0:
            share = right(setup, setup.task.dev, setup.dev_answers().texts)
            if share >= enough or number >= MOST_STEPS:
                break
    made = setup.optimizer.forwards * setup.settings.batch_size
    return {"steps": setup.optimizer.steps, "generations": made, "dev_share": share, "reached": share >= enough}


def grpo(setup: Setup, wanted: dict[str, Any]) -> dict[str, Any]:
    """TRL's GRPOTrainer with LoRA on a float32 copy, whose merged weights go into the setup's model.

    Groups of 4 answers to 16 prompts at temperature 1; TRL's own defaults but for the rate, 1e-4, and float32, since not every CPU
    multiplies in bfloat16. The peak has the model that is judged beside it, 0.27 GB.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from zerograd.text.models import loading

    limit, most, of = wanted["minutes"] * 60, wanted.get("answers"), BUILT_IN[wanted["reward"]]
    loaded = loading.load(loading.DEMO, torch.float32)
    rows = [{**example.row, "prompt": [{"role": "user", "content": example.row["prompt"]}]} for example in setup.task.train]
    started = time.perf_counter()

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
            control.should_training_stop |= not most and time.perf_counter() - started >= limit
            return control

    steps = -(-most // ANSWERS) if most else MOST_STEPS
    args = GRPOConfig(
        output_dir=wanted["out"], per_device_train_batch_size=ANSWERS, num_generations=4, max_completion_length=of.new_tokens,
        max_steps=steps, learning_rate=1e-4, seed=wanted["seed"], use_cpu=True, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, bf16=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        loaded.model, reward_funcs=of.reward.call, args=args, train_dataset=Dataset.from_list(rows), callbacks=[Ends()],
        processing_class=loaded.tokenizer, peft_config=LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    seconds = time.perf_counter() - started
    merged = trainer.model.merge_and_unload()
    setup.model.load_state_dict(merged.state_dict())
    return {"steps": trainer.state.global_step, "generations": ANSWERS * trainer.state.global_step, "seconds": seconds}


if __name__ == "__main__":
    main()
