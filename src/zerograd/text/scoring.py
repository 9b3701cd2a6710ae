"""Scoring by log-likelihood: rows to batches, batches to one loss or one row of option scores an example."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from zerograd.evaluate.hidden_cache import HiddenCache, Layout, Source
from zerograd.evaluate.shared_prefix import Entered, Prefix, prefix_of
from zerograd.evaluate.tensors import tensors
from zerograd.text.data.tasks import Example, Task
from zerograd.text.encoding import Encoder
from zerograd.text.models import head as heads

FORWARD_TOKENS = 4096
"""Tokens of a forward pass, padding and branches included: a longer batch is evaluated in parts, of one example at least, so
that long examples do not set the memory of the run."""


COUNTED = 64
"""Examples whose hidden states are counted at a time."""


@dataclass(frozen=True)
class Batch:
    """Examples ready for the model.

    ids: int64 (rows, tokens), padded on the right. last: int64 (rows,), where each row is scored when its options are of one
    token: at its last token, or at its mask. labels: int64 (examples,). index: int64 (examples,), 0 .. examples - 1, which tells
    copies of the batch apart. targets: int64 (rows, tokens), the token to predict at each position that is scored, or -100.
    attention: int64 (rows, tokens), 1 where there is a token, for models that see what comes after. answers: int64 (rows x options,
    tokens), what a decoder is to answer, padded with -100. counts: int64 (examples,), rows of an example, where they differ.
    entered: the batch where it enters the first trained layers, when the layers below have been run.

    A row is an example, or an example with one of its options; an example's options stand together.
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
        """The same on a device."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **moved)


class Scorer:
    """Scores a task's options or answers with a language model; its `losses` is the objective that training minimises.

    Only what is scored is computed: with options of one token, the option columns of the head at one position, in
    float32, since the normaliser of the softmax cancels between them.
    head: of the model, one of `models.HEADS`. Raises ValueError for a task that the model cannot answer.
    """

    def __init__(self, model: Any, tokenizer: Any, task: Task, head: str = "causal", max_tokens: int = 512) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.task = task
        self.head = head
        self.encoder = Encoder(tokenizer, task, head, min(max_tokens, heads.context(model)))
        self.prefix: Prefix | None = None
        self.layout: Layout | None = None
        self.cache: HiddenCache | None = None
        self.way = heads.WAYS[0]
        self._padding_seen = False
        self._columns = torch.tensor([ids[0] for ids in self.encoder.options] if self.encoder.single else [], dtype=torch.long)
        self._classes = self._labels() if head == "classifier" else []

    @property
    def device(self) -> torch.device:
        """Where the model takes its tokens."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def one_position(self) -> bool:
        """Whether an example is scored at one position of one row."""
        return self.head in ("masked", "classifier") or (self.head == "causal" and self.encoder.single)

    def added(self, example: Example) -> int:
        """Tokens that a row of an example may have beside its prompt."""
        if self.one_position or self.head == "seq2seq":
            return 0
        if self.task.spec.kind == "answer":
            return len(self.encoder.answer_ids(example)) if example.answers else 0
        return max(map(len, self.encoder.option_ids(example)))

    def length(self, example: Example) -> int:
        """Tokens of an example's longest row."""
        added = self.added(example)
        return len(self.encoder.prompt_ids(example, added)) + added

    def at_a_time(self, tokens: int, copies: int = 1) -> int:
        """How many examples of so many tokens a forward pass takes in training, with `copies` branches: at least 1."""
        options = len(self.task.options) if not self.one_position else 1
        return max(1, FORWARD_TOKENS // (tokens * copies * max(1, options)))

    def batch(self, examples: Sequence[Example], taught: bool = False) -> Batch:
        """Examples as tensors, padded to the longest.

        taught: of examples with options of their own, only the right one's row, which is what training sees.
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
        elif kind == "choices" and taught:
            answers = [[self.encoder.option_ids(e)[e.label]] for e in examples]
        else:
            answers = [self.encoder.option_ids(e) for e in examples]
        counts = torch.tensor([len(some) for some in answers]) if kind == "choices" and not taught else None
        prompts = [self.encoder.prompt_ids(e, self.added(e)) for e in examples]
        if self.head == "seq2seq":
            last = torch.tensor([len(p) - 1 for p in prompts])
            targets = self._padded([answer for some in answers for answer in some], -100)
            ids = self._padded(prompts, self.encoder.pad)
            return Batch(ids, last, labels, index, None, _attention(prompts), targets, counts).to(self.device)
        pairs = [(prompt, answer) for prompt, some in zip(prompts, answers, strict=True) for answer in some]
        ids = self._padded([prompt + answer for prompt, answer in pairs], self.encoder.pad)
        targets = self._padded([[-100] * (len(prompt) - 1) + answer + [-100] for prompt, answer in pairs], -100)
        last = torch.tensor([len(prompt) + len(answer) - 1 for prompt, answer in pairs])
        return Batch(ids, last, labels, index, targets, counts=counts).to(self.device)

    def begin(self, batch: Batch) -> Batch:
        """Run the layers that training leaves alone, once for all branches; states that the cache has are read from there."""
        if self.prefix is None:
            return batch
        even = batch.answers is None or batch.counts is None
        if self.cache is None or self.layout is None or not even:
            return dataclasses.replace(batch, entered=self._below(batch))
        entered = self.cache.entered(self.layout, self._sources(batch), lambda places: self._below(_rows(batch, places)))
        return dataclasses.replace(batch, entered=entered)

    def scores(self, batch: Batch) -> torch.Tensor:
        """Log-likelihood of each option, up to a constant an example: float32 (examples, options).

        Options of several tokens are averaged over their tokens. Examples with fewer options than others have -inf beyond.
        """
        if self.head == "classifier":
            return self._states(batch)[:, self._classes].float()
        if self.one_position:
            states = self._states(batch)
            at_last = states[torch.arange(len(batch.last), device=states.device), batch.last]  # (rows, width)
            return heads.logits(self.model, at_last, self._columns, self.way)
        sums, weights = self._answered(batch)
        mean = sums / weights
        if batch.counts is None:
            return mean.view(len(batch.labels), -1)
        most = int(batch.counts.max())
        rows = [F.pad(row, (0, most - len(row)), value=-torch.inf) for row in torch.split(mean, batch.counts.tolist())]
        return torch.stack(rows)

    def losses(self, batch: Batch) -> Any:
        """What training minimises: float32 (examples,) cross entropies over common options; of answers, and of options that are an
        example's own, (sums, counts) of the right one's tokens, so that their mean is over tokens.
        """
        if self.task.spec.kind == "options":
            return F.cross_entropy(self.scores(batch), batch.labels, reduction="none")
        sums, weights = self._answered(batch)
        return -sums, weights

    def _answered(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(sums of log-likelihoods, numbers of tokens) of each row's scored tokens: float32 (rows,)."""
        targets = batch.targets if batch.answers is None else batch.answers
        assert targets is not None
        return heads.answered(self.model, self._states(batch), targets, self.way)

    def settle(self, examples: Sequence[Example]) -> None:
        """Find the shortest way through this architecture that gives the scores of the plain model, on a few examples."""
        if self.head == "classifier":
            return
        prompts = [self.encoder.prompt_ids(e) for e in examples]
        last = torch.tensor([len(p) - 1 for p in prompts])
        seen = _attention(prompts) if self.head != "causal" else None
        answers = torch.zeros(len(prompts), 1, dtype=torch.long) if self.head == "seq2seq" else None
        batch = Batch(self._padded(prompts, self.encoder.pad), last, last, last, attention=seen, answers=answers)
        self.way = heads.shortest(self.model, batch.to(self.device), self._start)

    def cut(self, examples: Sequence[Example]) -> None:
        """From now on run the layers below the first trained one once for all branches of a step, where scores are made of states
        and a few examples have the same bits so.
        """
        if self.way == "logits":
            return
        batch = self.batch((list(examples) * 2)[: max(2, len(examples))], taught=True)
        if batch.ids.shape[1] < heads.context(self.model):
            batch = self._wider(batch)
        self.prefix = prefix_of(self.model, lambda: self._whole(batch))
        if self.prefix is not None:
            self.layout = self._cacheable(self.prefix, batch)

    def hidden_bytes(self, examples: Sequence[Example]) -> int:
        """Bytes of the hidden states of some examples, as a cache keeps them; 0 where no cache can."""
        if self.layout is None:
            return 0
        pairs = list(zip(self.layout.sample.states, self.layout.sources, strict=True))
        parts = (examples[first : first + COUNTED] for first in range(0, len(examples), COUNTED))
        sources = (self._sources(self.batch(part, taught=True)) for part in parts)
        return sum(sum(some[place].lengths) * state[0, 0].nbytes for some in sources for state, place in pairs)

    @property
    def _start(self) -> int:
        found = self.model.config.decoder_start_token_id if self.head == "seq2seq" else None
        return int(found or 0)

    def _states(self, batch: Batch) -> torch.Tensor:
        """What the head sees of each position: (rows, tokens, width); the logits themselves where the way is "logits"."""
        if batch.entered is not None and self.prefix is not None:
            return self.prefix.above(batch.entered, lambda: self._whole(batch))
        return self._whole(batch)

    def _whole(self, batch: Batch) -> torch.Tensor:
        """The same from the first layer on; a classifier's logits, (rows, labels)."""
        if self.head == "classifier":
            logits: torch.Tensor = self.model(input_ids=batch.ids, attention_mask=batch.attention).logits
            return logits
        return heads.states(self.model, batch, self.way, self._start)

    def _below(self, batch: Batch) -> Entered:
        """The batch where it enters the first trained layers; as many rows at a time as a forward pass takes."""
        assert self.prefix is not None
        rows, width = batch.ids.shape
        width = width if batch.answers is None else max(width, batch.answers.numel() // rows)
        at_a_time = max(1, FORWARD_TOKENS // width)
        if rows <= at_a_time or (batch.answers is not None and batch.counts is not None):
            return self.prefix.below(lambda: self._whole(batch))
        parts = [_rows(batch, range(rows)[first : first + at_a_time]) for first in range(0, rows, at_a_time)]
        return Entered.joined([self.prefix.below(partial(self._whole, part)) for part in parts])

    def _sources(self, batch: Batch) -> list[Source]:
        """The tokens that hidden states come from: of prompts, and of a decoder's answers."""
        ids = (batch.ids,) if batch.attention is None else (batch.ids, batch.attention)
        seen = None if batch.attention is None else batch.attention * torch.arange(1, batch.ids.shape[1] + 1, device=self.device)
        lengths = batch.last + 1 if seen is None else seen.amax(1)
        found = [Source(ids, lengths.tolist())]
        if batch.answers is not None:
            found.append(Source((batch.answers,), (batch.answers >= 0).sum(1).tolist()))
        if self._padding_seen:
            found = [Source(source.tokens, [source.tokens[0].shape[1]] * len(source.lengths)) for source in found]
        return found

    def _cacheable(self, prefix: Prefix, batch: Batch) -> Layout | None:
        """What states of the prefix come from, where each token has one; finds out whether padding changes what is scored."""
        encoder = set(self.model.get_encoder().modules()) if batch.answers is not None else set()
        places = tuple(int(batch.answers is not None and cut.module not in encoder) for cut in prefix.cuts)
        with torch.no_grad():
            layout = Layout(prefix.below(lambda: self._whole(batch)), places)
            sources = self._sources(batch)
            if not layout.fits(sources):
                return None
            entered = dataclasses.replace(batch, entered=layout.without_padding(layout.sample, sources))
            pairs = zip(tensors(self.losses(entered)), tensors(self.losses(batch)), strict=True)
            self._padding_seen = not all(torch.equal(ours, plain) for ours, plain in pairs)
        return layout

    def _wider(self, batch: Batch) -> Batch:
        """The same with one more token of padding in each row."""
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

    def _labels(self) -> list[int]:
        """Which of a classifier's labels each option is: the one of its name, where all have one, and else the one of its place.

        Raises ValueError for a task that a classifier cannot answer.
        """
        if self.task.spec.kind != "options":
            raise ValueError(f"task {self.task.name} has no common options, and a classifier answers with one of its labels")
        count = self.model.config.num_labels
        if count != len(self.task.options):
            raise ValueError(f"the model tells {count} labels apart, task {self.task.name} has {len(self.task.options)} options")
        named = {str(name).strip().casefold(): index for index, name in self.model.config.id2label.items()}
        words = [option.strip().casefold() for option in self.task.options]
        return [int(named[word]) for word in words] if set(named) == set(words) else list(range(count))


def _attention(rows: Sequence[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def _rows(batch: Batch, places: Sequence[int]) -> Batch:
    """Some rows of a batch, each with its answers, as states are made of them."""
    ids, attention, answers = (
        None if tensor is None else tensor.view(len(batch.ids), -1, tensor.shape[1])[list(places)].flatten(0, 1)
        for tensor in (batch.ids, batch.attention, batch.answers)
    )
    assert ids is not None
    last = batch.last[list(places)]
    return Batch(ids, last, last, last, attention=attention, answers=answers)
