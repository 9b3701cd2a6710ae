"""The head of a language model, where only scored positions and a running normaliser are held."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

HELD = 4 << 20
"""Logits that are held at a time: 16 MB in float32, which an allocator still keeps and hands out again."""

CHUNK = 256
"""Rows of the head that are scored at a time, at least."""


def log_likelihoods(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """The log-likelihood of one token a row under the softmax over the whole vocabulary: float32 (rows,).

    hidden: (rows, width), in the dtype that the products are wanted in; logits and normaliser are float32. head: a linear layer
    of (vocabulary, width). targets: int64 (rows,). No more than `HELD` logits are held at a time, or `CHUNK` a row if that is more.
    """
    chunk = max(CHUNK, HELD // max(1, len(targets)))
    own = torch.empty(len(targets), device=hidden.device)
    total = torch.full((len(targets),), -torch.inf, device=hidden.device)
    for first in range(0, head.weight.shape[0], chunk):
        stop = min(first + chunk, head.weight.shape[0])
        bias = None if head.bias is None else head.bias[first:stop].to(hidden.dtype)
        logits = F.linear(hidden, head.weight[first:stop].to(hidden.dtype), bias).float()  # (rows, columns)
        total = torch.logaddexp(total, logits.logsumexp(1))
        here = (targets >= first) & (targets < stop)
        own[here] = logits[here, targets[here] - first]
    return own - total
