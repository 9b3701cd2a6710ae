"""The model that a run begins from."""

from __future__ import annotations

import torch

from zerograd.text.models import loading, schemes
from zerograd.text.models.loading import Loaded
from zerograd.tune.settings import TuneSettings


def base_model(settings: TuneSettings, name: str = "") -> Loaded:
    """The model that a run begins from, with its adapter, requires_grad set on what the scheme trains.

    name: where the model is now, if that is not where the settings say.
    """
    dtype = torch.float32 if settings.storage == "float32" else torch.bfloat16
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # a head that the model was saved without is drawn, the same one every time
        loaded = loading.load(name or settings.model, dtype, settings.head, loading.device_of(settings.device))
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


def storage_of(settings: TuneSettings) -> str | None:
    """How the trained weights are stored, as an optimiser takes it."""
    return None if settings.storage == "auto" else settings.storage
