"""Activation checkpointing of models that evaluate in eval mode: switched on inside a block alone."""

from __future__ import annotations

from typing import Any

from torch import nn


class Checkpointing:
    """Inside the block the layers of a model checkpoint their activations; nothing happens for None.

    Raises ValueError for a model whose layers cannot be checkpointed.
    """

    def __init__(self, params: Any) -> None:
        self._layers: list[nn.Module] = []
        if params is None:
            return
        if not isinstance(params, nn.Module) or not hasattr(params, "gradient_checkpointing_enable"):
            raise ValueError(
                "checkpointing is True, and the trained parameters are no model that can be checkpointed; leave it out"
            )
        enable: Any = params.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        self._layers = [module for module in params.modules() if hasattr(module, "gradient_checkpointing")]

    def __enter__(self) -> None:
        for layer in self._layers:  # a layer is checkpointed where it is said to train; what is in it is not
            layer.training = True

    def __exit__(self, *error: object) -> None:
        for layer in self._layers:
            layer.training = False
