"""A tiny model in a folder, and a table."""

from __future__ import annotations

import pytest
import torch

from tests.cli.runs import ROWS
from tests.text.data.files import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama of characters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.text.tiny import characters

    path = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=101, initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=1, **size)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    chat = characters()
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    chat.save_pretrained(path)
    return path


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "mine.csv", ROWS)
