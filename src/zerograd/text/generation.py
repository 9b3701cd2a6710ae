"""Answers in free text, token by token: of the model as it is, or of the perturbed models of a plan, all in one batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from zerograd.directions import Directions
from zerograd.evaluate import half
from zerograd.evaluate.passes import Changed, Passes
from zerograd.queries import Plan
from zerograd.spaces import Space
from zerograd.text.data.tasks import Example
from zerograd.text.sampling import Noise, Sampling
from zerograd.text.scoring import Scorer
from zerograd.text.shared_prefill import SharedPrefill

ROWS = 64
"""Answers of a batch, at most: more make a token no cheaper."""

ENDED = 0.25
"""The share of a batch's answers that have ended at which they are dropped from the batch and its cache."""


NO_TOKEN = 2**31 - 1
"""In place of an end token where there is none: `generate` would take None for the one of the model's own settings."""


@dataclass(frozen=True)
class Rows:
    """Prompts whose answers are made together.

    prompts: tokens. numbers: of the prompts, which name the noise of their answers. plan: of these rows; None for the plain model.
    drops: whether answers that have ended leave the batch.
    """

    prompts: Sequence[Sequence[int]]
    numbers: Sequence[int]
    plan: Plan | None = None
    drops: bool = True


class Generator:
    """Makes answers with a model's own `generate`.

    model: of transformers, or one that PEFT has wrapped. pad: the token of padding. ends: tokens that end an answer. decoder: an
    encoder takes the prompts, and answers are a decoder's. ends_text: whether the text of an answer's tokens so far has ended.
    """

    def __init__(
        self,
        model: Any,
        pad: int,
        ends: Sequence[int],
        decoder: bool = False,
        ends_text: Callable[[list[int]], bool] | None = None,
    ) -> None:
        self.model, self.pad, self.ends, self.decoder, self.ends_text = model, pad, tuple(ends), decoder, ends_text
        self.inner = model.get_base_model() if hasattr(model, "peft_config") else model
        self.held_bytes = 0
        self._shared: dict[frozenset[int], SharedPrefill] = {}

    @classmethod
    def of(cls, scorer: Scorer) -> Generator:
        """The generator of a scorer's model, which knows how its task's answers end."""
        tokenizer, stop = scorer.tokenizer, scorer.task.spec.stop

        def ends_text(ids: list[int]) -> bool:
            return stop in tokenizer.decode(ids, skip_special_tokens=True)

        return cls(
            scorer.model,
            scorer.encoder.pad,
            ends_of(scorer.model, tokenizer),
            scorer.head == "seq2seq",
            ends_text if stop else None,
        )

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        noise: Noise | None = None,
        rows: int = ROWS,
        listen: Callable[[float], None] = lambda done: None,
    ) -> list[list[int]]:
        """The answers of the model as it is: tokens, with the end token where there is one.

        noise: of the choices, where the temperature is above 0; prompt i has number i. rows: answers of a batch, whose prompts have
        similar lengths. listen: takes the share of the work that is done.
        """
        found: list[list[int]] = [[] for _ in prompts]
        done = 0
        for chosen in self._together(prompts, rows):
            listen(done / len(prompts))
            done += len(chosen)
            with torch.no_grad(), half.FastLayers(self.model):
                made = self._made(Rows([prompts[i] for i in chosen], chosen), sampling, noise)
            for i, answer in zip(chosen, made, strict=True):
                found[i] = answer
        return found

    def perturbed(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        plan: Plan,
        spaces: Sequence[Space],
        directions: Directions,
        radii: Mapping[int, float],
        numbers: Sequence[int] | None = None,
        examples: int = ROWS,
    ) -> list[list[list[int]]]:
        """The answers of a plan's perturbed models to its examples' prompts, as `answers`: [branch][example].

        numbers: which examples of the plan the prompts are; all by default. examples: of a batch, with all their branches, which
        share the noise of their prompt.
        """
        numbers = range(len(prompts)) if numbers is None else numbers
        found: list[list[list[int]]] = [[[] for _ in prompts] for _ in range(plan.branches)]
        for chosen in self._together(prompts, examples):
            by_row = plan.own_directions or all(directions.family.rank_in(space) for space in spaces if space.is_matrix)
            own = [numbers[i] for i in chosen]
            of_rows = _by_row(plan, own) if by_row else Plan(len(chosen), plan.direction, plan.coefficient)
            rows = Rows([prompts[i] for i in chosen] * plan.branches, own * plan.branches, of_rows, drops=by_row)
            made = self._made_perturbed(rows, sampling, spaces, directions, radii)
            for at, answer in enumerate(made):
                found[at // len(chosen)][chosen[at % len(chosen)]] = answer
        return found

    def _together(self, prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
        """Batches of prompts of similar lengths; of equal ones where PEFT puts virtual tokens before the padding."""
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        alike = itertools.groupby(by_length, key=lambda i: len(prompts[i]) if self._has_virtual_tokens else 0)
        for _, group in alike:
            indices = list(group)
            for first in range(0, len(indices), most):
                yield indices[first : first + most]

    @property
    def _has_virtual_tokens(self) -> bool:
        return any(config.is_prompt_learning for config in getattr(self.model, "peft_config", {}).values())

    def _made_perturbed(
        self, rows: Rows, sampling: Sampling, spaces: Sequence[Space], directions: Directions, radii: Mapping[int, float]
    ) -> list[list[int]]:
        noise = Noise(directions.seed, directions.step)
        first = self._shared_prefill(rows.prompts).of(rows.numbers) if self._can_drop else None
        passes = Passes(self.inner, spaces, directions, radii, _tokens_of, first=first)
        try:
            return self._made(rows, sampling, noise, passes)
        except Changed:  # begin anew, and follow the rows of every pass
            passes = Passes(self.inner, spaces, directions, radii, _tokens_of, steady=False)
            return self._made(Rows(rows.prompts, rows.numbers, rows.plan, drops=False), sampling, noise, passes)
        finally:
            self.held_bytes = max(self.held_bytes, passes.held_bytes)

    def _shared_prefill(self, prompts: Sequence[Sequence[int]]) -> SharedPrefill:
        """How prompts are shared, for the parameters that are trained now."""
        trained = frozenset(id(parameter) for parameter in self.model.parameters() if parameter.requires_grad)
        if trained not in self._shared:
            self._shared[trained] = SharedPrefill(self.inner, self._padded([*prompts[:1]] * 2)[0])
        return self._shared[trained]

    def _made(self, rows: Rows, sampling: Sampling, noise: Noise | None, passes: Passes | None = None) -> list[list[int]]:
        """The answers of one batch."""
        ids, seen = self._padded(rows.prompts)
        drops = rows.drops and len(ids) > 1 and self._can_drop
        answers: list[list[int]] = [[] for _ in rows.prompts]
        live, cache, left, plan = list(range(len(ids))), None, sampling.new_tokens, rows.plan
        while True:
            begun = (1 if self.decoder else ids.shape[1]) - (sampling.new_tokens - left)
            chooser = _Chooser(sampling, noise, [rows.numbers[i] for i in live], begun)
            stop = _Stop(self.ends, self.ends_text, begun, drops)
            with nullcontext() if passes is None or plan is None else passes.under(plan) as forward:
                if forward is not None:
                    forward.trace.mark(ids)
                    forward.trace.mark(seen)
                made = self._generate(ids, seen, left, chooser, stop, cache)
            new = made.sequences[:, 1 if self.decoder else ids.shape[1] :]
            for i, tokens in zip(live, new.tolist(), strict=True):
                answers[i] += tokens
            left -= new.shape[1]
            going = [at for at, i in enumerate(live) if not self._end(answers[i])]
            if not drops or not going or left <= 0:
                return [answer[: self._end(answer) or None] for answer in answers]
            index = torch.tensor(going, device=ids.device)
            cache = made.past_key_values
            cache.batch_select_indices(index)
            ids, seen = made.sequences[index], torch.cat([seen[index], seen.new_ones(len(going), new.shape[1])], 1)
            plan = None if plan is None else _of_rows(plan, going)
            live = [live[at] for at in going]

    def _generate(
        self, ids: torch.Tensor, seen: torch.Tensor, new_tokens: int, chooser: Any = None, stop: Any = None, cache: Any = None
    ) -> Any:
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        defaults = self.model.generation_config
        ends, begin = list(self.ends) or [NO_TOKEN], defaults.decoder_start_token_id
        settings = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, num_beams=1, eos_token_id=ends, pad_token_id=self.pad,
            return_dict_in_generate=True, decoder_start_token_id=begin,
        )  # fmt: skip
        return self.model.generate(
            input_ids=ids,
            attention_mask=seen,
            generation_config=settings,
            logits_processor=LogitsProcessorList([] if chooser is None else [chooser]),
            stopping_criteria=StoppingCriteriaList([] if stop is None else [stop]),
            **({} if cache is None else {"past_key_values": cache}),
        )

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, 1 where there is one): int64 (prompts, tokens) each, padded on the left, for an encoder on the right."""
        width = max(map(len, prompts))
        ids, seen = [], []
        for prompt in prompts:
            parts = [self.pad] * (width - len(prompt)), list(prompt)
            marks = [0] * (width - len(prompt)), [1] * len(prompt)
            ids.append(parts[1] + parts[0] if self.decoder else parts[0] + parts[1])
            seen.append(marks[1] + marks[0] if self.decoder else marks[0] + marks[1])
        return torch.tensor(ids, device=self.device), torch.tensor(seen, device=self.device)

    def _end(self, answer: list[int]) -> int:
        """How many tokens an answer has with its end; 0 where it has none yet."""
        for count, token in enumerate(answer, 1):
            if token in self.ends:
                return count
        if self.ends_text is not None and self.ends_text(answer):
            return next(count for count in range(1, len(answer) + 1) if self.ends_text(answer[:count]))
        return 0

    @cached_property
    def cache_bytes(self) -> int:
        """Bytes of the model's cache for a token of an answer."""
        held = (value for layer in self._layers for value in vars(layer).values() if isinstance(value, torch.Tensor))
        return sum(value.nbytes for value in held) // 6  # two answers of three tokens

    @cached_property
    def _can_drop(self) -> bool:
        """Whether rows can be taken out of the model's cache."""
        return not self.decoder and bool(self._layers) and all(hasattr(layer, "batch_select_indices") for layer in self._layers)

    @cached_property
    def _layers(self) -> Sequence[Any]:
        """The layers of the cache of two tokens of two answers; none where it is no DynamicCache."""
        if self._has_virtual_tokens:
            return ()
        ids = torch.full((2, 2), self.pad, device=self.device)
        with torch.no_grad():
            cache = getattr(self._generate(ids, torch.ones_like(ids), 2), "past_key_values", None)
        cache = getattr(cache, "self_attention_cache", cache)
        layers: Sequence[Any] = getattr(cache, "layers", ()) if type(cache).__name__ == "DynamicCache" else ()
        return layers


def ends_of(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a model's answers."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    end = tokenizer.eos_token_id if end is None else end
    return () if end is None else tuple(end) if isinstance(end, (list, tuple)) else (int(end),)


class _Chooser:
    """The choice of the next token, as `generate` asks for it. begun: tokens before the answer, of as many as there are now."""

    def __init__(self, sampling: Sampling, noise: Noise | None, numbers: Sequence[int], begun: int) -> None:
        self.sampling, self.noise, self.numbers, self.begun = sampling, noise, numbers, begun

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return self.sampling.chosen(logits, self.noise, self.numbers, ids.shape[1] - self.begun)


class _Stop:
    """Which answers have ended; all of them once a share of the batch has, where these can then be dropped."""

    def __init__(self, ends: Sequence[int], ends_text: Callable[[list[int]], bool] | None, begun: int, drops: bool) -> None:
        self.ends, self.ends_text, self.begun, self.drops = ends, ends_text, begun, drops
        self.ended: torch.Tensor | None = None

    def __call__(self, ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        now = torch.isin(ids[:, -1], torch.tensor(self.ends, device=ids.device))
        if self.ends_text is not None:
            now |= torch.tensor([self.ends_text(row[self.begun :]) for row in ids.tolist()], device=ids.device)
        self.ended = now if self.ended is None else self.ended | now
        enough = self.drops and int(self.ended.sum()) >= ENDED * len(ids)
        return torch.ones_like(self.ended) if enough else self.ended


def _by_row(plan: Plan, chosen: Sequence[int]) -> Plan:
    """The plan of some examples with each row a branch of its own, so that rows can leave it."""
    own = torch.tensor(chosen) if plan.own_directions else torch.zeros(len(chosen), dtype=torch.int64)
    direction = (plan.direction[:, None] + own).flatten()
    return Plan(1, direction, plan.coefficient.repeat_interleave(len(chosen)))


def _of_rows(plan: Plan, rows: Sequence[int]) -> Plan:
    index = torch.tensor(rows)
    return Plan(1, plan.direction[index], plan.coefficient[index])


def _tokens_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """What a pass of a model of transformers goes through: tokens, or embeddings in their place."""
    names = ("decoder_input_ids", "input_ids", "inputs_embeds")
    named: list[torch.Tensor] = [kwargs[name] for name in names if kwargs.get(name) is not None]
    return (named or [args[0]])[0]


def generate(
    scorer: Scorer,
    examples: Sequence[Example],
    new_tokens: int = 50,
    rows: int = 16,
    listen: Callable[[float], None] = lambda done: None,
) -> list[str]:
    """The model's likeliest answer to each example, in the order of the examples, without the end of an answer.

    new_tokens: the longest answer. rows: examples of a batch, which have similar lengths. listen: takes the share of
    the work that is done.
    Raises ValueError where a row has less room than new_tokens for its answer.
    """
    if new_tokens > scorer.encoder.max_answer_tokens:
        problem = (
            f"new_tokens is {new_tokens}, and a row has {scorer.encoder.max_tokens} tokens in all, half of them for its answer"
        )
        raise ValueError(f"{problem}; give at most {scorer.encoder.max_answer_tokens}, or a larger --max-tokens")
    prompts = [scorer.encoder.prompt_ids(e, new_tokens) for e in examples]
    made = Generator.of(scorer).answers(prompts, Sampling(new_tokens), rows=rows, listen=listen)
    stop = scorer.task.spec.stop
    texts = scorer.tokenizer.batch_decode(made, skip_special_tokens=True)
    return [(text.split(stop)[0] if stop else text).strip() for text in texts]
