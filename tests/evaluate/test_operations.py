"""Operations on parameters, one by one: evaluated as a really perturbed copy would, or refused naming the parameter."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.oracles import perturb_in_place
from tests.tiers import tiers
from zerograd.directions import Draws
from zerograd.evaluate.trace import UnresolvedOperation
from zerograd.queries.plan import branches

WIDTH = 8
TOKENS = 4
EPS = 0.3


class Parts(nn.Module):
    """A parameter of each kind; an objective uses some."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.4)
        self.tall = nn.Parameter(torch.randn(3 * WIDTH, WIDTH) * 0.4)
        self.stack = nn.Parameter(torch.randn(3, WIDTH, WIDTH) * 0.4)
        self.tokens = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.vector = nn.Parameter(torch.randn(WIDTH))
        self.channels = nn.Parameter(torch.randn(TOKENS, 1, 1))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.normal = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 5))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 5))
        self.short = nn.Embedding(11, WIDTH, max_norm=1.0)
        self.pair = nn.Bilinear(WIDTH, WIDTH, 5)
        self.up = nn.ConvTranspose1d(TOKENS, 5, 3)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.added_rows = nn.MultiheadAttention(WIDTH, 2, batch_first=True, add_bias_kv=True)
        self.cross = nn.MultiheadAttention(WIDTH, 2, kdim=WIDTH + 1, vdim=WIDTH - 1)  # tokens first
        self.layer = nn.TransformerDecoderLayer(WIDTH, 2, 12, batch_first=True)
        self.recurrent = nn.LSTM(WIDTH, 4, batch_first=True)
        self.cell = nn.GRUCell(WIDTH, 4)
        self.eval()


def batch_of(examples: int) -> dict[str, torch.Tensor]:
    """x: (examples, TOKENS, WIDTH). Of 2 examples the expanded ones are as many as TOKENS, of 4 as many as WIDTH."""
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(examples, TOKENS, WIDTH, generator=generator),
        "y": torch.randn(examples, TOKENS, WIDTH, generator=generator),
        "ids": torch.randint(0, WIDTH, (examples, TOKENS), generator=generator),
        "mask": torch.arange(TOKENS).repeat(examples, 1) <= torch.arange(examples)[:, None],
        "length": torch.tensor([2, 4, 1, 3])[:examples],
    }


Case = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]


def _into(target: torch.Tensor, write: Callable[[torch.Tensor], Any]) -> torch.Tensor:
    write(target)
    return target


def _groups(m: Any, b: dict[str, torch.Tensor], stack: torch.Tensor, descending: bool = False) -> torch.Tensor:
    """Each row by the matrix that its id names, as a mixture's experts are: sorted, multiplied group by group, put back."""
    flat, chosen = b["x"].flatten(0, 1), b["ids"].flatten() % 3
    chosen = 2 - chosen if descending else chosen
    chosen, places = torch.sort(chosen)
    ends = torch.histc(chosen.float(), bins=3, min=0, max=2).cumsum(0, dtype=torch.int32)
    rows = F.grouped_mm(flat[places], stack, offs=ends) * m.vector
    back = torch.empty_like(places)
    back[places] = torch.arange(len(places))
    return rows[back].view(b["x"].shape)


def _attended(m: Any, b: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The weights of attention, averaged over heads and for each head."""
    x = b["x"]
    return [m.attention(x, x, x, average_attn_weights=average)[1] for average in (True, False)]


def _rnn(m: Any, b: dict[str, torch.Tensor]) -> torch.Tensor:
    state = torch.zeros(len(b["x"]), WIDTH)
    for t in range(TOKENS):
        state = torch.tanh(b["x"][:, t] @ m.matrix + F.linear(state, m.tall[:WIDTH]))
    return state


Pick = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _masked_rows(m: Any, b: dict[str, torch.Tensor], pick: Pick) -> torch.Tensor:
    """Examples have 1, 2, 3, ... rows under the mask."""
    flat, chosen = b["x"].flatten(0, 1), torch.where(b["mask"].flatten())[0]
    return torch.zeros_like(flat).index_add_(0, chosen, torch.tanh(pick(flat, chosen) @ m.matrix)).view_as(b["x"])


def _experts(m: Any, b: dict[str, torch.Tensor]) -> torch.Tensor:
    flat, route = b["x"].flatten(0, 1), b["ids"].flatten() % 3
    out = torch.zeros_like(flat)
    for e in range(3):
        chosen = route == e
        out[chosen] = torch.tanh(flat[chosen] @ m.stack[e])
    return out.view_as(b["x"])


def _sorted(m: Any, b: dict[str, torch.Tensor], flat: bool, restore: bool = True) -> torch.Tensor:
    order = b["length"].argsort(stable=True)
    x = b["x"][order]
    y = (x.reshape(-1, WIDTH) @ m.matrix).view(x.shape) if flat else x @ m.matrix
    return y[order.argsort()] if restore else y


def _two_groups(m: Any, b: dict[str, torch.Tensor]) -> torch.Tensor:
    flat, mask = b["x"].flatten(0, 1), b["mask"].flatten()
    y = torch.cat([flat[mask], flat[~mask]]) @ m.matrix
    out = torch.empty_like(flat)
    out[mask], out[~mask] = y[: int(mask.sum())], y[int(mask.sum()) :]
    return out.view_as(b["x"])


def _rows_out_of_order(m: Any, b: dict[str, torch.Tensor]) -> torch.Tensor:
    """A row of each copy of the batch, as many as there are variants, those of the last one first."""
    flat, one = b["x"].flatten(0, 1), (b["mask"].sum(1) == 1)[:, None] & (torch.arange(TOKENS) == 0)
    chosen = torch.where(one.flatten())[0].flip(0)
    return torch.zeros_like(flat).index_add_(0, chosen, F.linear(flat[chosen], m.matrix, m.vector)).view_as(b["x"])


EXACT: dict[str, Case] = {
    "attention": lambda m, b: m.attention(b["x"], b["x"], b["x"])[0],
    "weights of attention": lambda m, b: torch.cat([w.flatten(1) for w in _attended(m, b)], 1),
    "attention, tokens first": lambda m, b: m.cross(
        b["x"].transpose(0, 1),
        F.pad(b["y"], (0, 1)).transpose(0, 1),
        b["y"][..., 1:].transpose(0, 1),
        need_weights=False,
    )[0].transpose(0, 1),
    "attention from a parameter": lambda m, b: m.attention(m.tokens.repeat(len(b["x"]), 1, 1), b["x"], b["y"])[0],
    "attention under masks": lambda m, b: m.layer(
        b["x"],
        b["y"],
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(TOKENS),
        tgt_is_causal=True,
        memory_key_padding_mask=~b["mask"],
    ),
    "attention, a mask for each head": lambda m, b: m.attention(
        b["x"],
        b["x"],
        b["x"],
        attn_mask=(b["y"] @ b["y"].transpose(1, 2)).repeat_interleave(2, 0),
        key_padding_mask=torch.where(b["mask"], 0.0, -1.0),
        need_weights=False,
    )[0],
    "a constant of the batch's type": lambda m, b: (
        (b["x"] + (torch.arange(TOKENS)[:, None].type_as(b["x"]) * 0.1).expand(TOKENS, WIDTH)[None]) @ m.matrix
    ),
    "derived table": lambda m, b: F.embedding(b["ids"], m.matrix * 2) + (m.matrix * 3)[b["ids"]],
    "einsum of a derived weight": lambda m, b: torch.einsum("bh,oh->bo", b["x"][:, 0], m.matrix * 2),
    "einsum of fewer dimensions": lambda m, b: torch.einsum(
        "btdh,bgh->btdg", b["x"][..., None] * b["y"][:, :, None], (m.tokens @ m.matrix).expand(len(b["x"]), -1, -1)
    ),
    "einsum of heads": lambda m, b: torch.einsum("bsd,hdk->bshk", b["x"], m.tall.view(WIDTH, WIDTH, 3)),
    "outer product": lambda m, b: torch.outer(b["x"][:, 0, 0], m.vector.exp()),
    "distances, two dimensions": lambda m, b: torch.cdist(b["x"][:, 0], m.matrix * 2),
    "rows of a weight, transposed": lambda m, b: torch.cat([b["x"], b["y"]], -1)[..., :12] @ m.tall[torch.arange(12) * 2],
    "no ids": lambda m, b: b["x"] + m.tall[b["ids"][:, :0]].sum(1, keepdim=True),
    "rms norm": lambda m, b: F.rms_norm(b["x"], (WIDTH,), m.vector),
    "largest features": lambda m, b: (b["x"] @ m.matrix).topk(2).values @ m.matrix[:2],
    "sorted features": lambda m, b: (b["x"] @ m.matrix).sort().values @ m.matrix,
    "norm of the features": lambda m, b: torch.linalg.vector_norm(b["x"] @ m.matrix, 2, -1, keepdim=True) * m.vector,
    "differences of features": lambda m, b: (b["x"] @ m.matrix).diff() * m.vector[1:],
    "add alpha": lambda m, b: torch.add(b["x"], m.vector, alpha=2.0),
    "sub alpha": lambda m, b: b["x"].sub(m.vector, alpha=2.0),
    "rsub": lambda m, b: torch.rsub(b["x"], m.vector, alpha=3),
    "reflected": lambda m, b: (1 - m.vector) * b["x"] + m.vector / (b["x"] ** 2 + 1) + b["x"] / (2 + m.vector**2),
    "in place": lambda m, b: (b["x"] * 1).mul_(m.vector).add_(m.scale),
    "in place on a view": lambda m, b: _into(b["x"] * 1, lambda x: x[:, 0].add_(m.vector)),
    "augmented on a slice": lambda m, b: _into(b["x"] * 1, lambda x: x[:, 1:].__iadd__(m.vector)),
    "keywords": lambda m, b: F.linear(input=torch.add(input=b["x"], other=m.vector), weight=m.matrix, bias=m.vector),
    "addmm alpha beta": lambda m, b: torch.addmm(m.vector, b["x"][:, 0], m.matrix, alpha=2.0, beta=0.5),
    "matmul keywords": lambda m, b: torch.matmul(input=b["x"], other=m.matrix),
    "transposed weight": lambda m, b: b["x"] @ m.matrix.T,
    "transposed weight, two dimensions": lambda m, b: b["x"][:, 0] @ m.matrix.T,
    "einsum": lambda m, b: torch.einsum("bth,oh->bto", b["x"], m.tall),
    "weight first": lambda m, b: m.matrix @ b["x"].transpose(1, 2),
    "chunks of a fused weight": lambda m, b: sum(F.linear(b["x"], w).tanh() * (i + 1) for i, w in enumerate(m.tall.chunk(3))),
    "rows of a weight": lambda m, b: F.linear(b["x"], m.tall[torch.tensor([3, 20, 3])]),
    "ids": lambda m, b: m.tall[b["ids"]],
    "index_select": lambda m, b: m.tall.index_select(0, b["ids"][:, 0]),
    "negative ids": lambda m, b: b["x"] * m.matrix[torch.tensor([-1])] + m.matrix[-b["ids"] - 1],
    "matrix of a stack": lambda m, b: b["x"] @ m.stack[1] + F.linear(b["x"], m.stack[-1]),
    "whole stack": lambda m, b: b["x"][:, None] @ m.stack,
    "stack by einsum": lambda m, b: torch.einsum("bth,eho->beto", b["x"], m.stack),
    "number": lambda m, b: b["x"] * m.scale.exp() + m.scale,
    "channels": lambda m, b: b["x"][:, :, None] * m.channels + m.channels.exp(),
    "where": lambda m, b: torch.where(b["mask"][..., None], m.vector, b["x"]),
    "expanded first token": lambda m, b: torch.cat([m.vector.expand(len(b["x"]), 1, -1), b["x"]], 1) @ m.matrix,
    "stacked": lambda m, b: torch.stack([b["x"], m.vector.expand_as(b["x"])], 1),
    "position table": lambda m, b: (b["x"] + m.tokens) @ m.matrix,
    "derived in place": lambda m, b: b["x"] * (m.vector * 2).add_(1),
    "derived in place, activation": lambda m, b: b["x"] * F.relu(m.vector * 2, inplace=True),
    "cast and back": lambda m, b: F.linear(b["x"], m.matrix.bfloat16().float()),
    "another's dtype": lambda m, b: F.linear(b["x"], m.matrix.type_as(b["x"])),
    "weight norm": lambda m, b: m.normal(b["x"]),
    "spectral norm": lambda m, b: m.spectral(b["x"]),
    "bilinear": lambda m, b: m.pair(b["x"], b["x"].flip(1)),
    "transposed convolution": lambda m, b: m.up(b["x"]),
    "norm of a parameter": lambda m, b: b["x"] @ m.norm(m.tokens).T,
    "distances": lambda m, b: torch.cdist(b["x"], m.tall),
    "state from zeros": _rnn,
    "masked rows": lambda m, b: _masked_rows(m, b, lambda flat, chosen: flat[chosen]),
    "experts": _experts,
    "sorted": lambda m, b: _sorted(m, b, flat=False),
    "inverted": lambda m, b: torch.where(~(m.vector > 0), b["x"], m.scale),
    "each row of a weight": lambda m, b: torch.stack([b["x"][:, 0] * row for row in m.matrix], 1).sum(2),
    "each row of a derived weight": lambda m, b: sum(b["x"] * row for row in m.matrix * 2),
    "rows one by one": lambda m, b: torch.stack([row @ m.matrix for row in (b["x"][i] for i in range(len(b["x"])))]),
    "tokens first": lambda m, b: (b["x"].transpose(0, 1) @ m.matrix).transpose(0, 1),
    "tokens first, a norm and a sum": lambda m, b: (m.norm(b["x"].transpose(0, 1)).softmax(2) + m.vector).sum(2).T @ m.tokens,
    "tokens first, looked up": lambda m, b: torch.tanh(m.tall[b["ids"].T] * m.vector).transpose(0, 1),
    "tokens first, by einsum": lambda m, b: torch.einsum("tbh,eho->btoe", b["x"].transpose(0, 1), m.stack),
    "stack by bmm": lambda m, b: torch.bmm(b["x"].flatten(0, 1).repeat(3, 1).view(3, -1, WIDTH), m.stack).sum(0).view(b["x"].shape),
    "stack by baddbmm": lambda m, b: (
        torch.baddbmm(m.stack[:, :1], b["x"].flatten(0, 1).expand(3, -1, -1), m.stack).mean(0).view(b["x"].shape)
    ),
    "stack on the left": lambda m, b: (m.stack[:, None] @ torch.stack([b["x"].mT, 2 * b["x"].mT, b["y"].mT])).amax(0),
    "groups of rows": lambda m, b: _groups(m, b, m.stack),
    "groups of rows, transposed": lambda m, b: _groups(m, b, m.stack.transpose(-2, -1)),
    "groups of rows, in another order": lambda m, b: _groups(m, b, m.stack.mT, descending=True),
}

RIGHT_OR_REFUSED: dict[str, Case] = {
    "rows out of order, with a bias": _rows_out_of_order,
    "inner product": lambda m, b: torch.inner(b["x"][:, 0], m.matrix * 2),
    "vectors one by one": lambda m, b: torch.stack([F.linear(row[0], m.matrix) for row in (b["x"][i] for i in range(len(b["x"])))]),
    "written into zeros": lambda m, b: b["x"] * _into(torch.zeros(WIDTH), lambda t: t.copy_(m.vector)),
    "written into a slice": lambda m, b: b["x"] * _into(torch.ones(WIDTH), lambda t: t.__setitem__(slice(3), m.vector[:3])),
    "derived written into": lambda m, b: b["x"] * _into(m.vector * 2, lambda t: t.__setitem__(0, 5.0)),
    "out": lambda m, b: b["x"] * _into(torch.empty(WIDTH), lambda t: torch.mul(m.vector, 2, out=t)),
    "addmm out": lambda m, b: _into(
        torch.zeros(len(b["x"]), WIDTH), lambda t: torch.addmm(m.vector, b["x"][:, 0], m.matrix, out=t)
    ),
    "first token into a buffer": lambda m, b: _into(
        torch.zeros(len(b["x"]), TOKENS + 1, WIDTH), lambda t: (t.__setitem__((slice(None), 0), m.vector), t[:, 1:].copy_(b["x"]))
    ),
    "rows replaced": lambda m, b: _into(b["x"] * 1, lambda x: x.__setitem__(b["mask"], m.vector)),
    "batch through a view": lambda m, b: _into(torch.zeros(b["x"].shape), lambda t: t[:, :2].copy_(b["x"][:, :2])) @ m.matrix,
    "batch through numpy": lambda m, b: F.linear(torch.from_numpy(b["x"].numpy()), m.matrix),
    "weight through numpy": lambda m, b: b["x"] * torch.tensor(np.asarray(m.vector.detach())) + 0 * m.vector,
    "two inputs, one encoder": lambda m, b: (lambda h: h[: len(b["x"])] * h[len(b["x"]) :])(
        torch.tanh(torch.cat([b["x"], b["y"]]) @ m.matrix)
    ),
    "repeated batch": lambda m, b: sum((b["x"].repeat(2, 1, 1) @ m.matrix).chunk(2)),
    "flipped batch": lambda m, b: (b["x"].flip(0) @ m.matrix).flip(0),
    "rolled batch": lambda m, b: (b["x"].roll(1, 0) @ m.matrix).roll(-1, 0),
    "features first": lambda m, b: b["x"][:, 0] + (b["x"][:, 0].T @ m.matrix[:1].expand(len(b["x"]), -1)).tanh().sum(),
    "norm over the batch": lambda m, b: (
        b["x"] + torch.linalg.vector_norm(b["x"], 2, 0, keepdim=True).expand(b["x"].shape) @ m.matrix
    ),
    "differences over the batch": lambda m, b: b["x"] + b["x"].diff(1, 0, prepend=b["x"][:1]) @ m.matrix,
    "spectrum over the batch": lambda m, b: b["x"] + torch.fft.fft(b["x"], dim=0).real @ m.matrix,
    "largest of the batch": lambda m, b: b["x"].topk(len(b["x"]), 0).values @ m.matrix,
    "quantile over the batch": lambda m, b: b["x"] + torch.quantile(b["x"], torch.tensor(0.5), 0).expand(b["x"].shape) @ m.matrix,
    "mean over the batch": lambda m, b: b["x"] + b["x"].mean(0) @ m.matrix,
    "each row of the batch": lambda m, b: torch.stack([torch.tanh(row @ m.matrix) for row in b["x"]]),
    "pairs of rows": lambda m, b: (lambda i: (b["x"][torch.stack([i, (i + 1) % len(i)], 1)] @ m.matrix)[:, 0])(
        torch.arange(len(b["x"]))
    ),
    "selected rows repeated": lambda m, b: _masked_rows(m, b, lambda flat, chosen: flat[chosen].repeat_interleave(2, 0)[::2]),
    "rows selected in a new dimension": lambda m, b: _masked_rows(m, b, lambda flat, chosen: flat[None, chosen].reshape(-1, WIDTH)),
    "two groups": _two_groups,
    "sorted, flattened": lambda m, b: _sorted(m, b, flat=True),
    "losses left sorted": lambda m, b: _sorted(m, b, flat=False, restore=False),
    "columns by ids": lambda m, b: m.tall[:, b["ids"][:, 0]].T,
    "einsum, weight's dimension first": lambda m, b: torch.einsum("bh,oh->ob", b["x"][:, 0], m.tall).T,
    "einsum, tokens first": lambda m, b: torch.einsum("bth,oh->tbo", b["x"], m.tall).transpose(0, 1),
    "row appended": lambda m, b: torch.cat([b["x"][:, 0], m.vector[None]])[: len(b["x"])] * m.vector,
    "expanded query": lambda m, b: F.scaled_dot_product_attention(
        (m.tokens @ m.matrix).expand(len(b["x"]), -1, -1), b["x"], b["x"]
    ),
    "expanded operand": lambda m, b: torch.logaddexp(b["x"], m.vector.expand(*b["x"].shape)),
    "loss of the parameter alone": lambda m, b: torch.stack([m.matrix[i] for i in b["ids"][:, 0]]),
    "item": lambda m, b: b["x"] * m.scale.item(),
    "truth": lambda m, b: b["x"] * (2 if m.scale > 0.5 else 3),
    "largest norm": lambda m, b: m.short(b["ids"]),
    "attention with rows added": lambda m, b: m.added_rows(b["x"], b["x"], b["x"])[0],
    "recurrent": lambda m, b: m.recurrent(b["x"])[0],
    "recurrent cell": lambda m, b: m.cell(b["x"][:, 0]),
}

families = tiers("family", ["dense-shared", "rank1-each"], ["dense-gaussian-each"])
sizes = tiers("examples", [4], [2, 3])


TWINS: defaultdict[str, perturb_in_place.Twins] = defaultdict(perturb_in_place.Twins)


def both(case: Case, family: str, examples: int) -> tuple[Callable[[], torch.Tensor], torch.Tensor]:
    """The perturbed forward to run, and what it should give."""
    model, batch = Parts(), batch_of(examples)

    def objective(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return case(model, batch).flatten(1).logsumexp(1)

    spaces = perturb_in_place.spaces_of(model)
    kind, make_plan = perturb_in_place.FAMILIES[family]
    directions, plan = Draws(kind, 5).at(3), make_plan(examples)
    real = perturb_in_place.losses(model, spaces, directions, plan, objective, batch, TWINS[family], EPS)
    return lambda: perturb_in_place.scores(spaces, directions, plan, lambda b: objective(model, b), batch, EPS), real


@pytest.mark.parametrize("name", EXACT)
@families
@sizes
def test_supported(name: str, family: str, examples: int) -> None:
    run, real = both(EXACT[name], family, examples)
    torch.testing.assert_close(run(), real, rtol=1e-5, atol=1e-5)


def outcome(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor | None, str]:
    """The losses, or why there are none."""
    try:
        return run(), ""
    except UnresolvedOperation as error:
        return None, str(error)


@pytest.mark.parametrize("name", RIGHT_OR_REFUSED)
@families
@sizes
def test_right_or_refused(name: str, family: str, examples: int) -> None:
    """Never silently wrong, and never an error that does not name the parameter, or the losses as what is not in order."""
    run, real = both(RIGHT_OR_REFUSED[name], family, examples)
    mine, refusal = outcome(run)
    if mine is None:
        assert any(word in refusal for word in ["losses", *dict(Parts().named_parameters())]), refusal
    else:
        torch.testing.assert_close(mine, real, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*EXACT, *RIGHT_OR_REFUSED])
@tiers("family", ["rank1-shared"], ["dense-shared"])
def test_closures_take_any_operation(name: str, family: str) -> None:
    """With one variant for everything only reading or renormalising a value is refused."""
    case, model, batch = (EXACT | RIGHT_OR_REFUSED)[name], Parts(), batch_of(2)
    spaces, directions = perturb_in_place.spaces_of(model), Draws(perturb_in_place.FAMILIES[family][0], 5).at(3)
    twin = TWINS[family].of(model, spaces, directions, 0, -1.0, EPS)
    with torch.no_grad():
        real = case(twin, batch).logsumexp((0, 1)).sum()
    mine, refusal = outcome(
        lambda: perturb_in_place.scores_of_closure(
            spaces, directions, branches(1, [0], [-1.0]), lambda: case(model, batch).logsumexp((0, 1)).sum(), EPS
        )
    )
    if mine is None:
        assert name in ("item", "truth", "weight through numpy", "largest norm"), refusal
    else:
        torch.testing.assert_close(mine[0], real, rtol=1e-5, atol=1e-5)


@families
def test_data_that_is_assigned_in_the_forward_is_refused(family: str) -> None:
    model, batch = Parts(), batch_of(2)
    kind, make_plan = perturb_in_place.FAMILIES[family]
    before = model.vector.detach().clone()

    def objective(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        model.vector.data = model.vector.data.clamp(-1, 1)
        return (batch["x"] * model.vector).sum((1, 2))

    with pytest.raises(UnresolvedOperation, match="vector is given other data by the model's forward; freeze it"):
        perturb_in_place.scores(perturb_in_place.spaces_of(model), Draws(kind, 5).at(3), make_plan(2), objective, batch)
    assert torch.equal(model.vector, before)


@pytest.mark.parametrize("family", ["dense-shared", "rank1-each"])
def test_a_norm_in_16_bits_has_the_constant_of_torch(family: str) -> None:
    """Without one of its own: that of the type it computes in, so that small activations count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 16), nn.RMSNorm(16)).bfloat16()
    with torch.no_grad():
        model[0].weight.mul_(0.02)
    kind, make_plan = perturb_in_place.FAMILIES[family]
    spaces, batch = perturb_in_place.spaces_of(model), torch.arange(4)
    mine = perturb_in_place.scores(
        spaces, Draws(kind, 5).at(3), make_plan(4), lambda b: model(b).float().square().sum(1), batch, 1e-6
    )
    with torch.no_grad():
        plain = model(batch).float().square().sum(1)
    torch.testing.assert_close(mine, plain.repeat(2), rtol=0.02, atol=0.02)


REFUSED = {
    "item": "scale",
    "truth": "scale",
    "attention with rows added": r"added_rows\.in_proj_weight",
    "recurrent": r"recurrent\.weight_ih_l0",
    "features first": "matrix",
}


@pytest.mark.parametrize("name", REFUSED)
@families
def test_refusals_name_the_parameter(name: str, family: str) -> None:
    run, _ = both(RIGHT_OR_REFUSED[name], family, 3)  # 6 expanded examples, which neither TOKENS nor WIDTH is a multiple of
    with pytest.raises(UnresolvedOperation, match=REFUSED[name]):
        run()


@families
def test_a_grouped_product_of_an_unusual_form_is_refused_with_the_mend(family: str) -> None:
    kind, make_plan = perturb_in_place.FAMILIES[family]
    model, ends = nn.ParameterDict({"experts": nn.Parameter(torch.randn(2, 8, 8))}), torch.tensor([1, 2], dtype=torch.int32)
    with pytest.raises(UnresolvedOperation, match=r"experts is used by _?grouped_mm, which cannot be split by example; .*eager"):
        perturb_in_place.scores(
            perturb_in_place.spaces_of(model),
            Draws(kind, 5).at(3),
            make_plan(2),
            lambda b: F.grouped_mm(b["x"], model["experts"], offs=ends, out_dtype=torch.float32).sum(1),
            {"x": torch.randn(2, 8)},
        )


@families
@pytest.mark.parametrize("lookup", [lambda w, ids: F.embedding(ids, w), lambda w, ids: w[ids]], ids=["embedding", "index"])
def test_ids_outside_a_table_are_an_error(lookup: Callable[..., torch.Tensor], family: str) -> None:
    kind, make_plan = perturb_in_place.FAMILIES[family]
    model, batch = Parts(), {"ids": torch.full((2, TOKENS), 3 * WIDTH)}
    with pytest.raises(IndexError):
        perturb_in_place.scores(
            perturb_in_place.spaces_of(model),
            Draws(kind, 5).at(3),
            make_plan(2),
            lambda b: lookup(model.tall, b["ids"]).sum((1, 2)),
            batch,
        )


@families
@pytest.mark.parametrize("where", ["around the step", "in the objective"])
def test_autocast_is_refused_with_the_mend(where: str, family: str) -> None:
    kind, make_plan = perturb_in_place.FAMILIES[family]
    model = Parts()
    nothing, autocast = contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16)
    around, inside = (autocast, nothing) if where == "around the step" else (nothing, autocast)

    def objective(b: dict[str, torch.Tensor]) -> torch.Tensor:
        with inside:
            return (b["x"] @ model.matrix).sum((1, 2))

    with around, pytest.raises(UnresolvedOperation, match="matrix is used under autocast; leave it"):
        perturb_in_place.scores(perturb_in_place.spaces_of(model), Draws(kind, 5).at(3), make_plan(2), objective, batch_of(2))
