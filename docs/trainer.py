"""Runs every situation of the table and writes the page with both first losses: python docs/trainer.py [--out docs/trainer.md]"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PAGE = """
# Inside transformers' Trainer

`ZerothOrderMixin`, put before `Trainer` or TRL's `SFTTrainer`, trains the loss that the plain Trainer would train. No attribute
of a model says which loss that is, so the mixin finds out by its value: at the first batch it computes the plain Trainer's loss,
and looks for the formula that gives it from the same outputs.

- **One loss an example.** Where a usual formula gives it, the branches ride the batch, and every method works.
- **A closure.** Where none does (weights, penalties, contrasts between examples), the plain Trainer's loss is evaluated branch by
  branch. That takes a method with shared directions, such as `mezo`, and is said once.
- **Refused.** Where the method needs one loss an example and there is none, or an argument asks for what forward passes cannot do,
  one line names it and the mend.

The comparison is repeated at steps 1, 2, 4, 8 and so on, and a loss that has become another ends the run with both values.

`python docs/trainer.py` ran these situations, tiny models of random weights with four rows each: the mixin's first loss, at a
smoothing radius of 1e-6, beside the `eval_loss` of the plain Trainer.

{table}

## What else differs from the plain Trainer

- The model is in evaluation mode: dropout is off, because the branches of a step must differ by their perturbation alone.
- `max_grad_norm` at its default is ignored: there is no gradient to clip. Another value is refused, and so are `fp16`, `bf16`,
  `gradient_checkpointing`, `neftune_noise_alpha`, `use_liger_kernel`, another `optim` than the default, and several devices.
- Batches accumulated by `gradient_accumulation_steps` are one step of all their rows.
- Batches have the order of `zerograd tune`, rows of similar lengths together, drawn from the seed.

## accelerate, and a loop of your own

The optimisers follow torch's protocol: {protocol}. Running statistics of batch norms are put back after every
branch, so they stay as they were loaded; `torch.optim.swa_utils.update_bn` computes them anew after training. Every
`torch.optim.lr_scheduler` works; those that also move a momentum need `cycle_momentum=False`. `accelerator.prepare(optimizer)`
returns the optimiser itself, so `step(objective, batch)` is called as without it.
"""


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.integrations.situations import CLOSURE, REFUSED, SITUATIONS
    from zerograd.evaluate.pure import PROTOCOL

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(Path(__file__).with_name("trainer.md")))
    parsed = parser.parse_args()
    lines = ["| situation | method | mixin | plain Trainer | how |", "|---|---|---|---|---|"]
    for situation in SITUATIONS:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if situation.outcome == REFUSED:
                try:
                    situation.first_loss(Path(folder))
                except ValueError as error:
                    lines.append(f"| {situation.name} | {situation.method} | | | refused: {error} |")
                    continue
                raise SystemExit(f"{situation.name} was not refused")
            mine, plain = situation.first_loss(Path(folder))[0], situation.plain_loss(Path(folder))
        how = "closure" if situation.outcome == CLOSURE else "one loss an example"
        lines.append(f"| {situation.name} | {situation.method} | {mine:.4f} | {plain:.4f} | {how} |")
        print(lines[-1], flush=True)
    text = PAGE.strip().format(table="\n".join(lines), protocol=PROTOCOL)
    Path(parsed.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
