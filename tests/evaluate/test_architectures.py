"""Every kind of model: losses under a plan equal those of copies whose weights were really perturbed."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers as tr
from torch import nn

from tests.evaluate.small import Sampled
from tests.oracles import perturb_in_place
from zerograd.directions import Draws
from zerograd.evaluate import self_check as check
from zerograd.evaluate.trace import UnresolvedOperation
from zerograd.queries import Scores
from zerograd.queries import plan as plans
from zerograd.queries.plan import Plan, branches

pytestmark = pytest.mark.full

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64}
GROUPED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
GPT_OSS = {**GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 1}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}
T5_SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "decoder_start_token_id": 0}
PAD = 1


class Convolutions(nn.Module):
    """Images through a grouped convolution, batch norm, group norm and a convolution along one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
            *(nn.Conv2d(6, 8, 3, groups=2), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 1, bias=False)),
        )
        self.line = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, groups=2), nn.GELU(), nn.Conv1d(6, 4, 1))
        self.head = nn.Linear(4, 6)
        normal: Any = self.image[1]
        normal.running_mean.normal_()
        normal.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.line(self.image(x).flatten(2)).mean(2))
        return y


def _llama(**more: Any) -> nn.Module:
    return tr.LlamaForCausalLM(tr.LlamaConfig(**GROUPED, pad_token_id=PAD, **more))


def _lora() -> nn.Module:
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(_llama(), adapter)


def _prompts() -> nn.Module:
    return peft.get_peft_model(_llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama-tied": lambda: _llama(tie_word_embeddings=True),
    "llama-untied": _llama,
    "qwen3": lambda: tr.Qwen3ForCausalLM(tr.Qwen3Config(**GROUPED, head_dim=8)),
    "opt": lambda: tr.OPTForCausalLM(tr.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=16, pad_token_id=PAD)),
    "gpt2-tied": lambda: tr.GPT2LMHeadModel(tr.GPT2Config(**GPT2)),
    "gpt2-untied": lambda: tr.GPT2LMHeadModel(tr.GPT2Config(**GPT2, tie_word_embeddings=False)),
    "bert": lambda: tr.BertForMaskedLM(tr.BertConfig(**SIZES, intermediate_size=48)),
    "roberta": lambda: tr.RobertaForSequenceClassification(tr.RobertaConfig(**SIZES, intermediate_size=48, num_labels=6)),
    "t5": lambda: tr.T5ForConditionalGeneration(tr.T5Config(**T5_SIZES)),
    "mixtral": lambda: tr.MixtralForCausalLM(tr.MixtralConfig(**GROUPED, num_local_experts=4, experts_implementation="eager")),
    "mixtral-grouped": lambda: tr.MixtralForCausalLM(tr.MixtralConfig(**GROUPED, num_local_experts=4)),
    "gpt-oss": lambda: tr.GptOssForCausalLM(tr.GptOssConfig(**GPT_OSS)),
    "mamba": lambda: tr.MambaForCausalLM(tr.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=8)),
    "convolutions": Convolutions,
    "llama-lora": _lora,
    "llama-prompts": _prompts,
}

IMAGES = {
    "image_size": 16,
    "num_channels": 1,
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [2, 2],
    "window_size": 4,
    "num_labels": 3,
}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
LLAMA4 = {"intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 4, "attention_chunk_size": 64}
UNUSUAL: dict[str, Callable[[], nn.Module]] = {
    "tokens first": lambda: tr.XLNetLMHeadModel(tr.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48, vocab_size=64)),
    "queries tokens first": lambda: tr.LongformerForMaskedLM(
        tr.LongformerConfig(**SIZES, intermediate_size=48, attention_window=4)
    ),
    "bias of windows": lambda: tr.SwinForImageClassification(tr.SwinConfig(**IMAGES, patch_size=2)),
    "bias by a network": lambda: tr.Swinv2ForImageClassification(tr.Swinv2Config(**IMAGES, patch_size=2)),
    "relative attention": lambda: tr.DebertaV2ForMaskedLM(tr.DebertaV2Config(**SIZES, intermediate_size=48, **DEBERTA)),
    "experts by one batched product": lambda: tr.Llama4ForCausalLM(tr.Llama4TextConfig(**GROUPED, **LLAMA4, pad_token_id=PAD)),
    "experts by a gather": lambda: tr.SwitchTransformersForConditionalGeneration(
        tr.SwitchTransformersConfig(**T5_SIZES, num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)
    ),
    "gates by a batched product": lambda: tr.RecurrentGemmaForCausalLM(
        tr.RecurrentGemmaConfig(**GROUPED, head_dim=8, lru_width=32, block_types=("recurrent", "attention"), pad_token_id=PAD)
    ),
}
"""Models that transpose the batch, or meet a parameter in an operation that few models use."""

INVISIBLE = {
    "opt": r"k_proj\.bias",
    "bert": r"key\.bias",
    "roberta": r"key\.bias",
    **dict.fromkeys(("mixtral", "mixtral-grouped", "gpt-oss"), r"mlp"),
}
"""Tensors that need not show: a softmax over keys ignores what all keys share, and a router or an expert may have
no token to decide about."""

SHAPES = {"ambiguous": (2, 1, 4), "options": (2, 3, 5), "padded": (3, 1, 7)}
"""Examples, rows an example, tokens. In the first one the expanded examples, tokens and attention heads are all 4."""

IMAGE_SIDES = {"convolutions": 6, "bias of windows": 16, "bias by a network": 16}

every_model = pytest.mark.parametrize("name", MODELS)
every_family = pytest.mark.parametrize("family", perturb_in_place.FAMILIES)


TWINS: defaultdict[tuple[str, str], perturb_in_place.Twins] = defaultdict(perturb_in_place.Twins)


@functools.cache
def built(name: str) -> nn.Module:
    """The model, with weights far from any initial symmetry. Tests share it, and none may change it."""
    torch.manual_seed(0)
    model = (MODELS | UNUSUAL)[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter += 0.3 * torch.randn(parameter.shape)
            else:
                parameter.normal_(0, 2 / parameter[0].numel() ** 0.5)
    return model


def batch_of(name: str, shape: str) -> dict[str, torch.Tensor]:
    examples, rows, tokens = SHAPES[shape]
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, rows, (examples,), generator=generator)
    if name in IMAGE_SIDES:
        side = IMAGE_SIDES[name]
        return {"x": torch.randn(examples * rows, 1, side, side, generator=generator), "label": labels}
    ids = torch.randint(2, 64, (examples * rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, tokens - 2 :] = 0
    mask[-1, tokens - 1 :] = 0
    ids = torch.where(mask > 0, ids, PAD)
    batch = {"input_ids": ids, "attention_mask": mask, "label": labels}
    if name in ("t5", "experts by a gather"):
        batch["labels"] = torch.randint(2, 64, (examples * rows, 4), generator=generator)
    return batch


def objective(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """One loss an example: of one row its own loss, of several rows a softmax over their scores."""
    inputs = {key: value for key, value in batch.items() if key != "label"}
    if "x" in inputs:
        out = model(inputs["x"])
        scores = getattr(out, "logits", out).log_softmax(-1)[:, 0]
    else:
        logits = model(**inputs).logits.float().log_softmax(-1)  # (rows, tokens, vocabulary) or (rows, classes)
        if logits.ndim == 2:
            scores = logits[:, 1]
        elif "labels" in inputs:
            scores = logits.gather(-1, inputs["labels"][..., None])[..., 0].mean(1)
        else:
            tokens = inputs["input_ids"].shape[1]
            picked = logits[:, -tokens:].gather(-1, inputs["input_ids"].roll(-1, 1)[..., None])[..., 0]
            scores = (picked * inputs["attention_mask"]).sum(1) / inputs["attention_mask"].sum(1)
    label = batch["label"]
    if len(scores) == len(label):
        return -scores
    return F.cross_entropy(scores.view(len(label), -1), label, reduction="none")


def agree(mine: torch.Tensor, real: torch.Tensor, relative: float = 1e-5) -> None:
    error, size = float((mine - real).abs().max()), 1 + float(real.abs().max())
    assert error < relative * size, f"differs by {error:.3g} of {size:.3g}"


@every_model
@pytest.mark.parametrize(
    ("family", "shape"),
    [
        *((family, shape) for family in ("dense-shared", "rank1-each") for shape in SHAPES),
        *((family, "padded") for family in ("dense-gaussian-each", "rank1-shared", "rank2-each")),
    ],
)
def test_all_tensors_at_once(name: str, family: str, shape: str) -> None:
    """One forward for the whole plan gives what a really perturbed copy a variant gives."""
    model, batch = built(name), batch_of(name, shape)
    spaces = perturb_in_place.spaces_of(model)
    kind, make_plan = perturb_in_place.FAMILIES[family]
    directions, plan = Draws(kind, 5).at(3), make_plan(SHAPES[shape][0])
    mine = perturb_in_place.scores(spaces, directions, plan, lambda b: objective(model, b), batch)
    real = perturb_in_place.losses(model, spaces, directions, plan, objective, batch, TWINS[name, family])
    clean = perturb_in_place.scores(spaces, directions, plans.clean(len(batch["label"])), lambda b: objective(model, b), batch)
    assert float((real - clean.repeat(plan.branches)).abs().median()) > 1e-3
    agree(mine, real)


@every_model
@every_family
def test_tensor_by_tensor(name: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check passes for every tensor, and every tensor that the model uses moves the loss."""
    monkeypatch.setitem(check.FLOOR, torch.float32, 1e-5)
    model, batch = built(name), batch_of(name, "ambiguous")
    spaces = perturb_in_place.spaces_of(model)
    kind, make_plan = perturb_in_place.FAMILIES[family]
    directions, effects = Draws(kind, 5).at(3), dict.fromkeys((space.name for space in spaces), 0.0)

    @dataclasses.dataclass
    class Watched(Sampled):
        """Remembers how far each tensor moves the loss."""

        def scores(self, plan: Plan, directions: Any, radii: Any) -> Scores:
            mine = super().scores(plan, directions, radii)
            if plan.coefficient.any():
                (space,) = self.spaces
                effects[space.name] = max(effects[space.name], float((mine.values - clean).abs().max()))
            return mine

    ask = Watched.of(spaces, lambda b: objective(model, b), batch, plan=make_plan(2))
    clean = ask.clean(directions)
    assert check.self_check(ask, directions, spaces, every=True) == len(spaces)
    hidden = INVISIBLE.get(name, "(?!)")
    assert not [key for key, effect in effects.items() if effect < 1e-4 and not re.search(hidden, key)]


@every_model
@pytest.mark.parametrize(("family", "sign"), [("dense-shared", 1.0), ("rank2-each", -1.0)])
def test_closure(name: str, family: str, sign: float) -> None:
    """A closure's branch sees one perturbed model."""
    model, batch = built(name), batch_of(name, "options")
    spaces = perturb_in_place.spaces_of(model)
    directions = Draws(perturb_in_place.FAMILIES[family][0], 5).at(3)
    mine = perturb_in_place.scores_of_closure(spaces, directions, branches(1, [0], [sign]), lambda: objective(model, batch).mean())
    twin = TWINS[name, family].of(model, spaces, directions, 0, sign)
    with torch.no_grad():
        real = objective(twin, batch).mean()
    agree(mine, real)


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("family", ["dense-shared", "rank1-each"])
@pytest.mark.parametrize("shape", SHAPES)
def test_unusual_models_are_right_or_refused(name: str, family: str, shape: str) -> None:
    """What cannot be split by example is refused naming a parameter; nothing is silently wrong."""
    model, batch = built(name), batch_of(name, shape)
    spaces = perturb_in_place.spaces_of(model)
    kind, make_plan = perturb_in_place.FAMILIES[family]
    directions, plan = Draws(kind, 5).at(3), make_plan(SHAPES[shape][0])
    try:
        mine = perturb_in_place.scores(spaces, directions, plan, lambda b: objective(model, b), batch)
    except UnresolvedOperation as error:
        refusal = str(error)
    else:
        refusal = ""
        agree(mine, perturb_in_place.losses(model, spaces, directions, plan, objective, batch))
    assert not refusal or any(space.name in refusal for space in spaces)


@pytest.mark.parametrize("name", ["llama-tied", "llama-untied", "t5"])
@every_family
def test_split_precision(name: str, family: str) -> None:
    """A 16-bit forward follows the float32 weights that it stands for, to 16-bit rounding of its activations."""
    model, batch = built.__wrapped__(name), batch_of(name, "padded")  # its own copy: the parameters' precision changes
    spaces = perturb_in_place.spaces_of(model, "split")
    assert all(space.parameter.dtype == torch.bfloat16 and space.remainder is not None for space in spaces)
    kind, make_plan = perturb_in_place.FAMILIES[family]
    directions, plan = Draws(kind, 5).at(3), make_plan(3)
    mine = perturb_in_place.scores(spaces, directions, plan, lambda b: objective(model, b), batch, 0.3)
    real = perturb_in_place.losses(model, spaces, directions, plan, objective, batch, eps=0.3)
    clean = perturb_in_place.scores(spaces, directions, plans.clean(3), lambda b: objective(model, b), batch).repeat(2)
    effect = float((real - clean).abs().max())
    assert effect > 0.15
    assert float((mine - real).abs().max()) < 0.05 * effect + 0.06  # a bfloat16 model rounds each activation
