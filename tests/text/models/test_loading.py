"""Models by name: the head that they were saved with, what is said of those that are not there, and the memory of loading."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import LlamaModel

from tests.text.tiny import bart, bert, classifier, gpt2, pooled, roberta, t5, tiny_model, tokenizer
from zerograd.cli import main
from zerograd.text.models import loading as models

pytestmark = pytest.mark.full

KINDS = {
    "causal": (tiny_model, gpt2),
    "masked": (bert, roberta),
    "seq2seq": (t5, bart),
    "classifier": (classifier, pooled),
}


@pytest.mark.parametrize(("head", "build"), [(head, build) for head, builds in KINDS.items() for build in builds])
def test_a_model_answers_with_the_head_that_it_was_saved_with(tmp_path, head, build):
    build().to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer(mask=True).save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path))
    assert loaded.head == head
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert not loaded.model.training


def test_a_model_without_the_head_that_is_asked_for_is_refused(tmp_path):
    tiny = tiny_model()
    tiny.save_pretrained(tmp_path / "tied")
    LlamaModel(tiny.config).save_pretrained(tmp_path / "headless")
    tiny.config.tie_word_embeddings = False
    LlamaModel(tiny.config).save_pretrained(tmp_path / "untied")
    for folder in ("tied", "headless", "untied"):
        tokenizer().save_pretrained(tmp_path / folder)
    with pytest.raises(ValueError, match="the model is a LlamaModel, which has no head that answers; choose --head, one of causal"):
        models.load(str(tmp_path / "headless"))
    with pytest.raises(ValueError, match=r"was saved without lm_head.weight, so it has no causal head; choose another --head"):
        models.load(str(tmp_path / "untied"), head="causal")
    assert models.load(str(tmp_path / "tied"), head="causal").head == "causal"


@pytest.mark.parametrize("name", ["nowhere/at/all", "./nowhere", "no.gguf", "some-hub-id"])
def test_a_model_that_is_not_there_is_named_with_what_may_be_given(name):
    with pytest.raises(
        FileNotFoundError, match=r"is not there.*: give a folder that transformers loads, a .gguf file, a hub id, or 'demo'"
    ):
        models.load(name)


def test_devices_are_those_of_this_machine():
    assert models.device_of("cpu") == "cpu"
    assert models.device_of("auto") == (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    for name in ("cuda:99", "tpu", ""):
        with pytest.raises(ValueError, match="is not there; this machine has"):
            models.device_of(name)


def test_a_flag_that_is_wrong_is_one_line(capsys):
    for flags, says in ((["--lr", "fast"], "invalid float value: 'fast'"), (["--stepz", "3"], "unrecognized arguments: --stepz")):
        with pytest.raises(SystemExit) as raised:
            main(["tune", *flags])
        assert raised.value.code == 2
        error = capsys.readouterr().err.strip()
        assert says in error
        assert len(error.splitlines()) == 1


BESIDE = """
import sys, threading, time
from pathlib import Path
from zerograd.text.models import loading as models
models.load(sys.argv[1])  # what loading anything needs
seen = []

def own():  # of the process alone, without pages of the file
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))

def watch():
    while kept is None:
        seen.append(own())
        time.sleep(0.002)

kept = None
watcher = threading.Thread(target=watch)
watcher.start()
kept = models.load("demo")
watcher.join()
sizes = [p.numel() for p in kept.model.parameters()]
print(max(seen) - own(), 2 * sum(sizes), 4 * max(sizes))
"""


def test_loading_a_gguf_makes_no_second_copy_of_it(tmp_path):
    """Beside what stays there is one tensor as float32, while it is made of the file's, and its copy."""
    tiny_model().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", BESIDE, str(tmp_path)], capture_output=True, text=True, check=True)
    beside, weights, largest = map(int, done.stdout.split())
    assert weights > 260e6
    assert beside < min(2.2 * largest, 0.95 * weights)


def test_a_gguf_is_parsed_once_and_the_library_is_left_as_it_was(monkeypatch):
    import gguf

    parsed, named = [], []

    class Reader(gguf.GGUFReader):
        def __init__(self, *given: Any) -> None:
            parsed.append(given)
            super().__init__(*given)

    name = gguf.get_tensor_name_map
    counted = lambda *given: named.append(given) or name(*given)  # noqa: E731
    monkeypatch.setattr(gguf, "GGUFReader", Reader)
    monkeypatch.setattr(gguf, "get_tensor_name_map", counted)
    models.load("demo")
    assert (len(parsed), len(named)) == (1, 1)
    assert gguf.GGUFReader is Reader
    assert gguf.get_tensor_name_map is counted


LOADS = """
import sys, resource
from zerograd.text.models import loading as models
from zerograd.machine import memory
models.load(sys.argv[1])  # what loading anything needs
memory.reset_peak()
before = memory.peak_bytes()
kept = models.load(sys.argv[2])
print(memory.peak_bytes() - before, sum(p.numel() * p.element_size() for p in kept.model.parameters()))
"""


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=["bf16 file", "float32 file"])
def test_loading_holds_one_copy_of_the_weights(tmp_path, stored):
    """Resident memory in a fresh process; a file that is mapped may count once beside the weights that are made of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    small, large = tmp_path / "small", tmp_path / "large"
    tiny_model().to(stored).save_pretrained(small)
    size = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=1000, **size)).to(stored).save_pretrained(large)
    for folder in (small, large):
        tokenizer().save_pretrained(folder)
    done = subprocess.run([sys.executable, "-c", LOADS, str(small), str(large)], capture_output=True, text=True, check=True)
    peak, weights = map(int, done.stdout.split())
    assert weights > 200e6
    file = weights * (1 if stored == torch.bfloat16 else 2)
    assert peak < 1.15 * max(weights, 0) + (0 if stored == torch.bfloat16 else file)
