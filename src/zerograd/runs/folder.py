"""Finished runs: their models, tasks and settings, to be evaluated, asked and compared."""

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
from zerograd.text.models import loading as models
from zerograd.text.models import schemes
from zerograd.text.models.loading import Loaded
from zerograd.text.scoring import Scorer
from zerograd.tune.settings import TuneSettings, from_mapping


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
        """The test rows with what was said of them before and after."""
        return _lines(self.folder / "predictions.jsonl")

    @property
    def record(self) -> dict[str, Any]:
        """What a report needs beside the result: settings and versions, and whether the metric is a share."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "versions": self.result.get("versions", {}),
            "is_share": is_share(self.result["metric"]),
        }

    def scorer(self, device: str = "auto", task: Task | None = None) -> Scorer:
        """The tuned model, asked as it was in training."""
        return scorer(str(self.folder / "model"), self.settings, task or Task(self.spec), device, self.settings.model)


def base(settings: TuneSettings, name: str = "") -> Loaded:
    """The model that a run begins from, with its adapter, and what is trained set so. name: where it is now, if elsewhere."""
    dtype = torch.float32 if settings.storage == "float32" else torch.bfloat16
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # a head that the model was saved without is drawn, the same one every time
        loaded = models.load(name or settings.model, dtype, settings.head, models.device_of(settings.device))
    model = schemes.select(
        loaded.model,
        settings.scheme,
        layers=settings.layers,
        pattern=settings.pattern,
        lora_rank=settings.lora_rank,
        virtual_tokens=settings.virtual_tokens,
        head=loaded.head,
        seed=settings.seed,
        fresh=loaded.fresh,
    )
    return Loaded(model, loaded.tokenizer, loaded.head)


def storage(settings: TuneSettings) -> str | None:
    """How its trained weights are stored, as an optimiser takes it."""
    return None if settings.storage == "auto" else settings.storage


def open_run(folder: str) -> Run:
    """A run by its folder. Raises FileNotFoundError or ValueError when it is none, or not finished."""
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
        raise ValueError(f"run {folder!r}: a file of it is not JSON ({error})") from None
    settings = from_mapping(TuneSettings, fields, f"run {folder}")
    spec = tasks.parse((path / "task.yaml").read_text(encoding="utf-8"), path.name)
    return Run(path, settings, spec, result)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scorer(model: str, settings: Any, task: Task, device: str = "auto", base: str = "") -> Scorer:
    """A model asked a task. base: the model that an adapter belongs to, where `model` is one."""
    place = models.device_of(device)
    dtype = torch.float32 if getattr(settings, "storage", "") == "float32" else torch.bfloat16
    adapter = (Path(model) / "adapter_config.json").exists()
    loaded = models.load(base if adapter else model, dtype, settings.head, place)
    found = loaded.model
    if adapter:
        import peft

        found = peft.PeftModel.from_pretrained(found, model).eval().to(place)
    return Scorer(found, loaded.tokenizer, task, loaded.head, settings.max_tokens)
