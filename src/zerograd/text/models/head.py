"""Heads of language models: logits are computed only at scored positions, and a chunk of the vocabulary at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zerograd.evaluate import half
from zerograd.evaluate.caught import caught
from zerograd.text.models import virtual

CHUNK_VALUES = 4 << 20
"""The most values of a chunk of logits, and of the head's rows that make it: 16 MB in float32, a size that allocators
still reuse.
"""

MIN_CHUNK_COLUMNS = 256
"""The fewest vocabulary columns of a chunk."""

HEAD_PATHS = ("decoder", "caught", "logits")
"""Sources of hidden states, the cheapest first: the decoder's output; states caught as they enter the head; or,
without states, the model's full logits.
"""

LOGIT_TOLERANCE = 0.02
"""How far logits of two head paths may differ, relative to the largest logit: bfloat16 products differ by half of this.
"""


def log_likelihoods(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """The log-likelihood of one token a row under the softmax over the whole vocabulary: float32 (rows,).

    hidden: (rows, width), in the dtype that the products are wanted in; logits and normaliser are float32. head: a
    linear layer of (vocabulary, width). targets: int64 (rows,). `chunk_columns` bounds the memory.
    """
    chunk = chunk_columns(*hidden.shape)
    of_targets = torch.empty(len(targets), device=hidden.device)
    total = torch.full((len(targets),), -torch.inf, device=hidden.device)
    for first in range(0, head.weight.shape[0], chunk):
        stop = min(first + chunk, head.weight.shape[0])
        bias = None if head.bias is None else head.bias[first:stop].to(hidden.dtype)
        logits = F.linear(hidden, rows(head, slice(first, stop), hidden.dtype), bias).float()  # (rows, columns)
        total = torch.logaddexp(total, logits.logsumexp(1))
        here = (targets >= first) & (targets < stop)
        of_targets[here] = logits[here, targets[here] - first]
    return of_targets - total


def rows(head: Any, some: slice | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Some rows of a head's weight in a dtype: (rows, width). A packed head unpacks them."""
    own = getattr(head, "rows", None)
    made: torch.Tensor = head.weight[some].to(dtype) if own is None else own(some, dtype)
    return made


def chunk_columns(rows: int, width: int) -> int:
    """Vocabulary columns of a chunk: as many as keep logits and head rows under CHUNK_VALUES values, at least
    MIN_CHUNK_COLUMNS.
    """
    return max(MIN_CHUNK_COLUMNS, CHUNK_VALUES // max(1, rows, width))


def token_log_likelihoods(model: Any, states: torch.Tensor, targets: torch.Tensor, path: str) -> torch.Tensor:
    """The log-likelihood of one token per state: float32 (rows,).

    states: (rows, width); (rows, vocabulary) logits for the path "logits".
    """
    if path == "logits":
        return states.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return log_likelihoods(states.float(), model.get_output_embeddings(), targets)


def answer_log_likelihoods(model: Any, states: torch.Tensor, targets: torch.Tensor, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of log-likelihoods, number of tokens) of each row's scored tokens: float32 (rows,).

    states: (rows, tokens, width), or logits for the path "logits". targets: int64 (rows, tokens), the token to predict
    at each position, or -100.
    """
    row, position = (targets >= 0).nonzero(as_tuple=True)
    likely = token_log_likelihoods(model, states[row, position], targets[row, position], path)
    sums = torch.zeros(len(targets), device=likely.device).index_add(0, row, likely)
    return sums, (targets >= 0).sum(1).float()


def logits(model: Any, states: torch.Tensor, tokens: torch.Tensor, path: str) -> torch.Tensor:
    """The logits of the given vocabulary tokens: float32 (rows, tokens)."""
    tokens = tokens.to(states.device)
    if path == "logits":
        return states[:, tokens].float()
    head = model.get_output_embeddings()
    bias = None if head.bias is None else head.bias[tokens].float()
    return F.linear(states.float(), rows(head, tokens, torch.float32), bias)


def states(model: Any, batch: Any, path: str, start_token: int = 0) -> torch.Tensor:
    """The hidden states that enter the head, (rows, tokens, width); for the path "logits" the logits, (rows, tokens,
    vocabulary).

    batch: a `scoring.Batch`. start_token: the first token of a sequence-to-sequence model's answers.
    """
    if path == "decoder":
        if virtual.kind(model) == "prefix":
            return virtual.prefixed(model, batch.ids)
        hidden: torch.Tensor = model.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
        return hidden
    per_position = plain_logits(model, batch, start_token) if path == "logits" else _states_entering_head(model, batch, start_token)
    return (
        per_position if batch.answers is not None else per_position[:, -batch.ids.shape[1] :]
    )  # without the virtual tokens of a trained prompt


def plain_logits(model: Any, batch: Any, start_token: int = 0) -> torch.Tensor:
    """The logits of every position, as the model itself gives them."""
    logits: torch.Tensor = _forward(model, batch, start_token).logits
    return logits


def choose_head_path(model: Any, batch: Any, start_token: int = 0) -> str:
    """The cheapest of HEAD_PATHS whose logits match the plain model's on a batch."""
    with torch.no_grad(), half.fast_products():
        plain = plain_logits(model, batch, start_token)
        return next(path for path in HEAD_PATHS if _agree(model, batch, plain, path, start_token))


def _agree(model: Any, batch: Any, plain: torch.Tensor, path: str, start_token: int) -> bool:
    """Whether logits by a head path match the plain model's, within LOGIT_TOLERANCE."""
    if path == "logits":
        return True
    head = model.get_output_embeddings()
    needs_full_pass = batch.answers is not None or batch.attention is not None or virtual.kind(model) == "prompt"
    if not isinstance(head, nn.Linear) or (path == "decoder" and needs_full_pass):
        return False
    try:
        last_states = states(model, batch, path, start_token)[:, -1].float()
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return False  # the architecture has no such path
    expected = plain[:, -1].float()
    if last_states.shape != (len(expected), head.in_features):
        return False
    chunk = chunk_columns(*last_states.shape)
    starts = range(0, head.out_features, chunk)
    ours = torch.cat([F.linear(last_states, rows(head, slice(i, i + chunk), torch.float32)) for i in starts], 1)
    ours = ours if head.bias is None else ours + head.bias.float()
    return bool((ours - expected).abs().max() <= LOGIT_TOLERANCE * expected.abs().max())


def context(model: Any) -> int:
    """The longest input of a model in tokens, by its configuration."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 20
    reserved = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return int(positions) - reserved


def _states_entering_head(model: Any, batch: Any, start_token: int) -> torch.Tensor:
    hidden: torch.Tensor = caught(lambda: _forward(model, batch, start_token), [model.get_output_embeddings()], entering=True)[0]
    return hidden


def _forward(model: Any, batch: Any, start_token: int) -> Any:
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
    first = torch.full_like(answers[:, :1], start_token)
    read = torch.cat([first, answers[:, :-1].clamp_min(0)], 1)
    outputs = BaseModelOutput(last_hidden_state=encoded)
    return model(encoder_outputs=outputs, attention_mask=attention, decoder_input_ids=read, use_cache=False)
