"""The first pass of a generation, in which members read the same prompts: layers below the first trained one read each once.

What a frozen layer makes of a prompt, its keys and values among it, is the same for every member. It is made for the prompts, and
then repeated for their members, in the cache too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from zerograd.evaluate.passes import Pass, Passes
from zerograd.evaluate.shared_prefix import Prefix, prefix_of

FEWER = 0.75
"""At most this share of the rows may be different ones; otherwise nothing is gained."""


class SharedPrefill:
    """How the first passes of a model are made.

    model: whose frozen parameters take no gradient. ids: two rows of tokens, for which the cut model must give the bits of the
    whole one.
    """

    def __init__(self, model: nn.Module, ids: torch.Tensor) -> None:
        self.prefix: Prefix | None = prefix_of(model, lambda: model(input_ids=ids, use_cache=False).logits)

    def of(self, rows: Sequence[int]) -> Callable[[Pass, Sequence[Any], dict[str, Any], Passes], Any] | None:
        """How to make the first pass of rows, given the number of each one's prompt; None where nothing is shared."""
        _, first_of, place = np.unique(rows, return_index=True, return_inverse=True)
        if self.prefix is None or len(first_of) > FEWER * len(rows):
            return None
        prefix, one_each, repeated = self.prefix, torch.from_numpy(first_of), torch.from_numpy(place)

        def first(original: Pass, args: Sequence[Any], kwargs: dict[str, Any], passes: Passes) -> Any:
            cache: Any = kwargs.get("past_key_values")
            if args or not hasattr(cache, "layers") or cache.get_seq_length():
                return original(*args, **kwargs)
            own = copy.deepcopy(cache)  # of no tokens yet
            few = _rows(kwargs, one_each, len(rows)) | {"past_key_values": own}
            with passes.unperturbed():
                entered = prefix.below(lambda: original(**few))
                states = tuple(state[repeated] for state in entered.states)
            for state in states:
                passes.mark(state)
            result = prefix.above(replace(entered, states=states), lambda: original(**kwargs))
            for i, layer in enumerate(own.layers):
                if layer.is_initialized:
                    layer.batch_select_indices(repeated)
                    for value in vars(layer).values():
                        if isinstance(value, torch.Tensor) and value.ndim > 1:
                            passes.mark(value)
                    cache.layers[i] = layer
            return result

        return first


def _rows(kwargs: Mapping[str, Any], index: torch.Tensor, rows: int) -> dict[str, Any]:
    """Arguments with some rows of the tensors that have all: matrices, since a vector is of positions, which may be as many."""
    return {
        name: value[index] if isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == rows else value
        for name, value in kwargs.items()
    }
