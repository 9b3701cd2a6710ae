"""Scoring by log-likelihood: examples become batches, and a batch one loss, or one row of option scores, per example."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from zerograd.evaluate import half
from zerograd.evaluate.hidden_cache import HiddenCache, Layout, Source
from zerograd.evaluate.shared_prefix import Entered, Prefix, prefix_of
from zerograd.evaluate.tensors import tensors
from zerograd.text.data.tasks import Example, Task
from zerograd.text.encoding import Encoder
from zerograd.text.models import head as heads

FORWARD_TOKENS = 4096
"""The most tokens of a forward pass, with padding and branches. A batch with more tokens is evaluated in parts of at
least one example, which bounds the memory of a run.
"""

COUNTED_EXAMPLES = 64
"""Examples of a batch when the bytes of hidden states are counted."""


@dataclass(frozen=True)
class Batch:
    """Examples ready for the model.

    ids: int64 (rows, tokens), padded on the right. last: int64 (rows,), the position that scores options of one token:
    a row's last token, or its mask. labels: int64 (examples,). index: int64 (examples,), 0 .. examples - 1; a repeated
    batch begins again at 0. targets: int64 (rows, tokens), the token to predict at each scored position, else -100.
    attention: int64 (rows, tokens), 1 where there is a token, for models with bidirectional attention. answers: int64
    (rows x options, tokens), target tokens of a decoder, padded with -100. counts: int64 (examples,), rows of each
    example, where these differ. entered: hidden states at the first trained layers, once the prefix has run.

    A row is an example, or an example with one of its options; the rows of an example follow each other.
    """

    ids: torch.Tensor
    last: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    targets: torch.Tensor | None = None
    attention: torch.Tensor | None = None
    answers: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    entered: Entered | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **moved)


class Scorer:
    """Scores a task's options or answers with a language model; training minimises `losses`.

    Only scored logits are computed. Options of one token take only their columns of the head, at one position and in
    float32, since the normaliser of the softmax cancels between options.
    head: of the model, one of `loading.HEADS`. max_tokens: of a row.
    Raises ValueError for a task that the model cannot answer.
    """

    def __init__(self, model: Any, tokenizer: Any, task: Task, head: str = "causal", max_tokens: int = 512) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.task = task
        self.head = head
        self.encoder = Encoder(tokenizer, task, head, min(max_tokens, heads.context(model)), _vocabulary(model))
        self.prefix: Prefix | None = None
        self.layout: Layout | None = None
        self.cache: HiddenCache | None = None
        self.head_path = heads.HEAD_PATHS[0]
        self._padding_matters = False
        self._columns = torch.tensor(
            [ids[0] for ids in self.encoder.options] if self.encoder.has_one_token_options else [], dtype=torch.long
        )
        self._classes = self._label_columns() if head == "classifier" else []

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def one_position(self) -> bool:
        """Whether an example is scored at one position of one row."""
        return self.head in ("masked", "classifier") or (self.head == "causal" and self.encoder.has_one_token_options)

    def answer_room(self, example: Example) -> int:
        """The most tokens of a row beside the prompt."""
        if self.one_position or self.head == "seq2seq" or self.task.spec.open:
            return 0
        if self.task.spec.kind == "answer":
            return len(self.encoder.answer_ids(example)) if example.answers else 0
        return max(map(len, self.encoder.option_ids(example)))

    def seen(self, example: Example) -> tuple[str, str]:
        """(prompt, right answer) of an example as the model sees them: their tokens as text."""
        encoder = self.encoder
        prompt = self.tokenizer.decode(encoder.prompt_ids(example, self.answer_room(example)))
        if example.labels:
            options = self.task.options or example.options
            return prompt, options[example.label] if self.head == "classifier" else self.tokenizer.decode(
                encoder.option_ids(example)[example.label]
            )
        return prompt, self.tokenizer.decode(encoder.answer_ids(example)) if example.answers else ""

    def length(self, example: Example) -> int:
        """Tokens of an example's longest row."""
        room = self.answer_room(example)
        return len(self.encoder.prompt_ids(example, room)) + room

    def examples_per_pass(self, tokens: int, copies: int = 1) -> int:
        """How many examples of `tokens` tokens a forward pass takes, each `copies` times: at least 1."""
        options = len(self.task.options) if not self.one_position else 1
        return max(1, FORWARD_TOKENS // (tokens * copies * max(1, options)))

    def batch(self, examples: Sequence[Example], for_training: bool = False) -> Batch:
        """Examples as tensors, padded to the longest.

        for_training: of an example with its own options, only the row of the right option.
        """
        labels = torch.tensor([e.labels[0] if e.labels else 0 for e in examples])
        index = torch.arange(len(examples))
        kind = self.task.spec.kind
        if self.one_position:
            prompts = [self.encoder.prompt_ids(e, int(self.head == "causal")) for e in examples]
            ids, attention = self._padded(prompts, self.encoder.pad), _attention(prompts)
            last = torch.tensor([len(p) - 1 for p in prompts])
            if self.head == "masked":
                last = (ids == self.tokenizer.mask_token_id).int().argmax(1)
            seen = attention if self.head != "causal" else None
            return Batch(ids, last, labels, index, attention=seen).to(self.device)
        if kind == "answer":
            answers = [[self.encoder.answer_ids(e)] for e in examples]
        elif kind == "choices" and for_training:
            answers = [[self.encoder.option_ids(e)[e.label]] for e in examples]
        else:
            answers = [self.encoder.option_ids(e) for e in examples]
        counts = torch.tensor([len(answers_of) for answers_of in answers]) if kind == "choices" and not for_training else None
        prompts = [self.encoder.prompt_ids(e, self.answer_room(e)) for e in examples]
        if self.head == "seq2seq":
            last = torch.tensor([len(p) - 1 for p in prompts])
            targets = self._padded([answer for answers_of in answers for answer in answers_of], -100)
            ids = self._padded(prompts, self.encoder.pad)
            return Batch(ids, last, labels, index, None, _attention(prompts), targets, counts).to(self.device)
        pairs = [(prompt, answer) for prompt, answers_of in zip(prompts, answers, strict=True) for answer in answers_of]
        ids = self._padded([prompt + answer for prompt, answer in pairs], self.encoder.pad)
        targets = self._padded([[-100] * (len(prompt) - 1) + answer + [-100] for prompt, answer in pairs], -100)
        last = torch.tensor([len(prompt) + len(answer) - 1 for prompt, answer in pairs])
        return Batch(ids, last, labels, index, targets, counts=counts).to(self.device)

    def run_prefix(self, batch: Batch) -> Batch:
        """Run the layers below the first trained one, once for all branches of a step, or read their states from the
        cache.
        """
        if self.prefix is None:
            return batch
        even = batch.answers is None or batch.counts is None
        if self.cache is None or self.layout is None or not even:
            return dataclasses.replace(batch, entered=self._prefix_states(batch))
        entered = self.cache.entered(self.layout, self._sources(batch), lambda places: self._prefix_states(_rows(batch, places)))
        return dataclasses.replace(batch, entered=entered)

    def scores(self, batch: Batch) -> torch.Tensor:
        """Log-likelihood of each option, up to a constant per example: float32 (examples, options).

        The score of an option with several tokens is the mean over its tokens. Rows of examples with fewer options end
        in -inf.
        """
        if self.head == "classifier":
            return self._states(batch)[:, self._classes].float()
        if self.one_position:
            states = self._states(batch)
            at_last = states[torch.arange(len(batch.last), device=states.device), batch.last]  # (rows, width)
            return heads.logits(self.model, at_last, self._columns, self.head_path)
        sums, weights = self._answer_log_likelihoods(batch)
        mean = sums / weights
        if batch.counts is None:
            return mean.view(len(batch.labels), -1)
        columns = int(batch.counts.max())
        rows = [F.pad(row, (0, columns - len(row)), value=-torch.inf) for row in torch.split(mean, batch.counts.tolist())]
        return torch.stack(rows)

    def losses(self, batch: Batch) -> Any:
        """The loss that training minimises.

        For common options: cross entropies, float32 (examples,). For answers, and for an example's own options: (sums
        of negative log-likelihoods, numbers of tokens), so that the batch's loss is the mean over tokens.
        """
        if self.task.spec.kind == "options":
            return F.cross_entropy(self.scores(batch), batch.labels, reduction="none")
        sums, weights = self._answer_log_likelihoods(batch)
        return -sums, weights

    def _answer_log_likelihoods(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of log-likelihoods, number of tokens) of each row's scored tokens: float32 (rows,)."""
        targets = batch.targets if batch.answers is None else batch.answers
        assert targets is not None
        return heads.answer_log_likelihoods(self.model, self._states(batch), targets, self.head_path)

    def choose_head_path(self, examples: Sequence[Example]) -> None:
        """Choose the cheapest source of hidden states whose logits match the plain model's on a few examples."""
        if self.head == "classifier":
            return
        prompts = [self.encoder.prompt_ids(e) for e in examples]
        last = torch.tensor([len(p) - 1 for p in prompts])
        seen = _attention(prompts) if self.head != "causal" else None
        answers = torch.zeros(len(prompts), 1, dtype=torch.long) if self.head == "seq2seq" else None
        batch = Batch(self._padded(prompts, self.encoder.pad), last, last, last, attention=seen, answers=answers)
        self.head_path = heads.choose_head_path(self.model, batch.to(self.device), self._start_token)

    def share_prefix(self, examples: Sequence[Example]) -> None:
        """Let `run_prefix` run the layers below the first trained one, if hidden states are used and the few examples
        get the same bits that way.
        """
        if self.head_path == "logits":
            return
        batch = self.batch((list(examples) * 2)[: max(2, len(examples))], for_training=True)
        if batch.ids.shape[1] < heads.context(self.model):
            batch = self._padded_by_one(batch)
        self.prefix = prefix_of(self.model, lambda: self._all_layers(batch))
        if self.prefix is not None:
            self.layout = self._cache_layout(self.prefix, batch)

    def hidden_bytes(self, examples: Sequence[Example]) -> int:
        """Bytes that a cache needs for the hidden states of examples; 0 if they cannot be cached."""
        if self.layout is None:
            return 0
        pairs = list(zip(self.layout.sample.states, self.layout.sources, strict=True))
        parts = (examples[first : first + COUNTED_EXAMPLES] for first in range(0, len(examples), COUNTED_EXAMPLES))
        sources = (self._sources(self.batch(part, for_training=True)) for part in parts)
        return sum(sum(source[place].lengths) * state[0, 0].nbytes for source in sources for state, place in pairs)

    @property
    def _start_token(self) -> int:
        token = self.model.config.decoder_start_token_id if self.head == "seq2seq" else None
        return int(token or 0)

    def _states(self, batch: Batch) -> torch.Tensor:
        """The hidden states that enter the head: (rows, tokens, width); logits for the head path "logits"."""
        if batch.entered is not None and self.prefix is not None:
            return self.prefix.above(batch.entered, lambda: self._all_layers(batch))
        return self._all_layers(batch)

    def _all_layers(self, batch: Batch) -> torch.Tensor:
        """`_states` without a prefix that has run; a classifier's logits, (rows, labels)."""
        if self.head == "classifier":
            logits: torch.Tensor = self.model(input_ids=batch.ids, attention_mask=batch.attention).logits
            return logits
        return heads.states(self.model, batch, self.head_path, self._start_token)

    def _prefix_states(self, batch: Batch) -> Entered:
        """The hidden states at the first trained layers, in passes of at most FORWARD_TOKENS tokens."""
        assert self.prefix is not None
        rows, width = batch.ids.shape
        width = width if batch.answers is None else max(width, batch.answers.numel() // rows)
        at_a_time = max(1, FORWARD_TOKENS // width)
        if rows <= at_a_time or (batch.answers is not None and batch.counts is not None):
            return self.prefix.below(lambda: self._all_layers(batch))
        parts = [_rows(batch, range(rows)[first : first + at_a_time]) for first in range(0, rows, at_a_time)]
        return Entered.joined([self.prefix.below(partial(self._all_layers, part)) for part in parts])

    def _sources(self, batch: Batch) -> list[Source]:
        """The tokens that hidden states are computed from: prompts, and a decoder's answers."""
        ids = (batch.ids,) if batch.attention is None else (batch.ids, batch.attention)
        seen = None if batch.attention is None else batch.attention * torch.arange(1, batch.ids.shape[1] + 1, device=self.device)
        lengths = batch.last + 1 if seen is None else seen.amax(1)
        sources = [Source(ids, lengths.tolist())]
        if batch.answers is not None:
            sources.append(Source((batch.answers,), (batch.answers >= 0).sum(1).tolist()))
        if self._padding_matters:
            sources = [Source(source.tokens, [source.tokens[0].shape[1]] * len(source.lengths)) for source in sources]
        return sources

    def _cache_layout(self, prefix: Prefix, batch: Batch) -> Layout | None:
        """How a cache stores the prefix's hidden states; None unless each token has one state. Also finds out whether
        padding changes losses.
        """
        encoder = set(self.model.get_encoder().modules()) if batch.answers is not None else set()
        places = tuple(int(batch.answers is not None and cut.module not in encoder) for cut in prefix.cuts)
        with torch.no_grad(), half.fast_products():
            layout = Layout(prefix.below(lambda: self._all_layers(batch)), places)
            sources = self._sources(batch)
            if not layout.fits(sources):
                return None
            entered = dataclasses.replace(batch, entered=layout.without_padding(layout.sample, sources))
            pairs = zip(tensors(self.losses(entered)), tensors(self.losses(batch)), strict=True)
            self._padding_matters = not all(torch.equal(ours, plain) for ours, plain in pairs)
        return layout

    def _padded_by_one(self, batch: Batch) -> Batch:
        """The batch with one more token of padding in each row."""
        more: dict[str, Any] = {
            name: None if tensor is None else F.pad(tensor, (0, 1), value=value)
            for name, tensor, value in (
                ("ids", batch.ids, self.encoder.pad),
                ("targets", batch.targets, -100),
                ("attention", batch.attention, 0),
                ("answers", batch.answers, -100),
            )
        }
        return dataclasses.replace(batch, **more)

    def _padded(self, rows: Sequence[list[int]], value: int) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    def _label_columns(self) -> list[int]:
        """The classifier label of each option: by name if the names are the same set, else by position.

        Raises ValueError for a task that a classifier cannot answer.
        """
        if self.task.spec.kind != "options":
            raise ValueError(f"task {self.task.name} has no common options, and a classifier answers with one of its labels")
        count = self.model.config.num_labels
        if count != len(self.task.options):
            raise ValueError(
                f"the model has {count} labels, and task {self.task.name} has {len(self.task.options)} options; "
                "--head classifier makes a new head for them"
            )
        named = {str(name).strip().casefold(): index for index, name in self.model.config.id2label.items()}
        words = [option.strip().casefold() for option in self.task.options]
        return [int(named[word]) for word in words] if set(named) == set(words) else list(range(count))


def _attention(rows: Sequence[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def _rows(batch: Batch, places: Sequence[int]) -> Batch:
    """A batch of some rows with their answers, without labels and targets."""
    ids, attention, answers = (
        None if tensor is None else tensor.view(len(batch.ids), -1, tensor.shape[1])[list(places)].flatten(0, 1)
        for tensor in (batch.ids, batch.attention, batch.answers)
    )
    assert ids is not None
    last = batch.last[list(places)]
    return Batch(ids, last, last, last, attention=attention, answers=answers)


def _vocabulary(model: Any) -> int | None:
    """Tokens that a model has an embedding for; None where its embedding is no plain table."""
    weight = getattr(model.get_input_embeddings(), "weight", None)
    return len(weight) if isinstance(weight, torch.Tensor) and weight.ndim == 2 else None
