"""What updates do to weights, in numbers: drift at a learning rate of zero, cosine with float64, the walk of rounding.

python benchmarks/numerics.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from record import save


def drift(steps: int = 300) -> dict[str, dict[str, float]]:
    """How far weights move, relative to their norm, in steps whose learning rate is zero, forced through the update."""
    import torch

    import zerograd as zg

    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    moved: dict[str, dict[str, float]] = {}
    for name, method in (("dense", zg.optim.MeZO), ("rank1", zg.optim.PerExample), ("population8", zg.optim.FZOO)):
        for precision in ("float32", "split", "bfloat16"):
            model = net()
            opt = quietly(method, model, lr=0.0, precision=precision)
            before = [space.exact().clone() for space in opt.spaces]
            for _ in range(steps):
                opt.step(losses_of(model), x)
            moved.setdefault(name, {})[precision] = distance(before, [space.exact() for space in opt.spaces])
    for dtype in ("float32", "bfloat16"):
        model = net().to(getattr(torch, dtype))
        before = [p.detach().float().clone() for p in model.parameters()]
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            seed = int(torch.randint(10**9, (), generator=generator))
            for scale in (1e-3, -2e-3, 1e-3):
                torch.manual_seed(seed)
                for p in model.parameters():
                    p.data = p.data + scale * torch.normal(0, 1, p.shape, dtype=p.dtype)
        moved.setdefault("mezo_published", {})[dtype] = distance(before, [p.detach().float() for p in model.parameters()])
    return moved


def update_cosine(steps: int = 1000) -> dict[str, dict[str, float]]:
    """The cosine between the change of a weight and the same updates summed in float64, by method and precision."""
    import torch
    from torch import nn

    import zerograd as zg
    from zerograd.update import GroupStep, Target

    found: dict[str, dict[str, float]] = {}
    for name, method in (("dense", zg.optim.MeZO), ("rank1", zg.optim.PerExample)):
        for precision in ("float32", "split", "bfloat16"):
            torch.manual_seed(0)
            model = nn.Linear(256, 256, bias=False)
            opt = quietly(method, model, lr=0.0, precision=precision)
            (space,) = opt.spaces
            start = space.exact().double()
            wanted = start.clone()
            multipliers = torch.randn(steps, generator=torch.Generator().manual_seed(3)) * 1e-5
            for t, multiplier in enumerate(multipliers.tolist()):
                Target(space, opt.draws).subtract_directions([GroupStep(t, t + 1, t - 1, 1.0, 1.0, [multiplier])])
                wanted -= opt.draws.at(t).z(space, 0).double() * space.scale * multiplier
            change, asked = (space.exact().double() - start).flatten(), (wanted - start).flatten()
            found.setdefault(name, {})[precision] = float(change @ asked / (change.norm() * asked.norm()))
    return found


def rounding_walk(steps: int = 1000) -> dict[str, float]:
    """bfloat16 alone: its distance from float64 after some updates, over that of unbiased rounding, and its mean in deviations.

    An update that ends a fraction f of the spacing u beyond a neighbour is rounded without bias at a variance of u^2 f (1 - f), no
    less; the floor is the root of their sum.
    """
    import torch
    from torch import nn

    import zerograd as zg
    from zerograd.update import GroupStep, Target

    torch.manual_seed(0)
    model = nn.Linear(1024, 1024, bias=False)
    opt = quietly(zg.optim.MeZO, model, lr=0.0, precision="bfloat16")
    (space,) = opt.spaces
    wanted = space.exact().double()
    variance = torch.zeros_like(wanted)
    for t in range(steps):
        spacing = torch.ldexp(torch.ones(()), torch.frexp(space.exact())[1] - 8).double()
        fraction = (space.scale * 1e-5 / spacing).remainder(1)
        variance += spacing.square() * fraction * (1 - fraction)
        Target(space, opt.draws).subtract_directions([GroupStep(t, t + 1, t - 1, 1.0, 1.0, [1e-5])])
        wanted -= opt.draws.at(t).z(space, 0).double() * space.scale * 1e-5
    error = space.exact().double() - wanted
    rms, floor = float(error.square().mean().sqrt()), float(variance.mean().sqrt())
    return {"over_floor": rms / floor, "mean_in_deviations": float(error.mean()) / rms * math.sqrt(error.numel())}


def quietly(method: Any, model: Any, **options: Any) -> Any:
    """An optimiser, without the warning that bfloat16 alone walks."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method(model, **options)


def distance(before: list[Any], after: list[Any]) -> float:
    change = sum(float((a - b).double().square().sum()) for a, b in zip(after, before, strict=True))
    return math.sqrt(change / sum(float(b.double().square().sum()) for b in before))


def net() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 1))


def losses_of(model: Any) -> Callable[[Any], Any]:
    return lambda x: model(x.to(model[0].weight.dtype)).float().square().mean(1)


if __name__ == "__main__":
    print(save("numerics", {"drift": drift(), "update_cosine": update_cosine(), "rounding_walk": rounding_walk()}))
