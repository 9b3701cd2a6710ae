"""A model's sizes by its configuration: parameters are counted, and passes measured, on tensors without values."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zerograd.machine.format import quantity
from zerograd.planner import quantities
from zerograd.planner.method_cost import View
from zerograd.planner.settings import PlanSettings
from zerograd.quantised import gguf
from zerograd.spaces import collect
from zerograd.text.models import loading as models
from zerograd.text.models import schemes
from zerograd.text.models.head import context

SCHEMES = ("full", "upper", "qk", "norms", "lora")
"""The schemes in a plan; the adapter is last, since it changes the model."""

SAMPLED_LAYERS = 4
"""Layers of the model on which passes are measured."""

LOGIT_FIELDS = (
    *("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"),
    *("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"),
)
"""Fields of configurations that change logits, unless they are None or 1; the head then computes all logits."""

WIDTH_OF_LAYERS, WIDTH_OF_HEADS, WIDENING, VOCABULARY_SIZE = 128, 128, 8 / 3, 32_000
"""The proportions of a model of which only the number of parameters is known: hidden = 128 layers, heads of 128, a
feed-forward part of 8/3 of the width (Touvron et al. 2023, arXiv 2302.13971, section 2.2 and table 2).
"""

SIZES = ("layers", "hidden", "intermediate", "heads", "vocabulary")


@dataclass(frozen=True)
class PackedFile:
    """What a GGUF file holds, by its header.

    nbytes, weights: of all packed matrices. of_weight: bytes of a weight of the layers' matrices. block: weights of their blocks,
    the most common number.
    """

    nbytes: int
    weights: int
    of_weight: float
    block: int

    @classmethod
    def of(cls, path: Path) -> PackedFile | None:
        """None for a file without packed matrices. Raises ValueError for a file that cannot stay packed."""
        matrices = [entry for entry in gguf.header(path).tensors if entry.type in gguf.BY_TYPE and len(entry.shape) == 2]
        inner = [entry for entry in matrices if entry.name.startswith("blk.")] or matrices
        if not matrices:
            return None
        blocks = Counter(gguf.BY_TYPE[entry.type].weights for entry in inner)
        weights = sum(math.prod(entry.shape) for entry in inner)
        return cls(
            sum(entry.nbytes for entry in matrices),
            sum(math.prod(entry.shape) for entry in matrices),
            sum(entry.nbytes for entry in inner) / weights,
            blocks.most_common(1)[0][0],
        )


@dataclass(frozen=True)
class Shape:
    """A model's sizes; no weight is loaded.

    trained: the number of values that each scheme trains, without schemes that the architecture cannot have. tensors:
    for each scheme the number of trained tensors of each view. body: values in the layers that a token is multiplied
    with, without the experts that it is not sent to. upper: those of body in the upper half of the layers; 0 for a
    sequence-to-sequence model, whose upper half is in the decoder. layers, hidden, vocabulary, context: sizes, and the
    most tokens of a row. Of a sequence-to-sequence model, layers and body are the encoder's, which a row passes
    through. sample: the first layers, on the device "meta". head: one of `loading.HEADS`. has_full_logits: whether the
    architecture changes logits, so that the logits of all positions are computed. packed: what a GGUF file holds; None for
    other models.
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
    has_full_logits: bool
    packed: PackedFile | None = None

    def build(self, dtype: torch.dtype, layers: int) -> Any:
        """The model with its first layers alone, at most SAMPLED_LAYERS, without values."""
        return truncate_layers(copy.deepcopy(self.sample), layers).to(dtype)


def shape(settings: PlanSettings) -> Shape:
    """The shape of the model that the settings name or describe.

    Raises ValueError or FileNotFoundError for a model that is not there, or not described well enough.
    """
    name, given = settings.model, settings.parameters
    if quantities.is_count(name) and not Path(name).exists():
        if given:
            raise ValueError(f"parameters is {given!r}, and MODEL {name}; give one of them")
        name, given = "", name
    if not name:
        if settings.head not in ("auto", "causal"):
            raise ValueError(f"head is {settings.head}, and a model described by sizes is causal; name the model")
        count = int(quantities.read("parameters", given)) if given else 0
        config = _llama(count, {size: getattr(settings, size) for size in SIZES})
        values = sum(p.numel() for p in _empty_model(config, "causal").parameters())
        if count and settings.layers and settings.hidden and not 0.75 < values / count < 1.33:
            sizes_text = f"layers {settings.layers} and hidden {settings.hidden} make {quantity(values, '')}"
            raise ValueError(f"parameters is {given}, and {sizes_text}; leave one of them out")
        return _shape_of(config, "causal", settings.lora_rank, count)
    for field in ("parameters", *SIZES):
        if getattr(settings, field):
            raise ValueError(f"{field} is {getattr(settings, field)!r}, and model {name!r} has its own; give one of them")
    config, head = models.configuration(name, settings.head)
    if getattr(config, "quantization_config", None) and not name.endswith(".gguf") and name != models.DEMO:
        raise ValueError(f"model {name!r} is quantised, which zerograd does not train yet; give the model before quantisation")
    file = models.demo_file() if name == models.DEMO else Path(name)
    measured = _shape_of(config, head, settings.lora_rank)
    if file.suffix == ".gguf":
        measured = replace(measured, packed=_packed(file))
    if settings.tokens > measured.context:
        raise ValueError(f"tokens is {settings.tokens}; model {name!r} takes at most {measured.context:,}")
    return measured


def _packed(file: Path) -> PackedFile | None:
    """What stays packed of a file; None where it cannot be read so, and is unpacked."""
    try:
        return PackedFile.of(file)
    except ValueError:
        return None


def _shape_of(config: Any, head: str, lora_rank: int, count: int = 0) -> Shape:
    """The shape of a configuration. count: the given number of parameters, which the configuration only approximates; 0
    if none is given.
    """
    model = _empty_model(config, head)
    layer_list = schemes.blocks(model.get_encoder() if head == "seq2seq" else model)
    body = [sum(_values_per_token(p, config) for p in layer.parameters() if p.ndim > 1) for layer in layer_list]
    values = sum(p.numel() for p in model.parameters())
    sizes = config.get_text_config()
    has_full_logits = head == "causal" and any(vars(sizes).get(name) not in (None, 1) for name in LOGIT_FIELDS)
    tensors = {}
    for scheme in SCHEMES:
        with contextlib.suppress(ValueError):  # this architecture cannot have the scheme
            tensors[scheme] = _trained_views(schemes.select(model, scheme, lora_rank=lora_rank, head=head))
    trained = {scheme: sum(map(math.prod, views.elements())) for scheme, views in tensors.items()}
    scale = count / values if count else 1.0
    return Shape(
        count or values,
        {name: round(number * (scale if name in ("full", *schemes.UPPER) else 1)) for name, number in trained.items()},
        tensors,
        round(sum(body) * scale),
        round(sum(body[len(body) // 2 :]) * scale * (head != "seq2seq")),
        len(layer_list),
        sizes.hidden_size,
        sizes.vocab_size,
        context(model),
        truncate_layers(_empty_model(config, head), SAMPLED_LAYERS),
        head,
        has_full_logits,
    )


def truncate_layers(module: Any, layers: int) -> Any:
    """Remove all but the first layers of a model. Returns the model."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            del child[layers:]
        else:
            truncate_layers(child, layers)
    return module


def _empty_model(config: Any, head: str) -> Any:
    import transformers

    with torch.device("meta"):
        return getattr(transformers, models.HEADS[head]).from_config(copy.deepcopy(config), dtype=torch.bfloat16).eval()


def _trained_views(model: Any) -> Counter[View]:
    """The number of trained tensors of each view."""
    return Counter(space.view for space in collect(model))


def _values_per_token(parameter: nn.Parameter, config: Any) -> float:
    """The number of values of a parameter that a token is multiplied with; of stacked experts, those it is sent to."""
    sizes = config.get_text_config()
    chosen = getattr(sizes, "num_experts_per_tok", None) or getattr(sizes, "top_k_experts", None)
    share = chosen / len(parameter) if parameter.ndim == 3 and chosen and len(parameter) > chosen else 1.0
    return parameter.numel() * share


def _llama(count: int, sizes: dict[str, int]) -> Any:
    """A Llama configuration; sizes of 0 are derived from the other sizes and the number of parameters."""
    import transformers

    vocabulary = sizes["vocabulary"] or VOCABULARY_SIZE
    layers, hidden = sizes["layers"], sizes["hidden"]
    if not count and not (layers and hidden):
        raise ValueError("the model is not given: name one, or its size as --parameters 8B, or its --layers and --hidden")
    if not hidden:  # 12 layers hidden ** 2 + 2 vocabulary hidden = count
        widths = range(64, 1 << 20, 64)
        hidden = next(h for h in widths if 12 * (layers or h / WIDTH_OF_LAYERS) * h * h + 2 * vocabulary * h >= count)
    layers = layers or max(1, round((count - 2 * vocabulary * hidden) / (12 * hidden * hidden)))
    if hidden % 2:
        raise ValueError(f"hidden is {hidden}; heads have an even width: give an even number")
    fitting = [heads for heads in range(1, hidden + 1) if hidden % (2 * heads) == 0]
    if sizes["heads"] and sizes["heads"] not in fitting:
        raise ValueError(f"heads is {sizes['heads']}, which does not divide hidden {hidden} into even parts; give one that does")
    heads = sizes["heads"] or min(fitting, key=lambda heads: abs(hidden / heads - WIDTH_OF_HEADS))
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
