"""The results of a run in its folder: the tuned model, numbers, predictions and the report."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zerograd.machine.files import new_folder, write_text
from zerograd.quantised import adapter, write
from zerograd.quantised.models import base_of
from zerograd.report import run_page
from zerograd.spaces import Space
from zerograd.text.metrics import is_share
from zerograd.text.models import schemes
from zerograd.tune.folder import RESULT
from zerograd.tune.schedule import evaluations_of
from zerograd.tune.settings import TuneSettings
from zerograd.tune.setup import Setup
from zerograd.tune.sinks import Row
from zerograd.tune.state import LoopState
from zerograd.version import __version__

Result = dict[str, Any]
"""The numbers of a finished run by name, as result.json holds them."""


def summary(setup: Setup, state: LoopState) -> Result:
    """The run's settings and the cost of its training; without the metric of its answers."""
    settings, optimizer, noise = setup.settings, setup.optimizer, state.noise
    noise_scale = noise.examples if math.isfinite(noise.examples) else None
    interval = [end if math.isfinite(end) else None for end in noise.interval]
    return {
        "model": settings.model,
        "task": setup.task.name,
        "method": settings.method,
        "scheme": settings.scheme,
        "objective": settings.objective,
        "first_row": dict(zip(("prompt", "answer"), setup.scorer.seen(setup.task.train[0]), strict=True)),
        "seed": settings.seed,
        "lr": setup.lr,
        "weight_bytes": setup.weight_bytes,
        "cache_bytes": 0 if setup.scorer.cache is None else setup.scorer.cache.bytes,
        "trained_parameters": setup.trained_parameters,
        "run": str(setup.folder),
        "versions": {"zerograd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "backward_passes": optimizer.steps if optimizer.method.takes_backward else 0,
        "steps": optimizer.steps,
        "skipped_steps": optimizer.skipped,
        "forwards": optimizer.forwards,
        "evaluations": evaluations_of(optimizer),
        "state_bytes": optimizer.state_bytes,
        "flat_steps": state.flat_steps,
        "back_offs": state.back_offs,
        "noise_scale": noise_scale,
        "noise_scale_range": interval if noise_scale else None,
        "signal_to_noise": noise.signal_to_noise if noise_scale else None,
        "stopped": state.stopped,
    }


def save_model(setup: Setup) -> None:
    """Write the tuned model and its tokenizer for plain transformers to load, or a packed one as a .gguf file; an older model is
    replaced at the end.
    """
    with new_folder(setup.folder / "model") as folder:
        write_model(setup.model, setup.scorer.tokenizer, setup.optimizer.spaces, folder, setup.settings)


def write_model(model: Any, tokenizer: Any, spaces: Sequence[Space], folder: Path, settings: TuneSettings) -> None:
    """Write a tuned model to a folder that is there. A packed one, and its adapter, then hold what their files do."""
    base, has_adapter = base_of(model), hasattr(model, "peft_config")
    if base is not None and settings.scheme not in schemes.ADAPTERS:
        write.write(model, spaces, folder / base.header.path.name, settings.gguf_type)
    if base is None or has_adapter:
        model.save_pretrained(folder)
    if base is not None and settings.scheme in schemes.LORA:
        adapter.write(model, folder / adapter.NAME)
    if base is None or has_adapter:
        tokenizer.save_pretrained(folder)


def write_results(setup: Setup, result: Result, history: list[Row], predictions: list[dict[str, Any]]) -> None:
    """Write settings, task, predictions, report, and last the result, whose file marks the run as finished."""
    folder, settings = setup.folder, dataclasses.asdict(setup.settings)
    write_text(folder / "settings.json", json.dumps(settings, indent=1))
    write_text(folder / "task.yaml", setup.task.spec.to_yaml())
    write_text(folder / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in predictions))
    reported = result | {"settings": settings, "is_share": is_share(result["metric"])}
    run_page.write(folder / "report.html", reported, history, predictions)
    write_text(folder / RESULT, json.dumps(result, indent=1))
