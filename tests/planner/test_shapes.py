"""Parameters counted from a model's configuration."""

from __future__ import annotations

import peft
import pytest
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
)

from tests.planner.described import rows_of, trained
from zerograd.planner import shapes
from zerograd.planner.settings import PlanSettings
from zerograd.planner.shapes import shape

pytestmark = pytest.mark.full


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4),
        GPT2Config(vocab_size=101, n_embd=64, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=1),
        OPTConfig(vocab_size=101, hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=64),
    ],
    ids=lambda config: config.model_type,
)
def test_an_adapter_has_the_values_of_pefts(config):
    real = AutoModelForCausalLM.from_config(config)
    found = shapes._shape_of(config, "causal", 4)
    assert found.trained["lora"] == trained(peft.get_peft_model(real, peft.LoraConfig(r=4)))


def test_a_token_meets_the_experts_that_it_is_sent_to():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    some = [shapes._shape_of(MixtralConfig(**sizes, num_local_experts=n), "causal", 4) for n in (4, 8)]
    assert some[1].parameters > 1.5 * some[0].parameters
    assert some[1].body - some[0].body == 2 * 4 * 32  # four more routes a layer; two experts a token in both


def test_a_model_of_numbers_has_the_parameters_that_it_was_given():
    sizes = {"layers": 32, "hidden": 4096, "vocabulary": 128256, "intermediate": 14336, "heads": 32}
    given = shape(PlanSettings(parameters="8B", **sizes))
    assert (given.parameters, given.layers, given.hidden, given.vocabulary) == (8_000_000_000, 32, 4096, 128256)
    assert given.trained["full"] == given.parameters
    for size in ("100M", "1.3B", "8B", "70B"):
        found = shape(PlanSettings(model=size))
        built = found.body + 2 * found.vocabulary * found.hidden
        assert built == pytest.approx(found.parameters, rel=0.1)  # the sizes that were derived agree with it
    assert rows_of(model="1B") == rows_of(parameters="1B", model="")
