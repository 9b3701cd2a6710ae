"""Heads of language models, where only scored positions, scored columns and a running normaliser are held."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zerograd.evaluate.caught import caught
from zerograd.text.models import virtual

HELD = 4 << 20
"""Numbers that are held at a time, of logits and of the head's rows: 16 MB in float32, which an allocator still keeps and hands out
again."""

CHUNK = 256
"""Rows of the head that are scored at a time, at least."""

WAYS = ("decoder", "caught", "logits")
"""How to come by the states that a head sees: from the decoder; caught on their way into the head; or not, but by the plain model's
logits."""

CLOSE = 0.02
"""How far logits made two ways may be apart, over the largest of them: bfloat16 products differ by half of that."""


def log_likelihoods(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """The log-likelihood of one token a row under the softmax over the whole vocabulary: float32 (rows,).

    hidden: (rows, width), in the dtype that the products are wanted in; logits and normaliser are float32. head: a linear layer
    of (vocabulary, width). targets: int64 (rows,). What is held at a time is bounded by `columns`.
    """
    chunk = columns(*hidden.shape)
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


def columns(rows: int, width: int) -> int:
    """Of logits, that are made at a time: `HELD` numbers of them, or of the head's rows, and no fewer than `CHUNK`."""
    return max(CHUNK, HELD // max(1, rows, width))


def log_likelihoods_of(model: Any, states: torch.Tensor, targets: torch.Tensor, way: str) -> torch.Tensor:
    """The log-likelihood of one token a state: float32 (rows,). states: (rows, width), or logits where that is the way."""
    if way == "logits":
        return states.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return log_likelihoods(states.float(), model.get_output_embeddings(), targets)


def answered(model: Any, states: torch.Tensor, targets: torch.Tensor, way: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums of log-likelihoods, numbers of tokens) of each row's scored tokens: float32 (rows,).

    states: (rows, tokens, width), or logits. targets: int64 (rows, tokens), the token to predict at each position, or -100.
    """
    row, position = (targets >= 0).nonzero(as_tuple=True)
    likely = log_likelihoods_of(model, states[row, position], targets[row, position], way)
    sums = torch.zeros(len(targets), device=likely.device).index_add(0, row, likely)
    return sums, (targets >= 0).sum(1).float()


def logits(model: Any, states: torch.Tensor, tokens: torch.Tensor, way: str) -> torch.Tensor:
    """The logits of states for some tokens: float32 (rows, tokens)."""
    tokens = tokens.to(states.device)
    if way == "logits":
        return states[:, tokens].float()
    head = model.get_output_embeddings()
    bias = None if head.bias is None else head.bias[tokens].float()
    return F.linear(states.float(), head.weight[tokens].float(), bias)


def states(model: Any, batch: Any, way: str, start: int = 0) -> torch.Tensor:
    """What the head sees of each position, (rows, tokens, width), or the logits, (rows, tokens, vocabulary).

    batch: a `scoring.Batch`. start: the first token of a sequence-to-sequence model's answers.
    """
    if way == "decoder":
        if virtual.kind(model) == "prefix":
            return virtual.prefixed(model, batch.ids)
        hidden: torch.Tensor = model.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
        return hidden
    made = plain_logits(model, batch, start) if way == "logits" else _caught(model, batch, start)
    return made if batch.answers is not None else made[:, -batch.ids.shape[1] :]  # tokens of a prompt that is trained stand before


def plain_logits(model: Any, batch: Any, start: int = 0) -> torch.Tensor:
    """The logits of every position, as the model itself gives them."""
    made: torch.Tensor = _forward(model, batch, start).logits
    return made


def shortest(model: Any, batch: Any, start: int = 0) -> str:
    """The shortest of WAYS through an architecture that gives the scores of the plain model on a batch."""
    with torch.no_grad():
        plain = plain_logits(model, batch, start)
        return next(way for way in WAYS if _agree(model, batch, plain, way, start))


def _agree(model: Any, batch: Any, plain: torch.Tensor, way: str, start: int) -> bool:
    """Whether logits from states come by in a way are those of the plain model."""
    if way == "logits":
        return True
    head = model.get_output_embeddings()
    whole = batch.answers is not None or batch.attention is not None or virtual.kind(model) == "prompt"
    if not isinstance(head, nn.Linear) or (way == "decoder" and whole):
        return False
    try:
        found = states(model, batch, way, start)[:, -1].float()
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return False  # this architecture has no such way
    expected = plain[:, -1].float()
    if found.shape != (len(expected), head.weight.shape[1]):
        return False
    ours = F.linear(found, head.weight.float(), None if head.bias is None else head.bias.float())
    return bool((ours - expected).abs().max() <= CLOSE * expected.abs().max())


def context(model: Any) -> int:
    """The most tokens that a model takes, as far as its configuration says."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 20
    reserved = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return int(found) - reserved


def _caught(model: Any, batch: Any, start: int) -> torch.Tensor:
    found: torch.Tensor = caught(lambda: _forward(model, batch, start), [model.get_output_embeddings()], entering=True)[0]
    return found


def _forward(model: Any, batch: Any, start: int) -> Any:
    if batch.answers is None:
        more = {"use_cache": False} if batch.attention is None else {"attention_mask": batch.attention}
        return model(input_ids=batch.ids, **more)
    from transformers.modeling_outputs import BaseModelOutput

    answers = batch.answers
    repeat = len(answers) // len(batch.ids) if batch.counts is None else batch.counts
    encoded = model.get_encoder()(input_ids=batch.ids, attention_mask=batch.attention).last_hidden_state
    attention = batch.attention
    if batch.counts is not None or repeat > 1:
        encoded, attention = encoded.repeat_interleave(repeat, 0), attention.repeat_interleave(repeat, 0)
    first = torch.full_like(answers[:, :1], start)
    read = torch.cat([first, answers[:, :-1].clamp_min(0)], 1)
    outputs = BaseModelOutput(last_hidden_state=encoded)
    return model(encoder_outputs=outputs, attention_mask=attention, decoder_input_ids=read, use_cache=False)
