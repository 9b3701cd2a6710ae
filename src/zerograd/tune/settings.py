"""The settings of a fine-tuning run: one dataclass for the Python API, the flags, YAML files and the run's record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zerograd.machine import yaml_files
from zerograd.optim import METHODS, Method, method_of, options_of
from zerograd.settings.fields import check_fields, from_mapping, require_at_least, setting
from zerograd.spaces import PRECISIONS
from zerograd.text.metrics import METRICS
from zerograd.text.models.loading import HEADS
from zerograd.text.models.schemes import ADAPTERS, GAINS, LORA, SCHEMES, UPPER
from zerograd.tune.defaults import EPS, default_eps, default_lr, scales_in_words

SCHEDULES = ("constant", "linear", "cosine")

AUTO = "auto"
"""A value of lr: find the learning rate by a range test."""

DEFAULT_TASK = "sentiment-movies"

NEW_TOKENS = 50
"""The most tokens of an answer, where nothing says how many it needs."""

UNSET: Any = None
"""The default of a setting whose value depends on others; it never outlives the construction."""

BY_REWARD: dict[str, tuple[Any, Any]] = {"method": ("per-example", "evolution"), "scheme": ("qk", "upper"), "batch_size": (32, 16)}
"""Defaults of a run without and with rewards."""

SHAPED = ("grzo", "sparse-mezo", "static-mask", "hizoo")
"""Methods whose directions have a shape that the weights give."""

GGUF_TYPES = ("q8_0", "same", "f16")


@dataclass(frozen=True)
class TaskSettings:
    """The model and the task: the settings of `zerograd eval`, and the first part of those of `zerograd tune`."""

    model: str = setting("demo", "'demo' (SmolLM2-135M-Instruct), a folder that transformers loads, a .gguf file, or a hub id")
    head: str = setting("auto", "the model's head; auto: the saved model's", ("auto", *HEADS))
    packed: bool = setting(False, "keep the matrices of a .gguf file as they lie in it, unpacked a chunk at a time")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    task: str = setting("", f"a built-in task, or a YAML file (default: {DEFAULT_TASK} without --data)")
    data: tuple[str, ...] = setting(
        (),
        "training rows: files (.jsonl .json .csv .tsv .parquet), folders of them, or hub ids; an epoch uses rows of NAME=2 twice",
    )
    dev: str = setting("", "dev rows, which choose the best weights; cut from the training rows when empty")
    test: str = setting("", "test rows, for the reported result; cut from the training rows when empty")
    text: str = setting("", "the column of texts (default: text)")
    label: str = setting("", "the column of labels (default: label)")
    template: str = setting(
        "", "the prompt, such as '{{ text }} It was'; by default the text and, on the next line, the label column's name"
    )
    options: tuple[str, ...] = setting((), "a word for each label, in the labels' sorted order, or LABEL=WORD")
    chat: bool = setting(False, "put the prompt into the model's chat template")
    max_tokens: int = setting(512, "the most tokens of a row; the longest column of a longer row is truncated")
    new_tokens: int = setting(
        UNSET, f"the most tokens of a generated answer; by default {NEW_TOKENS}, or what a built-in reward needs"
    )
    metric: str = setting("", "the reported metric; by default the objective's, the task's, or accuracy")
    shots: int = setting(0, "in-context demonstrations from the training rows; 0 for none")
    seed: int = setting(0, "seed of directions, data order and demonstrations")
    threads: int = setting(0, "CPU threads; 0 for all cores")

    def __post_init__(self) -> None:
        if self.new_tokens is UNSET:
            object.__setattr__(self, "new_tokens", NEW_TOKENS)
        check_fields(self)
        if not self.task and not self.data:
            object.__setattr__(self, "task", DEFAULT_TASK)
        require_at_least("max_tokens", self.max_tokens, 16)
        require_at_least("new_tokens", self.new_tokens, 1)
        for name in ("shots", "seed", "threads"):
            require_at_least(name, getattr(self, name), 0)
        for name in ("text", "label", "template", "options"):
            if getattr(self, name) and self.task:
                raise ValueError(f"{name} describes the columns of --data, and task {self.task} has its own; give one of them")


@dataclass(frozen=True)
class TuneSettings(TaskSettings):
    """The settings of `zerograd tune`; every field is a flag of the same name.

    Raises ValueError naming a field that is wrong.
    """

    objective: str = setting("loss", f"what is optimised: loss, {', '.join(METRICS)}, or module:function, file.py:function")
    reward: tuple[str, ...] = setting(
        (),
        "in place of an objective, reward functions with TRL's signature: brief, json, contains, exact, sentiment (with their own "
        "prompts), names-topic, file.py:function, module:function, or a sequence-classification model; --data has a column prompt",
    )
    reward_weights: str = setting("", "weights of the rewards, such as 1,0.5; all 1 by default")
    temperature: float = setting(0.0, "of the answers that rewards score: 0 for the likeliest token, above it samples")
    top_k: int = setting(0, "sample among the k likeliest tokens; 0 for all")
    top_p: float = setting(1.0, "sample among the likeliest tokens that together have this probability")
    lag: int = setting(0, "1 to await rewards while the next answers are made, on weights one step older")
    off_task: int = setting(
        160, "rows of sentiment-movies on which a run on rewards is also judged, and its KL to the base; 0 for none"
    )
    mix: float = setting(1.0, "weight of the metric in the objective; the rest is the loss")
    method: str = setting(
        UNSET,
        "the method, which draws directions and turns scores into updates; by default per-example, with --reward evolution",
        tuple(METHODS),
    )
    scheme: str = setting(
        UNSET,
        "what is trained, by default qk, with --reward upper: " + "; ".join(f"{k}: {v}" for k, v in SCHEMES.items()),
        tuple(SCHEMES),
    )
    layers: int = setting(0, "number of upper layers for the schemes upper, qk and scales; 0 for half")
    pattern: str = setting("", "a regular expression of parameter names, for the schemes pattern and scales")
    lora_rank: int = setting(8, "rank for the schemes lora and scales-lora; alpha is twice the rank")
    virtual_tokens: int = setting(5, "number of virtual tokens for the schemes prefix and prompt")
    minutes: float = setting(5.0, "stop after this many minutes of training; 0 for no limit")
    steps: int = setting(0, "stop after this many steps; 0 for no limit")
    evaluations: int = setting(0, "stop after this many evaluations of the batch, counting every branch; 0 for no limit")
    batch_size: int = setting(UNSET, "examples per step; by default 32, with --reward 16 prompts")
    lr: float | Literal["auto"] | None = setting(
        None,
        "learning rate, or auto for a range test; by default the method's own, for methods without backward passes "
        f"{scales_in_words()}",
    )
    eps: float | None = setting(None, f"smoothing radius, relative to each tensor's rms; by default {EPS}, {scales_in_words()}")
    eps_schedule: str = setting("constant", "the course of the smoothing radius over the run", ("constant", "cosine"))
    schedule: str = setting("linear", "the course of the learning rate over the run", SCHEDULES)
    weight_decay: float = setting(0.0, "decoupled weight decay")
    method_options: tuple[str, ...] = setting((), "the method's own settings as NAME=VALUE, such as rank=2 distribution=gaussian")
    precision: str = setting("auto", "storage of trained weights; auto: split, and float32 for adapters", ("auto", *PRECISIONS))
    gguf_type: str = setting(
        "q8_0", "how a packed run's unpacked matrices are written: as q8_0, f16, or the same type as in the base", GGUF_TYPES
    )
    evals: int = setting(10, "number of evaluations on the dev split; they do not count as training time")
    keep: str = setting("best", "the weights that the run ends with: those with the lowest dev loss, or the last", ("best", "last"))
    patience: int = setting(0, "stop after this many evaluations without an improvement; 0 for never")
    trackers: tuple[str, ...] = setting((), "trackers beside TensorBoard, as module:name or file.py:name")
    out: str = setting("", "the run's folder; runs/TASK-METHOD-SEED when empty")

    def __post_init__(self) -> None:
        for name, (usual, with_reward) in BY_REWARD.items():
            if getattr(self, name) is UNSET:
                object.__setattr__(self, name, with_reward if self.reward else usual)
        if self.reward and self.new_tokens is UNSET:
            from zerograd.rewards.task import built_in  # transformers, which --help does not wait for

            of = built_in(self.reward)
            object.__setattr__(self, "new_tokens", NEW_TOKENS if of is None else of.new_tokens)
        super().__post_init__()
        for name in ("batch_size", "lora_rank", "virtual_tokens"):
            require_at_least(name, getattr(self, name), 1)
        for name in ("layers", "minutes", "steps", "evaluations", "lr", "weight_decay", "evals", "patience"):
            if getattr(self, name) not in (None, AUTO):
                require_at_least(name, getattr(self, name), 0)
        for name in ("eps", "mix"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name in ("temperature", "top_k", "off_task"):
            require_at_least(name, getattr(self, name), 0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.lag not in (0, 1):
            raise ValueError(f"lag is {self.lag}; it must be 0 or 1")
        if self.mix > 1:
            raise ValueError(f"mix is {self.mix}; it is a share, at most 1")
        if not self.minutes and not self.steps and not self.evaluations:
            raise ValueError("minutes, steps and evaluations are all 0: the run would not end; give one of them")
        of_method = options_of(self.method) | self.own_options()
        if self.batch_size < 2 and of_method.get("standardised") and of_method.get("directions", 1) < 2:
            raise ValueError(f"batch_size is 1; method {self.method} divides by the spread of differences, which needs at least 2")
        if self.batch_size < 2 and method_of(self.method).wants_short_first:
            raise ValueError(f"batch_size is 1, which method {self.method} cannot divide; give at least 2")
        self._require_use()

    def resolved(self) -> TuneSettings:
        """The settings with the default lr and eps of method and scheme in place of None, as a run records them."""
        lr = default_lr(self.method, self.scheme) if self.lr is None else self.lr
        eps = default_eps(self.method, self.scheme) if self.eps is None else self.eps
        return dataclasses.replace(self, lr=lr, eps=eps)

    def weights_of_rewards(self) -> list[float]:
        """The rewards' weights. Raises ValueError for a text that is no number."""
        found = []
        for text in self.reward_weights.split(",") if self.reward_weights else []:
            try:
                found.append(float(text))
            except ValueError:
                raise ValueError(f"reward_weights is {self.reward_weights!r}; give numbers with commas, such as 1,0.5") from None
        return found

    def own_options(self) -> dict[str, Any]:
        """The method's own settings, from method_options. Raises ValueError for an unknown name, or a wrong value."""
        known, options = options_of(self.method), {}
        for given in self.method_options:
            name, sign, text = given.partition("=")
            if not sign or name not in known:
                problem = f"method_options has {given!r}; method {self.method} has {', '.join(known) or 'no settings of its own'}"
                raise ValueError(problem + ", each given as NAME=VALUE" * (not sign))
            options[name] = _value(given, text, known[name])
        return options

    def _require_reward(self, method: Method) -> None:
        """Raises ValueError for settings that a run on rewards cannot have, or that only such a run uses."""
        if not self.reward:
            for name in ("reward_weights", "temperature", "top_k", "top_p", "lag", "off_task"):
                value = getattr(self, name)
                if value != self.__dataclass_fields__[name].default:
                    raise ValueError(f"{name} is {value!r}, which only a run with --reward uses; leave it out")
            return
        self.weights_of_rewards()
        given = " ".join(self.reward)
        for name in ("task", "text", "label", "template", "options", "shots", "metric"):
            value = getattr(self, name)
            if value and (name, value) != ("task", DEFAULT_TASK):
                raise ValueError(f"reward is {given}, and {name} is {value!r}, which is for tasks with right answers; leave it out")
        if self.objective != "loss":
            raise ValueError(f"reward is {given}, and objective is {self.objective}; give one of them")
        if method.takes_backward or not method.perturbs:
            raise ValueError(f"reward is {given}, which has no gradient, and method {self.method} differentiates; use evolution")
        if not self.temperature and (self.top_k or self.top_p != 1):
            raise ValueError(
                f"top_k is {self.top_k} and top_p {self.top_p}, and at temperature 0 nothing is sampled; leave them out"
            )

    def _require_use(self) -> None:
        """Raises ValueError for a setting that the run would not use."""
        uses = {
            ("layers",): ("scheme", *UPPER),
            ("pattern",): ("scheme", "pattern", *GAINS),
            ("lora_rank",): ("scheme", *LORA),
            ("virtual_tokens",): ("scheme", "prefix", "prompt"),
        }
        for names, (where, *needed) in uses.items():
            for name in names:
                value, there = getattr(self, name), getattr(self, where)
                if value != self.__dataclass_fields__[name].default and there not in needed:
                    named = [one for one in needed if self.packed or one not in GAINS]
                    raise ValueError(f"{name} is {value!r}, which only {where} {' and '.join(named)} uses; this is {where} {there}")
        if self.scheme in ADAPTERS and self.precision in ("split", "bfloat16"):
            raise ValueError(f"precision is {self.precision}, and scheme {self.scheme} keeps its adapter in float32; leave it out")
        if self.scheme in GAINS and not self.packed:
            raise ValueError(f"scheme is {self.scheme}, which trains scales of packed matrices; give --packed with a .gguf file")
        if self.scheme in GAINS and self.precision in ("split", "bfloat16"):
            raise ValueError(f"precision is {self.precision}, and scheme {self.scheme} keeps its gains in float32; leave it out")
        if self.scheme in GAINS and self.pattern and self.layers:
            raise ValueError(f"layers is {self.layers} and pattern {self.pattern!r}; give one of them")
        if self.scheme in GAINS and self.method in SHAPED:
            problem = f"method {self.method} shapes its directions by the weights, and scheme {self.scheme} trains gains alone"
            raise ValueError(f"{problem}; choose another method")
        if self.gguf_type != "q8_0" and (not self.packed or self.scheme in (*GAINS, *ADAPTERS)):
            raise ValueError(f"gguf_type is {self.gguf_type}, and this run writes no unpacked matrix to a .gguf file; leave it out")
        if self.scheme == "pattern" and not self.pattern:
            raise ValueError("scheme is pattern and pattern is empty; give a regular expression of parameter names")
        if self.mix != 1 and self.objective == "loss":
            raise ValueError(f"mix is {self.mix}, and the objective is the loss alone; give the objective a metric")
        method = method_of(self.method)
        if self.eps is not None and not method.perturbs:
            raise ValueError(f"eps is {self.eps}, and method {self.method} perturbs nothing; leave it out")
        if self.eps_schedule != "constant" and not method.perturbs:
            raise ValueError(f"eps_schedule is {self.eps_schedule}, and method {self.method} perturbs nothing; leave it out")
        if self.objective != "loss" and (method.takes_backward or not method.perturbs):
            problem = f"objective is {self.objective}, which has no gradient, and method {self.method} differentiates"
            raise ValueError(f"{problem}; use a method of evaluations alone, such as mezo")
        self._require_reward(method)
        if self.patience and not self.evals:
            raise ValueError(f"patience is {self.patience}, and there are no evals to wait for; give evals")


def _value(given: str, text: str, default: Any) -> Any:
    """A text as a value of the type of `default`: the text itself, or its value in YAML."""
    if isinstance(default, str):
        return text
    try:
        value = yaml_files.load(text)
    except yaml_files.YAMLError:
        value = text
    kinds = (int, float) if isinstance(default, float) else list if isinstance(default, tuple) else type(default)
    if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise ValueError(f"method_options has {given!r}; its value must be of the kind of {default!r}")
    return tuple(value) if isinstance(value, list) else value


def from_record(fields: Mapping[str, Any], where: str) -> TuneSettings:
    """The settings that a run has recorded.

    where: the record's name in messages.
    Raises ValueError for a field that is wrong.
    """
    fields = {
        "precision" if name == "storage" else name: value for name, value in fields.items()
    }  # its name in records of version 0.1
    name = str(fields.get("method"))
    if name in METHODS and not method_of(name).perturbs:
        fields["eps"] = None  # records of version 0.1 have an eps for every method
    return from_mapping(TuneSettings, fields, where)
