"""The base model of a run: the model before training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from zerograd.quantised.models import Say, silent
from zerograd.text.models import loading, schemes
from zerograd.text.models.loading import Loaded, Packing
from zerograd.tune.settings import TuneSettings


def base_model(
    settings: TuneSettings,
    name: str = "",
    labels: Sequence[str] = (),
    trained: Collection[str] | None = None,
    say: Say = silent,
) -> Loaded:
    """The model before training, with its adapter, and with requires_grad set on the parameters that the scheme trains.

    name: the model's present path, if it differs from the settings. labels: of the task, for a new classifier's head. trained:
    names of a model's own tensors that are trained, in place of the scheme's choice. say: takes lines about what cannot stay
    packed.
    """
    dtype = torch.float32 if settings.precision == "float32" else torch.bfloat16
    packing = _packing(settings, trained, say) if settings.packed else None
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # transformers draws a head that the saved model lacks
        device = loading.device_of(settings.device)
        loaded = loading.load(name or settings.model, dtype, settings.head, device, labels, packing)
    if packing is not None and settings.scheme not in schemes.ADAPTERS:
        both = settings.scheme == "scales-lora"
        model = schemes.add_lora(loaded.model, settings.lora_rank, settings.seed) if both else loaded.model
    elif trained is not None:
        model = _choose_named(loaded.model, trained)
    else:
        model = _select(loaded.model, settings, loaded.head, loaded.fresh)
    return Loaded(model, loaded.tokenizer, loaded.head, loaded.fresh)


def precision_of(settings: TuneSettings) -> str | None:
    """The precision as an optimiser takes it: None for the default."""
    return None if settings.precision == "auto" else settings.precision


def _packing(settings: TuneSettings, trained: Collection[str] | None, say: Say) -> Packing:
    def choose(model: Any) -> None:
        if settings.scheme in schemes.ADAPTERS:
            return
        if trained is None:
            _select(model, settings, "causal", ())
            return
        gained = (name.replace(".base_layer.", ".").removeprefix("base_model.model.") for name in trained)
        _choose_named(model, {f"{name.removesuffix('.gain')}.weight" if name.endswith(".gain") else name for name in gained})

    return Packing(choose, settings.scheme in schemes.GAINS, say)


def _select(model: Any, settings: TuneSettings, head: str, fresh: Sequence[str]) -> Any:
    return schemes.select(
        model,
        settings.scheme,
        layers=settings.layers,
        pattern=settings.pattern,
        lora_rank=settings.lora_rank,
        virtual_tokens=settings.virtual_tokens,
        head=head,
        seed=settings.seed,
        fresh=fresh,
    )


def _choose_named(model: Any, names: Collection[str]) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model
