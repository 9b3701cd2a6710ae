"""What a model is made of, by its configuration: parameters are counted, and passes run, on tensors that hold no values."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zerograd.machine.format import quantity
from zerograd.planner import quantities
from zerograd.planner.kept import View
from zerograd.planner.settings import PlanSettings
from zerograd.spaces import weights
from zerograd.text.models import loading as models
from zerograd.text.models import schemes
from zerograd.text.models.head import context

SCHEMES = ("full", "upper", "qk", "norms", "lora")
"""The schemes that a plan has rows for; the adapter last, since it changes the model."""

SAMPLED = 4
"""Layers of a model that are kept to run passes through."""

CAPS = (
    *("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"),
    *("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"),
)
"""Fields of configurations by which logits are no plain product of states, unless they are None or 1."""

WIDTH_OF_LAYERS, WIDTH_OF_HEADS, WIDENING, VOCABULARY = 128, 128, 8 / 3, 32_000
"""The sizes of a model that only its parameters are known of: hidden = 128 layers, heads of 128, a feed-forward part of 8/3 of the
width (Touvron et al. 2023, arXiv 2302.13971, section 2.2 and table 2)."""

SIZES = ("layers", "hidden", "intermediate", "heads", "vocabulary")


@dataclass(frozen=True)
class Shape:
    """A model's sizes, of which nothing is loaded.

    trained: values that each of SCHEMES trains, those that the architecture can have. tensors: how many of each view hold these, in
    the model that is built where only the number of parameters was told. body: values that a token of the batch is multiplied
    with, in the layers that follow each other, experts that it does not see left out; upper: those of them in the upper half of the
    layers, 0 for a sequence-to-sequence model, whose upper half is the decoder's. layers, hidden, vocabulary, context: sizes, and
    the most tokens of a row; of a sequence-to-sequence model layers and body are the encoder's, through which a row goes. sample:
    its first layers, on the device "meta". head: of `models.HEADS`.
    caps: whether the architecture does something with logits, so that those of all positions are made.
    """

    parameters: int
    trained: dict[str, int]
    tensors: dict[str, Counter[View]]
    body: int
    upper: int
    layers: int
    hidden: int
    vocabulary: int
    context: int
    sample: Any
    head: str
    caps: bool

    def made(self, dtype: torch.dtype, layers: int) -> Any:
        """The model cut to its first layers, at most SAMPLED, without values."""
        return cut(copy.deepcopy(self.sample), layers).to(dtype)


def shape(settings: PlanSettings) -> Shape:
    """The shape of the model that the settings name or describe.

    Raises ValueError or FileNotFoundError with the mend for one that is not there, or not described well enough.
    """
    name, given = settings.model, settings.parameters
    if quantities.is_count(name) and not Path(name).exists():
        if given:
            raise ValueError(f"parameters is {given!r}, and MODEL {name}; give one of them")
        name, given = "", name
    if not name:
        if settings.head not in ("auto", "causal"):
            raise ValueError(f"head is {settings.head}, and a model that only sizes are known of is a causal one; name the model")
        count = int(quantities.read("parameters", given)) if given else 0
        config = _llama(count, {size: getattr(settings, size) for size in SIZES})
        values = sum(p.numel() for p in _made(config, "causal").parameters())
        if count and settings.layers and settings.hidden and not 0.75 < values / count < 1.33:
            made = f"layers {settings.layers} and hidden {settings.hidden} make {quantity(values, '')}"
            raise ValueError(f"parameters is {given}, and {made}; leave one of them out")
        return _measured(config, "causal", settings.lora_rank, count)
    for field in ("parameters", *SIZES):
        if getattr(settings, field):
            raise ValueError(f"{field} is {getattr(settings, field)!r}, and model {name!r} has its own; give one of them")
    config, head = models.configuration(name, settings.head)
    if getattr(config, "quantization_config", None) and not name.endswith(".gguf") and name != models.DEMO:
        raise ValueError(f"model {name!r} is quantised, which nothing here trains yet; give the model that it was made from")
    found = _measured(config, head, settings.lora_rank)
    if settings.tokens > found.context:
        raise ValueError(f"tokens is {settings.tokens}; model {name!r} takes at most {found.context:,}")
    return found


def _measured(config: Any, head: str, lora_rank: int, count: int = 0) -> Shape:
    """The shape of a configuration. count: of its parameters, where it was told and the configuration only comes near it."""
    model = _made(config, head)
    within = schemes.blocks(model.get_encoder() if head == "seq2seq" else model)
    body = [sum(_seen(p, config) for p in layer.parameters() if p.ndim > 1) for layer in within]
    values = sum(p.numel() for p in model.parameters())
    sizes = config.get_text_config()
    caps = head == "causal" and any(vars(sizes).get(name) not in (None, 1) for name in CAPS)
    tensors = {}
    for scheme in SCHEMES:
        with contextlib.suppress(ValueError):  # this architecture has nothing for it
            tensors[scheme] = _trained(schemes.select(model, scheme, lora_rank=lora_rank, head=head))
    trained = {scheme: sum(map(math.prod, views.elements())) for scheme, views in tensors.items()}
    scale = count / values if count else 1.0
    return Shape(
        count or values,
        {name: round(some * (scale if name in ("full", *schemes.UPPER) else 1)) for name, some in trained.items()},
        tensors,
        round(sum(body) * scale),
        round(sum(body[len(body) // 2 :]) * scale * (head != "seq2seq")),
        len(within),
        sizes.hidden_size,
        sizes.vocab_size,
        context(model),
        cut(_made(config, head), SAMPLED),
        head,
        caps,
    )


def cut(module: Any, layers: int) -> Any:
    """A model with the first layers alone of those that follow each other."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            del child[layers:]
        else:
            cut(child, layers)
    return module


def _made(config: Any, head: str) -> Any:
    import transformers

    with torch.device("meta"):
        return getattr(transformers, models.HEADS[head]).from_config(copy.deepcopy(config), dtype=torch.bfloat16).eval()


def _trained(model: Any) -> Counter[View]:
    """What is trained: how many tensors of each view."""
    return Counter(slot.view for slot in weights.collect(model, None))


def _seen(parameter: nn.Parameter, config: Any) -> float:
    """How many values of a parameter a token is multiplied with: of stacked experts, those that it is sent to."""
    sizes = config.get_text_config()
    chosen = getattr(sizes, "num_experts_per_tok", None) or getattr(sizes, "top_k_experts", None)
    share = chosen / len(parameter) if parameter.ndim == 3 and chosen and len(parameter) > chosen else 1.0
    return parameter.numel() * share


def _llama(count: int, sizes: dict[str, int]) -> Any:
    """A Llama of some sizes, those that are 0 derived from the others and from the number of its parameters."""
    import transformers

    vocabulary = sizes["vocabulary"] or VOCABULARY
    layers, hidden = sizes["layers"], sizes["hidden"]
    if not count and not (layers and hidden):
        raise ValueError("the model is not given: name one, or its size as --parameters 8B, or its --layers and --hidden")
    if not hidden:  # 12 layers hidden ** 2 + 2 vocabulary hidden = count
        widths = range(64, 1 << 20, 64)
        hidden = next(h for h in widths if 12 * (layers or h / WIDTH_OF_LAYERS) * h * h + 2 * vocabulary * h >= count)
    layers = layers or max(1, round((count - 2 * vocabulary * hidden) / (12 * hidden * hidden)))
    if hidden % 2:
        raise ValueError(f"hidden is {hidden}; heads are of an even width, and so is what they are of: give an even number")
    fitting = [heads for heads in range(1, hidden + 1) if hidden % (2 * heads) == 0]
    if sizes["heads"] and sizes["heads"] not in fitting:
        raise ValueError(f"heads is {sizes['heads']}, which does not divide hidden {hidden} into even parts; give one that does")
    heads = sizes["heads"] or min(fitting, key=lambda some: abs(hidden / some - WIDTH_OF_HEADS))
    inner = sizes["intermediate"] or 64 * math.ceil(WIDENING * hidden / 64)
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=bool(count) and 12 * layers * hidden**2 + 1.5 * vocabulary * hidden > count,
    )
