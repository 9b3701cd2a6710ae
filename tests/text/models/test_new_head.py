"""A classifier's head is made for the task's labels where the saved model has none for them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, RobertaModel

from tests.text.tiny import SIZE, classifier, roberta, tokenizer
from zerograd.cli import main
from zerograd.text.models import loading

LABELS = (" cooking", " sport", " music", " law")

pytestmark = pytest.mark.full


def encoder() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZE, max_position_embeddings=64, initializer_range=0.2, pad_token_id=0)).eval()


MODELS = {"BertModel": encoder, "RobertaModel": lambda: roberta(RobertaModel), "two labels": classifier}


@pytest.fixture
def folder(request, tmp_path):
    MODELS[request.param]().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


every_model = pytest.mark.parametrize("folder", MODELS, indirect=True)


@every_model
def test_a_head_has_the_tasks_labels_and_begins_with_their_words(folder):
    loaded = loading.load(str(folder), torch.float32, "classifier", labels=LABELS)
    assert loaded.model.config.id2label == {i: label.strip() for i, label in enumerate(LABELS)}
    assert any(name.endswith("weight") for name in loaded.fresh)
    head = next(p for name, p in loaded.model.named_parameters() if name in loaded.fresh and p.shape[0] == 4 and p.ndim == 2)
    (size,) = head.abs().unique().tolist()
    assert torch.log2(torch.tensor(size)) % 1 == 0, "signs times a power of two"
    with torch.no_grad():
        logits = torch.cat([loaded.model(loaded.tokenizer(x.strip(), return_tensors="pt")["input_ids"]).logits for x in LABELS])
    assert torch.equal(logits.argmax(0), torch.arange(4)), "no other label's words favour a label more than its own"


def test_the_same_head_is_made_again(tmp_path):
    encoder().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with torch.random.fork_rng():
        made = [loading.load(str(tmp_path), torch.float32, "classifier", labels=LABELS).model.state_dict() for _ in range(2)]
    assert torch.equal(made[0]["classifier.weight"], made[1]["classifier.weight"])


def test_a_head_that_fits_is_the_saved_one(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = loading.load(str(tmp_path), torch.float32, "classifier", labels=("no", "yes"))
    assert loaded.fresh == ()
    assert torch.equal(loaded.model.classifier.out_proj.weight, model.classifier.out_proj.weight)


@pytest.mark.parametrize("scheme", ["qk", "lora"])
@every_model
def test_one_command_trains_a_classifier_that_plain_transformers_loads(folder, tmp_path, scheme, capsys):
    words = [label.strip() for label in LABELS]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"{words[i % 4]} {i}", "topic": words[i % 4]}) + "\n" for i in range(48)))
    run = tmp_path / "run"
    command = ["tune", "--model", str(folder), "--data", str(data), "--text", "text", "--label", "topic", "--head", "classifier"]
    command += ["--scheme", scheme, "--minutes", "0", "--steps", "2", "--evals", "1", "--batch-size", "4", "--threads", "1"]
    assert main([*command, "--out", str(run)]) == 0
    assert "the model's head for 4 labels is new and is trained with the rest" in capsys.readouterr().out
    assert main(["eval", str(run), "--split", "dev", "--threads", "1"]) == 0
    assert main(["replay", str(run), "--out", str(tmp_path / "again")]) == 0
    if scheme != "lora":
        plain = AutoModelForSequenceClassification.from_pretrained(run / "model")
        assert set(plain.config.id2label.values()) == set(words)
        assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "BertModel",
            "the model is a BertModel, which has no head that answers; .*classifier makes a new one for the task's labels",
        ),
        ("two labels", "the model has 2 labels, and task rows has 4 options; --head classifier makes a new head for them"),
    ],
)
def test_without_the_flag_one_line_names_it(name, says, tmp_path, capsys):
    MODELS[name]().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    data = tmp_path / "rows.csv"
    data.write_text("text,topic\n" + "".join(f"a {i},{'abcd'[i % 4]}\n" for i in range(48)))
    command = ["tune", "--model", str(tmp_path / "model"), "--data", str(data), "--text", "text", "--label", "topic"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(says, " ".join(said.split()))
    assert not (tmp_path / "run").exists()
