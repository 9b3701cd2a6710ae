"""Which architectures of transformers can be trained: a tiny random model of every type, one step of two methods, full check.

Each causal, masked, sequence-to-sequence, image- and audio-classification type of the installed transformers is built from its own
configuration with small sizes. A step of per-example and one of MeZO follow, each tensor compared with really perturbed weights.
Then all tensors are perturbed together, and the losses of both sides are compared with those of a model whose weights are: a
difference that no check has refused counts as wrong.

    python benchmarks/architectures.py
    python benchmarks/architectures.py --kind causal --type mixtral gpt_oss --json

A row says for each method "ok", "refused" with the reason, or the error. A type that cannot be built tiny says why in `why`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import queue
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from record import provenance, save

from zerograd.machine import environment

KINDS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
}
METHODS = {"per_example": "PerExample", "mezo": "MeZO"}
EXAMPLES, TOKENS, VOCABULARY, LABELS = 4, 12, 64, 3
AGREE = 1e-3
"""Losses of both sides that differ by at most this much, relative to the loss, are the same."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--type", nargs="+", help="only these types")
    parser.add_argument("--again", type=Path, nargs="+", default=[], help="results of this benchmark: what is ok in one is kept")
    parser.add_argument("--seconds", type=float, default=600, help="that a type may take")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--name", help="save the result under this name")
    parsed = parser.parse_args()
    environment.prepare()
    before = [json.loads(path.read_text()) for path in parsed.again]
    ok = {(row["kind"], row["type"]): row for one in before for row in one["rows"] if all(row[m] == "ok" for m in METHODS)}
    kept = list(ok.values())
    rows = [*kept, *_rows_of(parsed, {(row["kind"], row["type"]) for row in kept})]
    built = [row for row in rows if row["built"]]
    states = [[str(row[method]) for method in METHODS] for row in built]
    result = {
        "rows": rows,
        "kept_from": {"commits": [one["commit"] for one in before], "rows": len(kept)} if kept else None,
        "types": len(rows),
        "built": len(built),
        "ok": sum(all(state == "ok" for state in both) for both in states),
        "refused": sum(any(state.startswith("refused") for state in both) for both in states),
        "wrong": sum(any(state.startswith("wrong") for state in both) for both in states),
    }
    if parsed.name:
        print(save(parsed.name, result))
    summary = ", ".join(f"{name} {result[name]}" for name in ("types", "built", "ok", "refused", "wrong"))
    print(json.dumps(provenance() | result) if parsed.json else summary)


def _rows_of(parsed: argparse.Namespace, kept: set[tuple[str, str]]) -> Any:
    """A row for each type, in a process of its own that is ended when it takes too long."""
    import torch
    import transformers.models.auto.modeling_auto as auto

    torch.set_num_threads(1)
    jobs = [
        (kind, name)
        for kind in parsed.kind
        for name in getattr(auto, KINDS[kind])
        if (not parsed.type or name in parsed.type) and (kind, name) not in kept
    ]
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(jobs)), {}
    results: Any = context.Queue()
    while waiting or running:
        while waiting and len(running) < parsed.workers:
            job = waiting.pop()
            process = context.Process(target=_in_process, args=(results, *job))
            process.start()
            running[job] = (process, time.monotonic())
        with contextlib.suppress(queue.Empty):
            row = results.get(timeout=0.2)
            process, _ = running.pop((row["kind"], row["type"]))
            process.join()
            _show(row, parsed)
            yield row
        for job, (process, began) in list(running.items()):
            late, dead = time.monotonic() - began > parsed.seconds, not process.is_alive()
            if (late or dead) and results.empty():
                process.kill()
                del running[job]
                why = f"took over {parsed.seconds:g} s" if late else f"ended with {process.exitcode}"
                row = {"type": job[1], "kind": job[0], "built": late, "per_example": why, "mezo": why}
                _show(row, parsed)
                yield row


def _show(row: Mapping[str, Any], parsed: argparse.Namespace) -> None:
    says = row["why"] if not row["built"] and "why" in row else f"{row['per_example']:.90} | {row['mezo']:.90}"
    print(f"{row['kind']:8} {row['type']:26} {'built' if row['built'] else 'not built':9} {says}", flush=True)


def _in_process(results: Any, kind: str, name: str) -> None:
    row: dict[str, Any] = {"type": name, "kind": kind, "built": False, "per_example": "", "mezo": ""}
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    began = time.monotonic()
    try:
        tried = tiny(kind, name)
        row["built"] = True
        row["class"], row["parameters"] = type(tried.model).__name__, sum(p.numel() for p in tried.model.parameters())
    except Exception as error:
        row["why"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
    else:
        for method in METHODS:
            row[method] = outcome(tried, method)
    row["seconds"] = round(time.monotonic() - began, 1)
    results.put(row)


class Tried(NamedTuple):
    """A model, one loss for each example of a batch, and the batch."""

    model: Any
    objective: Callable[[Any], Any]
    batch: dict[str, Any]


def outcome(tried: Tried, method: str) -> str:
    """What a step of a method ends with."""
    import torch

    import zerograd as zg
    from zerograd.errors import ZerogradError
    from zerograd.evaluate.evaluator import LocalBatch

    before = [p.detach().clone() for p in tried.model.parameters()]
    try:
        optimizer = getattr(zg.optim, METHODS[method])(tried.model, lr=1e-4, self_check="full")
        evaluator = LocalBatch.of(optimizer.spaces, tried.objective, tried.batch)
        directions = optimizer.draws.at(0)
        plan = optimizer.method.query.plan(evaluator.examples, directions)
        optimizer.attach(tried.objective, tried.batch)
        mine = evaluator.scores(plan, directions, optimizer.radii).values.flatten()
        real = torch.cat([_really(tried, optimizer, directions, variant) for variant in plan.variants()])
        if not torch.isfinite(real).all():
            return "error: a loss is not finite"
        gap = float((mine - real).abs().max() / (1 + real.abs().max()))
        if gap > AGREE:
            return f"wrong: losses differ by {gap:.2g}"
        optimizer.step(tried.objective, tried.batch)
    except ZerogradError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"error: {type(error).__name__}: {str(error).strip()[:300]}"
    finally:
        with torch.no_grad():
            for p, old in zip(tried.model.parameters(), before, strict=True):
                p.copy_(old)
    return "ok"


def _really(tried: Tried, optimizer: Any, directions: Any, variant: Any) -> Any:
    """The losses of a variant's examples with all weights really perturbed."""
    import torch

    with contextlib.ExitStack() as shown, torch.no_grad():
        for space in optimizer.spaces:
            z = directions.z(space, variant.direction).view(space.flat_rows, -1)
            radius = variant.coefficient * optimizer.radii[space.id]
            shown.enter_context(space.shown(space.exact() + z * (radius * space.scale)))
        losses = tried.objective(tried.batch).float()
    first = variant.first % len(losses)
    return losses[first : first + variant.examples]


# Tiny models

NAMES = (
    (32, "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size encoder_hidden_size decoder_hidden_size lru_width"),
    (32, "word_embed_proj_dim attention_hidden_size backbone_hidden_size linear_attn_hidden_size output_hidden_size"),
    (4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads"),
    (4, "num_encoder_attention_heads num_decoder_attention_heads"),
    (2, "num_key_value_heads num_kv_heads n_head_kv multi_query_group_num num_query_groups"),
    (8, "head_dim d_kv attention_head_dim attention_head_size swa_head_dim global_head_dim key_dim value_dim"),
    (2, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers"),
    (2, "adapter_layers speech_encoder_layers"),
    (48, "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim moe_intermediate_size d_inner dim_ff"),
    (48, "ffn_hidden_size shared_expert_intermediate_size expert_ffn_hidden_size intermediate_size_mlp"),
    (48, "shared_intermediate_size block_ffn_dim dense_intermediate_size"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts num_local_experts_per_layer"),
    (2, "num_experts_per_tok num_experts_per_token moe_top_k top_k_experts moe_topk moe_k type_vocab_size"),
    (1, "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group num_expert_groups first_k_dense_replace"),
    (VOCABULARY, "vocab_size encoder_vocab_size decoder_vocab_size src_vocab_size tgt_vocab_size emb_size"),
    (VOCABULARY, "vocab_size_per_layer_input"),
    (16, "q_lora_rank kv_lora_rank attn_lora_rank o_lora_rank rank qk_head_dim num_mel_bins"),
    (8, "qk_nope_head_dim qk_rope_head_dim v_head_dim index_head_dim"),
    (LABELS, "num_labels"),
    (32, "image_size"),
    (4, "patch_size"),
    (3, "num_channels"),
    (24, "max_length"),
    (2, "linear_num_key_heads mamba_n_groups ssm_state_size n_mamba_heads"),
    (4, "linear_num_value_heads attention_window"),
    (8, "linear_key_head_dim linear_value_head_dim mamba_head_dim num_latents"),
    (16, "entity_vocab_size entity_emb_size"),
    (32, "d_latents"),
)
SIZES = {name: value for value, names in NAMES for name in names.split()}
"""Attributes of configurations and their small values, where a configuration has them."""

LONGEST = {"max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions", "n_ctx", "max_seq_len"}

OPTIONAL = (
    *("head_dim", "num_key_value_heads", "n_head_kv", "vocab_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok"),
    "moe_intermediate_size",
)
"""Sizes that are set where a configuration leaves them open, too."""

DEPTHS = (2, 4, 8)
"""Numbers of layers, tried in turn: hybrids have an attention layer among every few."""

MLA = {"num_key_value_heads": 4}
FOUR_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
PYRAMID = {**FOUR_STAGES, "num_attention_heads": [1, 1, 2, 2]}
RESIDUAL = {**FOUR_STAGES, "embedding_size": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
SWIN = {"window_size": 4, "depths": [1, 1], "num_heads": [2, 4]}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
RECIPES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"n_group": 1, "topk_group": 1},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "bit": {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 32, 64, 64], "embedding_size": 32, "num_groups": 8},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "convnext": FOUR_STAGES,
    "convnextv2": FOUR_STAGES,
    "cvt": {"depth": [1, 2, 3]},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "donut-swin": SWIN,
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "esm": {"pad_token_id": 0, "mask_token_id": 1},
    "esmc": MLA,
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "mamba_d_state": 16},
    "focalnet": {"depths": [1, 1], "embed_dim": 8, "hidden_sizes": [8, 16], "focal_levels": [2, 2], "focal_windows": [3, 3]},
    "funnel": {"block_sizes": [1, 1]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}},
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "hgnet_v2": {
        **FOUR_STAGES,
        "hidden_sizes": [16, 16, 16, 16],
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 16, 16, 16],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [16, 16, 16, 16],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [1, 1, 1, 1],
    },
    "kimi_linear": {
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse"],
    },
    "levit": {"image_size": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "mobilenet_v1": {"depth_multiplier": 0.125},
    "mobilenet_v2": {"depth_multiplier": 0.125},
    "mobilevit": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32]},
    "mobilevitv2": {"image_size": 64},
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "nemo_speechlm": {"head_config": {"audio_hidden_size": 32}},
    "neomme": {"head_dim": 16},
    "perceiver": {"num_self_attends_per_block": 1},
    "poolformer": FOUR_STAGES,
    "pvt": PYRAMID,
    "pvt_v2": PYRAMID,
    "causal/reformer": {"is_decoder": True, "axial_pos_embds": False},
    "masked/reformer": {"is_decoder": False, "axial_pos_embds": False},
    "regnet": {**RESIDUAL, "groups_width": 8},
    "resnet": {**RESIDUAL, "layer_type": "basic"},
    "segformer": PYRAMID,
    "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
    "swin": SWIN,
    "swinv2": {**SWIN, "embed_dim": 16},
    "vibevoice_asr": {
        f"{kind}_tokenizer_encoder_config": {"num_filters": 4, "depths": [1, 1, 1, 1, 1, 1, 1]} for kind in ("semantic", "acoustic")
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"layer_types": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What types need beside the common sizes: attributes of their configuration, or of a part of it by the part's name."""


def tiny(kind: str, name: str) -> Tried:
    """A tiny model of a type with its objective and batch. Raises what its class raises when it cannot be built so."""
    for layers in DEPTHS[:-1]:
        with contextlib.suppress(Exception):
            return _tiny(kind, name, layers)
    return _tiny(kind, name, DEPTHS[-1])


def _tiny(kind: str, name: str, layers: int) -> Tried:
    import torch
    import transformers
    import transformers.models.auto.modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    given = getattr(auto, KINDS[kind])[name]
    cls = getattr(transformers, given if isinstance(given, str) else given[0])
    recipe = RECIPES.get(f"{kind}/{name}", RECIPES.get(name, {}))
    config = small(getattr(cls, "config_class", None) or CONFIG_MAPPING[name], recipe, layers)
    if kind in ("image", "audio"):
        config.num_labels = LABELS
    config.use_cache = False
    torch.manual_seed(0)
    model = cls(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():  # far from any initial symmetry, so that a perturbation of each shows
            if p.is_floating_point() and p.numel():
                scale = 0.5 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1
                p.add_(torch.randn(p.shape, generator=generator) * scale)
    batch, objective = task(kind, model, generator)
    with torch.no_grad():
        losses = objective(batch)
    if losses.shape != (EXAMPLES,) or not torch.isfinite(losses).all():
        raise ValueError(f"the losses of the tiny model are {losses}")
    return Tried(model, objective, batch)


def small(cls: Any, recipe: Mapping[str, Any], layers: int) -> Any:
    """A small configuration of a class. recipe: attributes that it needs beside the common ones."""
    default = cls()
    parts = getattr(default, "sub_configs", {})
    chosen: dict[str, Any] = {}
    values = default.to_dict()
    for key, value in values.items():
        size = layers if SIZES.get(key) == 2 and "layer" in key else SIZES.get(key)
        if key in SIZES and (value is not None or key in OPTIONAL):
            many = isinstance(value, (list, tuple))
            chosen[key] = [size] * (len(value) if len(value) <= 4 else layers) if many else size
        elif key in LONGEST and value:
            chosen[key] = 64
        elif key.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            chosen[key] = VOCABULARY - 1 - len(key) % 8
    if "kv_lora_rank" in values:
        chosen |= MLA
    for key, part in parts.items():
        given = getattr(default, key, None)
        kind = type(given) if given is not None else part
        if hasattr(kind, "to_dict"):
            chosen[key] = small(kind, recipe.get(key, {}), layers)
    return cls(**{**chosen, **{key: value for key, value in recipe.items() if key not in parts}})


def task(kind: str, model: Any, generator: Any) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """(a batch for a model, the objective that gives one loss an example)."""
    import torch
    import torch.nn.functional as F

    labels = torch.randint(0, LABELS, (EXAMPLES,), generator=generator)
    if kind in ("image", "audio"):
        batch = {model.main_input_name: signal(model, generator), "labels": labels}

        def of_classes(batch: Any) -> Any:
            given = {key: value for key, value in batch.items() if key != "labels"}
            out = model(**given)
            logits = out.logits if hasattr(out, "logits") else out[0]
            return F.cross_entropy(logits.float(), batch["labels"], reduction="none")

        return batch, of_classes
    ids = torch.randint(3, VOCABULARY - 10, (EXAMPLES, TOKENS), generator=generator)
    batch = {"input_ids": ids}
    if kind == "seq2seq":
        batch["decoder_input_ids"] = torch.randint(3, VOCABULARY - 10, (EXAMPLES, TOKENS - 4), generator=generator)

    def of_tokens(batch: Any) -> Any:
        out = model(**batch)
        logits = out.logits if hasattr(out, "logits") else out[0]
        targets = batch.get("decoder_input_ids", batch["input_ids"])
        logits, targets = logits[:, -targets.shape[1] :], targets
        if kind != "masked":
            logits, targets = logits[:, :-1], targets[:, 1:]
        return F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none").mean(1)

    return batch, of_tokens


def signal(model: Any, generator: Any) -> Any:
    """Random pixels, samples or spectra of the shape that a model takes."""
    import torch

    config, name = model.config, model.main_input_name
    if name == "input_ids":
        return torch.randint(0, VOCABULARY, (EXAMPLES, TOKENS), generator=generator)
    if name in ("pixel_values", "inputs"):
        side = getattr(config, "image_size", 32)
        side = side if isinstance(side, (tuple, list)) else (side, side)
        return torch.randn((EXAMPLES, getattr(config, "num_channels", 3), *side), generator=generator)
    if hasattr(config, "feature_projection_input_dim"):
        return torch.randn((EXAMPLES, 20, config.feature_projection_input_dim), generator=generator)
    if hasattr(config, "num_mel_bins"):
        whisper = hasattr(config, "max_source_positions")
        shape = (config.num_mel_bins, 2 * config.max_source_positions) if whisper else (config.max_length, config.num_mel_bins)
        return torch.randn((EXAMPLES, *shape), generator=generator)
    return torch.randn((EXAMPLES, 1600), generator=generator)


if __name__ == "__main__":
    main()
