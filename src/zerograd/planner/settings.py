"""The settings of a plan: a model, a machine, and a step."""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.settings.fields import check_fields, require_at_least, setting
from zerograd.spaces.weights import STORAGES
from zerograd.text.models.loading import HEADS


@dataclass(frozen=True)
class PlanSettings:
    """What `zerograd plan` takes: a model, a machine, and a step. Raises ValueError naming a field that is wrong."""

    model: str = setting("", "as zerograd tune takes it, of which the configuration is read and no weight; or a size, 8B")
    head: str = setting("auto", "what the model answers with; auto: what it was saved with", ("auto", *HEADS))
    parameters: str = setting("", "how many the model has, 8B, when there is no model to read")
    layers: int = setting(0, "its layers; 0 for as many as its other sizes suggest, as for the next four")
    hidden: int = setting(0, "its width")
    intermediate: int = setting(0, "the width within its feed-forward parts")
    heads: int = setting(0, "its attention heads")
    vocabulary: int = setting(0, "its tokens")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps; one that is not there has to be described")
    memory: str = setting("", "the device's memory, 24GB; what is free of it when empty")
    bandwidth: str = setting("", "the device's memory bandwidth, 3.35TB/s; measured when empty")
    flops: str = setting("", "the rate of its matrix products, 400TFLOPS; measured when empty")
    threads: int = setting(0, "CPU threads; 0 for all cores")
    tokens: int = setting(64, "tokens of a row")
    answer_tokens: int = setting(0, "tokens of a row that are scored over the whole vocabulary; 0 for options of one token")
    batch_size: int = setting(32, "examples a step")
    storage: str = setting("auto", "as of zerograd tune", ("auto", *STORAGES))
    lora_rank: int = setting(8, "rank of adapters")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("tokens", "batch_size", "lora_rank"):
            require_at_least(name, getattr(self, name), 1)
        for name in ("layers", "hidden", "intermediate", "heads", "vocabulary", "threads", "answer_tokens"):
            require_at_least(name, getattr(self, name), 0)
        if self.batch_size < 2:
            raise ValueError("batch_size is 1; methods with directions of each example's own need at least 2")
        if self.answer_tokens > self.tokens:
            raise ValueError(f"answer_tokens is {self.answer_tokens}; a row has {self.tokens} tokens, give at most as many")
