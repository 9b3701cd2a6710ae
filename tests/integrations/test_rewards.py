"""ESTrainer: GRPOTrainer's call with another name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

import zerograd as zg
from tests.text.tiny import characters, tiny_model

pytestmark = pytest.mark.full

ROWS = [{"prompt": f"say {i}", "wanted": i % 4} for i in range(16)]


def vowels(completions: list[str], wanted: list[int], **columns: Any) -> list[float]:
    return [sum(c in "aeiou" for c in text) / (1 + w) for text, w in zip(completions, wanted, strict=True)]


def stops(completion_ids: list[list[int]], trainer_state: Any, log_metric: Any, **columns: Any) -> list[float | None]:
    log_metric("step", trainer_state.global_step)
    return [None if len(ids) > 7 else 0.1 for ids in completion_ids]


async def awaited(prompts: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(prompts)


def config(folder: Any, **more: Any) -> zg.ESConfig:
    given = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "max_completion_length": 6,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return zg.ESConfig(str(folder / "out"), **(given | more))


def trainer_of(folder: Any, call: Any = (vowels, stops, awaited), model: Any = None, **more: Any) -> zg.ESTrainer:
    other = {name: more.pop(name) for name in ("peft_config", "callbacks", "eval_dataset") if name in more}
    args = config(folder, **more)
    rows = Dataset.from_list(ROWS)
    return zg.ESTrainer(model or tiny_model(), list(call), args, rows, processing_class=characters(), **other)


def stepped(trainer: zg.ESTrainer) -> Any:
    """The trainer's optimiser, without what accelerate puts around it."""
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


def test_a_trainer_on_rewards_trains_logs_and_evaluates(tmp_path: Any) -> None:
    trainer = trainer_of(tmp_path, eval_dataset=Dataset.from_list(ROWS[:6]), reward_weights=[1.0, 0.5, 2.0], temperature=1.0)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert stepped(trainer).steps == 4
    assert any(not torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 4
    assert {"reward/vowels", "reward/stops", "reward/awaited", "tokens", "step"} <= set(logged[-1])
    assert [row["step"] for row in logged] == [1, 2, 3, 4] or [row["step"] for row in logged] == [0, 1, 2, 3]
    assert {"eval_reward", "eval_reward/vowels"} <= set(trainer.evaluate())


def test_schedulers_callbacks_checkpoints_and_resume(tmp_path: Any) -> None:
    """A run that was cut after a checkpoint and resumed ends with the weights of one that was not."""

    class Cut(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_training_stop |= state.global_step == 2

    common = {"lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(tmp_path / "whole", **common)
    whole.train()
    rates = [row["learning_rate"] for row in whole.state.log_history if "learning_rate" in row]
    assert rates == sorted(rates, reverse=True)
    cut = trainer_of(tmp_path / "cut", callbacks=[Cut()], **common)
    cut.train()
    again = trainer_of(tmp_path / "cut", **common)
    again.train(resume_from_checkpoint=True)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_adapters_and_schemes(tmp_path: Any) -> None:
    import peft

    trainer = trainer_of(tmp_path, peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    trainer.train()
    assert all("lora" in space.name for space in stepped(trainer).spaces)
    trainer = trainer_of(tmp_path, scheme="qk")
    trainer.train()
    assert all("q_proj" in space.name or "k_proj" in space.name for space in stepped(trainer).spaces)


def test_accumulated_prompts_are_one_step(tmp_path: Any) -> None:
    one = trainer_of(tmp_path, max_steps=2)
    two = trainer_of(tmp_path, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    one.train()
    two.train()
    assert stepped(one).steps == stepped(two).steps == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_generations": 3}, "num_generations is 3; it must be an even number"),
        ({"num_generations": 0}, "num_generations is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"reward_weights": [1.0]}, "reward_weights has 1 numbers for 3 rewards"),
        ({"remove_unused_columns": True}, "reward functions read the columns"),
        ({"method": "adamw"}, "takes backward passes"),
        ({"multi_objective_aggregation": "mean"}, "multi_objective_aggregation is 'mean'"),
    ],
    ids=str,
)
def test_wrong_settings_are_one_line(more: dict[str, Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, **more)


def test_rows_without_a_prompt_and_prompts_that_are_too_long_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="no column 'prompt'"):
        zg.ESTrainer(tiny_model(), vowels, config(tmp_path), Dataset.from_list([{"ask": "x"}]), processing_class=characters())
    model = tiny_model()
    model.config.max_position_embeddings = 10
    with pytest.raises(ValueError, match="4 are left beside an answer of 6"):
        trainer_of(tmp_path, model=model).train()


def test_a_model_as_a_reward(tmp_path: Any) -> None:
    """A sequence-classification model with one label, by its folder: its first logit of prompt and answer."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from tests.text.tiny import SIZE

    judge = LlamaForSequenceClassification(LlamaConfig(**{**SIZE, "num_labels": 1, "pad_token_id": 0}))
    judge.save_pretrained(tmp_path / "judge")
    characters().save_pretrained(tmp_path / "judge")
    trainer = trainer_of(tmp_path, call=[str(tmp_path / "judge")])
    trainer.train()
    assert trainer.rewards.names == ["judge"]
    assert all("reward/judge" in row for row in trainer.state.log_history if "reward" in row)
    assert json.loads(json.dumps(trainer.state.log_history))
