"""Reward functions are called as TRL 1.16 calls them, and what they say wrongly is one line."""

from __future__ import annotations

import asyncio
import math
import types
from collections import defaultdict
from typing import Any

import pytest
import torch

from tests.tiers import full
from zerograd.errors import RewardFailed
from zerograd.rewards import functions
from zerograd.rewards.functions import Reward, Rewards

TEXTS = ["<think>\nso\n</think>\nyes", "no no no no no no", "", "maybe"]
IDS = [[5, 6, 7, 2], [9, 9, 9, 9, 9, 9], [2], [4, 2]]
ROWS = [{"prompt": f"ask {i // 2}", "id": i // 2, "word": ["yes", "no"][i // 2], "completion": "not passed on"} for i in range(4)]


def talked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]


def messages(texts: list[str]) -> list[Any]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def seen(store: dict[str, Any], **given: Any) -> list[float]:
    store.update(given)
    return [1.0] * len(given["prompts"])


async def slowly(completions: list[Any], word: list[str], **columns: Any) -> list[float | None]:
    await asyncio.sleep(0.01)
    return [None if i == 2 else float(word[i] in str(completions[i])) for i in range(len(completions))]


def logged(prompts: list[Any], log_extra: Any, log_metric: Any, trainer_state: Any, **columns: Any) -> list[float]:
    log_extra("double", [2 * len(str(one)) for one in prompts])
    log_metric("mean", 3.0)
    return [float(trainer_state.global_step)] * len(prompts)


def of_trl(call: list[Any], weights: list[float], rows: list[dict[str, Any]], completions: list[Any], state: Any) -> Any:
    """(values, extra columns, metrics) by TRL's own code."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    loop = asyncio.new_event_loop()
    import threading

    threading.Thread(target=loop.run_forever, daemon=True).start()
    extra: dict[str, list[Any]] = defaultdict(list)
    metrics: dict[str, list[float]] = defaultdict(list)
    trainer = types.SimpleNamespace(
        accelerator=types.SimpleNamespace(device=torch.device("cpu"), process_index=0, is_main_process=False),
        reward_funcs=call,
        reward_processing_classes=[None] * len(call),
        reward_func_names=[functions.name_of(one) for one in call],
        state=state,
        _log_completion_extra=lambda column, values: extra[column].extend(values),
        _log_metric=lambda name, value: metrics[name].append(value),
        environments=None,
        async_loop=loop,
        args=types.SimpleNamespace(report_to=[]),
        chat_template_kwargs={},
    )
    values = GRPOTrainer._calculate_rewards(trainer, rows, [row["prompt"] for row in rows], completions, IDS)
    loop.call_soon_threadsafe(loop.stop)
    return values, dict(extra), dict(metrics)


@full
@pytest.mark.parametrize("conversation", [False, True])
def test_functions_say_what_they_say_to_trl(conversation: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own rewards and own ones, weighted, awaited, left out: the same values, extra columns and metrics."""
    import trl.trainer.grpo_trainer as grpo
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

    monkeypatch.setattr(grpo, "gather", lambda values: values)
    monkeypatch.setattr(grpo, "profiling_context", lambda *rest: __import__("contextlib").nullcontext())
    of_messages = [think_format_reward] if conversation else []  # it reads messages alone
    call = [*of_messages, get_repetition_penalty_reward(2), get_soft_overlong_punishment(6, 3), slowly, logged]
    weights = [0.5 + i for i in range(len(call))]
    rows, completions = (talked(ROWS), messages(TEXTS)) if conversation else (ROWS, TEXTS)
    state = types.SimpleNamespace(global_step=7)
    theirs, extra, metrics = of_trl(call, weights, rows, completions, state)
    rewards = Rewards(functions.of(call), weights)
    mine = rewards.score(rows, completions, IDS, state)
    assert torch.equal(mine.values.nan_to_num(-99), theirs.nan_to_num(-99))
    assert (mine.extra, mine.metrics) == (extra, {name: sum(values) / len(values) for name, values in metrics.items()})
    totals = rewards.totals(mine.values.view(2, 2, -1)).flatten()
    assert torch.allclose(totals, (theirs * torch.tensor(weights)).nansum(1))


@full
def test_the_other_aggregation_is_trl_s() -> None:
    """Deviations from the prompt's mean, then the weighted sum, as its code has them."""
    values = torch.tensor([[[1.0, 5.0], [2.0, math.nan], [4.0, 7.0]], [[0.0, 1.0], [0.0, 1.0], [math.nan, math.nan]]])
    weights = [1.0, 0.5]
    rewards = Rewards([Reward("a", len), Reward("b", len)], weights, "normalize_then_sum")
    mine = rewards.totals(values)
    from trl.trainer.utils import nanstd

    mean, std = torch.nanmean(values, 1, keepdim=True), nanstd(values, dim=1, keepdim=True)
    theirs = ((values - mean) / (std + 1e-4) * torch.tensor(weights)).nansum(2)
    assert torch.allclose(mine[0], theirs[0], atol=1e-6)
    assert mine[1].isnan().tolist() == [False, False, True]
    assert mine[1, :2].tolist() == [0.0, 0.0]


def test_a_function_gets_the_columns_of_its_rows() -> None:
    store: dict[str, Any] = {}
    Rewards([Reward("seen", lambda **given: seen(store, **given))]).score(ROWS, TEXTS, IDS, "state")
    assert store["prompts"] == ["ask 0", "ask 0", "ask 1", "ask 1"]
    assert store["completions"] == TEXTS
    assert store["completion_ids"] == IDS
    assert store["word"] == ["yes", "yes", "no", "no"]
    assert store["trainer_state"] == "state"
    assert not {"prompt", "completion"} & set(store)


def test_coroutines_are_awaited_together() -> None:
    running, most = [], []

    async def one(prompts: list[Any], **columns: Any) -> list[float]:
        running.append(1)
        most.append(len(running))
        await asyncio.sleep(0.05)
        running.pop()
        return [0.0] * len(prompts)

    Rewards([Reward("a", one), Reward("b", one)]).score(ROWS, TEXTS, IDS)
    assert max(most) == 2


WRONG: dict[str, tuple[Any, str]] = {
    "too few": ([1.0], "reward f returned 1 values for 4 answers; return one each"),
    "a text": (["good", 1, 1, 1], "reward f returned 'good' for answer 1; return a number, or None to leave it out"),
    "infinity": ([1, 1, math.inf, 1], "reward f returned inf for answer 3; return a finite number, or None to leave it out"),
    "elsewhere": (
        [torch.zeros((), device="meta"), 1, 1, 1],
        "for answer 1, a tensor on meta; return a number, as .item() gives",
    ),
    "no list": (1.0, "reward f returned a float; return a list of one number or None an answer"),
    "one text": ("good", "reward f returned a str; return a list of one number or None an answer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_one_line(case: str) -> None:
    said, message = WRONG[case]
    with pytest.raises(RewardFailed) as caught:
        Rewards([Reward("f", lambda **given: said)]).score(ROWS, TEXTS, IDS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_that_raises_is_named() -> None:
    def broken(**given: Any) -> list[float]:
        raise KeyError("judge is down")

    async def late(**given: Any) -> list[float]:
        raise OSError("no route")

    def narrow(completions: list[str]) -> list[float]:
        return [0.0] * len(completions)

    for call, message in (
        (broken, "reward broken raised KeyError: 'judge is down'"),
        (late, "reward late raised OSError: no route"),
        (narrow, "reward narrow raised TypeError"),
    ):
        with pytest.raises(RewardFailed) as caught:
            Rewards(functions.of(call)).score(ROWS, TEXTS, IDS)
        assert str(caught.value).startswith(message)
    assert "give it **kwargs" in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, 2.0, 3.0], "reward_weights has 3 numbers for 2 rewards"), ([1.0, math.nan], "reward_weights has nan")],
)
def test_weights_of_another_number_or_kind_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rewards([Reward("a", len), Reward("b", len)], weights)
