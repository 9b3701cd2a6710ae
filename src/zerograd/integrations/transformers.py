"""A mixin for transformers' `Trainer` and its subclasses that trains with forward passes only.

    class ZOTrainer(ZerothOrderMixin, Trainer): ...

    ZOTrainer(model, args, train_dataset=data, zeroth_order=ZerothOrderConfig(method="per-example")).train()

`training_step` takes the whole step, so schedulers, callbacks, logging, evaluation, checkpoints and resume work as in
any training. Batches have the order of `zerograd tune`, a function of the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from zerograd.optim import METHODS, method_of
from zerograd.text.data import order
from zerograd.text.models import head as heads


@dataclass(frozen=True)
class ZerothOrderConfig:
    """Settings of a step beside TrainingArguments, which have learning rate, decay, schedule, batch size and steps.

    method: one of `optim.METHODS`. eps: smoothing radius; None for 0.01. options: other arguments of
    the method, such as rank, directions, distribution, relative, precision. seed: of directions and data order; None
    for the arguments' seed. micro_batch: examples of a pass; "auto" for as many as fit in memory; None for all.
    Raises ValueError for an unknown method, and for an eps if the method perturbs nothing.
    """

    method: str = "per-example"
    eps: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    micro_batch: int | str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; choose one of {', '.join(METHODS)}")
        if method_of(self.method).takes_backward:
            raise ValueError(f"method is {self.method!r}, which takes backward passes; use the Trainer without the mixin")
        if self.eps is not None and not method_of(self.method).perturbs:
            raise ValueError(f"eps is {self.eps}, and method {self.method} perturbs nothing; leave it out")


@dataclass(frozen=True)
class _Rows:
    """The fields of `text.scoring.Batch` that `text.models.head` reads."""

    ids: torch.Tensor
    targets: torch.Tensor
    attention: torch.Tensor | None = None
    answers: torch.Tensor | None = None
    counts: torch.Tensor | None = None


class ZerothOrderSampler(torch.utils.data.Sampler[int]):
    """A sampler with the order of `zerograd tune`: batches of similar lengths, one after the other."""

    def __init__(self, lengths: list[int], size: int, seed: int) -> None:
        self.lengths = lengths
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch; accelerate calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        for batch in order.epoch_batches(self.lengths, self.size, self.seed, self.epoch):
            yield from batch

    def __len__(self) -> int:
        size = min(self.size, len(self.lengths))
        pools, rest = divmod(len(self.lengths), order.POOL_BATCHES * size)
        return size * (pools * order.POOL_BATCHES + rest // size)


class ZerothOrderMixin:
    """Zeroth-order steps for a `Trainer`; put it before the Trainer among the bases of a class.

    zeroth_order: a ZerothOrderConfig. A model with a loss of tokens or classes is evaluated in one batched forward
    pass. A subclass's own `compute_loss` is evaluated as a closure, which needs a method with shared directions, such
    as mezo.
    Raises ValueError for arguments that a perturbed forward pass cannot have: autocast, several devices, gradient
    checkpointing.
    """

    args: Any
    model: Any
    optimizer: Any
    accelerator: Any
    state: Any
    train_dataset: Any
    compute_loss_func: Any

    def __init__(self, *args: Any, zeroth_order: ZerothOrderConfig | None = None, **kwargs: Any) -> None:
        self.zeroth_order = zeroth_order or ZerothOrderConfig()
        super().__init__(*args, **kwargs)
        _require_plain(self.args)
        self.args.max_grad_norm = 0.0  # there is no gradient to clip
        self._gathered: list[dict[str, Any]] = []
        self._head_path = ""

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimiser of the method, on all parameters with requires_grad."""
        if self.optimizer is None:
            config, args = self.zeroth_order, self.args
            options = dict(config.options) | ({} if config.eps is None else {"eps": config.eps})
            options["seed"] = args.seed if config.seed is None else config.seed
            method = METHODS[config.method]
            stepped = type(method.__name__, (_SteppedByTrainer, method), {})
            given = self.model if model is None else model
            self.optimizer = stepped(given, lr=args.learning_rate, weight_decay=args.weight_decay, **options)
        return self.optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One step on all batches that were accumulated for it. Returns the loss; 0 for a batch that is accumulated."""
        model.eval()
        self._gathered.append(self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batch = _joined(self._gathered, getattr(self, "processing_class", None))
        self._gathered = []
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        if self._has_own_loss():
            if method_of(self.zeroth_order.method).per_example:
                raise ValueError(
                    f"compute_loss does not give one loss per row, which method {self.zeroth_order.method} needs; use method mezo"
                )

            def closure() -> Any:
                return self.compute_loss(model, dict(batch))  # type: ignore[attr-defined]  # compute_loss removes the labels from its inputs

            loss = optimizer.take(closure)
        else:
            objective, rows = self._objective(model, batch)
            loss = optimizer.take(objective, rows, micro_batch=self.zeroth_order.micro_batch)
        return torch.tensor(float(loss), device=self.args.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(row["input_ids"]) if "input_ids" in row else 1 for row in rows]
        seed = self.args.seed if self.zeroth_order.seed is None else self.zeroth_order.seed
        return ZerothOrderSampler(lengths, self.args.train_batch_size, seed)

    def _has_own_loss(self) -> bool:
        """Whether the trainer computes another loss than cross entropy of tokens or classes."""
        plain = type(self).compute_loss.__module__ in ("transformers.trainer", "trl.trainer.sft_trainer")  # type: ignore[attr-defined]
        smoothed = getattr(self.args, "label_smoothing_factor", 0) > 0
        other = getattr(self.args, "loss_type", "nll") not in ("nll", "chunked_nll")  # TRL's
        return self.compute_loss_func is not None or not plain or smoothed or other

    def _objective(self, model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        """(objective with one loss per row, the batch for it)."""
        plain = self.accelerator.unwrap_model(model)
        labels = batch.get("labels")
        if labels is None:
            raise ValueError("the batch has no labels; give rows with labels, or a collator that makes them")
        if labels.ndim == 1:
            kind = torch.float32 if labels.is_floating_point() else torch.long

            def of_classes(batch: dict[str, Any]) -> torch.Tensor:
                given = {name: value for name, value in batch.items() if name != "labels"}
                logits = plain(**given).logits.float()
                if kind is torch.float32:
                    errors: torch.Tensor = logits.squeeze(-1) - batch["labels"]
                    return errors.square()
                return F.cross_entropy(logits, batch["labels"], reduction="none")

            return of_classes, batch
        causal = _is_causal(plain)
        rows = _rows(batch) if causal else None
        if rows is None:

            def of_tokens(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
                labels = batch["labels"]
                logits = plain(**batch).logits
                logits, labels = (logits[:, :-1], labels[:, 1:]) if causal else (logits, labels)
                losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=-100)
                return losses.sum(1), (labels != -100).sum(1).float()

            return of_tokens, batch
        if not self._head_path:
            self._head_path = heads.choose_head_path(plain, rows)

        def of_rows(rows: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
            sums, weights = heads.answer_log_likelihoods(
                plain, heads.states(plain, rows, self._head_path), rows.targets, self._head_path
            )
            return -sums, weights

        return of_rows, rows


class _SteppedByTrainer:
    """An optimiser whose `step` does nothing, since `training_step` has called `take`."""

    def step(self, closure: Any = None) -> None:
        """Do nothing: `take` has taken the step."""

    def take(self, *args: Any, **kwargs: Any) -> Any:
        """Take the method's step."""
        return super().step(*args, **kwargs)  # type: ignore[misc]


def _rows(batch: dict[str, Any]) -> _Rows | None:
    """A batch of a causal language model with padding on the right as tokens and targets; None for any other batch."""
    if not set(batch) <= {"input_ids", "attention_mask", "labels"}:
        return None
    seen = batch.get("attention_mask")
    if seen is not None and bool((seen[:, 1:] > seen[:, :-1]).any()):
        return None  # padded on the left: positions start later
    labels = batch["labels"]
    targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
    return _Rows(batch["input_ids"], targets)


def _joined(batches: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """Accumulated batches as one batch, padded on the right."""
    if len(batches) == 1:
        return batches[0]
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    fill = {"input_ids": pad, "labels": -100}
    joined = {}
    for name in batches[0]:
        values = [batch[name] for batch in batches]
        if not torch.is_tensor(values[0]):
            joined[name] = values[0]
            continue
        width = max(value.shape[1] for value in values) if values[0].ndim == 2 else 0
        joined[name] = torch.cat([F.pad(v, (0, width - v.shape[1]), value=fill.get(name, 0)) if width else v for v in values])
    return joined


def _is_causal(model: Any) -> bool:
    """Whether the model is causal, so that labels are shifted by one position."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = [kind.__name__ for kind in type(base).__mro__]
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return not base.config.is_encoder_decoder and any(name in known or name.endswith("ForCausalLM") for name in names)


def _require_plain(args: Any) -> None:
    """Raises ValueError for training arguments that a perturbed forward pass cannot have."""
    if args.bf16 or args.fp16:
        name = "bf16" if args.bf16 else "fp16"
        raise ValueError(f"{name}=True runs the model under autocast; load the model in bfloat16 and leave it out")
    if args.gradient_checkpointing:
        raise ValueError("gradient_checkpointing=True is for backward passes, which this trainer does not take; leave it out")
    if args.n_gpu > 1 or args.world_size > 1:
        raise ValueError("several devices are not supported by this trainer; choose one with CUDA_VISIBLE_DEVICES")
