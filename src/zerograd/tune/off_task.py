"""What a run on rewards forgets: its divergence from the base on unrelated texts, and its accuracy on another task."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from zerograd.evaluate import half
from zerograd.text import evaluation
from zerograd.text.data import splits
from zerograd.text.data.tasks import Task
from zerograd.text.evaluation import Answers
from zerograd.text.scoring import Scorer
from zerograd.tune.settings import DEFAULT_TASK

TEXTS, TEXT_TASK = 200, "sentiment-products"
"""Texts on which the models are compared, and where they come from."""

POSITIONS = 4
"""Tokens of a text after which the distributions are compared, evenly spaced."""

ROWS = 16
"""Texts of a pass."""


class OffTask:
    """The untouched model on unrelated texts and on another task, kept until the tuned one can be compared.

    rows: of the other task, at least 1. The untouched distributions lie in a temporary file.
    """

    def __init__(self, scorer: Scorer, rows: int, listen: Callable[[float], None] = lambda done: None) -> None:
        task = splits.load(DEFAULT_TASK)
        self.examples = task.test[:rows]
        self.task = Task(task.spec, task.train[:2], task.dev[:2], self.examples)
        texts = splits.load(TEXT_TASK)
        self.texts = [example.row["text"] for example in texts.test[:TEXTS]]
        self.before = self._answers(scorer, listen)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._positions = 0
        for part in self._distributions(scorer):
            self._file.write(part.numpy().tobytes())
            self._positions += len(part)
        self._file.flush()

    def after(self, scorer: Scorer, listen: Callable[[float], None] = lambda done: None) -> dict[str, Any]:
        """The results by name: `kl`, the mean over tokens of KL(tuned, untouched) in nats, and the accuracies before and after."""
        self._file.seek(0)
        total = 0.0
        for tuned in self._distributions(scorer):
            size = tuned.numel() * 4
            base = torch.from_numpy(np.frombuffer(self._file.read(size), np.float32).copy()).view(tuned.shape)
            total += float((tuned.exp() * (tuned - base)).sum())
        self._file.close()
        before, after = (evaluation.accuracy(one.scores, self.examples) for one in (self.before, self._answers(scorer, listen)))
        accuracies = {"off_task_before": before, "off_task_after": after, "off_task_rows": len(self.examples)}
        return {"kl": total / self._positions} | accuracies

    def _answers(self, scorer: Scorer, listen: Callable[[float], None]) -> Answers:
        other = Scorer(scorer.model, scorer.tokenizer, self.task, scorer.head, scorer.encoder.max_tokens)
        other.choose_head_path(self.examples[:2])
        return evaluation.answers(other, self.examples, ROWS * 4, listen=listen)

    def _distributions(self, scorer: Scorer) -> Any:
        """Log-probabilities of the next token after some tokens of each text: float32 (positions, vocabulary), a pass at a time."""
        pad, encoded = scorer.encoder.pad, [scorer.tokenizer(text)["input_ids"][: scorer.encoder.max_tokens] for text in self.texts]
        for first in range(0, len(encoded), ROWS):
            some = encoded[first : first + ROWS]
            width = max(map(len, some))
            ids = torch.tensor([one + [pad] * (width - len(one)) for one in some], device=scorer.device)
            seen = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in some], device=scorer.device)
            more = {"decoder_input_ids": ids} if scorer.head == "seq2seq" else {}
            with torch.no_grad(), half.FastLayers(scorer.model):
                logits = scorer.model(input_ids=ids, attention_mask=seen, **more).logits[:, -width:]
            rows = torch.arange(len(some)).repeat_interleave(POSITIONS)
            columns = torch.tensor([(2 * k + 1) * len(one) // (2 * POSITIONS) for one in some for k in range(POSITIONS)])
            yield logits[rows.to(logits.device), columns.to(logits.device)].float().log_softmax(-1).cpu()
