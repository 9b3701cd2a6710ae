"""Layers below the first trained one, run once: their result is the same for every branch of a step.

When only upper layers are trained, the hidden states that enter them do not depend on the perturbation. `Prefix` runs the
layers below once for the batch; the branches ride from there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zerograd.update.apply import uninterrupted


class Prefix:
    """A decoder cut below its first trained layer.

    Works for decoders that hold their blocks in `layers` and take `inputs_embeds`; `prefix_of` tries it and compares.
    """

    def __init__(self, decoder: Any, depth: int) -> None:
        self.decoder = decoder
        self.depth = depth
        self._layers: nn.ModuleList = decoder.layers
        self._upper = nn.ModuleList([_Through(layer) if i < depth else layer for i, layer in enumerate(self._layers)])

    def below(self, ids: torch.Tensor) -> torch.Tensor:
        """The hidden states that enter layer `depth`: (rows, tokens, width)."""
        return _entering(self.decoder, self._layers[self.depth], input_ids=ids)[0]

    def above(self, hidden: torch.Tensor) -> torch.Tensor:
        """The decoder's last hidden states from those that enter layer `depth`: (rows, tokens, width)."""
        try:
            self.decoder.layers = self._upper
            last: torch.Tensor = self.decoder(inputs_embeds=hidden, use_cache=False).last_hidden_state
        finally:
            with uninterrupted():  # a decoder left cut would be evaluated and saved so
                self.decoder.layers = self._layers
        return last


def prefix_of(model: Any, ids: torch.Tensor) -> Prefix | None:
    """The prefix of a model whose trained parameters all lie in upper layers, or None where that cannot be used.

    ids: a few rows of tokens, on which the cut decoder must give the bits of the whole one.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return None
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    depth = next((i for i, layer in enumerate(layers) if any(id(p) in trained for p in layer.parameters())), len(layers))
    outside = {id(p) for name, p in decoder.named_parameters() if not name.startswith(("layers.", "norm."))}
    if not 0 < depth < len(layers) or trained & outside:
        return None
    prefix = Prefix(decoder, depth)
    try:
        with torch.no_grad():
            whole = decoder(input_ids=ids, use_cache=False).last_hidden_state
            cut = prefix.above(prefix.below(ids))
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return None  # this architecture cannot be cut so
    return prefix if torch.equal(whole, cut) else None


def hands_on(decoder: Any, hidden: torch.Tensor) -> bool:
    """Whether hidden states given as embeddings enter the first of a decoder's `layers` as they are, and nothing else of their
    shape does, as a `Prefix` needs it.

    hidden: (rows, tokens, width); they need no values.
    """
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return False
    try:
        first, others = _entering(decoder, layers[0], inputs_embeds=hidden)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return False
    return first is hidden and not any(isinstance(other, torch.Tensor) and other.shape == hidden.shape for other in others)


def _entering(decoder: Any, layer: nn.Module, **inputs: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
    """(the hidden states that enter a layer, (rows, tokens, width); what else does)."""
    caught: list[tuple[torch.Tensor, list[Any]]] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first, *others = args if args else (kwargs["hidden_states"],)
        caught.append((first, [*others, *(value for name, value in kwargs.items() if name != "hidden_states")]))
        raise _Caught

    handle = layer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad():
            decoder(**inputs, use_cache=False)
    except _Caught:
        pass
    finally:
        handle.remove()
    return caught[0]


class _Caught(Exception):
    """Raised to leave the forward pass once the hidden states are caught."""


class _Through(nn.Module):
    """In place of a layer: hands its input on, and answers for the layer's attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states
