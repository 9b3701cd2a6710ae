"""The perturbed forward: purity, plans in a row, passes, refusals, and the size of what it makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.evaluate.small import WIDTH, check, loss, score, small, some_ids
from tests.oracles import perturb_in_place
from zerograd.directions import Dense, Draws, Family, LowRank
from zerograd.evaluate import evaluator, products
from zerograd.evaluate.trace import MARK, UnresolvedOperation
from zerograd.machine import workers
from zerograd.queries import plan as plans
from zerograd.queries.plan import branches


def kind(rank: int) -> Family:
    return LowRank("gaussian", rank) if rank else Dense("gaussian")


every_family = pytest.mark.parametrize("family", perturb_in_place.FAMILIES)


@every_family
def test_evaluation_leaves_no_trace(family: str) -> None:
    model, batch = small(), {**some_ids(3), "scalar": torch.tensor(1.0)}
    before = {key: value.clone() for key, value in [*model.state_dict().items(), *batch.items()]}
    kept = {name: (parameter, parameter.data_ptr(), set(vars(parameter))) for name, parameter in model.named_parameters()}
    model.mix.weight.requires_grad_(False)
    random = torch.get_rng_state()
    score(model, loss, batch, 3, family)
    check(model, loss, some_ids(2), 2)
    assert torch.equal(random, torch.get_rng_state())
    for name, parameter in model.named_parameters():
        assert (parameter, parameter.data_ptr()) == kept[name][:2]
        assert parameter.requires_grad == (name != "mix.weight")
        assert parameter.grad is None
        assert set(vars(parameter)) == kept[name][2]
    for key, value in [*model.state_dict().items(), *batch.items()]:
        assert torch.equal(value, before[key]), key
        assert not hasattr(value, MARK), key


def test_an_objective_may_write_into_its_batch() -> None:
    model, batch = small(), some_ids(3)

    def writes(model: nn.Module, batch: Any) -> torch.Tensor:
        batch["ids"][:, 0] = 0
        return loss(model, batch)

    ids = batch["ids"].clone()
    score(model, writes, batch, 3)
    assert torch.equal(batch["ids"], ids)


@every_family
def test_plans_in_a_row_do_not_mix(family: str) -> None:
    """The same batch object under other plans in between, an error among them, gives the same losses again."""
    model, batch = small(), some_ids(3)
    model.kept = None  # a tensor of one forward that the next one can see

    def keeps(model: Any, batch: Any) -> torch.Tensor:
        stale = 0 if model.kept is None else 0 * model.kept.sum()
        model.kept = torch.exp(model.decay)
        return loss(model, batch) + stale

    first = score(model, keeps, batch, 3, family)
    for other in perturb_in_place.FAMILIES:
        score(model, keeps, batch, 3, other)
    with pytest.raises(UnresolvedOperation):
        score(model, lambda m, b: m.out(m.table(b["ids"]).mean(0)), some_ids(3, 7), 3)
    perturb_in_place.scores_of_closure(
        perturb_in_place.spaces_of(model), Draws(Dense(), 5).at(3), branches(1, [0], [1]), lambda: keeps(model, batch).mean()
    )
    assert torch.equal(score(model, keeps, batch, 3, family), first)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("arrangement", ["interleaved", "overlapping", "population"])
def test_any_plan(rank: int, arrangement: str) -> None:
    """Directions that return, examples that share some of theirs, and blocks of directions beside a clean one."""
    if arrangement == "interleaved":
        plan = branches(3, [3, 1, 3, 1, 1], [1.0, -1, -0.5, 1, -1])
    elif arrangement == "overlapping":
        plan = branches(3, [4, 1, 2, 0], [1.0, -1, 0.5, 1], own_directions=True)
    else:
        plan = branches(3, [0, 1, 0], [1.0, 1, 0])
    model, batch, directions = small(), some_ids(3), Draws(kind(rank), 5).at(3)
    spaces = perturb_in_place.spaces_of(model)
    mine = perturb_in_place.scores(spaces, directions, plan, lambda b: loss(model, b), batch)
    torch.testing.assert_close(mine, perturb_in_place.losses(model, spaces, directions, plan, loss, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_positions_of_a_batch_keep_the_dtype_that_they_were_cast_to(rank: int) -> None:
    """Positions that the model makes itself, a row for each of the batch, cast before they are added."""
    table, seen = nn.Embedding(7, WIDTH).bfloat16(), []

    def losses(x: torch.Tensor) -> torch.Tensor:
        y = x + table(torch.arange(7).expand(len(x), 7)).float()
        seen.append((y.dtype, y.detach()))
        return y.float().square().mean((1, 2))

    spaces, x, directions = (
        perturb_in_place.spaces_of(table),
        torch.randn(2, 7, WIDTH).bfloat16(),
        Draws(kind(rank), 5).at(3),
    )
    perturb_in_place.scores(spaces, directions, plans.shared_pairs(2), losses, x)
    ((dtype, y),) = seen
    assert dtype == torch.float32
    for half, sign in enumerate((1.0, -1.0)):
        perturbed = directions.perturbed(spaces[0], 0, [sign * perturb_in_place.EPS])[0].float()
        torch.testing.assert_close(y[2 * half : 2 * half + 2], x.float() + perturbed, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("copies", [1, 2, 3, 9])
@pytest.mark.parametrize("pair", [False, True])
def test_a_large_population_takes_several_passes_with_the_same_scores(copies: int, pair: bool, monkeypatch) -> None:
    """Copies that share a direction stay together; others go as many at a time as a pass may have."""
    plan = plans.shared_pairs(3) if pair else plans.population(3, 4)
    model, batch, directions = small(), some_ids(3), Draws(Dense(), 5).at(3)
    spaces, seen = perturb_in_place.spaces_of(model), []

    def losses(expanded: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(len(expanded["ids"]) // 3)
        return loss(model, expanded)

    whole = perturb_in_place.scores(spaces, directions, plan, losses, batch)
    monkeypatch.setattr(evaluator, "WORK", copies * batch["ids"].numel() * sum(space.numel for space in spaces))
    parts = perturb_in_place.scores(spaces, directions, plan, losses, batch)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    whole_plan, *passes = seen
    assert whole_plan == plan.branches == sum(passes)
    assert len(passes) == (1 if pair else -(-plan.branches // copies))


def test_losses_that_are_not_one_an_example_are_refused() -> None:
    for wrong in (lambda m, b: loss(m, b).mean(), lambda m, b: m(b["ids"]).sum(2)):
        with pytest.raises(ValueError, match="one loss an example"):
            score(small(), wrong, some_ids(3), 3)
    with pytest.raises(ValueError, match="scalar"):
        perturb_in_place.scores_of_closure([], Draws(Dense(), 5).at(3), branches(1, [0], [1]), lambda: torch.zeros(2))


class Largest(TorchDispatchMode):
    """The most bytes that an operation made, and did not take from what was there before."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for out in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return result


@pytest.mark.full
@every_family
@pytest.mark.parametrize("tied", [True, False])
def test_nothing_as_large_as_the_largest_weight_is_made(family: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head of a few columns, no operation makes an eighth of the embedding; dense noise comes in chunks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr(products, "BUFFER", 1 << 12)
    monkeypatch.setattr(workers, "each", lambda work, items, most=None: [work(item) for item in items])  # where the mode sees it
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 8192}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=tied)).eval()
    columns = torch.tensor([5, 900, 8000])

    def scored(model: Any, batch: Any) -> torch.Tensor:
        hidden = model.model(input_ids=batch["ids"], use_cache=False).last_hidden_state[:, -1]
        return F.linear(hidden, model.lm_head.weight[columns]).log_softmax(-1)[:, 0]

    kind, make_plan = perturb_in_place.FAMILIES[family]
    spaces, directions, plan = perturb_in_place.spaces_of(model), Draws(kind, 5).at(3), make_plan(2)
    with Largest({p.untyped_storage().data_ptr() for p in model.parameters()}) as largest:
        perturb_in_place.scores(spaces, directions, plan, lambda b: scored(model, b), some_ids(2))
    assert 0 < largest.bytes < 8192 * 64 * 4 // 8
