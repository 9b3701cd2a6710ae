"""Methods that train a part of each matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.oracles.layer import made


def picked(where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch that reads each of these entries of a matrix: one an example, (rows, columns) -> x, y."""
    rows, columns = where.nonzero(as_tuple=True)
    return torch.eye(where.shape[1])[columns], torch.eye(where.shape[0])[rows] * torch.randn(len(rows), 1)


@pytest.mark.parametrize("name", ["sparse-mezo", "static-mask"])
@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("precision", ["float32", "split"])
def test_a_mask_keeps_the_share_asked_for_and_zeroes_the_rest_in_evaluation_and_update(
    name: str, keep: float, precision: str
) -> None:
    def stepped(batch: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        model = nn.Linear(9, 7)
        opt = made(name, model, keep=keep, distribution="gaussian", directions=2, precision=precision)
        matrix, vector = (space.exact().clone() for space in opt.spaces)
        bias = torch.zeros_like(model.bias)  # out of the loss, not of the step

        def objective(some: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            dtype = model.weight.dtype
            return (F.linear(some[0].to(dtype), model.weight, bias).float() * some[1]).sum(1)

        opt.step(objective, batch)
        return opt, opt.spaces[0].exact() != matrix, opt.spaces[1].exact() != vector

    _, kept, whole = stepped((torch.randn(4, 9), torch.randn(4, 7)))
    assert int(kept.sum()) == round(keep * 63)
    assert bool(whole.all())
    if keep < 1:
        opt, moved, _ = stepped(picked(~kept))
        assert opt.info.difference == opt.info.spread == 0
        assert not bool(moved.any())
    opt, moved, _ = stepped(picked(kept))
    assert opt.info.spread > 0
    assert bool((moved == kept).all())


@pytest.mark.parametrize("name", ["sparse-mezo", "static-mask"])
def test_sparse_mezo_looks_at_the_weights_as_they_are_and_a_static_mask_does_not(name: str) -> None:
    torch.manual_seed(1)
    model = nn.Linear(9, 7)
    opt = made(name, model, keep=0.4, distribution="gaussian")
    sizes = model.weight.detach().abs().flatten().sort().values
    small = model.weight.detach().abs() <= sizes[round(0.4 * 63) - 1]
    large = model.weight.detach().abs() > sizes[63 - round(0.4 * 63) - 1]
    model.weight.data = model.weight.data.roll((1, 2), (0, 1))
    before = model.weight.detach().clone()
    opt.step(lambda x: model(x).square().sum(1), torch.randn(4, 9))
    moved = model.weight.detach() != before
    assert torch.equal(moved, small.roll((1, 2), (0, 1)) if name == "sparse-mezo" else large)


@pytest.mark.parametrize("name", ["sparse-mezo", "static-mask"])
def test_a_matrix_whose_sizes_choose_nothing_is_whole_at_every_step(name: str) -> None:
    """LoRA's B is all zero when training begins; where a third of A is, the mask still chooses among the rest."""
    torch.manual_seed(1)
    lora = nn.Sequential(nn.Linear(9, 4, bias=False), nn.Linear(4, 7, bias=False))
    a, b = lora[0].weight.data, lora[1].weight.data
    a[:, :3] = 0.0
    b.zero_()
    opt = made(name, lora, keep=0.25, distribution="gaussian", relative=True)
    chosen = a.abs() > a.abs().flatten().sort().values[-10]  # the nine largest of 36
    for _ in range(4):
        before = a.clone(), b.clone()
        opt.step(lambda x: (lora(x) - 1).square().sum(1), torch.randn(4, 9))
        assert bool((b != before[1]).all())
        assert torch.equal(a != before[0], chosen) if name == "static-mask" else bool((a != before[0]).all())
