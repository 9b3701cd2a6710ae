"""Reward functions with the signature of TRL's GRPOTrainer (1.16): called by names, awaited together where they are coroutines.

A function takes lists, one entry an answer: `prompts`, `completions` (texts, or for conversations lists of one message),
`completion_ids` (tokens, the end token included, no padding) and every other column of the rows; and `trainer_state`, `log_extra`
and `log_metric`. It returns a number for each answer, or None to leave itself out of one.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from zerograd.errors import RewardFailed

RESERVED = ("prompt", "completion", "completion_ids")
"""Columns that functions get under another name."""

AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
"""TRL's names: weighted sums of the functions' values, or of their deviations from the mean of the prompt's answers."""


@dataclass(frozen=True)
class Reward:
    """A reward function. name: in logs. call: the function, or a model whose first logit is the score. tokenizer: a model's."""

    name: str
    call: Any
    tokenizer: Any = None

    @property
    def is_async(self) -> bool:
        """Whether calling it gives something to be awaited."""
        return inspect.iscoroutinefunction(self.call) or inspect.iscoroutinefunction(getattr(self.call, "__call__", None))  # noqa: B004


@dataclass
class Scored:
    """What functions said of answers.

    values: float32 (answers, functions), NaN where a function was left out. extra: columns of `log_extra`. metrics: the means of
    `log_metric`.
    """

    values: torch.Tensor
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class Rewards:
    """Several reward functions with weights.

    weights: one a function; all 1 by default. aggregation: one of AGGREGATIONS.
    Raises ValueError for weights of another number, or that are not finite.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float] = (), aggregation: str = AGGREGATIONS[0]) -> None:
        if not rewards:
            raise ValueError("no reward was given; name at least one")
        if weights and len(weights) != len(rewards):
            raise ValueError(f"reward_weights has {len(weights)} numbers for {len(rewards)} rewards; give one each")
        wrong = [weight for weight in weights if not math.isfinite(weight)]
        if wrong:
            raise ValueError(f"reward_weights has {wrong[0]}; it must be a finite number")
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"multi_objective_aggregation is {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}")
        self.rewards = list(rewards)
        self.weights = torch.tensor(list(weights) or [1.0] * len(rewards), dtype=torch.float32)
        self.aggregation = aggregation

    @property
    def names(self) -> list[str]:
        """The functions' names, in order."""
        return [reward.name for reward in self.rewards]

    def score(
        self,
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        state: Any = None,
    ) -> Scored:
        """What each function says of answers. rows: the row of each answer's prompt, with the column `prompt`. state: TRL's
        `trainer_state`.

        Raises RewardFailed for a function that raises, or does not return one number or None an answer.
        """
        extra: dict[str, list[Any]] = defaultdict(list)
        metrics: dict[str, list[float]] = defaultdict(list)
        prompts = [row["prompt"] for row in rows]
        given: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0] if name not in RESERVED}
        given |= {
            "prompts": prompts,
            "completions": list(completions),
            "completion_ids": [list(ids) for ids in completion_ids],
            "trainer_state": state,
            "log_extra": lambda column, values: extra[column].extend(values),
            "log_metric": lambda name, value: metrics[name].append(float(value)),
        }
        said: dict[int, Any] = {}
        for i, reward in enumerate(self.rewards):
            if isinstance(reward.call, nn.Module):
                said[i] = _of_model(reward, prompts, completions)
            elif not reward.is_async:
                said[i] = _called(reward, given)
        waiting = {i: reward for i, reward in enumerate(self.rewards) if i not in said}
        if waiting:
            said |= _awaited(waiting, given)
        values = [_numbers(self.rewards[i], said[i], len(rows)) for i in range(len(self.rewards))]
        means = {name: sum(one) / len(one) for name, one in metrics.items()}
        return Scored(torch.tensor(values, dtype=torch.float32).T, dict(extra), means)

    def totals(self, values: torch.Tensor) -> torch.Tensor:
        """The reward of each answer: float32 (prompts, answers), NaN where all functions were left out.

        values: (prompts, answers, functions), those of one prompt's answers together.
        """
        left_out = values.isnan().all(2)
        if self.aggregation == "normalize_then_sum":
            centred = values - values.nanmean(1, keepdim=True)
            count = (~values.isnan()).sum(1, keepdim=True)
            deviation = (centred.square().nansum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
            values = centred / (deviation + 1e-4)  # TRL's least deviation
        totals = (values * self.weights).nansum(2)
        return totals.masked_fill(left_out, math.nan)


def of(given: Any, tokenizers: Any = None) -> list[Reward]:
    """Reward functions, models or names of models as TRL's `reward_funcs`: one, or a list. tokenizers: of the models."""
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    others = list(tokenizers) if isinstance(tokenizers, (list, tuple)) else [tokenizers] * len(listed)
    if len(others) != len(listed):
        raise ValueError(f"reward_processing_classes has {len(others)} entries for {len(listed)} rewards; give one each")
    return [_reward(one, tokenizer) for one, tokenizer in zip(listed, others, strict=True)]


def name_of(call: Any) -> str:
    """A function's name; of an object with `__call__` its class's."""
    return str(getattr(call, "__name__", None) or getattr(getattr(call, "func", None), "__name__", None) or type(call).__name__)


def is_conversation(prompt: Any) -> bool:
    """Whether a prompt is a list of messages."""
    return isinstance(prompt, (list, tuple)) and len(prompt) > 0 and all(isinstance(m, Mapping) and "role" in m for m in prompt)


def _reward(given: Any, tokenizer: Any) -> Reward:
    if isinstance(given, str):
        return model_named(given)
    if isinstance(given, nn.Module):
        return _model(given, tokenizer, str(getattr(given.config, "_name_or_path", "") or type(given).__name__).split("/")[-1])
    if not callable(given):
        raise ValueError(f"reward is a {type(given).__name__}; it must be a function, a model, or a model's name")
    return Reward(name_of(given), given)


def model_named(name: str) -> Reward:
    """A sequence-classification model with one label, by its folder or hub id. Raises ValueError if there is none."""
    from transformers import AutoModelForSequenceClassification

    try:
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1)
    except (OSError, ValueError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        mend = "name a built-in reward, file.py:function, module:function, or a sequence-classification model"
        raise ValueError(f"reward {name!r} is none that is known ({said}); {mend}") from None
    return _model(model.eval(), None, name.rstrip("/").split("/")[-1])


def _model(model: Any, tokenizer: Any, name: str) -> Reward:
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # it scores the last token that is no padding
    return Reward(name, model, tokenizer)


def _of_model(reward: Reward, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
    """A model's first logit of each prompt with its answer."""
    if is_conversation(prompts[0]):
        pairs = [list(prompt) + list(answer) for prompt, answer in zip(prompts, completions, strict=True)]
        texts = [reward.tokenizer.apply_chat_template(pair, tokenize=False) for pair in pairs]
    else:
        texts = [prompt + answer for prompt, answer in zip(prompts, completions, strict=True)]
    batch = reward.tokenizer(text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    device = next(reward.call.parameters()).device
    with torch.inference_mode():
        logits = reward.call(**{name: tensor.to(device) for name, tensor in batch.items()}).logits
    scores: list[float] = logits[:, 0].float().tolist()
    return scores


def _called(reward: Reward, given: Mapping[str, Any]) -> Any:
    try:
        return reward.call(**given)
    except Exception as error:  # of the user's function, which raises what it likes
        raise _failed(reward, error) from error


def _awaited(waiting: Mapping[int, Reward], given: Mapping[str, Any]) -> dict[int, Any]:
    async def one(reward: Reward) -> Any:
        try:
            return await reward.call(**given)
        except Exception as error:
            raise _failed(reward, error) from error

    async def together() -> list[Any]:
        return await asyncio.gather(*map(one, waiting.values()))

    return dict(zip(waiting, _LOOP.run(together()), strict=True))


class _Loop:
    """An event loop in a thread of its own, so that a client that a function keeps stays with one loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


_LOOP = _Loop()


def _failed(reward: Reward, error: Exception) -> RewardFailed:
    wrong_call = isinstance(error, TypeError) and "argument" in str(error) and error.__traceback__ is not None
    mend = "; give it **kwargs, so that it takes every column" if wrong_call and "unexpected keyword" in str(error) else ""
    return RewardFailed(f"reward {reward.name} raised {type(error).__name__}: {' '.join(str(error).split())}{mend}")


def _numbers(reward: Reward, said: Any, count: int) -> list[float]:
    """What a function returned as numbers, NaN for None."""
    if isinstance(said, (str, Mapping)) or not hasattr(said, "__iter__"):
        raise RewardFailed(f"reward {reward.name} returned a {type(said).__name__}; return a list of one number or None an answer")
    listed = list(said)
    if len(listed) != count:
        raise RewardFailed(f"reward {reward.name} returned {len(listed)} values for {count} answers; return one each")
    return [_number(reward, row, value) for row, value in enumerate(listed, 1)]


def _number(reward: Reward, row: int, value: Any) -> float:
    if value is None:
        return math.nan
    problem = f"reward {reward.name} returned {value!r} for answer {row}"
    if isinstance(value, torch.Tensor) and value.device.type != "cpu":
        raise RewardFailed(f"{problem}, a tensor on {value.device}; return a number, as .item() gives")
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise RewardFailed(f"{problem}; return a number, or None to leave it out") from None
    if math.isinf(number):
        raise RewardFailed(f"{problem}; return a finite number, or None to leave it out")
    return number
