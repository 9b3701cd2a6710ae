"""Mixtures of experts are tuned from the command line as transformers ships them, their experts in one grouped product."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tr

from tests.text.tiny import SIZE, tokenizer
from zerograd.cli import main

pytestmark = pytest.mark.full

COMMON = {**SIZE, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0, "max_position_embeddings": 128}
MIXTURES = {
    "Mixtral": lambda: tr.MixtralForCausalLM(tr.MixtralConfig(**COMMON, num_local_experts=4)),
    "Qwen3-MoE": lambda: tr.Qwen3MoeForCausalLM(
        tr.Qwen3MoeConfig(**COMMON, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    ),
    "gpt-oss": lambda: tr.GptOssForCausalLM(tr.GptOssConfig(**COMMON, head_dim=8, num_local_experts=4, num_experts_per_tok=2)),
    "GraniteMoE": lambda: tr.GraniteMoeForCausalLM(tr.GraniteMoeConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2)),
}


@pytest.mark.parametrize("scheme", ["qk", "full"])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_tuned_in_one_command(name, scheme, tmp_path, capsys):
    torch.manual_seed(0)
    model = MIXTURES[name]().to(torch.bfloat16)
    assert model.config._experts_implementation == "grouped_mm"
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"text": f"row {i} is {'odd' if i % 2 else 'even'}", "label": ["n", "y"][i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["tune", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "rows.jsonl"), "--text", "text"]
    command += ["--label", "label", "--scheme", scheme, "--minutes", "0", "--steps", "2", "--evals", "1", "--batch-size", "4"]
    command += ["--threads", "1", "--keep", "last", "--lr", "0.5", "--json"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["steps"] == 2
    assert result["skipped_steps"] == 0
    assert result["loss_after"] != result["loss_before"]
