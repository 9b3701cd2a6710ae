"""What people bring to a Trainer: small instances, each with what the mixin does with its loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import torch.nn.functional as F
import transformers as tr
from torch import nn
from trl import SFTConfig, SFTTrainer

import zerograd as zg
from tests.text.tiny import SIZE, bert, roberta, t5, tiny_model, tokenizer
from zerograd.integrations.transformers import ZerothOrderConfig, ZerothOrderMixin

EXAMPLE, CLOSURE, REFUSED = "one loss an example", "closure", "refused"


@dataclass(frozen=True)
class Situation:
    """A model, its rows and arguments. outcome: EXAMPLE, CLOSURE or REFUSED. says: a part of the refusal."""

    name: str
    build: Callable[[], tuple[nn.Module, list[dict[str, Any]]]]
    outcome: str
    says: str = ""
    method: str = "mezo"
    arguments: dict[str, Any] = field(default_factory=dict)
    more: Callable[[nn.Module], dict[str, Any]] = lambda model: {}
    base: type = tr.Trainer

    def trainer(self, folder: Path, *, plain: bool) -> Any:
        """The Trainer with the mixin, or the plain one."""
        model, rows = self.build()
        sft = self.base is SFTTrainer
        shared = {
            "output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
            "learning_rate": 0.0, "report_to": "none", "use_cpu": True, "save_strategy": "no", "logging_steps": 1,
            "disable_tqdm": True, "remove_unused_columns": sft,
        }  # fmt: skip
        of_sft = {"bf16": False, "gradient_checkpointing": False} if sft else {}
        given = {name: value for name, value in self.arguments.items() if not (plain and name in ("fp16", "bf16"))}
        args = (SFTConfig if sft else tr.TrainingArguments)(**(shared | of_sft | given))
        more = self.more(model)
        if plain:
            more.pop("optimizers", None)
        data = datasets.Dataset.from_list(rows) if sft else rows
        common = {"model": model, "args": args, "train_dataset": data, "eval_dataset": data, **more}
        if plain:
            return self.base(**common)
        kind = type("ZOTrainer", (ZerothOrderMixin, self.base), {})
        eps = 1e-6 if zg.optim.method_of(self.method).perturbs else None
        return kind(**common, zeroth_order=ZerothOrderConfig(self.method, eps=eps))

    def plain_loss(self, folder: Path) -> float:
        """The eval_loss of the plain Trainer."""
        return float(self.trainer(folder, plain=True).evaluate()["eval_loss"])

    def first_loss(self, folder: Path) -> tuple[float, list[str]]:
        """(the mixin's first loss at a radius near 0, the warnings on the way)."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = self.trainer(folder, plain=False)
            trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return losses[0], [str(one.message) for one in caught]


def seeded(shape: tuple[int, ...], high: int = 0, seed: int = 1) -> torch.Tensor:
    """Random integers from 2 to before `high`, or normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, high, shape, generator=generator) if high else torch.randn(shape, generator=generator)


def texts(labels: Callable[[int, list[int]], Any] | None = None, length: int = 7, **more: Any) -> list[dict[str, Any]]:
    """Four rows of tokens; labels of row i, given its tokens, are the tokens themselves by default."""
    rows = []
    for i, ids in enumerate(seeded((4, length), 100).tolist()):
        made = {"input_ids": ids, "attention_mask": [1] * length, "labels": labels(i, ids) if labels else [-100] * 2 + ids[2:]}
        rows.append(made | {name: value(i) for name, value in more.items()})
    return rows


def padded(rows: list[dict[str, Any]], *, left: bool) -> list[dict[str, Any]]:
    """Row i with i tokens of padding."""
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    for i, row in enumerate(rows):
        for name, value in fill.items():
            some = [value] * i
            row[name] = some + row[name] if left else row[name] + some
            row[name] = [value] * (3 - i) + row[name] if left else row[name] + [value] * (3 - i)
    return rows


class Weighted(tr.RobertaForSequenceClassification):
    """Class weights in the model's own forward."""

    def forward(self, labels=None, **inputs):
        out = super().forward(**inputs)
        out.loss = None if labels is None else F.cross_entropy(out.logits, labels, weight=torch.tensor([1.0, 4.0]))
        return out


class Bare(nn.Module):
    """A module without a configuration that returns (loss, logits)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(100, 16), nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(self.table(input_ids).mean(1))
        return F.cross_entropy(logits, labels), logits


def mixture(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    config = tr.MixtralConfig(
        **{**SIZE, "intermediate_size": 32}, num_key_value_heads=2, num_local_experts=4, initializer_range=0.2,
        router_aux_loss_coef=0.5, **more,
    )  # fmt: skip
    return tr.MixtralForCausalLM(config).eval()


def speech() -> tuple[nn.Module, list[dict[str, Any]]]:
    torch.manual_seed(0)
    config = tr.Wav2Vec2Config(
        **{**SIZE, "vocab_size": 12}, conv_dim=(16, 16), conv_kernel=(8, 4), conv_stride=(4, 2), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer", do_stable_layer_norm=True, ctc_loss_reduction="mean",
    )  # fmt: skip
    rows = [{"input_values": seeded((400,), seed=i), "labels": seeded((5,), 12, i)} for i in range(4)]
    return tr.Wav2Vec2ForCTC(config).eval(), rows


def segmented() -> tuple[nn.Module, list[dict[str, Any]]]:
    torch.manual_seed(0)
    config = tr.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2], patch_sizes=[3, 3],
        strides=[2, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=3,
    )  # fmt: skip
    rows = [{"pixel_values": seeded((3, 16, 16), seed=i), "labels": seeded((16, 16), 5, i) - 2} for i in range(4)]
    return tr.SegformerForSemanticSegmentation(config).eval(), rows


def captions() -> tuple[nn.Module, list[dict[str, Any]]]:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = tr.CLIPConfig(
        text_config={**small, "vocab_size": 100, "max_position_embeddings": 16, "eos_token_id": 99},
        vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=16,
    )  # fmt: skip
    rows = [{"input_ids": seeded((7,), 99, i), "pixel_values": seeded((3, 16, 16), seed=i)} for i in range(4)]
    return tr.CLIPModel(config).eval(), rows


def with_return_loss(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} | {"return_loss": True}


def images() -> tuple[nn.Module, list[dict[str, Any]]]:
    torch.manual_seed(0)
    config = tr.ViTConfig(**{**SIZE, "vocab_size": None}, image_size=16, patch_size=8, num_labels=3, initializer_range=0.2)
    return tr.ViTForImageClassification(config).eval(), [
        {"pixel_values": seeded((3, 16, 16), seed=i), "labels": i % 3} for i in range(4)
    ]


def adapted(config: Any) -> nn.Module:
    torch.manual_seed(0)
    return peft.get_peft_model(tiny_model(), config).eval()


def conversations() -> list[dict[str, Any]]:
    return [{"prompt": f"{i}+{i}=", "completion": str(11 * i)} for i in range(1, 5)]


def sft(model: nn.Module) -> dict[str, Any]:
    made = tokenizer()
    made.eos_token = "!"
    return {"processing_class": made}


def focal(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    losses = F.cross_entropy(outputs.logits, labels, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def classes(i: int, ids: list[int]) -> int:
    return i % 2


LORA = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
PROMPT = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)

SITUATIONS = (
    Situation("a causal model, rows padded on the right", lambda: (tiny_model(), padded(texts(), left=False)), EXAMPLE),
    Situation("a causal model, rows padded on the left", lambda: (tiny_model(), padded(texts(), left=True)), EXAMPLE),
    Situation("a masked model", lambda: (bert(), texts()), EXAMPLE),
    Situation("a sequence-to-sequence model", lambda: (t5(), texts()), EXAMPLE),
    Situation("classes", lambda: (roberta(tr.RobertaForSequenceClassification, num_labels=2), texts(classes)), EXAMPLE),
    Situation(
        "several labels a row",
        lambda: (
            roberta(tr.RobertaForSequenceClassification, num_labels=3, problem_type="multi_label_classification"),
            texts(lambda i, ids: [float(i % 2), 1.0, float(i > 1)]),
        ),
        EXAMPLE,
    ),
    Situation(
        "regression",
        lambda: (roberta(tr.RobertaForSequenceClassification, num_labels=1), texts(lambda i, ids: 0.5 * i)),
        EXAMPLE,
    ),
    Situation(
        "regression of two values",
        lambda: (
            roberta(tr.RobertaForSequenceClassification, num_labels=2, problem_type="regression"),
            texts(lambda i, ids: [0.5 * i, 1.0]),
        ),
        EXAMPLE,
    ),
    Situation(
        "spans of an answer",
        lambda: (
            roberta(tr.RobertaForQuestionAnswering),
            [
                {name: value for name, value in row.items() if name != "labels"}
                for row in texts(start_positions=lambda i: i, end_positions=lambda i: i + 2)
            ],
        ),
        EXAMPLE,
    ),
    Situation(
        "classes of tokens",
        lambda: (roberta(tr.RobertaForTokenClassification, num_labels=3), texts(lambda i, ids: [-100, *(t % 3 for t in ids[1:])])),
        EXAMPLE,
    ),
    Situation(
        "multiple choice",
        lambda: (
            roberta(tr.RobertaForMultipleChoice),
            [{"input_ids": seeded((3, 7), 100, i).tolist(), "labels": i % 3} for i in range(4)],
        ),
        EXAMPLE,
    ),
    Situation("classes of images", images, EXAMPLE),
    Situation("LoRA", lambda: (adapted(LORA), texts()), EXAMPLE),
    Situation("a trained prompt", lambda: (adapted(PROMPT), texts()), EXAMPLE),
    Situation("class weights in the model's forward", lambda: (roberta(Weighted, num_labels=2), texts(classes)), CLOSURE),
    Situation(
        "class weights, with a direction an example",
        lambda: (roberta(Weighted, num_labels=2), texts(classes)),
        REFUSED,
        "where cross entropy of the classes gives",
        method="per-example",
    ),
    Situation("a mixture with its router's loss", lambda: (mixture(output_router_logits=True), texts()), CLOSURE),
    Situation("a mixture without it", lambda: (mixture(), texts()), EXAMPLE),
    Situation("connectionist temporal classification", speech, CLOSURE),
    Situation("segmentation", segmented, CLOSURE),
    Situation("images beside texts (CLIP)", captions, CLOSURE, more=lambda model: {"data_collator": with_return_loss}),
    Situation("a module that returns (loss, logits)", lambda: (Bare(), texts(classes)), CLOSURE),
    Situation("label smoothing", lambda: (tiny_model(), texts()), CLOSURE, arguments={"label_smoothing_factor": 0.1}),
    Situation(
        "a compute_loss_func",
        lambda: (roberta(tr.RobertaForSequenceClassification, num_labels=2), texts(classes)),
        CLOSURE,
        more=lambda model: {"compute_loss_func": focal},
    ),
    Situation("SFTTrainer", lambda: (tiny_model(), conversations()), EXAMPLE, base=SFTTrainer, more=sft, method="per-example"),
    Situation(
        "SFTTrainer, a mixture: it adds the router's loss",
        lambda: (mixture(output_router_logits=True), conversations()),
        CLOSURE,
        base=SFTTrainer,
        more=sft,
    ),
    Situation(
        "SFTTrainer, packing, with a direction an example",
        lambda: (tiny_model(), conversations()),
        REFUSED,
        "has come as 1 row",
        method="per-example",
        base=SFTTrainer,
        more=sft,
        arguments={"packing": True, "max_length": 64},
    ),
    Situation(
        "SFTTrainer, packing, with shared directions",
        lambda: (tiny_model(), conversations()),
        EXAMPLE,
        base=SFTTrainer,
        more=sft,
        arguments={"packing": True, "max_length": 64},
    ),
    Situation(
        "SFTTrainer, wrapped packing",
        lambda: (tiny_model(), conversations()),
        EXAMPLE,
        method="per-example",
        base=SFTTrainer,
        more=sft,
        arguments={"packing": True, "packing_strategy": "wrapped", "max_length": 8},
    ),
    Situation(
        "optimizers=(MeZO(model), None)",
        lambda: (tiny_model(), texts()),
        EXAMPLE,
        more=lambda model: {"optimizers": (zg.optim.MeZO(model, lr=0.0, eps=1e-6), None)},
    ),
    Situation(
        "optimizers=(AdamW(...), None)",
        lambda: (tiny_model(), texts()),
        REFUSED,
        "AdamW, which needs gradients",
        more=lambda model: {"optimizers": (torch.optim.AdamW(model.parameters()), None)},
    ),
    Situation(
        "NEFTune", lambda: (tiny_model(), texts()), REFUSED, "neftune_noise_alpha is 5", arguments={"neftune_noise_alpha": 5.0}
    ),
    Situation(
        "gradient clipping", lambda: (tiny_model(), texts()), REFUSED, r"max_grad_norm is 0.3", arguments={"max_grad_norm": 0.3}
    ),
    Situation(
        "bf16=True", lambda: (tiny_model(), texts()), REFUSED, "bf16=True runs the model under autocast", arguments={"bf16": True}
    ),
    Situation(
        "another optim",
        lambda: (tiny_model(), texts()),
        REFUSED,
        "optim is 'adafactor', which needs gradients",
        arguments={"optim": "adafactor"},
    ),
)
