"""What back-propagation reaches on the same split: LoRA with AdamW, for the same minutes and at its best.

bfloat16 base, float32 adapter of rank 8 on every linear layer, linear schedule. Of several learning rates the one
with the lowest dev loss is evaluated on test, with `--test`.

python benchmarks/lora.py --minutes 5 --lr 1e-3 --seed 0
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from record import save

from zerograd.machine import environment

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="sentiment-movies")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--epochs", type=float, default=0.0)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="lora")
    parser.add_argument("--test", action="store_true", help="evaluate the best of these learning rates on test")
    parsed = parser.parse_args()
    environment.prepare()
    from zerograd.text import intervals as statistics
    from zerograd.text.evaluation import option_scores, right

    if not parsed.minutes and not parsed.epochs:
        parser.error("give --minutes or --epochs")
    trained = [train(parsed, lr) for lr in parsed.lr]
    row, scorer = min(trained, key=lambda pair: float(pair[0]["dev_loss"]))
    if parsed.test:
        test = scorer.task.test
        correct = right(option_scores(scorer, test), test)
        row |= {"accuracy_after": sum(correct) / len(test), "ci_after": statistics.wilson(sum(correct), len(test))}
        print(json.dumps(row), flush=True)
    print(save(parsed.name, {"arguments": vars(parsed), "rows": [row for row, _ in trained]}))


def train(parsed: argparse.Namespace, lr: float) -> tuple[dict[str, Any], Any]:
    """One run: what it reached on dev, and the scorer that holds its model."""
    import peft
    import torch

    from zerograd.machine import memory
    from zerograd.text.data import order, splits
    from zerograd.text.evaluation import accuracy, cross_entropy, option_scores
    from zerograd.text.models import loading as models
    from zerograd.text.scoring import Scorer

    torch.manual_seed(parsed.seed)
    task = splits.load(parsed.task)
    loaded = models.load("demo")
    adapted = peft.get_peft_model(loaded.model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=LAYERS, task_type="CAUSAL_LM"))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    scorer = Scorer(adapted.get_base_model(), loaded.tokenizer, task)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)
    dataset = order.batches([scorer.length(e) for e in task.train], parsed.batch_size, parsed.seed)
    total = int(parsed.epochs * len(task.train) / parsed.batch_size)
    memory.reset_peak()
    elapsed, steps = 0.0, 0
    while (done := max(elapsed / (60 * parsed.minutes) if parsed.minutes else 0, steps / total if total else 0)) < 1:
        start = time.perf_counter()
        optimizer.param_groups[0]["lr"] = lr * (1 - done)
        chosen = next(dataset)
        loss = scorer.losses(scorer.batch([task.train[i] for i in chosen])).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        elapsed += time.perf_counter() - start
        if steps % 50 == 0:
            print(f"lr {lr} step {steps} loss {loss.item():.3f} {elapsed:.0f} s", flush=True)
    peak = memory.peak_bytes()
    dev = option_scores(scorer, task.dev)
    row: dict[str, Any] = {
        "lr": lr,
        "steps": steps,
        "seconds": elapsed,
        "peak_bytes": peak,
        "dev_accuracy": accuracy(dev, task.dev),
        "dev_loss": cross_entropy(dev, task.dev),
    }
    print(json.dumps(row), flush=True)
    return row, scorer


if __name__ == "__main__":
    main()
