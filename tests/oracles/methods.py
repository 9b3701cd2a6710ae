"""The list of methods that the common tests run over, and the small model that they train. A new method joins with one line."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zerograd as zg
from tests.tiers import full, tiers
from zerograd.directions import Draws
from zerograd.spaces import Space
from zerograd.update import GroupStep, Target

COMMON: dict[str, Callable[..., Any]] = {
    "mezo": zg.optim.MeZO,
    "mezo-gaussian": functools.partial(zg.optim.MeZO, distribution="gaussian"),
    "fzoo": zg.optim.FZOO,
    "rank1": zg.optim.PerExample,
    "rank2-gaussian": functools.partial(zg.optim.PerExample, rank=2, distribution="gaussian"),
    "rank1-plain": functools.partial(zg.optim.PerExample, standardised=False),
    "rank2-plain": functools.partial(zg.optim.PerExample, rank=2, standardised=False),
    "mezo-populations": functools.partial(zg.optim.MeZO, directions=2, sides=1),
    "grzo": zg.optim.GRZO,
    "leave-one-out": functools.partial(zg.optim.LeaveOneOut, directions=3, rank=1),
    "evolution": functools.partial(zg.optim.Evolution, anchor=0.1),
    "momentum": zg.optim.Momentum,
    "adam": zg.optim.Adam,
    "adamezo": functools.partial(zg.optim.AdaMeZO, history=3),
    "meazo": zg.optim.MEAZO,
    "sign": zg.optim.Sign,
    "sign-published": zg.optim.SignPublished,
    "conservative": zg.optim.Conservative,
    "kerzoo": zg.optim.KerZOO,
    "lozo": functools.partial(zg.optim.LOZO, period=2),
    "lozo-m": functools.partial(zg.optim.LOZOM, period=2),
    "subzero": functools.partial(zg.optim.SubZero, rank=2, period=2),
    "zo-muon": functools.partial(zg.optim.ZOMuon, rank=2, period=2),
    "hizoo": functools.partial(zg.optim.HiZOO, smoothing=1e-3),
    "sparse-mezo": zg.optim.SparseMeZO,
    "static-mask": functools.partial(zg.optim.StaticMask, keep=0.2),
    "block-wise": zg.optim.BlockWise,
    "qzo": zg.optim.QZO,
    "random-layers": functools.partial(zg.optim.RandomLayers, share=0.75),
}
PRECISIONS = ("float32", "split", "bfloat16")

# Axes: what a test runs over. Those of the six representatives in `split` are the quick tier, the others are `full`.

REPRESENTATIVES = ("mezo", "rank1", "fzoo", "adam", "lozo-m", "hizoo")
FAMILIES = (
    *("mezo", "mezo-gaussian", "rank1", "rank2-gaussian", "rank2-plain", "grzo", "lozo", "subzero", "zo-muon"),
    *("hizoo", "sparse-mezo", "static-mask", "block-wise"),
)
"""A method of each kind of directions."""

QUERIES = (
    *(
        "mezo",
        "mezo-populations",
        "fzoo",
        "rank1",
        "grzo",
        "leave-one-out",
        "evolution",
        "sign-published",
        "conservative",
        "kerzoo",
        "hizoo",
    ),
)
"""A method of each way to score directions, and to make coefficients of the scores."""

RULES = (
    *("mezo", "rank1", "momentum", "adam", "adamezo", "meazo", "sign", "lozo-m", "zo-muon", "hizoo", "sparse-mezo", "static-mask"),
    *("qzo", "evolution"),
)
"""A method of each kind of rule."""


def methods(*names: str) -> pytest.MarkDecorator:
    """A test's `method`."""
    return pytest.mark.parametrize(
        "method", [pytest.param(COMMON[name], id=name, marks=[] if name in REPRESENTATIVES else [full]) for name in names]
    )


def pairs(in_split: Iterable[str], elsewhere: Iterable[str] = ()) -> pytest.MarkDecorator:
    """A test's `method` and `precision`: some methods in `split`, and some in float32 and bfloat16."""
    found = [(name, "split") for name in in_split]
    found += [(name, precision) for precision in ("float32", "bfloat16") for name in elsewhere]
    return pytest.mark.parametrize(
        ("method", "precision"),
        [
            pytest.param(COMMON[name], precision, id=f"{name}-{precision}", marks=[] if quick(name, precision) else [full])
            for name, precision in found
        ],
    )


def quick(name: str, precision: str) -> bool:
    return name in REPRESENTATIVES and precision == "split"


every_method = methods(*COMMON)
every_precision = tiers("precision", ["split"], ["float32", "bfloat16"])
every_method_in_split = pairs(COMMON, REPRESENTATIVES)
"""What any method may do wrong, and any precision."""

every_rule_in_every_precision = pairs(COMMON, RULES)
"""What a rule may do wrong in one precision."""

every_family = methods(*FAMILIES)
every_family_in_split = pairs(FAMILIES, ("mezo", "rank1"))
every_family_in_every_precision = pairs(FAMILIES, FAMILIES)
every_query = methods(*QUERIES)
every_query_in_split = pairs(QUERIES, ("mezo", "rank1"))
every_query_in_every_precision = pairs(QUERIES, QUERIES)
every_rule_in_split = pairs(RULES)
shared_and_own = methods("mezo", "rank1")
"""What is asked of code that all methods share: with directions of the batch, and of each example."""

mezo_only = methods("mezo", "mezo-gaussian")
shared_only = methods(*(name for name in COMMON if not name.startswith(("rank", "grzo"))))
per_example_only = methods(*(name for name in COMMON if name.startswith(("rank", "grzo"))))
plain_only = methods("mezo", "mezo-gaussian", "rank1-plain", "rank2-plain")
"""Those whose mean step is the gradient's."""

pass_sharing_only = methods(
    *(
        name
        for name in COMMON
        if name.startswith(("mezo", "rank", "fzoo", "leave", "sign-p", "subzero", "conserv", "kerzoo", "meazo"))
    )
)
"""Those whose steps need nothing of a weight but itself: many are done in a pass over it."""


class Net(nn.Module):
    """Two looked-up tokens, a hidden layer with its norm, three classes. `tied` uses the embedding as the last layer."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        with torch.no_grad():
            self.hidden.weight[:2] = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1.0, -1.0])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).mean(1)
        return self.head(self.norm(x + F.gelu(self.hidden(x))))

    def losses(self, tokens: torch.Tensor) -> torch.Tensor:
        """One loss an example: predict token 0 from the others. tokens: int64 (examples, 1 + context)."""
        return F.cross_entropy(self(tokens[:, 1:]).float(), tokens[:, 0], reduction="none")


def batch(examples: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(11, (examples, 4), generator=torch.Generator().manual_seed(seed))


def stored(opt: Any) -> list[torch.Tensor]:
    """Bit patterns of everything that an optimiser may write: parameters and remainders, copies."""
    patterns = []
    for space in opt.spaces:
        for tensor in space.stored().values():
            patterns.append(tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32).clone())
    return patterns


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def exact(opt: Any) -> list[torch.Tensor]:
    """The float32 values that are being optimised, copies."""
    return [space.exact().detach().clone().view(space.shape) for space in opt.spaces]


def update(opt: Any, step: int, coefficients: list[float], lr: float = 1.0, decay: float = 1.0) -> None:
    """Subtract directions of a step from every space as plain SGD does, whatever the method's rule."""
    for space in opt.spaces:
        update_space(space, opt.draws, step, coefficients, lr, decay)


def update_space(space: Space, draws: Draws, step: int, coefficients: list[float], lr: float = 1.0, decay: float = 1.0) -> None:
    """The same of one space."""
    Target(space, draws).subtract_directions([GroupStep(step, 1, -1, lr, decay, coefficients)])


def digest_of_updates() -> tuple[str, str]:
    """(the back end that drew the noise, a digest of weights after the same coefficients by every method in every precision)."""
    digest = hashlib.sha256()
    for method in COMMON.values():
        for precision in PRECISIONS:
            net = Net()
            opt = method(net, lr=0.1, precision=precision)
            for step in range(2):
                update(opt, step, [0.3, 0.0, 0.0, 0.0, 0.0, -0.1], decay=0.99)
            for pattern in stored(opt):
                digest.update(pattern.numpy().tobytes())
    return zg.noise.backend(torch.empty(1, 1)).__name__, digest.hexdigest()
