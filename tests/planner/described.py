"""A described machine, and models to plan for."""

from __future__ import annotations

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.text.tiny import characters
from zerograd.planner import make_plan
from zerograd.planner.settings import PlanSettings

DESCRIBED = {"device": "cpu", "memory": "16GB", "flops": "1TFLOPS", "bandwidth": "20GB/s"}
FLAGS = [part for name, value in DESCRIBED.items() for part in (f"--{name}", value)]


def llama(layers=5, hidden=64, spread=0.3, **more):
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    config = LlamaConfig(vocab_size=101, num_hidden_layers=layers, initializer_range=spread, **sizes, **ids, **more)
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def saved(path, **more):
    llama(**more).save_pretrained(path)
    characters().save_pretrained(path)
    return path


def rows_of(**settings):
    return {row.name: row for row in make_plan(PlanSettings(**DESCRIBED | settings)).rows}


def trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
