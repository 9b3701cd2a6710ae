"""Multi-head attention as torch's modules call it, written with smaller operations that keep the batch first.

`F.multi_head_attention_forward` takes and returns the batch in the second dimension, and its weights in one argument list with the
activations. Written out, its products meet the fast rules, and each value stays with its example.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    """What `F.multi_head_attention_forward` of the same arguments returns; NotImplemented for inputs without a batch dimension,
    added or stored keys and values, and a causal hint without its mask.
    """
    given = _SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    own = given.arguments
    extra = own["add_zero_attn"] or any(own[name] is not None for name in ("bias_k", "bias_v", "static_k", "static_v"))
    if extra or own["query"].ndim != 3 or (own["is_causal"] and own["attn_mask"] is None):
        return NotImplemented
    heads = own["num_heads"]
    dropout = own["dropout_p"] if own["training"] else 0.0
    q, k, v = (
        x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in _projected(own)
    )  # (examples, heads, tokens, size of a head)
    mask = _mask(own, q)
    weights = None
    if own["need_weights"]:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        mixed = weights @ v
        weights = weights.mean(1) if own["average_attn_weights"] else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    out = F.linear(mixed.transpose(1, 2).flatten(2), own["out_proj_weight"], own["out_proj_bias"])
    return out.transpose(0, 1), weights


def _projected(own: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Queries, keys and values, each (examples, tokens, size of all heads)."""
    sources = [own[name] for name in ("query", "key", "value")]
    bias = own["in_proj_bias"]
    same = all(source is sources[0] for source in sources)
    if same and not own["use_separate_proj_weight"]:
        return F.linear(sources[0].transpose(0, 1), own["in_proj_weight"], bias).chunk(3, -1)
    size = own["embed_dim_to_check"]
    parts = [slice(i * size, (i + 1) * size) for i in range(3)]
    if own["use_separate_proj_weight"]:
        weights = [own[f"{name}_proj_weight"] for name in "qkv"]
    else:
        weights = [own["in_proj_weight"][part] for part in parts]
    biases = [None if bias is None else bias[part] for part in parts]
    return tuple(F.linear(x.transpose(0, 1), w, b) for x, w, b in zip(sources, weights, biases, strict=True))


def _mask(own: Mapping[str, Any], q: Tensor) -> Tensor | None:
    """What is added to the scores of attention, (examples or 1, heads or 1, tokens of q or 1, tokens of k); None for nothing."""
    mask: Tensor | None = own["attn_mask"]
    padding: Tensor | None = own["key_padding_mask"]
    if mask is not None:
        mask = _added(mask, q)
        of_heads = mask.ndim == 3 and mask.shape[0] > 1
        mask = mask.view(-1, own["num_heads"] if of_heads else 1, *mask.shape[-2:])
    if padding is None:
        return mask
    padding = _added(padding, q)[:, None, None]
    return padding if mask is None else mask + padding


def _added(mask: Tensor, q: Tensor) -> Tensor:
    """A mask as what is added: true, in a mask of truth values, leaves a key out."""
    return torch.where(mask, float("-inf"), 0.0).to(q.dtype) if mask.dtype == torch.bool else mask


_SIGNATURE = inspect.signature(F.multi_head_attention_forward)

WRITTEN_OUT: dict[str, Callable[..., Any]] = {"multi_head_attention_forward": multi_head_attention}
"""Operations that are computed as smaller ones, each of which is then followed, by name."""
