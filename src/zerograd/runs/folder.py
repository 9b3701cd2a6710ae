"""Finished runs: their models, tasks, settings and results."""

from __future__ import annotations

import dataclasses
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from zerograd.text.data import tasks
from zerograd.text.data.tasks import Task, TaskSpec
from zerograd.text.metrics import is_share
from zerograd.text.models import loading
from zerograd.text.scoring import Scorer
from zerograd.tune.settings import TuneSettings, from_record


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run's folder."""

    folder: Path
    settings: TuneSettings
    spec: TaskSpec
    result: dict[str, Any]

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The logged steps."""
        return _lines(self.folder / "metrics.jsonl")

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """The test rows with the model's answers before and after training."""
        return _lines(self.folder / "predictions.jsonl")

    @property
    def record(self) -> dict[str, Any]:
        """The fields that a report needs beside the result: settings, versions, and whether the metric is a share."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "versions": self.result.get("versions", {}),
            "is_share": is_share(self.result["metric"]),
        }

    def scorer(self, device: str = "auto", task: Task | None = None) -> Scorer:
        """A scorer of the tuned model with the run's settings."""
        return scorer_of(str(self.folder / "model"), self.settings, task or Task(self.spec), device, self.settings.model)


def open_run(folder: str) -> Run:
    """The run in a folder. Raises FileNotFoundError or ValueError if the folder is not a finished run's."""
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"run {folder!r} is not there; give the folder that zerograd tune wrote")
    for name in ("settings.json", "task.yaml", "result.json"):
        if not (path / name).exists():
            raise FileNotFoundError(f"run {folder!r} has no {name}; give the folder of a finished run")
    try:
        fields = json.loads((path / "settings.json").read_text(encoding="utf-8"))
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"run {folder!r}: settings.json or result.json is not JSON ({error})") from None
    settings = from_record(fields, f"run {folder}")
    spec = tasks.parse((path / "task.yaml").read_text(encoding="utf-8"), path.name)
    return Run(path, settings, spec, result)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scorer_of(model: str, settings: Any, task: Task, device: str = "auto", base: str = "") -> Scorer:
    """A scorer of a model on a task. base: the base model, where `model` is an adapter."""
    device_name = loading.device_of(device)
    dtype = torch.float32 if getattr(settings, "precision", "") == "float32" else torch.bfloat16
    adapter = (Path(model) / "adapter_config.json").exists()
    packing = loading.FROZEN if settings.packed else None
    source = base if adapter and not (packing and any(loading.files_of(Path(model)))) else model
    loaded = loading.load(source, dtype, settings.head, device_name, task.options, packing)
    tuned = loaded.model
    if adapter:
        import peft

        tuned = peft.PeftModel.from_pretrained(tuned, model).eval().to(device_name)
    return Scorer(tuned, loaded.tokenizer, task, loaded.head, settings.max_tokens)
