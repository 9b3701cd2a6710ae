"""Schemes: which parameters of a language model are trained, its own or those of an adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zerograd.text.models import virtual

SCHEMES = {
    "full": "every parameter",
    "upper": "the upper half of the layers, or as many as --layers says",
    "qk": "in the layers of upper, what queries and keys of the attention are made with",
    "norms": "scales and biases of the normalisation layers",
    "pattern": "parameters whose names --pattern matches",
    "lora": "low-rank adapters of the attention, by PEFT",
    "prompt": "embeddings of virtual tokens before the prompt, by PEFT",
    "prefix": "keys and values of virtual tokens in every layer, saved as PEFT's",
}

ADAPTERS = ("lora", "prompt", "prefix")
"""Schemes that leave the model's own parameters alone."""

UPPER = ("upper", "qk")
"""Schemes of the upper layers: those below are run once for all branches of a step."""

QK = re.compile(
    r"(^|(?<!feed_forward)\.)([qk]|query|key|(query|key)_(layer|proj)|[qk]_(proj|lin|head)|W[qk]|q_[ab]_proj|kv_a_proj_with_mqa"
    r"|kv_b_proj|query_key_value|qkv|qkv_proj|Wqkv|c_attn)\.(weight|bias)$"
)
"""Names of parameters that queries or keys are made with, as architectures of transformers call them; where the values are made
with the same matrix, all of it."""


def select(
    model: Any,
    scheme: str,
    *,
    layers: int = 0,
    pattern: str = "",
    lora_rank: int = 8,
    virtual_tokens: int = 5,
    head: str = "causal",
    seed: int = 0,
    fresh: Sequence[str] = (),
) -> Any:
    """The model with requires_grad set on what the scheme trains and cleared on the rest; with its adapter, where that is one.

    layers: how many `upper` and `qk` train of; 0 for half of them, rounded up. pattern: a regular expression, for `pattern`.
    lora_rank: alpha is twice that. virtual_tokens: of `prompt` and `prefix`. head: of `models.HEADS`. seed: of an adapter's
    initial values. fresh: names of parameters that the model was saved without, a classifier's: they are trained with its head.
    Raises ValueError for an unknown scheme, for one that this model cannot have, or that trains nothing of it.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; choose one of {', '.join(SCHEMES)}")
    model.requires_grad_(scheme == "full")
    if scheme in ADAPTERS:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _adapted(model, scheme, lora_rank, virtual_tokens, head, fresh)
    if scheme in UPPER:
        within = blocks(model)
        if layers > len(within):
            raise ValueError(f"layers is {layers}; this {type(model).__name__} has {len(within)}")
        for layer in within[len(within) - (layers or -(-len(within) // 2)) :]:
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_(scheme == "upper" or bool(QK.search(name)))
        if head == "classifier" and any(p.requires_grad for p in model.parameters()):
            _heads(model, fresh)
    if scheme == "norms":
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                module.requires_grad_(True)
    if scheme == "pattern":
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(bool(wanted.search(name)))
    if not any(p.requires_grad for p in model.parameters()):
        mends = {"pattern": "names are such as " + next(name for name, _ in model.named_parameters()), "qk": "use upper"}
        mend = mends.get(scheme, "use full")
        raise ValueError(f"scheme {scheme} trains nothing of this {type(model).__name__}; {mend}")
    return model


def blocks(model: Any) -> list[nn.Module]:
    """A model's layers that follow each other: the decoder's, or the last such list of the model."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    lists = [module for module in (decoder or model).modules() if isinstance(module, nn.ModuleList)]
    alike = [found for found in lists if len({type(layer) for layer in found}) == 1 and len(list(found[0].parameters()))]
    return list(max(alike, key=lambda found: sum(p.numel() for p in found.parameters()), default=[]))


def _heads(model: Any, fresh: Sequence[str]) -> None:
    """Train a classifier's head, and whatever else a pretrained model starts without."""
    for name, module in model.named_children():
        if name in ("classifier", "score", "classification_head"):
            module.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if name in fresh:
            parameter.requires_grad_(True)


def _unsaved(fresh: Sequence[str]) -> list[str]:
    """The modules of what a classifier began without, the outermost ones, but for heads, which PEFT saves."""
    modules = {name.rpartition(".")[0] for name in fresh}
    modules = {name for name in modules if name and not {"classifier", "score"} & set(name.split("."))}
    return sorted(name for name in modules if not any(name.startswith(f"{outer}.") for outer in modules))


def _adapted(model: Any, scheme: str, lora_rank: int, virtual_tokens: int, head: str, fresh: Sequence[str]) -> Any:
    import peft

    kinds = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classifier": "SEQ_CLS", "masked": None}
    if scheme == "lora":
        settings: dict[str, Any] = {"r": lora_rank, "lora_alpha": 2 * lora_rank, "task_type": kinds[head]}
        if head == "classifier":  # the adapter's file has to hold what the model's does not
            settings["modules_to_save"] = _unsaved(fresh)
        try:
            return peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
        except ValueError:  # PEFT knows no targets of this architecture
            return peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", **settings)).eval()
    if head != "causal":
        raise ValueError(f"scheme {scheme} is for causal models, this is a {head} one; use lora")
    if scheme == "prompt":
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=virtual_tokens)
        adapted = peft.get_peft_model(model, config).eval()
        virtual.start_prompt(adapted)
        return adapted
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=virtual_tokens, prefix_projection=False)
    adapted = peft.get_peft_model(model, config).eval()
    virtual.start_prefix(adapted)
    return adapted
