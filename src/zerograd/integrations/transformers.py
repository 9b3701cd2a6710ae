"""A mixin for transformers' `Trainer` and its subclasses that trains with forward passes only.

    class ZOTrainer(ZerothOrderMixin, Trainer): ...

    ZOTrainer(model, args, train_dataset=data, zeroth_order=ZerothOrderConfig(method="per-example")).train()

`training_step` takes the whole step, so schedulers, callbacks, logging, evaluation, checkpoints and resume work as in
any training. Batches have the order of `zerograd tune`, a function of the seed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from zerograd.integrations import losses
from zerograd.integrations.arguments import require_plain
from zerograd.integrations.losses import Formula
from zerograd.optim import METHODS, method_of
from zerograd.optim.base import ZerothOrder
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

    zeroth_order: a ZerothOrderConfig. What is trained is the loss that the plain Trainer would take. At the first batch, and
    at steps 1, 2, 4, 8, ... after it, the loss an example is held against it. Where a usual formula gives it, the branches
    ride the batch. Where none does, it is evaluated as a closure, which is said once and needs a method with shared directions,
    such as mezo; so is a subclass's own `compute_loss`. `docs/trainer.md` lists what happens to which loss.
    Raises ValueError for arguments that a perturbed forward pass cannot have, and for a loss that the method cannot take.
    """

    args: Any
    model: Any
    optimizer: Any
    accelerator: Any
    state: Any
    train_dataset: Any
    compute_loss_func: Any
    optimizer_cls_and_kwargs: Any

    def __init__(self, *args: Any, zeroth_order: ZerothOrderConfig | None = None, **kwargs: Any) -> None:
        self.zeroth_order = zeroth_order or ZerothOrderConfig()
        super().__init__(*args, **kwargs)
        require_plain(self.args)
        if self.optimizer_cls_and_kwargs is not None:
            raise ValueError("optimizer_cls_and_kwargs is given; leave it out, and choose the method with zeroth_order")
        if self.optimizer is not None:
            self.optimizer = _stepped(self.optimizer)
        self.args.max_grad_norm = 0.0  # there is no gradient to clip
        self._gathered: list[dict[str, Any]] = []
        self._head_path = ""
        self._formula: Formula | None = None
        self._own_loss = self._has_own_loss()

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimiser of the method, on all parameters with requires_grad; or the one that was given."""
        if self.optimizer is None:
            config, args = self.zeroth_order, self.args
            options = dict(config.options) | ({} if config.eps is None else {"eps": config.eps})
            options["seed"] = args.seed if config.seed is None else config.seed
            given = self.model if model is None else model
            made = METHODS[config.method](given, lr=args.learning_rate, weight_decay=args.weight_decay, **options)
            self.optimizer = _stepped(made)
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
        steps = optimizer.steps
        if not self._own_loss and (self._formula is None or steps & (steps - 1) == 0):
            self._hold_against_own_loss(model, batch, optimizer)
        if self._own_loss:
            self._require_shared_directions(optimizer, "compute_loss does not give one loss per row")
            loss = optimizer.take(lambda: self._computed(model, batch))
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
        """Whether the trainer, not the model, computes the loss."""
        plain = type(self).compute_loss.__module__ in ("transformers.trainer", "trl.trainer.sft_trainer")  # type: ignore[attr-defined]
        smoothed = getattr(self.args, "label_smoothing_factor", 0) > 0
        other = getattr(self.args, "loss_type", "nll") not in ("nll", "chunked_nll")  # TRL's
        return self.compute_loss_func is not None or not plain or smoothed or other

    def _computed(self, model: Any, batch: dict[str, Any], **more: Any) -> Any:
        """The loss of a batch as the plain Trainer computes it."""
        return self.compute_loss(model, dict(batch), **more)  # type: ignore[attr-defined]  # compute_loss takes things out of its inputs

    def _hold_against_own_loss(self, model: Any, batch: dict[str, Any], optimizer: Any) -> None:
        """Find the formula of the model's own loss at the first batch; later, see that it still gives it.

        Raises ValueError when it no longer does.
        """
        metrics = copy.deepcopy(getattr(self, "_metrics", None))  # TRL's, which count every evaluation
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            loss, outputs = self._computed(model, batch, return_outputs=True)
        if metrics is not None:
            self._metrics = metrics
        _require_rows(batch, self.args, optimizer)
        fused = type(self).compute_loss.__module__ == "trl.trainer.sft_trainer"  # type: ignore[attr-defined]  # it rounds by itself
        tolerance = losses.SAME_16 if fused and next(self.model.parameters()).dtype != torch.float32 else losses.SAME
        routed = bool(getattr(self, "aux_loss_enabled", False))
        if self._formula is not None:
            mine = self._formula.mean(outputs, batch)
            if not losses.agrees(mine, loss, tolerance):
                raise ValueError(
                    f"step {optimizer.steps}: the model's own loss is {float(loss):.4g}, and {self._formula.name}, which it was at "
                    f"the first batch, gives {mine}; give the trainer a compute_loss of its own that calls super's, and method mezo"
                )
            return
        self._formula = None if routed else losses.matching(loss, outputs, batch, tolerance)
        if self._formula is not None:
            return
        self._own_loss = True
        near = losses.nearest(float(loss), outputs, batch)
        found = f"the model's own loss is {float(loss):.4g}" + (f", where {near}" if near else " and is of no kind that is known")
        self._require_shared_directions(optimizer, f"{found}: that is not one loss per row")
        warnings.warn(f"{found}; it is evaluated as a closure, one branch after the other", stacklevel=2)

    def _require_shared_directions(self, optimizer: Any, why: str) -> None:
        if optimizer.method.per_example:
            raise ValueError(f"{why}, which method {self.zeroth_order.method} needs; use method mezo")

    def _objective(self, model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        """(objective with one loss per row, the batch for it)."""
        plain, formula = self.accelerator.unwrap_model(model), self._formula
        assert formula is not None
        rows = _rows(batch) if formula is losses.FORMULAS[0] and _is_causal(plain) else None
        if rows is None:
            encodes = bool(getattr(getattr(plain, "config", None), "is_encoder_decoder", False))
            read = {} if encodes else dict.fromkeys(losses.LABELS)

            def of_batch(batch: dict[str, Any]) -> Any:
                return formula.losses(plain(**{name: value for name, value in batch.items() if name not in read}), batch)

            return of_batch, batch
        if not self._head_path:
            self._head_path = heads.choose_head_path(plain, rows)

        def of_rows(rows: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
            sums, weights = heads.answer_log_likelihoods(
                plain, heads.states(plain, rows, self._head_path), rows.targets, self._head_path
            )
            return -sums, weights

        return of_rows, rows


def _stepped(optimizer: Any) -> Any:
    """An optimiser whose `step` does nothing and whose `take` takes the step. Raises ValueError for one that is not ours."""
    if isinstance(optimizer, _SteppedByTrainer):
        return optimizer
    if not isinstance(optimizer, ZerothOrder) or optimizer.method.takes_backward:
        raise ValueError(
            f"optimizers holds {type(optimizer).__name__}, which needs gradients; leave it out, and choose the method with "
            "zeroth_order"
        )
    optimizer.__class__ = type(type(optimizer).__name__, (_SteppedByTrainer, type(optimizer)), {})
    return optimizer


class _SteppedByTrainer:
    """An optimiser whose `step` does nothing, since `training_step` has called `take`."""

    _is_accelerate_prepared = False

    def step(self, closure: Any = None) -> None:
        """Do nothing: `take` has taken the step."""

    def take(self, *args: Any, **kwargs: Any) -> Any:
        """Take the method's step."""
        return super().step(*args, **kwargs)  # type: ignore[misc]


def _require_rows(batch: dict[str, Any], args: Any, optimizer: Any) -> None:
    """Raises ValueError when packing has made one row of a batch whose examples each need a direction."""
    rows = next((len(value) for value in batch.values() if torch.is_tensor(value) and value.ndim), 0)
    if optimizer.method.per_example and rows == 1 < args.train_batch_size:
        raise ValueError(
            f"the batch of {args.train_batch_size} examples has come as 1 row, as packing makes it, and a direction an example "
            "needs several; set packing_strategy='wrapped', or packing and padding_free to False, or use method mezo"
        )


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
    config = getattr(base, "config", None)
    return not getattr(config, "is_encoder_decoder", True) and any(name in known or name.endswith("ForCausalLM") for name in names)
