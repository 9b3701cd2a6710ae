"""transformers' Trainer without a backward pass: python examples/trainer.py [STEPS]"""

import sys

from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from zerograd.integrations.transformers import ZerothOrderConfig, ZerothOrderMixin
from zerograd.text.data import splits
from zerograd.text.models import loading as models


class ZOTrainer(ZerothOrderMixin, Trainer):
    """A Trainer whose steps are evaluations."""


loaded, task = models.load("demo"), splits.load("sentiment-movies")
rows = []
for example in task.train:
    prompt = loaded.tokenizer(task.prompt(example))["input_ids"]
    answer = loaded.tokenizer(task.options[example.label])["input_ids"]
    rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
args = TrainingArguments(
    "runs/trainer", max_steps=steps, per_device_train_batch_size=16, learning_rate=0.04, logging_steps=10, report_to="none"
)  # fmt: skip
collator = DataCollatorForSeq2Seq(loaded.tokenizer)
config = ZerothOrderConfig(method="per-example", eps=0.02)
trainer = ZOTrainer(loaded.model, args, train_dataset=rows, data_collator=collator, zeroth_order=config)
trainer.train()
