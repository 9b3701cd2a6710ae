"""The settings of a plan: model, machine and step."""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.settings.fields import check_fields, require_at_least, setting
from zerograd.spaces import PRECISIONS
from zerograd.text.models.loading import HEADS


@dataclass(frozen=True)
class PlanSettings:
    """The settings of `zerograd plan`. Raises ValueError naming a field that is wrong."""

    model: str = setting("", "a model as for zerograd tune, of which only the configuration is read; or a size, such as 8B")
    head: str = setting("auto", "the model's head; auto: the saved model's", ("auto", *HEADS))
    parameters: str = setting("", "number of parameters, such as 8B, without a model to read")
    layers: int = setting(0, "number of layers; here and in the next four, 0 derives it from the other sizes")
    hidden: int = setting(0, "hidden width")
    intermediate: int = setting(0, "width of the feed-forward parts")
    heads: int = setting(0, "number of attention heads")
    vocabulary: int = setting(0, "number of tokens in the vocabulary")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps; describe a device that is not here by the next three")
    memory: str = setting("", "memory of the device, such as 24GB; the free memory when empty")
    bandwidth: str = setting("", "memory bandwidth of the device, such as 3.35TB/s; measured when empty")
    flops: str = setting("", "rate of matrix products, such as 400TFLOPS; measured when empty")
    threads: int = setting(0, "CPU threads; 0 for all cores")
    tokens: int = setting(64, "tokens per row")
    answer_tokens: int = setting(0, "tokens per row that are scored over the whole vocabulary; 0 for options of one token")
    batch_size: int = setting(32, "examples per step")
    precision: str = setting("auto", "as for zerograd tune", ("auto", *PRECISIONS))
    lora_rank: int = setting(8, "rank of adapters")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("tokens", "batch_size", "lora_rank"):
            require_at_least(name, getattr(self, name), 1)
        for name in ("layers", "hidden", "intermediate", "heads", "vocabulary", "threads", "answer_tokens"):
            require_at_least(name, getattr(self, name), 0)
        if self.batch_size < 2:
            raise ValueError("batch_size is 1; methods with directions per example need at least 2")
        if self.answer_tokens > self.tokens:
            raise ValueError(f"answer_tokens is {self.answer_tokens}; a row has {self.tokens} tokens, give at most as many")
