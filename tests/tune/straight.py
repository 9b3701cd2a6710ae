"""Runs that were not cut off, of each kind, and what is compared with them."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from transformers import LlamaConfig, LlamaForCausalLM

from tests.text.tiny import characters
from zerograd import journal
from zerograd.journal import Skip, Step
from zerograd.text.data import splits
from zerograd.text.data.tasks import Task, TaskSpec
from zerograd.tune import loop, tune
from zerograd.tune import setup as setups
from zerograd.tune.folder import JOURNAL
from zerograd.tune.settings import TuneSettings


@functools.cache
def model_folder(place: Path) -> Path:
    """A tiny Llama of three layers, so that the lowest is frozen and its states are kept."""
    path = place / "model of three layers"
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=101, initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=1, **size)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    characters().save_pretrained(path)
    return path


@contextlib.contextmanager
def small_tasks() -> Iterator[None]:
    """Every task is eighty film reviews, with options of one character."""
    full = splits.load("sentiment-movies")
    spec = TaskSpec("letters", prompt="{{ text | trim }}=", options=("n", "p"), label="label", cut="text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setups, "task_of", lambda settings: Task(spec, full.train[:40], full.dev[:20], full.test[:20]))
        patch.setattr(loop, "DIVERGENCE_FACTOR", 0.9)  # a small model's loss cannot grow much
        yield


def settings(folder, out, **more: Any) -> TuneSettings:
    given = {"minutes": 0, "steps": 12, "batch_size": 8, "threads": 1, "evals": 3, "lr": 0.02}
    return TuneSettings(model=str(folder), out=str(out), **(given | more))


def weights(out) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def rows(out) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def records(out) -> list[Any]:
    path = out / JOURNAL
    with path.open("rb") as file:
        return list(journal.Reader(file, path.stat().st_size))


def learnt(out) -> list[Any]:
    """What every step found and did."""
    steps = [record for record in records(out) if isinstance(record, (Step, Skip))]
    return [(s.number, s.loss, s.coefficients.tolist() if isinstance(s, Step) else None) for s in steps]


def require_as_far(out, straight, taken: int) -> None:
    """That what was recorded is there to the bit, and the end within rounding: hidden states that the full disk did not keep are
    computed again beside other rows, which some processors round otherwise."""
    assert learnt(out)[:taken] == learnt(straight)[:taken]
    assert [number for number, _, _ in learnt(out)] == [number for number, _, _ in learnt(straight)]
    assert [loss for _, loss, _ in learnt(out)] == pytest.approx([loss for _, loss, _ in learnt(straight)], rel=0.02)
    ends = [load(weights(folder)) for folder in (out, straight)]
    for name, tensor in ends[0].items():
        other = ends[1][name].float()
        assert (tensor.float() - other).norm() <= 0.02 * other.norm()


KINDS: dict[str, dict[str, Any]] = {
    "per-example": {},
    "upper": {"scheme": "upper"},
    "mezo, back-offs": {"method": "mezo", "scheme": "upper", "lr": 2.0, "schedule": "constant", "weight_decay": 0.01},
    "bfloat16, all": {"precision": "bfloat16", "scheme": "full", "keep": "last"},
    "lora": {"scheme": "lora", "schedule": "cosine"},
}


@functools.cache
def straight_runs(place: Path) -> dict[str, Path]:
    """The folders of runs that were not cut off. Tests share them, and none may change them."""
    made = {}
    with small_tasks():
        for kind, more in KINDS.items():
            made[kind] = place / "straight" / kind
            tune(settings(model_folder(place), made[kind], **more))
    return made
