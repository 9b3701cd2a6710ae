"""TRL's SFTTrainer without a backward pass, on a LoRA adapter: python examples/sft_trainer.py [STEPS]"""

import sys

import datasets
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from zerograd.integrations.transformers import ZerothOrderConfig, ZerothOrderMixin
from zerograd.text.data import splits
from zerograd.text.models import loading as models


class ZOSFTTrainer(ZerothOrderMixin, SFTTrainer):
    """An SFTTrainer whose steps are evaluations."""


loaded, task = models.load("demo"), splits.load("sentiment-movies")
rows = datasets.Dataset.from_list([{"prompt": task.prompt(e), "completion": task.options[e.label]} for e in task.train[:1000]])
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
args = SFTConfig(
    "runs/sft", max_steps=steps, per_device_train_batch_size=16, learning_rate=0.04, logging_steps=10, report_to="none",
    bf16=False, gradient_checkpointing=False,
)  # fmt: skip
trainer = ZOSFTTrainer(
    loaded.model, args, train_dataset=rows, processing_class=loaded.tokenizer, peft_config=LoraConfig(r=8),
    zeroth_order=ZerothOrderConfig(method="per-example", eps=0.02),
)  # fmt: skip
trainer.train()
