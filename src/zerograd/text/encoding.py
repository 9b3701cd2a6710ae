"""Prompts, options and answers as tokens of a model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from zerograd.text.data.tasks import Example, Task

ANSWER_SHARE = 2
"""An answer has at most max_tokens / ANSWER_SHARE tokens; training and scoring ignore the rest."""

ANCHOR = "."
"""A text before an answer, to tokenize the answer as a continuation."""


class Encoder:
    """Tokens of a task's rows. A prompt that is too long loses the end of one column, never the question.

    head: of the model, one of `loading.HEADS`. max_tokens: of a row, prompt and answer together. vocabulary: tokens that the
    model has an embedding for; None where that is not known.
    Raises ValueError for options with the same tokens, for options that are too long, and for a tokenizer without mask
    token or chat template where the task needs one.
    """

    def __init__(
        self, tokenizer: Any, task: Task, head: str = "causal", max_tokens: int = 512, vocabulary: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.task = task
        self.head = head
        self.max_tokens = max_tokens
        self.mask = ""
        self._demonstrations = ""  # before every prompt
        self._prompts: dict[Any, list[int]] = {}
        if head == "masked":
            self.mask = _mask(tokenizer, task)
        if (task.spec.messages or task.spec.chat) and not getattr(tokenizer, "chat_template", None):
            raise ValueError("the model's tokenizer has no chat template; give it prompts and completions instead of messages")
        self.options = [self._option(option) for option in task.options]  # common to all rows
        self._require_distinct(self.options, task.options)

    @property
    def has_one_token_options(self) -> bool:
        """Whether every option is one token, the same for all rows."""
        return bool(self.options) and all(len(ids) == 1 for ids in self.options)

    @property
    def pad(self) -> int:
        """The padding token; the end token where the tokenizer has no padding token."""
        pad = self.tokenizer.pad_token_id
        known = pad is not None and (self.vocabulary is None or pad < self.vocabulary)
        return int(pad if known else (self.tokenizer.eos_token_id or 0))

    def option_ids(self, example: Example) -> list[list[int]]:
        """The tokens of each option of an example."""
        if self.options:
            return self.options
        ids = [self._option(option) for option in example.options]
        self._require_distinct(ids, example.options)
        return ids

    def answer_ids(self, example: Example) -> list[int]:
        """The tokens of the first right answer with its end token, cut to max_answer_tokens."""
        return self._answer(example)[: self.max_answer_tokens]

    def is_truncated(self, example: Example) -> bool:
        """Whether the example's answer has more than max_answer_tokens tokens."""
        return self.task.spec.kind == "answer" and bool(example.answers) and len(self._answer(example)) > self.max_answer_tokens

    @property
    def max_answer_tokens(self) -> int:
        """The most tokens of an answer."""
        return self.max_tokens // ANSWER_SHARE

    def _answer(self, example: Example) -> list[int]:
        spec = self.task.spec
        if spec.messages:
            return self._continuation_ids(self._answer_turn(example))
        before = "" if self.head == "seq2seq" else spec.before
        ids = self._continuation_ids(before + example.answers[0] + spec.stop)
        end = self.tokenizer.eos_token_id
        return ids + ([end] if not spec.stop and end is not None else [])

    def prompt_ids(self, example: Example, room: int = 0) -> list[int]:
        """The tokens of an example's prompt, shortened to leave room for an answer. room: tokens of the answer."""
        key = self._key(example), room
        if key not in self._prompts:
            self._prompts[key] = self._shortened_prompt(example, self.max_tokens - room)
        return self._prompts[key]

    @contextmanager
    def demonstrating(self, examples: Sequence[Example]) -> Iterator[None]:
        """Put the first examples with their answers before every prompt, as many as fit in half of max_tokens.

        Raises ValueError for a task whose prompts are not plain text.
        """
        if self.task.spec.messages or self.task.spec.chat or self.head != "causal":
            raise ValueError("shots are for prompts in plain text and causal models; leave --shots out")
        demonstrations = ""
        for example in examples:
            options = self.task.options or example.options
            answer = options[example.label] if options else self.task.spec.before + example.answers[0]
            more = demonstrations + self.task.prompt(example) + answer + "\n\n"
            if len(self._tokens(more)) > self.max_tokens // 2:
                break
            demonstrations = more
        if not demonstrations:
            raise ValueError(f"no demonstration fits half of {self.max_tokens} tokens; raise --max-tokens, or leave --shots out")
        try:
            self._demonstrations, self._prompts = demonstrations, {}
            yield
        finally:
            self._demonstrations, self._prompts = "", {}

    def _key(self, example: Example) -> str:
        if self.task.spec.messages:
            return self._conversation(example)
        return self.task.prompt(example, self.mask)

    def _conversation(self, example: Example) -> str:
        """A conversation up to the answer, in the model's chat template."""
        messages = self.task.messages(example.row)
        if example.answers:
            messages = messages[:-1]
        return self._apply_chat_template(messages, example, add_generation_prompt=True)

    def _answer_turn(self, example: Example) -> str:
        """The answer of a conversation, in the model's chat template."""
        whole = self._apply_chat_template(self.task.messages(example.row), example, add_generation_prompt=False)
        prompt = self._conversation(example)
        if not whole.startswith(prompt):
            problem = "the model's chat template changes a conversation's prompt once the answer follows"
            raise ValueError(f"{example.where}: {problem}; give it prompts and completions")
        return whole[len(prompt) :].rstrip("\n")

    def _apply_chat_template(self, messages: Any, example: Example, add_generation_prompt: bool) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False))
        except Exception as error:  # of the template, which raises what it likes
            said = " ".join(str(error).split()) or type(error).__name__
            problem = f"{example.where or 'a row'}: the model's chat template refuses the conversation ({said})"
            raise ValueError(f"{problem}; change the row, or leave it out") from None

    def _shortened_prompt(self, example: Example, room: int) -> list[int]:
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
            return self._tokens(self._apply_chat_template([{"role": "user", "content": text}], example, add_generation_prompt=True))
        ids = self._known(self.tokenizer(self._demonstrations + text)["input_ids"])
        ends = self.head == "causal" and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id
        return ids[:-1] if ends else ids  # the answer continues the prompt

    def _option(self, option: str) -> list[int]:
        if self.head == "masked":
            for spelling in (option, option.strip()):
                ids = self._tokens(spelling)
                if len(ids) == 1:
                    return ids
            raise ValueError(f"option {option!r} is {len(ids)} tokens; a masked model answers with one, choose another word")
        return self._continuation_ids(option.strip() if self.head == "seq2seq" else option)

    def _tokens(self, text: str) -> list[int]:
        return self._known(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _known(self, ids: list[int]) -> list[int]:
        """Tokens that the model has an embedding for. Raises ValueError for any other."""
        if self.vocabulary is not None and ids and max(ids) >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            problem = f"token {token!r} has the number {max(ids)}, and the model has embeddings for {self.vocabulary:,} tokens"
            raise ValueError(f"{problem}; give it the tokenizer that it was trained with, or resize its embeddings")
        return ids

    def _continuation_ids(self, text: str) -> list[int]:
        """The tokens of a text that continues a prompt: without the space that some tokenizers put before a first word."""
        anchor = self._tokens(ANCHOR)
        ids = self._tokens(ANCHOR + text)
        is_separable = self.head == "causal" and len(ids) > len(anchor) and ids[: len(anchor)] == anchor
        return ids[len(anchor) :] if is_separable else self._tokens(text)

    def _require_distinct(self, option_ids: list[list[int]], options: tuple[str, ...]) -> None:
        if self.head == "classifier":
            return
        seen: dict[tuple[int, ...], str] = {}
        for ids, option in zip(option_ids, options, strict=True):
            if not ids:
                raise ValueError(f"option {option!r} has no token in this model's vocabulary; choose another word")
            if len(ids) >= self.max_tokens:
                raise ValueError(
                    f"option {option[:40]!r} has {len(ids)} tokens, and a row has at most {self.max_tokens}; choose a shorter one"
                )
            other = seen.setdefault(tuple(ids), option)
            if other != option:
                raise ValueError(f"options {other!r} and {option!r} have the same tokens in this model; choose other words")


def _mask(tokenizer: Any, task: Task) -> str:
    mask = tokenizer.mask_token
    if not mask:
        raise ValueError("the model's tokenizer has no mask token, so it is not a masked model; choose another --head")
    if task.spec.kind != "options":
        raise ValueError(f"task {task.name} has no common options, and a masked model answers with one token; choose another model")
    if "mask" not in task.spec.prompt:
        raise ValueError("prompt has no {{ mask }}, which a masked model answers at; put it where the answer belongs")
    return str(mask)
