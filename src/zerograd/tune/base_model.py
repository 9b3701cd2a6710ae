"""The base model of a run: the model before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zerograd.text.models import loading, schemes
from zerograd.text.models.loading import Loaded
from zerograd.tune.settings import TuneSettings


def base_model(settings: TuneSettings, name: str = "", labels: Sequence[str] = ()) -> Loaded:
    """The model before training, with its adapter, and with requires_grad set on the parameters that the scheme trains.

    name: the model's present path, if it differs from the settings. labels: of the task, for a new classifier's head.
    """
    dtype = torch.float32 if settings.precision == "float32" else torch.bfloat16
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # transformers draws a head that the saved model lacks
        loaded = loading.load(name or settings.model, dtype, settings.head, loading.device_of(settings.device), labels)
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
    return Loaded(model, loaded.tokenizer, loaded.head, loaded.fresh)


def precision_of(settings: TuneSettings) -> str | None:
    """The precision as an optimiser takes it: None for the default."""
    return None if settings.precision == "auto" else settings.precision
