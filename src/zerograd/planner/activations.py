"""What a pass holds beside weights, by running it on tensors that have a shape and no values.

torch's fake tensors go the way of the CPU's own kernels, so that attention holds here what it holds there. A pass through a few
layers is enough: one that keeps nothing holds the same however many layers follow, and what one for back-propagation keeps grows by
the same bytes with each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zerograd.evaluate import shared_prefix
from zerograd.evaluate.micro_batch import Live
from zerograd.planner.moved import Moved
from zerograd.planner.shapes import SAMPLED, Shape
from zerograd.text.models import head as heads
from zerograd.text.models import schemes

FEW = SAMPLED // 2
"""Layers that a pass is run through; twice as many tell what each of them keeps, where there are so many."""


@dataclass(frozen=True)
class Kept:
    """What back-propagation holds beside weights, in bytes. between: activations, from the forward pass to the backward one.
    over: the most at a time beside these.
    """

    between: int
    over: int


def evaluated(shape: Shape, rows: int, tokens: int, dtype: torch.dtype, scored: int = 0) -> int:
    """The most bytes that tensors hold at a time while rows of so many tokens are evaluated in a dtype.

    scored: tokens of a row that are scored over the whole vocabulary.
    """
    model = shape.made(dtype, FEW)
    with _fake(model), torch.no_grad(), Live() as live:
        _states(model, shape, rows, tokens)
    if shape.caps:
        return int(live.peak) + rows * scored * shape.vocabulary * (dtype.itemsize + 8)  # beside the logits, in float32, twice
    states = rows * tokens * shape.hidden * dtype.itemsize
    return max(int(live.peak), states + _head_bytes(shape, rows * scored, dtype))


def moved(shape: Shape, tokens: int, dtype: torch.dtype) -> float:
    """The bytes that the operations between the products of all layers read and write, for a row of so many tokens."""
    if shape.layers <= 1:
        return _moved(shape, tokens, dtype, 1)
    low, high = _sampled(shape)
    few, more = (_moved(shape, tokens, dtype, layers) for layers in (low, high))
    return (more - few) / (high - low) * shape.layers


def cuts(shape: Shape) -> bool:
    """Whether the layers below those that are trained can run once for all branches."""
    if shape.caps or schemes.UPPER[0] not in shape.trained:
        return False
    model = schemes.select(shape.made(torch.bfloat16, 2), schemes.UPPER[0], layers=1, head=shape.head)
    with _fake(model), torch.no_grad():
        try:
            return bool(shared_prefix.cuts_of(model, lambda: _states(model, shape, 2, 3)))
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
            return False


def propagated(
    shape: Shape, rows: int, tokens: int, dtype: torch.dtype, rank: int = 0, checkpointing: bool = False, scored: int = 0
) -> Kept:
    """What back-propagation through rows of so many tokens holds, gradients apart.

    rank: of a LoRA; 0 where every parameter is trained. checkpointing: whether a layer keeps its input alone,
    and runs again. scored: as of `evaluated`.
    """
    low, high = _sampled(shape)
    few, more = (_propagated(shape, rows, tokens, dtype, rank, checkpointing, layers) for layers in (low, high))
    each = (more.between - few.between) / max(1, high - low)
    between, over = _head_kept(shape, rows * scored, dtype, trained=not rank)
    return Kept(round(few.between + each * max(0, shape.layers - low)) + between, max(few.over, over))


def _sampled(shape: Shape) -> tuple[int, int]:
    """Fewer and more layers of a model; alike where it has one."""
    high = max(1, min(2 * FEW, shape.layers))
    return max(1, min(FEW, high - 1)), high


def _moved(shape: Shape, tokens: int, dtype: torch.dtype, layers: int) -> int:
    model = shape.made(dtype, layers)
    with _fake(model), torch.no_grad(), Moved() as moving:
        _states(model, shape, 1, tokens)
    return int(moving.bytes)


def _propagated(shape: Shape, rows: int, tokens: int, dtype: torch.dtype, rank: int, checkpointing: bool, layers: int) -> Kept:
    model = shape.made(dtype, layers)
    if rank:
        model = schemes.select(model, "lora", lora_rank=rank, head=shape.head).get_base_model()
    else:
        model.requires_grad_(True)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        model.train()
    with _fake(model), Live() as live:
        states = _states(model, shape, rows, tokens)
        between = live.now
        torch.autograd.backward(states.float().sum())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return Kept(between, max(0, live.peak - max(between, gradients)))


def _states(model: Any, shape: Shape, rows: int, tokens: int) -> torch.Tensor:
    """What the head sees, (rows, tokens, width), or the logits, (rows, tokens, vocabulary), where all of them are made.

    Raises ValueError for a model whose pass asks for values.
    """
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    body = model if shape.caps else model.get_encoder() if shape.head == "seq2seq" else model.base_model
    more = {"use_cache": False} if shape.head == "causal" else {}
    try:
        made = body(input_ids=ids, **more)
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f"what a pass of {type(model).__name__} in {model.dtype} holds is not known before it runs ({why})"
        ) from None
    states: torch.Tensor = made.logits if shape.caps else made.last_hidden_state
    return states


def _head_bytes(shape: Shape, scored: int, dtype: torch.dtype) -> int:
    """What `text.head.log_likelihoods` holds: scored states and logits in float32, a part of the head cast to it."""
    if not scored:
        return 0
    chunk = min(shape.vocabulary, heads.columns(scored, shape.hidden))
    cast = chunk * shape.hidden * 4 if dtype != torch.float32 else 0
    return 4 * scored * shape.hidden + cast + 2 * 4 * scored * chunk


def _head_kept(shape: Shape, scored: int, dtype: torch.dtype, trained: bool) -> tuple[int, int]:
    """(what it keeps for the backward pass, what that adds): logits, the casts of the head, and of states where it is trained;
    gradients of the states and of a part of the logits.
    """
    if not scored:
        return 0, 0
    if shape.caps:
        return 4 * scored * shape.vocabulary, 2 * 4 * scored * shape.vocabulary
    chunk = min(shape.vocabulary, heads.columns(scored, shape.hidden))
    cast = 4 * shape.hidden * (shape.vocabulary + trained * scored) if dtype != torch.float32 else 0
    return 4 * scored * shape.vocabulary + cast, 4 * scored * (shape.hidden + 2 * chunk)


@contextmanager
def _fake(model: nn.Module) -> Iterator[None]:
    """Run the block with the tensors of a model replaced by fake ones of the CPU, as are those made within."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        made: dict[int, tuple[Any, Any]] = {}  # with what they replace, so that no number is given twice
        for module in model.modules():
            for held, fake in ((module._parameters, _parameter), (module._buffers, _buffer)):
                _replace(held, made, fake)
        yield


def _replace(held: dict[str, Any], made: dict[int, tuple[Any, Any]], fake: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for name, tensor in held.items():
        if tensor is not None:
            made.setdefault(id(tensor), (tensor, None))
            if made[id(tensor)][1] is None:
                made[id(tensor)] = (tensor, fake(tensor))
            held[name] = made[id(tensor)][1]


def _buffer(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _parameter(tensor: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(_buffer(tensor), requires_grad=tensor.requires_grad)
