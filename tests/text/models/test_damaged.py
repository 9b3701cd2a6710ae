"""Models that cannot be loaded are one line with the file, tensor or token; adapters are loaded with their base."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from tests.text.tiny import characters, tiny_model
from zerograd.cli import main
from zerograd.text.data.tasks import Task, TaskSpec
from zerograd.text.models.loading import load
from zerograd.text.scoring import Scorer

pytestmark = pytest.mark.full


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    characters().save_pretrained(path)
    return path


def edited(folder, **fields):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


DAMAGES = {
    "cut off": (lambda f: cut(f / "model.safetensors", 2000), "model.safetensors is cut off or damaged"),
    "cut off in its header": (lambda f: cut(f / "model.safetensors", 20), "model.safetensors is cut off or damaged"),
    "a wrong header": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60)),
        "model.safetensors is cut off or damaged",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "is there, and transformers does not load it"),
    "another kind": (lambda f: edited(f, model_type="never-seen"), "it cannot be read (The checkpoint you are"),
    "quantised": (
        lambda f: edited(f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "needs a package that is not installed",
    ),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "transformers does not load it"),
    "a tokenizer that is none": (lambda f: (f / "tokenizer.json").write_text("{}"), "it cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line_and_nothing_is_left(folder, tmp_path, capsys, damage):
    damaging, says = DAMAGES[damage]
    damaging(folder)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"a {i}", "label": "xy"[i % 2]}) + "\n" for i in range(20)))
    out = tmp_path / "run"
    assert main(["tune", "--model", str(folder), "--data", str(data), "--steps", "2", "--out", str(out)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zerograd tune: ")]
    assert str(folder) in line
    assert says in line
    assert not out.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_named(tmp_path, value):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    model.save_pretrained(tmp_path)
    characters().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weight model.layers.1.mlp.up_proj.weight holds NaN or infinity"):
        load(str(tmp_path))


def test_a_token_without_an_embedding_is_named(folder):
    tokenizer = characters()
    tokenizer.add_tokens([f"<{i}>" for i in range(3)])
    tokenizer.add_special_tokens({"pad_token": "<the end>"})
    task = Task(TaskSpec("t", prompt="{{ text }}", options=("a", "b"), label="label"))
    scorer = Scorer(tiny_model(), tokenizer, task)
    fine, wrong = task.read([{"text": "x", "label": "a"}, {"text": "x<2>", "label": "b"}], "d")
    assert scorer.encoder.pad < 101
    assert scorer.length(fine)
    with pytest.raises(ValueError, match=r"token '<2>' has the number 103, and the model has embeddings for 101 tokens; give it"):
        scorer.length(wrong)


@pytest.mark.parametrize("own_tokenizer", [True, False])
def test_an_adapter_is_loaded_with_the_base_that_it_names(folder, tmp_path, own_tokenizer):
    base = load(str(folder), torch.float32)
    adapted = get_peft_model(base.model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    if own_tokenizer:
        characters().save_pretrained(tmp_path / "adapter")
    ids = torch.arange(10)[None]
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
        loaded = load(str(tmp_path / "adapter"), torch.float32)
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert loaded.head == "causal"
    assert loaded.tokenizer.pad_token == "<pad>"
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"is an adapter of .*: model .* is not there"):
        load(str(tmp_path / "adapter"))


def test_an_adapter_that_changes_no_weights_is_refused(folder, tmp_path):
    adapted = get_peft_model(load(str(folder)).model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"is an adapter of kind PREFIX_TUNING, which changes no weights; give its base"):
        load(str(tmp_path / "adapter"))


def test_an_adapter_without_a_base_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match=r"is an adapter, and its adapter_config.json has no base_model_name_or_path"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m-00001-of-00003.gguf", b"GGUF", "is part 1 of 3 of a GGUF file; join them with llama-gguf-split --merge"),
        ("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 5, 5), "cannot be read"),
        ("m.gguf", b"nonsense" * 100, "cannot be read"),
        ("m.gguf", b"", "cannot be read"),
    ],
)
def test_a_gguf_that_is_not_whole_is_said(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=r".") as raised:
        load(str(tmp_path / name))
    assert says in str(raised.value)
    assert name in str(raised.value)


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m['role'][:1] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.mark.parametrize("wrong", [0, 11, 19])
def test_a_conversation_that_the_template_refuses_is_named_before_anything_is_evaluated(folder, tmp_path, capsys, wrong):
    tokenizer = characters()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    rows = [[{"role": "user", "content": f"a {i}"}, {"role": "assistant", "content": "b"}] for i in range(20)]
    rows[wrong].insert(0, {"role": "system", "content": "be good"})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    out = tmp_path / "run"
    assert main(["tune", "--model", str(folder), "--data", str(data), "--steps", "2", "--out", str(out)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zerograd tune: ")]
    assert f"{data}: row {wrong + 1}: the model's chat template refuses the conversation (System role not supported)" in line
    assert not out.exists()
