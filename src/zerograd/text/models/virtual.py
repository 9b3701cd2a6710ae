"""Virtual tokens: PEFT's prompt and prefix tuning, initialised from real tokens and evaluated row by row.

PEFT repeats one prefix for all rows, which a perturbed forward pass cannot split by example. Here each row looks up its
prefix as an embedding, so each example can have its own perturbation of the prefix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def kind(model: Any) -> str:
    """ "prefix" or "prompt" for a model with such an adapter of PEFT's, else ""."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return ""
    name = str(configs["default"].peft_type.value).lower()
    return {"prefix_tuning": "prefix", "prompt_tuning": "prompt"}.get(name, "")


def start_prompt(model: Any) -> None:
    """Initialise a prompt with the embeddings of random tokens."""
    weight = _weight(model)
    with torch.no_grad():
        weight.copy_(model.get_base_model().get_input_embeddings()(_random_tokens(model, len(weight)))[0])


def start_prefix(model: Any) -> None:
    """Initialise a prefix with keys and values of random tokens, MeZO's "real activations" (arXiv 2305.17333,
    appendix).
    """
    weight = _weight(model)
    with torch.no_grad():
        cache = model.get_base_model()(_random_tokens(model, len(weight)), use_cache=True).past_key_values
        parts = [part[0].transpose(0, 1) for layer in cache.layers for part in (layer.keys, layer.values)]  # (tokens, heads, width)
        weight.copy_(torch.stack(parts, 1).reshape(weight.shape))


def prefixed(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The decoder's last hidden states after the prefix: (rows, tokens, width)."""
    from transformers import DynamicCache

    base = model.get_base_model()
    config = model.peft_config["default"]
    weight = _weight(model)  # (virtual tokens, layers * 2 * heads * width)
    tokens = ids[:, :1] * 0 + torch.arange(len(weight), device=ids.device)  # one copy per row
    embedded = F.embedding(tokens, weight).to(base.dtype)
    shaped = embedded.view(*tokens.shape, 2 * config.num_layers, config.num_attention_heads, -1)
    cache = DynamicCache()
    for layer in range(config.num_layers):
        cache.update(shaped[:, :, 2 * layer].transpose(1, 2), shaped[:, :, 2 * layer + 1].transpose(1, 2), layer)
    hidden: torch.Tensor = base.get_decoder()(input_ids=ids, past_key_values=cache).last_hidden_state
    return hidden


def _weight(model: Any) -> torch.Tensor:
    weight: torch.Tensor = model.prompt_encoder["default"].embedding.weight
    return weight


def _random_tokens(model: Any, count: int) -> torch.Tensor:
    table = model.get_base_model().get_input_embeddings().weight
    return torch.randint(table.shape[0], (1, count)).to(table.device)
