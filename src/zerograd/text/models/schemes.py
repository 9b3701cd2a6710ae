"""Schemes: the parameters of a language model, or of an adapter, that training changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zerograd.text.models import virtual

SCHEMES = {
    "full": "every parameter",
    "upper": "the upper half of the layers, or the upper --layers",
    "qk": "the attention's query and key weights in the layers of upper",
    "norms": "scales and biases of the normalisation layers",
    "pattern": "parameters whose names match --pattern",
    "scales": "gains of the scales of packed matrices: those of qk, or those that match --pattern",
    "lora": "low-rank adapters of the attention, by PEFT",
    "scales-lora": "scales and lora at once",
    "prompt": "embeddings of virtual tokens before the prompt, by PEFT",
    "prefix": "keys and values of virtual tokens in every layer, saved in PEFT's format",
}

ADAPTERS = ("lora", "prompt", "prefix")
"""Schemes that train an adapter and no parameter of the model."""

LORA = ("lora", "scales-lora")
"""Schemes with low-rank adapters."""

GAINS = ("scales", "scales-lora")
"""Schemes that train gains of packed matrices."""

UPPER = ("upper", "qk", *GAINS)
"""Schemes of the upper layers; the layers below run once for all branches of a step."""

QUERY_KEY_NAMES = re.compile(
    r"(^|(?<!feed_forward)\.)([qk]|query|key|(query|key)_(layer|proj)|[qk]_(proj|lin|head)|W[qk]|q_[ab]_proj|kv_a_proj_with_mqa"
    r"|kv_b_proj|query_key_value|qkv|qkv_proj|Wqkv|c_attn)\.(weight|bias)$"
)
"""Names of query and key weights in transformers' architectures; where one matrix makes queries, keys and values, all
of it.
"""


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
    """The model with requires_grad set on the parameters that the scheme trains and cleared on the others, and with the
    scheme's adapter.

    layers: the number of upper layers for `upper` and `qk`; 0 for half, rounded up. pattern: a regular expression for
    `pattern`. lora_rank: alpha is twice the rank. virtual_tokens: for `prompt` and `prefix`. head: one of
    `loading.HEADS`. seed: of an adapter's initial values. fresh: names of a classifier's parameters that the saved
    model lacks; they are trained with its head.
    Raises ValueError for an unknown scheme, and for a scheme that this model cannot have or that trains none of its
    parameters.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; choose one of {', '.join(SCHEMES)}")
    model.requires_grad_(scheme == "full")
    if scheme in ADAPTERS:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _adapted(model, scheme, lora_rank, virtual_tokens, head, fresh)
    if scheme in GAINS:
        return select(model, "pattern" if pattern else "qk", layers=layers, pattern=pattern, head=head)
    if scheme in UPPER:
        layer_list = blocks(model)
        if layers > len(layer_list):
            raise ValueError(f"layers is {layers}; this {type(model).__name__} has {len(layer_list)}")
        for layer in layer_list[len(layer_list) - (layers or -(-len(layer_list) // 2)) :]:
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_(scheme == "upper" or bool(QUERY_KEY_NAMES.search(name)))
        if head == "classifier" and any(p.requires_grad for p in model.parameters()):
            _train_heads(model, fresh)
    if scheme == "norms":
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                module.requires_grad_(True)
    if scheme == "pattern":
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(bool(wanted.search(name)))
    if not any(p.requires_grad for p in model.parameters()):
        mends = {"pattern": "names are such as " + next(name for name, _ in model.named_parameters()), "qk": "use upper"}
        mend = mends.get(scheme, "use full")
        raise ValueError(f"scheme {scheme} trains nothing of this {type(model).__name__}; {mend}")
    return model


def add_lora(model: Any, lora_rank: int, seed: int) -> Any:
    """A model with gains that are trained, and low-rank adapters beside them."""
    gains = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapted = select(model, "lora", lora_rank=lora_rank, seed=seed)
    for parameter in gains:
        parameter.requires_grad_(True)
    return adapted


def blocks(model: Any) -> list[nn.Module]:
    """The model's stack of layers: the largest list of layers of one type, in the decoder if there is one."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    lists = [module for module in (decoder or model).modules() if isinstance(module, nn.ModuleList)]
    uniform = [layers for layers in lists if len({type(layer) for layer in layers}) == 1 and len(list(layers[0].parameters()))]
    return list(max(uniform, key=lambda layers: sum(p.numel() for p in layers.parameters()), default=[]))


def _train_heads(model: Any, fresh: Sequence[str]) -> None:
    """Train a classifier's head, and every other parameter that the saved model lacks."""
    for name, module in model.named_children():
        if name in ("classifier", "score", "classification_head"):
            module.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if name in fresh:
            parameter.requires_grad_(True)


def _modules_to_save(fresh: Sequence[str]) -> list[str]:
    """The outermost modules of fresh parameters, without heads, which PEFT saves anyway."""
    modules = {name.rpartition(".")[0] for name in fresh}
    modules = {name for name in modules if name and not {"classifier", "score"} & set(name.split("."))}
    return sorted(name for name in modules if not any(name.startswith(f"{outer}.") for outer in modules))


def _adapted(model: Any, scheme: str, lora_rank: int, virtual_tokens: int, head: str, fresh: Sequence[str]) -> Any:
    import peft

    kinds = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classifier": "SEQ_CLS", "masked": None}
    if scheme == "lora":
        settings: dict[str, Any] = {"r": lora_rank, "lora_alpha": 2 * lora_rank, "task_type": kinds[head]}
        if head == "classifier":  # the adapter's file must have the parameters that the model's file lacks
            settings["modules_to_save"] = _modules_to_save(fresh)
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
