"""The published rules in float64 numpy, one generator a method: what each step subtracts from the weights.

They take from the library what was drawn, and nothing else; where its eps or lr is another multiple of the paper's, the paper's
formula stands here with that multiple. Everything is in units of each tensor's scale, which is 1 with relative=False.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tests.oracles.layer import EPS, LR, Array, Layer, flat
from zerograd.directions import Directions, Draws
from zerograd.noise import CHANCE, LEFT, RIGHT
from zerograd.spaces import Space

Rule = Callable[["Run"], Iterator[Array]]


@dataclass
class Run:
    """What a rule sees of a run. w: where it stands, in units of `scale`. step: the number of the one to come. touched: 0 where
    the step has no part in a weight, which then does not decay either.
    """

    opt: Any
    of: Callable[[Array], Array]
    gradients_of: Callable[[Array], Array]
    step: int = 0
    scale: Array = field(init=False)
    w: Array = field(init=False)
    touched: Array | float = 1.0

    def __post_init__(self) -> None:
        self.scale = np.concatenate([np.full(space.numel, space.scale) for space in self.opt.spaces])
        self.w = flat(self.opt) / self.scale

    def losses(self, change: Array | float = 0.0) -> Array:
        """Of each example, at w + change."""
        return self.of((self.w + change) * self.scale)

    def loss(self, change: Array | float = 0.0) -> float:
        return float(self.losses(change).mean())

    def gradient(self, examples: int | None = None) -> Array:
        """Of the mean loss of all examples, or of the first ones."""
        return np.asarray(self.gradients_of(self.w * self.scale)[:examples].mean(0) * self.scale)

    @property
    def drawn(self) -> Directions:
        """The directions of the step, without their modulation."""
        return Draws(replace(self.opt.method.draw, modulation=None), self.opt.draws.seed).at(self.step)

    @property
    def matrices(self) -> list[Space]:
        return self.with_rank(1)

    def with_rank(self, rank: int) -> list[Space]:
        """The matrices whose sides are no shorter than a rank."""
        return [space for space in self.opt.spaces if space.is_matrix and min(space.view[1:]) >= rank]

    def z(self, direction: int = 0) -> Array:
        return np.concatenate([array(self.drawn.z(space, direction)).ravel() for space in self.opt.spaces])

    def left(self, space: Space, direction: int = 0) -> Array:
        """(stack, rows, rank)"""
        return per_matrix(self.drawn.factors(space, [direction])[0][0], space)

    def right(self, space: Space, direction: int = 0) -> Array:
        """(stack, columns, rank)"""
        return per_matrix(self.drawn.factors(space, [direction])[1][0], space)

    def basis(self, space: Space, domain: int, size: int) -> Array:
        """Q of the QR of what was drawn when the period began, R of positive diagonal: (stack, size, rank)."""
        draw = self.opt.method.draw
        began = self.drawn.at(self.step - self.step % draw.right_period)
        q, r = np.linalg.qr(per_matrix(began.raw_noise("gaussian", space, [0], domain, draw.rank, size)[0], space))
        return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]

    def whole(self, rest: Array, matrices: Sequence[Array], rank: int = 1) -> Array:
        """A flat one, whose matrices of a rank are these and whose rest is that of another flat one."""
        made, first, given = rest.copy(), 0, iter(matrices)
        for space in self.opt.spaces:
            if space in self.with_rank(rank):
                made[first : first + space.numel] = next(given).ravel()
            first += space.numel
        return made

    def each(self, values: Callable[[Space], Array]) -> Array:
        return np.concatenate([values(space).ravel() for space in self.opt.spaces])


def array(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def per_matrix(factor: torch.Tensor, space: Space) -> Array:
    """(stack * rank, size) as (stack, size, rank)."""
    return array(factor).reshape(space.view[0], -1, factor.shape[-1]).swapaxes(1, 2)


def product(left: Array, right: Array) -> Array:
    return left @ right.swapaxes(1, 2)


def two_sided(run: Run, z: Array, eps: float = EPS) -> float:
    """c"""
    return (run.loss(eps * z) - run.loss(-eps * z)) / (2 * eps)


def one_sided(run: Run, z: Array, eps: float = EPS) -> float:
    return (run.loss(eps * z) - run.loss()) / eps


def estimate(run: Run, directions: int = 1, sides: int = 2) -> Array:
    """The mean of c z over directions."""
    of = two_sided if sides == 2 else one_sided
    return np.mean([of(run, run.z(i)) * run.z(i) for i in range(directions)], 0)


def zo_sgd(run: Run, directions: int = 1, sides: int = 2) -> Iterator[Array]:
    while True:
        yield LR * estimate(run, directions, sides)


def heavy_ball(beta: float) -> Callable[[Array], Array]:
    m: Array | float = 0.0

    def follow(g: Array) -> Array:
        nonlocal m
        m = beta * m + g
        return m

    return follow


def adams(betas: tuple[float, float], zeta: float) -> Callable[[Array], Array]:
    """Adam's direction of one gradient after the other."""
    m, v, t, (b1, b2) = 0.0, 0.0, 0, betas

    def follow(g: Array) -> Array:
        nonlocal m, v, t
        m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2, t + 1
        return np.asarray((m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + zeta))

    return follow


def momentum(run: Run, beta: float) -> Iterator[Array]:
    follow = heavy_ball(beta)
    while True:
        yield LR * follow(estimate(run))


def adam(run: Run, betas: tuple[float, float], zeta: float, directions: int) -> Iterator[Array]:
    follow = adams(betas, zeta)
    while True:
        yield LR * follow(estimate(run, directions))


def adamezo(run: Run, history: int, betas: tuple[float, float], zeta: float, directions: int) -> Iterator[Array]:
    past: list[Array] = []
    while True:
        past = [estimate(run, directions), *past][:history]
        m, v = (
            sum((1 - b) * b**k * g**power for k, g in enumerate(past)) / (1 - b ** len(past))
            for b, power in zip(betas, (1, 2), strict=True)
        )
        yield LR * m / (np.sqrt(v) + zeta)


def meazo(run: Run, beta: float, zeta: float, directions: int) -> Iterator[Array]:
    v, t = 0.0, 0
    while True:
        z = [run.z(i) for i in range(directions)]
        c = np.array([two_sided(run, one) for one in z])
        v, t = beta * v + (1 - beta) * float(np.mean(c**2)), t + 1
        yield LR * (c @ z) / directions / (math.sqrt(v / (1 - beta**t)) + zeta)


def sign(run: Run, directions: int) -> Iterator[Array]:
    while True:
        yield LR * np.sign(estimate(run, directions))


def sign_published(run: Run, directions: int) -> Iterator[Array]:
    while True:
        yield LR * np.mean([np.sign(two_sided(run, run.z(i))) * run.z(i) for i in range(directions)], 0)


def qzo(run: Run, directions: int, clip: float = 0.0, times: float = 3.0) -> Iterator[Array]:
    size: float | None = None
    while True:
        bound = clip or (np.inf if size is None else times * size)
        c = [float(np.clip(two_sided(run, run.z(i)), -bound, bound)) for i in range(directions)]
        now = float(np.mean(np.abs(c)))
        size = now if size is None else 0.9 * size + 0.1 * now
        yield LR * np.mean([one * run.z(i) for i, one in enumerate(c)], 0)


def conservative(run: Run) -> Iterator[Array]:
    while True:
        step = LR * two_sided(run, run.z()) * run.z()
        yield min((0 * step, step, -step), key=lambda change: run.loss(-change))


def kerzoo(run: Run) -> Iterator[Array]:
    while True:
        r, z = run.opt.method.query.radius(run.drawn), run.z()
        kernel = 15 / 4 * r * (5 - 7 * r**2)
        yield LR * (run.loss(EPS * r * z) - run.loss(-EPS * r * z)) / (2 * EPS) * kernel * z


def leave_one_out(run: Run, directions: int) -> Iterator[Array]:
    while True:
        z = [run.z(i) for i in range(directions)]
        losses = [run.loss(EPS * one) for one in z]
        others = [np.mean([other for j, other in enumerate(losses) if j != i]) for i in range(directions)]
        yield LR / EPS * np.mean([(y - mean) * one for y, mean, one in zip(losses, others, z, strict=True)], 0)


def evolution(run: Run, directions: int, sides: int, rank: int, shared: bool, shaping: str, anchor: float) -> Iterator[Array]:
    base = run.w.copy()
    while True:
        examples, values, z = len(run.losses()), [], []
        for i in range(directions):
            own = []
            for b in range(examples):
                drawn = i if shared else i * examples + b
                factors = [product(run.left(space, drawn), run.right(space, drawn)) / math.sqrt(rank) for space in run.matrices]
                own.append(run.whole(run.z(drawn), factors))
            z.append(own)
            values.append([[run.losses(side * EPS * one)[b] for b, one in enumerate(own)] for side in (1, -1)[:sides]])
        scores = np.array(values).swapaxes(0, 1).reshape(-1, examples)  # (branches, examples), the plus sides first
        away = scores - scores.mean(0)
        if shaping == "z-score":
            scores = away / away.std()
        elif shaping == "ranks":
            flat_away = away.ravel()
            ranks = np.array([(flat_away < one).sum() + ((flat_away == one).sum() - 1) / 2 for one in flat_away])
            scores = (ranks / (len(ranks) - 1) - 0.5).reshape(scores.shape)
        if sides == 2:
            d = (scores[:directions] - scores[directions:]) / 2
        else:
            d = (scores - scores.mean(0)) * directions / (directions - 1)
        count = directions if shared else directions * examples
        d = d / (EPS if shaping == "plain" else 1) / (count if not shared else count * examples)
        yield LR * anchor * (run.w - base) + LR * sum(d[i, b] * z[i][b] for i in range(directions) for b in range(examples))


def fzoo(run: Run, directions: int) -> Iterator[Array]:
    """The published lr is eps times the library's, as it is in the published code."""
    while True:
        z = [run.z(i) for i in range(directions)]
        losses = np.array([run.loss(EPS * one) for one in z])
        gradient = ((losses - run.loss()) @ z) / (EPS * directions)
        yield EPS * LR * gradient / losses.std(ddof=1)


def grzo(run: Run, standardised: bool) -> Iterator[Array]:
    """The published lr is 2 eps times the library's, which without the deviation divides by eps once more."""
    while True:
        examples = len(run.losses())
        shaped = replace(run.drawn, family=run.opt.method.draw)
        signs = [[product(run.left(space, b), run.right(space, b)) for space in run.matrices] for b in range(examples)]
        common = [array(shaped.z(space, 0)).reshape(space.view) * rs for space, rs in zip(run.matrices, signs[0], strict=True)]  # U
        z = [run.whole(run.z(b), [u * rs for u, rs in zip(common, own, strict=True)]) for b, own in enumerate(signs)]
        d = np.array([(run.losses(EPS * one)[b] - run.losses(-EPS * one)[b]) / 2 for b, one in enumerate(z)])
        a = d / d.std(ddof=1) if standardised else d / EPS
        yield 2 * EPS * LR * (a @ z) / (2 * EPS * examples)


def per_example(run: Run, sides: int, directions: int, rank: int, standardised: bool) -> Iterator[Array]:
    while True:
        examples, d, z = len(run.losses()), [], []
        for b in range(examples):
            own = []
            for i in range(directions):
                drawn = i * examples + b
                factors = [product(run.left(space, drawn), run.right(space, drawn)) / math.sqrt(rank) for space in run.matrices]
                own.append(run.whole(run.z(drawn), factors))
            up = [run.losses(EPS * one)[b] for one in own]
            if sides == 2:
                d += [(y - run.losses(-EPS * one)[b]) / 2 for y, one in zip(up, own, strict=True)]
            else:
                d += [y - (sum(up) - y) / (directions - 1) for y in up]
            z += own
        a = np.array(d) / np.std(d, ddof=1) if standardised else np.array(d) / EPS
        yield LR * np.mean(a[:, None] * z, 0)


def lozo(run: Run, rank: int) -> Iterator[Array]:
    """The published eps is the library's over sqrt(rank), for matrices."""
    eps = EPS / math.sqrt(rank)
    while True:
        z = run.z()
        products = [product(run.left(space), run.right(space)) for space in run.matrices]
        probe = run.whole(EPS * z, [eps * one for one in products])
        rise = (run.loss(probe) - run.loss(-probe)) / 2
        yield LR * run.whole(rise / EPS * z, [rise / eps * one / rank for one in products])


def lozo_m(run: Run, rank: int, period: int, beta: float) -> Iterator[Array]:
    eps = EPS / math.sqrt(rank)
    factors: list[Array | float] = [0.0] * len(run.matrices)
    m: Array | float = 0.0
    right: list[Array] = []
    while True:
        z, old = run.z(), right
        left, right = [run.left(space) for space in run.matrices], [run.right(space) for space in run.matrices]
        if run.step and run.step % period == 0:
            factors = [f @ (was.swapaxes(1, 2) @ now) / now.shape[1] for f, was, now in zip(factors, old, right, strict=True)]
        elif run.step:
            assert all((was == now).all() for was, now in zip(old, right, strict=True))
        probe = run.whole(EPS * z, [eps * product(u, v) for u, v in zip(left, right, strict=True)])
        rise = (run.loss(probe) - run.loss(-probe)) / 2
        factors = [beta * f + (1 - beta) * rise / eps * u / rank for f, u in zip(factors, left, strict=True)]
        m = beta * m + (1 - beta) * rise / EPS * z
        yield LR * run.whole(m, [product(f, v) for f, v in zip(factors, right, strict=True)])


def subzero(run: Run, rank: int) -> Iterator[Array]:
    while True:
        made = []
        for space in run.with_rank(rank):
            stack, rows, columns = space.view
            u, v = run.basis(space, LEFT, rows), run.basis(space, RIGHT, columns)
            for q in (u, v):
                np.testing.assert_allclose(q.swapaxes(1, 2) @ q, np.broadcast_to(np.eye(rank), (stack, rank, rank)), atol=1e-12)
            inner = (
                array(run.drawn.raw_noise("gaussian", space, [0], CHANCE, rank, rank)[0]).reshape(stack, rank, rank).swapaxes(1, 2)
            )
            made.append(math.sqrt(rows * columns) / rank * product(u @ inner, v))
        z = run.whole(run.z(), made, rank)
        yield LR * two_sided(run, z) * z


def newton_schulz(a: Array) -> Array:
    x = a / np.linalg.norm(a)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def zo_muon(run: Run, rank: int, directions: int) -> Iterator[Array]:
    """The published eps is sqrt(rows / rank) times the library's, the published lr sqrt(rows columns / rank) times.

    The step of a vector, or of what is smaller than the rank, has the length that NS5 would give it as a row, were it exact.
    """
    while True:
        z, bases, inner, factored = [run.z(i) for i in range(directions)], [], [], run.with_rank(rank)
        for space in factored:
            bases.append(run.basis(space, LEFT, space.view[1]))
            inner.append([run.right(space, i).swapaxes(1, 2) for i in range(directions)])  # u: (stack, rank, columns)
        c = []
        for i in range(directions):
            probe = [math.sqrt(s.view[1] / rank) * p @ u[i] for s, p, u in zip(factored, bases, inner, strict=True)]
            c.append(one_sided(run, run.whole(z[i], probe, rank)))
        change = []
        for space, p, u in zip(factored, bases, inner, strict=True):
            gradient = sum(c[i] * u[i] for i in range(directions))
            orthogonal = np.stack([newton_schulz(part) for part in gradient])
            change.append(math.sqrt(space.view[1] * space.view[2] / rank) * p @ orthogonal)
        g = np.split(np.tensordot(c, z, 1), np.cumsum([space.numel for space in run.opt.spaces])[:-1])
        rest = [part * math.sqrt(len(part)) / np.linalg.norm(part) for part in g]
        yield LR * run.whole(np.concatenate(rest), change, rank)


def hizoo(run: Run, smoothing: float) -> Iterator[Array]:
    h = np.ones_like(run.w)
    while True:
        z = run.z()
        d = z / np.sqrt(h)
        up, down, at = run.loss(EPS * d), run.loss(-EPS * d), run.loss()
        curvature = abs(up + down - 2 * at) / (2 * EPS**2) * h * z**2
        h = (1 - smoothing) * h + smoothing * curvature
        yield LR * (up - down) / (2 * EPS) * z / np.sqrt(h)


def masked(run: Run, mask: Callable[[], Array]) -> Iterator[Array]:
    while True:
        z = run.z() * mask()
        yield LR * two_sided(run, z) * z


def sparse_mezo(run: Run, keep: float) -> Iterator[Array]:
    """h is the size of one of the first weights: the margin lets it through whatever its rounding."""

    def threshold(space: Space) -> Array:
        sizes = np.sort(np.abs(array(space.exact())).ravel())
        return np.full(sizes.shape, sizes[round(keep * len(sizes)) - 1] if space.is_matrix else np.inf)

    h = run.each(threshold) * (1 + 1e-6)
    return masked(run, lambda: (np.abs(run.w * run.scale) <= h).astype(float))


def static_mask(run: Run, keep: float, sensitivity: dict[str, torch.Tensor] | None = None) -> Iterator[Array]:
    def places(space: Space) -> Array:
        sizes = array(space.exact() if sensitivity is None else sensitivity[space.name]).ravel()
        mask = np.zeros(sizes.shape) if space.is_matrix else np.ones(sizes.shape)
        mask[np.argsort(-np.abs(sizes))[: round(keep * len(sizes))]] = 1
        return mask

    mask = run.each(places)
    return masked(run, lambda: mask)


def blocks(run: Run, touches: Callable[[Space, int], bool]) -> Iterator[Array]:
    while True:
        run.touched = run.each(lambda space: np.full(space.numel, float(touches(space, run.step))))
        z = run.z() * run.touched
        yield LR * two_sided(run, z) * z


def block_wise(run: Run) -> Iterator[Array]:
    return blocks(run, lambda space, step: run.opt.spaces.index(space) == step % len(run.opt.spaces))


def random_layers(run: Run) -> Iterator[Array]:
    """Which blocks it is was drawn."""
    return blocks(run, lambda space, step: run.opt.method.draw.is_active(space, run.opt.draws.seed, step))


def forward_gradient(run: Run) -> Iterator[Array]:
    while True:
        z = run.z()
        yield LR * float(run.gradient() @ z) * z


def sgd(run: Run) -> Iterator[Array]:
    while True:
        yield LR * run.gradient()


def adamw(run: Run, betas: tuple[float, float], zeta: float) -> Iterator[Array]:
    follow = adams(betas, zeta)
    while True:
        yield LR * follow(run.gradient())


def hybrid(run: Run, betas: tuple[float, float], zeta: float, ratio: float) -> Iterator[Array]:
    """Of three blocks the last two are deep."""
    shallow = run.each(lambda space: np.full(space.numel, float(space.name == "weight")))
    follow = adams(betas, zeta)
    while True:
        z = run.z() * shallow
        yield LR * np.where(shallow == 1, two_sided(run, z) * z, ratio * follow(run.gradient()))


def addax(run: Run, alpha: float, share: float) -> Iterator[Array]:
    """The paper's lr, with the gradient and the evaluations weighed by alpha."""
    while True:
        z, short = run.z(), round(share * len(run.losses()))
        c = float((run.losses(EPS * z) - run.losses(-EPS * z))[short:].mean()) / (2 * EPS)
        yield LR * (alpha * c * z + (1 - alpha) * run.gradient(short))


SENSITIVITY = {
    name: torch.randn(p.shape, generator=torch.Generator().manual_seed(5)).square() for name, p in Layer("").named_parameters()
}

BETAS = {"betas": (0.6, 0.8), "zeta": 0.01}

CASES: dict[str, tuple[str, dict[str, Any], Rule]] = {
    "mezo": ("mezo", {}, zo_sgd),
    "mezo, Gaussian": ("mezo", {"distribution": "gaussian"}, zo_sgd),
    "mezo, three directions": ("mezo", {"directions": 3}, zo_sgd),
    "mezo, one side": ("mezo", {"directions": 3, "sides": 1}, zo_sgd),
    "momentum": ("momentum", {"beta": 0.7}, momentum),
    "adam": ("adam", BETAS | {"directions": 2}, adam),
    "adamezo": ("adamezo", BETAS | {"directions": 2, "history": 2}, adamezo),
    "meazo": ("meazo", {"beta": 0.6, "zeta": 0.1, "directions": 2}, meazo),
    "sign": ("sign", {"directions": 2, "distribution": "gaussian"}, sign),
    "sign-published": ("sign-published", {"directions": 2}, sign_published),
    "qzo": ("qzo", {"directions": 2, "times": 0.4}, qzo),
    "qzo, as published": ("qzo", {"directions": 2, "clip": 0.1, "distribution": "gaussian"}, qzo),
    "conservative": ("conservative", {}, conservative),
    "kerzoo": ("kerzoo", {}, kerzoo),
    "leave-one-out": ("leave-one-out", {"directions": 4}, leave_one_out),
    "leave-one-out, rank 2": ("leave-one-out", {"directions": 4, "rank": 2}, leave_one_out),
    **{
        f"evolution, {shaping}, {sides} sides{', shared' * shared}": (
            "evolution",
            {"directions": 2, "sides": sides, "rank": rank, "shared": shared, "shaping": shaping, "anchor": anchor},
            evolution,
        )
        for shaping, sides, rank, shared, anchor in (
            ("z-score", 2, 1, False, 0.0),
            ("ranks", 2, 2, True, 0.4),
            ("plain", 1, 1, False, 0.4),
            ("z-score", 1, 1, True, 0.0),
        )
    },
    "fzoo": ("fzoo", {"directions": 4}, fzoo),
    "grzo": ("grzo", {"standardised": True}, grzo),
    "grzo, plain": ("grzo", {"standardised": False}, grzo),
    **{
        f"per-example, rank {rank}, {sides} sides{', standardised' * standardised}": (
            "per-example",
            {"rank": rank, "sides": sides, "directions": directions, "standardised": standardised},
            per_example,
        )
        for rank, sides, directions, standardised in ((1, 2, 1, True), (2, 2, 2, False), (1, 1, 3, True), (2, 1, 2, False))
    },
    "lozo": ("lozo", {"rank": 2, "period": 2}, lozo),
    "lozo-m": ("lozo-m", {"rank": 2, "period": 2, "beta": 0.7}, lozo_m),
    "lozo-m, new factors each step": ("lozo-m", {"rank": 3, "period": 1, "beta": 0.7}, lozo_m),
    "subzero": ("subzero", {"rank": 2, "period": 2}, subzero),
    "subzero, a rank that some have not": ("subzero", {"rank": 4, "period": 2}, subzero),
    "zo-muon": ("zo-muon", {"rank": 2, "period": 2, "directions": 3}, zo_muon),
    "zo-muon, a rank that some have not": ("zo-muon", {"rank": 4, "period": 2, "directions": 3}, zo_muon),
    "hizoo": ("hizoo", {"smoothing": 0.3}, hizoo),
    "sparse-mezo": ("sparse-mezo", {"keep": 0.3}, sparse_mezo),
    "static-mask": ("static-mask", {"keep": 0.3}, static_mask),
    "static-mask, by sensitivity": ("static-mask", {"keep": 0.3, "sensitivity": SENSITIVITY}, static_mask),
    "block-wise": ("block-wise", {}, block_wise),
    "random-layers": ("random-layers", {"share": 0.6}, random_layers),
    "forward-gradient": ("forward-gradient", {}, forward_gradient),
    "sgd": ("sgd", {}, sgd),
    "adamw": ("adamw", BETAS, adamw),
    "hybrid": ("hybrid", BETAS | {"ratio": 0.5}, hybrid),
    "addax": ("addax", {"alpha": 0.4, "share": 0.3}, addax),
}
"""A method's name, its settings, and its rule, which takes those of them that it names."""


def rule_of(case: str) -> Rule:
    _, settings, rule = CASES[case]
    names = rule.__code__.co_varnames[1 : rule.__code__.co_argcount]
    return functools.partial(rule, **{name: value for name, value in settings.items() if name in names})
