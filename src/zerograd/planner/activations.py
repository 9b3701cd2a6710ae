"""The memory of a pass beside its weights, measured by a pass on fake tensors, which have a shape and no values.

torch's fake tensors dispatch like the CPU's kernels, so attention allocates what it would on real tensors. A pass
through a few layers is enough: the peak of a forward pass does not depend on the number of layers, and back-propagation
keeps the same bytes for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zerograd.evaluate import shared_prefix
from zerograd.evaluate.micro_batch import PeakBytes
from zerograd.planner.shapes import SAMPLED_LAYERS, Shape
from zerograd.planner.traffic import TrafficCounter
from zerograd.text.models import head as heads
from zerograd.text.models import schemes

FEW_LAYERS = SAMPLED_LAYERS // 2
"""Layers of a measured pass; a second pass through up to twice as many gives the bytes of each layer."""


@dataclass(frozen=True)
class BackpropagationMemory:
    """The memory of back-propagation beside weights and gradients, in bytes.

    activations: kept from the forward pass to the backward pass. temporary: the most at a time beside these.
    """

    activations: int
    temporary: int


def evaluation_peak(shape: Shape, rows: int, tokens: int, dtype: torch.dtype, scored: int = 0) -> int:
    """The peak bytes of tensors while `rows` rows of `tokens` tokens are evaluated in a dtype.

    scored: tokens of a row that are scored over the whole vocabulary.
    """
    model = shape.build(dtype, FEW_LAYERS)
    with _fake(model), torch.no_grad(), PeakBytes() as live:
        _states(model, shape, rows, tokens)
    if shape.has_full_logits:
        return int(live.peak) + rows * scored * shape.vocabulary * (dtype.itemsize + 8)  # the logits, and two float32 copies
    states = rows * tokens * shape.hidden * dtype.itemsize
    return max(int(live.peak), states + _head_bytes(shape, rows * scored, dtype))


def layer_traffic(shape: Shape, tokens: int, dtype: torch.dtype) -> float:
    """The bytes that operations other than matrix products read and write in all layers, for a row of `tokens` tokens."""
    if shape.layers <= 1:
        return _traffic(shape, tokens, dtype, 1)
    low, high = _layer_samples(shape)
    few, more = (_traffic(shape, tokens, dtype, layers) for layers in (low, high))
    return (more - few) / (high - low) * shape.layers


def can_share_prefix(shape: Shape) -> bool:
    """Whether the layers below the trained ones can run once for all branches."""
    if shape.has_full_logits or schemes.UPPER[0] not in shape.trained:
        return False
    model = schemes.select(shape.build(torch.bfloat16, 2), schemes.UPPER[0], layers=1, head=shape.head)
    with _fake(model), torch.no_grad():
        try:
            return bool(shared_prefix.cuts_of(model, lambda: _states(model, shape, 2, 3)))
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
            return False


def backpropagation(
    shape: Shape, rows: int, tokens: int, dtype: torch.dtype, rank: int = 0, checkpointing: bool = False, scored: int = 0
) -> BackpropagationMemory:
    """The memory of back-propagation through `rows` rows of `tokens` tokens, without gradients.

    rank: of a LoRA; 0 if every parameter is trained. checkpointing: whether a layer keeps only its input and runs
    again. scored: as for `evaluation_peak`.
    """
    low, high = _layer_samples(shape)
    few, more = (_backpropagation(shape, rows, tokens, dtype, rank, checkpointing, layers) for layers in (low, high))
    each = (more.activations - few.activations) / max(1, high - low)
    activations, temporary = _head_backpropagation(shape, rows * scored, dtype, trained=not rank)
    return BackpropagationMemory(
        round(few.activations + each * max(0, shape.layers - low)) + activations, max(few.temporary, temporary)
    )


def _layer_samples(shape: Shape) -> tuple[int, int]:
    """(fewer, more) layers for two measured passes; equal for a model of one layer."""
    high = max(1, min(2 * FEW_LAYERS, shape.layers))
    return max(1, min(FEW_LAYERS, high - 1)), high


def _traffic(shape: Shape, tokens: int, dtype: torch.dtype, layers: int) -> int:
    model = shape.build(dtype, layers)
    with _fake(model), torch.no_grad(), TrafficCounter() as traffic:
        _states(model, shape, 1, tokens)
    return int(traffic.bytes)


def _backpropagation(
    shape: Shape, rows: int, tokens: int, dtype: torch.dtype, rank: int, checkpointing: bool, layers: int
) -> BackpropagationMemory:
    model = shape.build(dtype, layers)
    if rank:
        model = schemes.select(model, "lora", lora_rank=rank, head=shape.head).get_base_model()
    else:
        model.requires_grad_(True)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        model.train()
    with _fake(model), PeakBytes() as live:
        states = _states(model, shape, rows, tokens)
        between = live.now
        torch.autograd.backward(states.float().sum())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return BackpropagationMemory(between, max(0, live.peak - max(between, gradients)))


def _states(model: Any, shape: Shape, rows: int, tokens: int) -> torch.Tensor:
    """The hidden states, (rows, tokens, width), or the logits, (rows, tokens, vocabulary), of a model with full logits.

    Raises ValueError for a model whose pass depends on values.
    """
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    body = model if shape.has_full_logits else model.get_encoder() if shape.head == "seq2seq" else model.base_model
    more = {"use_cache": False} if shape.head == "causal" else {}
    try:
        outputs = body(input_ids=ids, **more)
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the memory of a pass of {type(model).__name__} in {model.dtype} is not known before it runs ({why})"
        ) from None
    states: torch.Tensor = outputs.logits if shape.has_full_logits else outputs.last_hidden_state
    return states


def _head_bytes(shape: Shape, scored: int, dtype: torch.dtype) -> int:
    """Bytes of `head.log_likelihoods`: scored states and logits in float32, and a chunk of the head cast to float32."""
    if not scored:
        return 0
    chunk = min(shape.vocabulary, heads.chunk_columns(scored, shape.hidden))
    cast = chunk * shape.hidden * 4 if dtype != torch.float32 else 0
    return 4 * scored * shape.hidden + cast + 2 * 4 * scored * chunk


def _head_backpropagation(shape: Shape, scored: int, dtype: torch.dtype, trained: bool) -> tuple[int, int]:
    """(bytes kept for the backward pass, bytes that the backward pass adds) for the head: logits and the casts of head
    and, if it is trained, states; gradients of states and of a chunk of the logits.
    """
    if not scored:
        return 0, 0
    if shape.has_full_logits:
        return 4 * scored * shape.vocabulary, 2 * 4 * scored * shape.vocabulary
    chunk = min(shape.vocabulary, heads.chunk_columns(scored, shape.hidden))
    cast = 4 * shape.hidden * (shape.vocabulary + trained * scored) if dtype != torch.float32 else 0
    return 4 * scored * shape.vocabulary + cast, 4 * scored * (shape.hidden + 2 * chunk)


@contextmanager
def _fake(model: nn.Module) -> Iterator[None]:
    """Run the block with fake CPU tensors, in place of the model's tensors and for all new ones."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes: dict[int, tuple[Any, Any]] = {}  # id: (real, fake); the real tensor lives on, so its id stays unique
        for module in model.modules():
            for tensors, fake in ((module._parameters, _parameter), (module._buffers, _buffer)):
                _replace(tensors, fakes, fake)
        yield


def _replace(tensors: dict[str, Any], fakes: dict[int, tuple[Any, Any]], fake: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            fakes.setdefault(id(tensor), (tensor, None))
            if fakes[id(tensor)][1] is None:
                fakes[id(tensor)] = (tensor, fake(tensor))
            tensors[name] = fakes[id(tensor)][1]


def _buffer(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _parameter(tensor: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(_buffer(tensor), requires_grad=tensor.requires_grad)
