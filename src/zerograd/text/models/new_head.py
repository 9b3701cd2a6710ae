"""A new head for a classifier: where the saved model has none for the task's labels.

Its weights begin with the labels' own words. A head of random numbers says nothing of any label, and evaluations alone are
slow to find out which of its many numbers matter. The states that the model has of the words already point to the texts that
they are about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zerograd.evaluate.caught import caught

OWN_LOGIT = 4.0
"""About how large the logit of a label is for its own words."""


def set_labels(config: Any, labels: Sequence[str]) -> None:
    """Give a configuration a task's labels, in their order."""
    config.id2label = {i: label.strip() for i, label in enumerate(labels)}
    config.label2id = {label: i for i, label in config.id2label.items()}


def start(model: Any, tokenizer: Any, fresh: Sequence[str]) -> None:
    """Set a new head's last layer by the words of its labels: row c has the signs of c's state less the mean of all.

    fresh: names of the parameters that the saved model lacks. Signs times a power of two are the same on every machine, so that
    a journal's base is too. A head that is no linear layer of one row a label stays as it was drawn.
    """
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    head = next((m for name, m in model.named_modules() if f"{name}.weight" in fresh and _is_last(m, len(labels))), None)
    if head is None or len(labels) < 2:
        return
    with torch.no_grad():
        states = torch.stack([_state(model, tokenizer, head, label) for label in labels])
        centred = states - states.mean(0)
        length = float(centred.abs().sum(1).mean())
        if not math.isfinite(length) or length == 0:
            return
        head.weight.copy_(centred.sign() * 2.0 ** round(math.log2(OWN_LOGIT / length)))
        if head.bias is not None:
            head.bias.zero_()


def _is_last(module: nn.Module, labels: int) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == labels


def _state(model: Any, tokenizer: Any, head: nn.Module, label: str) -> torch.Tensor:
    """What enters the head when the model reads a label's words: float32 (width,)."""
    ids = tokenizer(label, return_tensors="pt")["input_ids"].to(model.device)
    entering: torch.Tensor = caught(lambda: model(input_ids=ids), [head], entering=True)[0]
    return entering.reshape(-1, entering.shape[-1])[-1].float()  # one state, or one a token, of which the last is read
