"""Rows to tokens: prompts, options and answers as a model's tokenizer has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from zerograd.text.data.tasks import Example, Task

ANSWER_SHARE = 2
"""A long answer has at most the whole room over this; what is beyond is neither taught nor scored."""

ANCHOR = "."
"""A text that others are put behind, to see their tokens there."""


class Encoder:
    """Tokens of a task's rows. Prompts that are too long lose the end of one column, never the question.

    head: of the model, one of `models.HEADS`. room: the most tokens of a row.
    Raises ValueError for options that cannot be told apart or do not fit, and for what the tokenizer lacks.
    """

    def __init__(self, tokenizer: Any, task: Task, head: str = "causal", room: int = 512) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self.head = head
        self.room = room
        self.mask = ""
        self._shown = ""  # demonstrations before every prompt
        self._prompts: dict[Any, list[int]] = {}
        if head == "masked":
            self.mask = _mask(tokenizer, task)
        if (task.spec.messages or task.spec.chat) and not getattr(tokenizer, "chat_template", None):
            raise ValueError("the model's tokenizer has no chat template; give it prompts and completions instead of messages")
        self.options = [self._option(option) for option in task.options]  # of every row
        self._require_apart(self.options, task.options)

    @property
    def single(self) -> bool:
        """Whether every option is one token, the same for all rows."""
        return bool(self.options) and all(len(ids) == 1 for ids in self.options)

    @property
    def pad(self) -> int:
        """The token that fills rows; where the model's tokenizer has none, one that it has."""
        found = self.tokenizer.pad_token_id
        return int(found if found is not None else (self.tokenizer.eos_token_id or 0))

    def option_ids(self, example: Example) -> list[list[int]]:
        """The tokens of each option of an example."""
        if self.options:
            return self.options
        found = [self._option(option) for option in example.options]
        self._require_apart(found, example.options)
        return found

    def answer_ids(self, example: Example) -> list[int]:
        """The tokens of the answer that training teaches, what ends it included."""
        return self._answer(example)[: self.most]

    def loses(self, example: Example) -> bool:
        """Whether the answer that training teaches is longer than a row has room for."""
        return self.task.spec.kind == "answer" and bool(example.answers) and len(self._answer(example)) > self.most

    @property
    def most(self) -> int:
        """Tokens of an answer, at most."""
        return self.room // ANSWER_SHARE

    def _answer(self, example: Example) -> list[int]:
        spec = self.task.spec
        if spec.messages:
            return self._behind(self._turn(example))
        before = "" if self.head == "seq2seq" else spec.before
        ids = self._behind(before + example.answers[0] + spec.stop)
        end = self.tokenizer.eos_token_id
        return ids + ([end] if not spec.stop and end is not None else [])

    def prompt_ids(self, example: Example, added: int = 0) -> list[int]:
        """The tokens of an example's prompt, where so many more have to fit behind it."""
        key = self._key(example), added
        if key not in self._prompts:
            self._prompts[key] = self._fitting(example, self.room - added)
        return self._prompts[key]

    @contextmanager
    def demonstrating(self, examples: Sequence[Example]) -> Iterator[None]:
        """Put worked examples before every prompt, as many of them as half the room takes, the first ones first.

        Raises ValueError for a task whose prompts are no plain text.
        """
        if self.task.spec.messages or self.task.spec.chat or self.head != "causal":
            raise ValueError("shots are for prompts in plain text and causal models; leave --shots out")
        shown = ""
        for example in examples:
            options = self.task.options or example.options
            answer = options[example.label] if options else self.task.spec.before + example.answers[0]
            more = shown + self.task.prompt(example) + answer + "\n\n"
            if len(self._tokens(more)) > self.room // 2:
                break
            shown = more
        if not shown:
            raise ValueError(f"no demonstration fits half of {self.room} tokens; raise --max-tokens, or leave --shots out")
        try:
            self._shown, self._prompts = shown, {}
            yield
        finally:
            self._shown, self._prompts = "", {}

    def _key(self, example: Example) -> str:
        if self.task.spec.messages:
            return self._conversation(example)
        return self.task.prompt(example, self.mask)

    def _conversation(self, example: Example) -> str:
        """A conversation up to the answer, in the model's own format."""
        messages = example.row[self.task.spec.messages]
        if example.answers:
            messages = messages[:-1]
        return self._templated(messages, ask=True)

    def _turn(self, example: Example) -> str:
        """The answer of a conversation, in the model's own format."""
        whole = self._templated(example.row[self.task.spec.messages], ask=False)
        asked = self._conversation(example)
        if not whole.startswith(asked):
            say = "the model's chat template writes a conversation otherwise once it is answered"
            raise ValueError(f"{say}; give it prompts and completions")
        return whole[len(asked) :].rstrip("\n")

    def _templated(self, messages: Any, ask: bool) -> str:
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False))

    def _fitting(self, example: Example, room: int) -> list[int]:
        ids = self._prompt(example)
        if len(ids) <= room:
            return ids
        fits, over = 0, self.task.length(example) if not self.task.spec.messages else 0  # characters
        if not over:
            return ids[-room:]
        while over - fits > 1:
            middle = (fits + over) // 2
            fits, over = (middle, over) if len(self._prompt(example, middle)) <= room else (fits, middle)
        return self._prompt(example, fits)[-room:]

    def _prompt(self, example: Example, characters: int | None = None) -> list[int]:
        spec = self.task.spec
        if spec.messages:
            return self._tokens(self._conversation(example))
        text = self.task.prompt(example, self.mask, characters)
        if spec.chat:
            return self._tokens(self._templated([{"role": "user", "content": text}], ask=True))
        ids: list[int] = self.tokenizer(self._shown + text)["input_ids"]
        ends = self.head == "causal" and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id
        return ids[:-1] if ends else ids  # what follows it goes on

    def _option(self, option: str) -> list[int]:
        if self.head == "masked":
            for written in (option, option.strip()):
                ids = self._tokens(written)
                if len(ids) == 1:
                    return ids
            raise ValueError(f"option {option!r} is {len(ids)} tokens; a masked model answers with one, choose another word")
        return self._behind(option.strip() if self.head == "seq2seq" else option)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _behind(self, text: str) -> list[int]:
        """The tokens of a text that goes on from a prompt: without the space that some tokenizers put before a text of its own."""
        anchor = self._tokens(ANCHOR)
        ids = self._tokens(ANCHOR + text)
        is_apart = self.head == "causal" and len(ids) > len(anchor) and ids[: len(anchor)] == anchor
        return ids[len(anchor) :] if is_apart else self._tokens(text)

    def _require_apart(self, found: list[list[int]], options: tuple[str, ...]) -> None:
        if self.head == "classifier":
            return
        seen: dict[tuple[int, ...], str] = {}
        for ids, option in zip(found, options, strict=True):
            if not ids:
                raise ValueError(f"option {option!r} is no token of this model; choose another word")
            if len(ids) >= self.room:
                raise ValueError(f"option {option[:40]!r} has {len(ids)} tokens, and the context {self.room}; choose a shorter one")
            other = seen.setdefault(tuple(ids), option)
            if other != option:
                raise ValueError(f"options {other!r} and {option!r} are the same tokens of this model; choose other words")


def _mask(tokenizer: Any, task: Task) -> str:
    mask = tokenizer.mask_token
    if not mask:
        raise ValueError("the model's tokenizer has no mask token, so it is no masked model; choose another --head")
    if task.spec.kind != "options":
        raise ValueError(f"task {task.name} has no common options, and a masked model answers with one token; choose another model")
    if "mask" not in task.spec.prompt:
        raise ValueError("prompt has no {{ mask }}, which is where a masked model answers; put it there")
    return str(mask)
