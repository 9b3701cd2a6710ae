"""A trainer on rewards with the call of TRL's GRPOTrainer, and no gradient.

    ESTrainer("model", reward_funcs=function, args=ESConfig(...), train_dataset=rows).train()

Every member of a step answers in one batch, and the functions are called as TRL calls them. Schedulers, callbacks, logging,
checkpoints and resume are the Trainer's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from zerograd.integrations.transformers import ZerothOrderConfig, ZerothOrderMixin
from zerograd.optim import options_of
from zerograd.rewards import Prompt, RewardObjective, functions
from zerograd.rewards.evaluator import in_numbers
from zerograd.rewards.functions import AGGREGATIONS, Rewards, is_conversation
from zerograd.text.generation import Generator, ends_of
from zerograd.text.models import head, schemes
from zerograd.text.sampling import Noise, Sampling

EVALUATION_STEP = 2**32 - 1
"""The step that names the noise of sampled answers in evaluations."""


@dataclass
class ESConfig(TrainingArguments):
    """TrainingArguments, with GRPOConfig's names where they mean the same.

    per_device_train_batch_size: prompts of a step. learning_rate: of directions that are relative to each tensor's rms, so that it
    is also about the relative change of a weight in a step. num_generations: answers of a prompt in a step, an even number: both
    signs of half as many directions. max_completion_length: the most tokens of an answer. temperature, top_k, top_p: how tokens are
    chosen; temperature 0 takes the likeliest. reward_weights, multi_objective_aggregation: as in GRPOConfig.

    method: one of `optim.METHODS`, with its settings in options. eps: the smoothing radius. scheme: what is trained, as in
    `zerograd tune`; None for the parameters with requires_grad. micro_batch: prompts of a generation; "auto" for as many as fit in
    memory.
    """

    num_generations: int = field(default=4)
    max_completion_length: int = field(default=64)
    temperature: float = field(default=0.0)
    top_k: int = field(default=0)
    top_p: float = field(default=1.0)
    reward_weights: list[float] | None = field(default=None)
    multi_objective_aggregation: str = field(default=AGGREGATIONS[0])
    method: str = field(default="evolution")
    options: dict[str, Any] | None = field(default=None)
    eps: float = field(default=0.06)
    scheme: str | None = field(default=None)
    micro_batch: int | str | None = field(default="auto")
    learning_rate: float = field(default=0.18)
    remove_unused_columns: bool | None = field(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_generations < 2 or self.num_generations % 2:
            raise ValueError(f"num_generations is {self.num_generations}; it must be an even number of at least 2")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns is True, and reward functions read the columns; leave it out")
        _ = self.sampling  # refuses what is out of range

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.max_completion_length, self.temperature, self.top_k, self.top_p)

    @property
    def settings_of_method(self) -> dict[str, Any]:
        """The method's settings, with as many directions as num_generations asks for."""
        given = dict(self.options or {})
        known = options_of(self.method)
        if "directions" in known:
            given.setdefault("directions", self.num_generations // given.get("sides", 2))
        return given


class ESTrainer(ZerothOrderMixin, Trainer):
    """Trains a model on rewards by evolution strategies. The arguments are those of TRL's GRPOTrainer.

    model: a causal model, or its name. reward_funcs: functions, sequence-classification models or their names, one or a list.
    train_dataset, eval_dataset: rows with a column `prompt`, texts or lists of messages; functions get the other columns.
    processing_class: the tokenizer. reward_processing_classes: of reward models. peft_config: to train an adapter.
    Raises ValueError for a wrong argument, and RewardFailed for a function that raises.
    """

    control: Any

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: ESConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        args = args or ESConfig("es_output")
        name = model if isinstance(model, str) else model.config._name_or_path
        model = AutoModelForCausalLM.from_pretrained(model) if isinstance(model, str) else model
        if not callable(getattr(model, "generate", None)):
            raise ValueError(f"model is a {type(model).__name__}, which does not generate; give a model that writes answers")
        tokenizer = AutoTokenizer.from_pretrained(name) if processing_class is None else processing_class
        if args.scheme is not None:
            model = schemes.select(model, args.scheme, seed=args.seed)
        if peft_config is not None:
            import peft

            model = peft.get_peft_model(model, peft_config)
        self.rewards = Rewards(
            functions.of(reward_funcs, reward_processing_classes), args.reward_weights or (), args.multi_objective_aggregation
        )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        generator = Generator(model, int(pad or 0), ends_of(model, tokenizer), bool(model.config.is_encoder_decoder))
        self.objective = RewardObjective(generator, tokenizer, self.rewards, args.sampling, lambda: self.state)
        self._room = head.context(model) - args.max_completion_length
        self._sums: dict[str, list[float]] = defaultdict(list)
        for rows in (train_dataset, eval_dataset):
            if rows is not None and "prompt" not in (rows.column_names if hasattr(rows, "column_names") else rows[0]):
                raise ValueError("the rows have no column 'prompt', which holds what is asked; rename the column")
        super().__init__(
            model=model,
            args=args,
            data_collator=list,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            zeroth_order=ZerothOrderConfig(args.method, args.eps, args.settings_of_method, micro_batch=args.micro_batch),
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One step on all prompts that were accumulated for it. Returns minus the mean reward; 0 where more are to come."""
        model.eval()
        self._gathered.extend(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        prompts, self._gathered = self._prompts(self._gathered), []
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        loss = optimizer.take(self.objective, prompts, micro_batch=self.zeroth_order.micro_batch)
        assert self.objective.last is not None
        for name, value in in_numbers(self.objective.last, self.rewards.names).items():
            self._sums[name].append(value)
        self._sums["reward"].append(-float(loss))
        return torch.tensor(float(loss), device=self.args.device)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The mean rewards of the model's answers to the rows of eval_dataset, by name."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            raise ValueError("there is no eval_dataset; give one")
        self.model.eval()
        noise = Noise(self.args.seed, EVALUATION_STEP) if self.args.temperature else None
        made = self.objective.plain(self._prompts([rows[i] for i in range(len(rows))]), noise)
        metrics = {f"{metric_key_prefix}_reward": float(made.totals.nanmean())}
        for name, value in in_numbers(made, self.rewards.names).items():
            if name.startswith("reward/"):
                metrics[f"{metric_key_prefix}_{name}"] = value
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        """Log, with the means of the steps since the last time."""
        training = {name: sum(values) / len(values) for name, values in self._sums.items()} if "loss" in logs else {}
        if training:
            self._sums.clear()
        super().log({**logs, **training}, *rest, **more)

    def _prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[Prompt]:
        """Rows as prompts of tokens. Raises ValueError for one that leaves no room for an answer."""
        found = []
        for row in rows:
            prompt = row["prompt"]
            if is_conversation(prompt):
                ids = self.processing_class.apply_chat_template(
                    prompt, add_generation_prompt=True, tokenize=True, return_dict=False
                )
            else:
                ids = self.processing_class(prompt)["input_ids"]
            if len(ids) > self._room:
                problem = f"a prompt has {len(ids)} tokens, and {self._room} are left beside an answer"
                raise ValueError(f"{problem} of {self.args.max_completion_length}; shorten it, or lower max_completion_length")
            found.append(Prompt(row, list(ids)))
        return found
