"""The settings of a fine-tuning run: one dataclass for the Python API, the command line, YAML files and the record of the run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from zerograd.optim import METHODS, options_of
from zerograd.spaces.weights import STORAGES
from zerograd.text.metrics import METRICS
from zerograd.text.models.loading import HEADS
from zerograd.text.models.schemes import ADAPTERS, SCHEMES, STRIDES, UPPER, stride

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEDULES = ("constant", "linear", "cosine")

AUTO = "auto"
"""In place of a learning rate: find one."""

DEFAULT_TASK = "sentiment-movies"

EPS = 0.02
"""The smoothing radius, relative to each tensor's rms, where a scheme's stride is 1."""


def rate(method: str, scheme: str) -> float:
    """The usual learning rate: RATE of a method's class, or its ADAPTER_RATE; one that takes no backward passes has it times the
    scheme's stride.
    """
    kind = METHODS[method]
    own = kind.RATE if kind.ADAPTER_RATE is None or scheme not in ADAPTERS else kind.ADAPTER_RATE
    return own * (1 if kind.takes_backward else stride(scheme))


def _setting(default: Any, help: str, choices: tuple[str, ...] = (), kind: type | None = None) -> Any:
    """A field. kind: of its values, where None stands for a default that depends on others."""
    return field(default=default, metadata={"help": help, "choices": choices, "kind": kind or type(default)})


def _strides() -> str:
    return ", ".join(f"{stride:g} times that with {scheme}" for scheme, stride in STRIDES.items())


@dataclass(frozen=True)
class TaskSettings:
    """A model and what it is asked: what `zerograd eval` takes, and a part of what `zerograd tune` does."""

    model: str = _setting("demo", "'demo' (SmolLM2-135M-Instruct), a folder that transformers loads, a .gguf file, or a hub id")
    head: str = _setting("auto", "what the model answers with; auto: what it was saved with", ("auto", *HEADS))
    device: str = _setting("auto", "auto, cpu, cuda, cuda:N or mps")
    task: str = _setting("", f"a built-in task, or a YAML file; {DEFAULT_TASK} when there is no --data")
    data: tuple[str, ...] = _setting(
        (), "training rows: files (.jsonl .json .csv .tsv .parquet), folders of them, or hub ids; NAME=2 is seen twice an epoch"
    )
    dev: str = _setting("", "rows to choose on; cut from the training rows when empty")
    test: str = _setting("", "rows to report on; cut from the training rows when empty")
    text: str = _setting("", "the column of texts (default: text)")
    label: str = _setting("", "the column of labels (default: label)")
    template: str = _setting("", "the prompt, '{{ text }} It was'; by default the text with the label column's name below it")
    options: tuple[str, ...] = _setting((), "a word for each label, in the labels' sorted order, or LABEL=WORD")
    chat: bool = _setting(False, "put the prompt into the model's chat template")
    max_tokens: int = _setting(512, "tokens of a row; of longer ones the longest column loses its end")
    new_tokens: int = _setting(50, "tokens of a generated answer")
    metric: str = _setting("", "what is reported; by default the objective's, the task's, or accuracy")
    shots: int = _setting(0, "demonstrations of in-context learning, from the training rows; 0 for none")
    seed: int = _setting(0, "names the directions, the order of the data, and the demonstrations")
    threads: int = _setting(0, "CPU threads; 0 for all cores")

    def __post_init__(self) -> None:
        settle(self)
        if not self.task and not self.data:
            object.__setattr__(self, "task", DEFAULT_TASK)
        _at_least("max_tokens", self.max_tokens, 16)
        _at_least("new_tokens", self.new_tokens, 1)
        for name in ("shots", "seed", "threads"):
            _at_least(name, getattr(self, name), 0)
        for name in ("text", "label", "template", "options"):
            if getattr(self, name) and self.task:
                raise ValueError(f"{name} describes the columns of --data, and task {self.task} has its own; give one of them")


@dataclass(frozen=True)
class TuneSettings(TaskSettings):
    """What `zerograd tune` takes; every field is a flag of the same name. Raises ValueError naming a field that is wrong."""

    objective: str = _setting("loss", f"what is optimised: loss, {', '.join(METRICS)}, or module:function, file.py:function")
    mix: float = _setting(1.0, "share of the metric in the objective; the rest is the loss")
    method: str = _setting("per-example", "how directions are drawn and scores are used", tuple(METHODS))
    scheme: str = _setting("qk", "what is trained: " + "; ".join(f"{k}: {v}" for k, v in SCHEMES.items()), tuple(SCHEMES))
    layers: int = _setting(0, "how many layers the schemes upper and qk train; 0 for half of them")
    pattern: str = _setting("", "a regular expression of parameter names that the scheme pattern trains")
    lora_rank: int = _setting(8, "rank of the scheme lora; its alpha is twice that")
    virtual_tokens: int = _setting(5, "tokens of the schemes prefix and prompt")
    minutes: float = _setting(5.0, "stop after this much training time; 0 for no limit")
    steps: int = _setting(0, "stop after this many steps; 0 for no limit")
    evaluations: int = _setting(0, "stop after the batch was evaluated so often, each branch counted; 0 for no limit")
    batch_size: int = _setting(32, "examples a step")
    lr: float | str = _setting(
        None,
        f"learning rate, or auto, by a range test; by default the method's own; {_strides()}, where no backward pass is taken",
        kind=float,
    )
    eps: float = _setting(None, f"smoothing radius, relative to each tensor's rms; by default {EPS}, {_strides()}", kind=float)
    schedule: str = _setting("linear", "how the learning rate falls over the run", SCHEDULES)
    weight_decay: float = _setting(0.0, "decoupled weight decay")
    method_options: tuple[str, ...] = _setting((), "NAME=VALUE of the method's own settings, such as rank=2 distribution=gaussian")
    storage: str = _setting("auto", "how trained weights are stored; auto: split, adapters float32", ("auto", *STORAGES))
    evals: int = _setting(10, "evaluations on the dev split during training; they do not count as training time")
    keep: str = _setting("best", "which weights the run ends with: those of the lowest dev loss, or the last", ("best", "last"))
    patience: int = _setting(0, "stop after so many evaluations without a better one; 0 for never")
    trackers: tuple[str, ...] = _setting((), "module:name or file.py:name of trackers to tell, beside TensorBoard")
    out: str = _setting("", "the run's folder; runs/TASK-METHOD-SEED when empty")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr is None:
            object.__setattr__(self, "lr", rate(self.method, self.scheme))
        if self.eps is None:
            object.__setattr__(self, "eps", EPS * (stride(self.scheme) if METHODS[self.method].perturbs else 1))
        for name in ("batch_size", "lora_rank", "virtual_tokens"):
            _at_least(name, getattr(self, name), 1)
        for name in ("layers", "minutes", "steps", "evaluations", "lr", "weight_decay", "evals", "patience"):
            if getattr(self, name) != AUTO:
                _at_least(name, getattr(self, name), 0)
        for name in ("eps", "mix"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.mix > 1:
            raise ValueError(f"mix is {self.mix}; it is a share, at most 1")
        if not self.minutes and not self.steps and not self.evaluations:
            raise ValueError("minutes, steps and evaluations are all 0: the run would have no end; give one of them")
        of_method = options_of(self.method) | self.own()
        if self.batch_size < 2 and of_method.get("standardised") and of_method.get("directions", 1) < 2:
            raise ValueError(f"batch_size is 1; method {self.method} divides by the spread of differences, which needs at least 2")
        if self.batch_size < 2 and METHODS[self.method].short_first:
            raise ValueError(f"batch_size is 1, which method {self.method} cannot share out; give at least 2")
        self._require_use()

    def own(self) -> dict[str, Any]:
        """The method's own settings that method_options name. Raises ValueError for one that it has not, or cannot take."""
        known, found = options_of(self.method), {}
        for given in self.method_options:
            name, sign, text = given.partition("=")
            if not sign or name not in known:
                say = f"method_options has {given!r}; method {self.method} has {', '.join(known) or 'no settings of its own'}"
                raise ValueError(say + ", each given as NAME=VALUE" * (not sign))
            found[name] = _value(given, text, known[name])
        return found

    def _require_use(self) -> None:
        """Raises ValueError for a setting that nothing would read."""
        uses = {
            ("layers",): ("scheme", *UPPER),
            ("pattern",): ("scheme", "pattern"),
            ("lora_rank",): ("scheme", "lora"),
            ("virtual_tokens",): ("scheme", "prefix", "prompt"),
        }
        for names, (where, *needed) in uses.items():
            for name in names:
                value, there = getattr(self, name), getattr(self, where)
                if value != self.__dataclass_fields__[name].default and there not in needed:
                    raise ValueError(
                        f"{name} is {value!r}, which only {where} {' and '.join(needed)} uses; this is {where} {there}"
                    )
        if self.scheme in ADAPTERS and self.storage in ("split", "bfloat16"):
            raise ValueError(f"storage is {self.storage}, and scheme {self.scheme} keeps its adapter in float32; leave storage out")
        if self.scheme == "pattern" and not self.pattern:
            raise ValueError("scheme is pattern and pattern is empty; give a regular expression of parameter names")
        if self.mix != 1 and self.objective == "loss":
            raise ValueError(f"mix is {self.mix}, and the objective is the loss alone; give the objective a metric")
        method = METHODS[self.method]
        if self.eps != EPS and not method.perturbs:
            raise ValueError(f"eps is {self.eps}, and method {self.method} perturbs nothing; leave it out")
        if self.objective != "loss" and (method.takes_backward or not method.perturbs):
            say = f"objective is {self.objective}, which has no gradient, and method {self.method} differentiates"
            raise ValueError(f"{say}; use a method of evaluations alone, such as mezo")
        if self.patience and not self.evals:
            raise ValueError(f"patience is {self.patience}, and there are no evals to wait for; give evals")


@dataclass(frozen=True)
class PlanSettings:
    """What `zerograd plan` takes: a model, a machine, and a step. Raises ValueError naming a field that is wrong."""

    model: str = _setting("", "as zerograd tune takes it, of which the configuration is read and no weight; or a size, 8B")
    head: str = _setting("auto", "what the model answers with; auto: what it was saved with", ("auto", *HEADS))
    parameters: str = _setting("", "how many the model has, 8B, when there is no model to read")
    layers: int = _setting(0, "its layers; 0 for as many as its other sizes suggest, as for the next four")
    hidden: int = _setting(0, "its width")
    intermediate: int = _setting(0, "the width within its feed-forward parts")
    heads: int = _setting(0, "its attention heads")
    vocabulary: int = _setting(0, "its tokens")
    device: str = _setting("auto", "auto, cpu, cuda, cuda:N or mps; one that is not there has to be described")
    memory: str = _setting("", "the device's memory, 24GB; what is free of it when empty")
    bandwidth: str = _setting("", "the device's memory bandwidth, 3.35TB/s; measured when empty")
    flops: str = _setting("", "the rate of its matrix products, 400TFLOPS; measured when empty")
    threads: int = _setting(0, "CPU threads; 0 for all cores")
    tokens: int = _setting(64, "tokens of a row")
    answer_tokens: int = _setting(0, "tokens of a row that are scored over the whole vocabulary; 0 for options of one token")
    batch_size: int = _setting(32, "examples a step")
    storage: str = _setting("auto", "as of zerograd tune", ("auto", *STORAGES))
    lora_rank: int = _setting(8, "rank of adapters")

    def __post_init__(self) -> None:
        settle(self)
        for name in ("tokens", "batch_size", "lora_rank"):
            _at_least(name, getattr(self, name), 1)
        for name in ("layers", "hidden", "intermediate", "heads", "vocabulary", "threads", "answer_tokens"):
            _at_least(name, getattr(self, name), 0)
        if self.batch_size < 2:
            raise ValueError("batch_size is 1; methods with directions of each example's own need at least 2")
        if self.answer_tokens > self.tokens:
            raise ValueError(f"answer_tokens is {self.answer_tokens}; a row has {self.tokens} tokens, give at most as many")


Settings = TypeVar("Settings", bound="DataclassInstance")


def settle(settings: DataclassInstance) -> None:
    """Settings as they are read: lists as tuples. Raises ValueError for a field of another kind, or that is none of its choices."""
    for spec in dataclasses.fields(settings):
        value = getattr(settings, spec.name)
        _require_kind(spec, value)
        if isinstance(value, list):
            object.__setattr__(settings, spec.name, tuple(value))
        choices = spec.metadata["choices"]
        if choices and value not in choices:
            raise ValueError(f"{spec.name} is {value!r}; choose one of {', '.join(choices)}")


def from_mapping(kind: type[Settings], fields: Mapping[str, Any], where: str) -> Settings:
    """Settings from fields by name, such as a YAML file's. Raises ValueError for a field that there is not."""
    known = [spec.name for spec in dataclasses.fields(kind)]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise ValueError(f"{where} has a field {unknown[0]!r}; the fields are {', '.join(known)}")
    return kind(**fields)


def _require_kind(spec: dataclasses.Field[Any], value: Any) -> None:
    kind = spec.metadata["kind"]
    if kind is tuple and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return
    accepted = (int, float) if kind is float else kind
    if spec.default is None and (value is None or (value == AUTO and spec.name == "lr")):
        return
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        words = {tuple: "a list of texts", str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ValueError(f"{spec.name} is {value!r}; it must be {words[kind]}")


def _value(given: str, text: str, default: Any) -> Any:
    """A text as a value of the kind of a default: a text, or what YAML reads."""
    if isinstance(default, str):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(default, float) and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # 1e-8 is a text to YAML
    kinds = (int, float) if isinstance(default, float) else list if isinstance(default, tuple) else type(default)
    if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise ValueError(f"method_options has {given!r}; its value must be of the kind of {default!r}")
    return tuple(value) if isinstance(value, list) else value


def _at_least(name: str, value: float, least: float) -> None:
    """Raises ValueError naming a number that is too small, or not finite."""
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name} is {value}; it must be a number of at least {least}")
