"""Scoring by option log-likelihood: prompts to batches, batches to one loss or one row of option scores an example."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from zerograd.text.cache import HiddenCache
from zerograd.text.head import log_likelihoods
from zerograd.text.prefix import Prefix
from zerograd.text.tasks import Example, Task

FORWARD_TOKENS = 4096
"""Tokens of a forward pass, padding and branches included: a longer batch is evaluated in parts, of one example at least, so
that long examples do not set the memory of the run."""


@dataclass(frozen=True)
class Batch:
    """Examples ready for the model.

    ids: int64 (rows, tokens), padded on the right. last: int64 (rows,), where each row's last token stands. targets: int64
    (rows, tokens), the token to predict at each position that is scored, or -100; None when only the last position is.
    labels: int64 (examples,). hidden: (rows, tokens, width) where the layers that training leaves alone have been run.
    When every option is one token a row is an example; else rows are examples x options, an example's options together.
    """

    ids: torch.Tensor
    last: torch.Tensor
    targets: torch.Tensor | None
    labels: torch.Tensor
    hidden: torch.Tensor | None = None


class OptionScorer:
    """Scores a task's options with a causal language model; its `losses` is the objective that training minimises.

    Only what is scored is computed: with options of one token, the option columns of the head at the last position, in
    float32, since the normaliser of the softmax cancels between them.
    """

    def __init__(self, model: Any, tokenizer: Any, task: Task, max_tokens: int = 512) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.task = task
        self.max_tokens = max_tokens
        self.option_ids: list[list[int]] = [tokenizer(o, add_special_tokens=False)["input_ids"] for o in task.options]
        self.single = all(len(ids) == 1 for ids in self.option_ids)
        self.added = 0 if self.single else max(map(len, self.option_ids))  # tokens that a row has beside its prompt
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
        self.prefix: Prefix | None = None
        self.cache: HiddenCache | None = None
        self._prompts: dict[str, list[int]] = {}
        self._columns = torch.tensor([ids[0] for ids in self.option_ids])

    def prompt_ids(self, text: str) -> list[int]:
        """The tokens of a text's prompt; a text that is too long loses its end, never the question."""
        if text not in self._prompts:
            self._prompts[text] = self._fitting(text)
        return self._prompts[text]

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors, padded to the longest."""
        labels = torch.tensor([e.label for e in examples])
        prompts = [self.prompt_ids(e.text) for e in examples]
        if self.single:
            rows = prompts
            return Batch(self._pad(rows, self.pad), torch.tensor([len(r) - 1 for r in rows]), None, labels)
        rows = [prompt + option for prompt in prompts for option in self.option_ids]
        scored = [[-100] * (len(p) - 1) + option + [-100] for p in prompts for option in self.option_ids]
        last = torch.tensor([len(r) - 1 for r in rows])
        return Batch(self._pad(rows, self.pad), last, self._pad(scored, -100), labels)

    def at_a_time(self, tokens: int, copies: int = 1) -> int:
        """How many examples of so many tokens a forward pass takes, with `copies` branches: at least 1."""
        return max(1, FORWARD_TOKENS // (tokens * copies * (1 if self.single else len(self.option_ids))))

    def begin(self, batch: Batch) -> Batch:
        """Run the layers that training leaves alone, once for all branches; what the cache holds is read from there."""
        if self.prefix is None:
            return batch
        if self.cache is None:
            return dataclasses.replace(batch, hidden=self._below(batch.ids))
        return dataclasses.replace(batch, hidden=self.cache.hidden(batch.ids, batch.last + 1, self._below))

    def scores(self, batch: Batch) -> torch.Tensor:
        """Log-likelihood of each option, up to a constant an example: float32 (examples, options).

        Options of several tokens are averaged over their tokens.
        """
        if batch.hidden is not None and self.prefix is not None:
            hidden = self.prefix.above(batch.hidden)  # (rows, tokens, width)
        else:
            hidden = self.model.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
        head = self.model.get_output_embeddings()
        if batch.targets is None:
            at_last = hidden[torch.arange(len(batch.last)), batch.last].float()  # (rows, width)
            bias = None if head.bias is None else head.bias[self._columns].float()
            return F.linear(at_last, head.weight[self._columns].float(), bias)
        row, position = (batch.targets >= 0).nonzero(as_tuple=True)
        likely = log_likelihoods(hidden[row, position].float(), head, batch.targets[row, position])
        sums = torch.zeros(len(batch.ids)).index_add(0, row, likely)
        mean: torch.Tensor = sums / (batch.targets >= 0).sum(1)
        return mean.view(-1, len(self.option_ids))

    def losses(self, batch: Batch) -> torch.Tensor:
        """Cross entropy over the options: float32 (examples,)."""
        losses: torch.Tensor = F.cross_entropy(self.scores(batch), batch.labels, reduction="none")
        return losses

    def _below(self, ids: torch.Tensor) -> torch.Tensor:
        """The prefix's hidden states, of as many rows at a time as a forward pass takes."""
        assert self.prefix is not None
        rows = max(1, FORWARD_TOKENS // ids.shape[1])
        return torch.cat([self.prefix.below(ids[first : first + rows]) for first in range(0, len(ids), rows)])

    def _fitting(self, text: str) -> list[int]:
        room = self.max_tokens - max(map(len, self.option_ids))
        ids = self._prompt_ids(text)
        if len(ids) <= room:
            return ids
        fits, over = 0, len(text)  # characters
        while over - fits > 1:
            middle = (fits + over) // 2
            fits, over = (middle, over) if len(self._prompt_ids(text[:middle])) <= room else (fits, middle)
        return self._prompt_ids(text[:fits])

    def _prompt_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(self.task.prompt.format(text=text))["input_ids"]
        return ids

    def _pad(self, rows: Sequence[list[int]], value: int) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])
