"""Plans, batches, purity, refusals and the self-check of the perturbed forward."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import itertools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import zerograd as zg
from tests.oracles import perturb_in_place
from zerograd.directions.family import Directions, Family
from zerograd.evaluate import batch as batches
from zerograd.evaluate import products
from zerograd.evaluate import score as scoring
from zerograd.evaluate.forward import MARK, UnresolvedOperation
from zerograd.evaluate.score import score_batch, score_closure
from zerograd.evaluate.self_check import SelfCheckFailed, self_check
from zerograd.machine import workers
from zerograd.optim.base import NotPure
from zerograd.queries import plan as plans
from zerograd.queries.plan import Plan, branch
from zerograd.spaces.weights import collect

every_family = pytest.mark.parametrize("family", perturb_in_place.FAMILIES)
WIDTH = 8


class Small(nn.Module):
    """A model with a parameter for each way of perturbing: looked up, multiplied, convolved, scaled, added, and derived from."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 5)
        self.temperature = nn.Parameter(torch.tensor(0.3))
        self.decay = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("seen", torch.zeros(3))
        with torch.no_grad():
            self.norm.bias.normal_()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y = self.table(ids) * -torch.exp(self.decay)
        y = y + self.mix(y.transpose(1, 2)).transpose(1, 2)
        y = torch.tanh(self.norm(y))
        return self.out(y) * self.temperature.exp()


def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def some_ids(examples: int, tokens: int = 6) -> dict[str, torch.Tensor]:
    return {"ids": torch.randint(0, 11, (examples, tokens), generator=torch.Generator().manual_seed(1))}


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch["ids"]).logsumexp((1, 2))


def check(model: nn.Module, objective: Any, batch: Any, count: int, each: bool = False) -> None:
    slots = perturb_in_place.slots_of(model)
    directions = Directions(Family("gaussian", 1 if each else 0), 5, 3)
    plan = plans.example_pairs(count) if each else plans.shared_pairs(count)
    self_check(
        slots,
        directions,
        plan,
        lambda chosen: score_batch(chosen, directions, plan, lambda b: objective(model, b), batch),
        lambda: score_batch([], directions, plans.clean(count), lambda b: objective(model, b), batch),
        every=True,
    )


def score(model: nn.Module, objective: Any, batch: Any, count: int, family: str = "dense-shared") -> torch.Tensor:
    kind, make_plan = perturb_in_place.FAMILIES[family]
    slots = perturb_in_place.slots_of(model)
    return score_batch(slots, Directions(kind, 5, 3), make_plan(count), lambda b: objective(model, b), batch)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-1.0, 0.0, 1.0])), min_size=1, max_size=12))
def test_variants_cover_each_example_once(pairs: list[tuple[int, float]]) -> None:
    plan = Plan(torch.tensor([d for d, _ in pairs]), torch.tensor([s for _, s in pairs]), 1)
    assert len(plan) == len(pairs)
    assert sorted(e for variant in plan.variants for e in variant.examples.tolist()) == list(range(len(pairs)))
    for variant in plan.variants:
        examples = variant.examples.tolist()
        assert all(pairs[e] == (variant.direction, variant.sign) for e in examples)
        assert examples == sorted(examples)
        assert (variant.span is None) == (examples != list(range(examples[0], examples[0] + len(examples))))
        assert variant.span in (None, (examples[0], examples[-1] + 1))
    assert list(plan.directions) == sorted({d for d, _ in pairs})
    assert [(plan.variants[i].direction, plan.variants[i].sign) for i in plan.variant_of.tolist()] == pairs
    assert [plan.only([i]).direction.tolist() for i in range(plan.copies)] == plan.direction.view(plan.copies, -1).tolist()
    drawn = [{d for d, s in pairs[i : i + plan.examples] if s} for i in range(0, len(pairs), plan.examples)]
    assert plan.is_separable == all(not a & b for a, b in itertools.combinations(drawn, 2))
    directions, signs = plan.variant_directions
    assert list(zip(directions.tolist(), signs.tolist(), strict=True)) == [(v.direction, v.sign) for v in plan.variants]
    assert [plan.directions[i] for i in plan.variant_places.tolist()] == directions.tolist()
    assert directions[plan.variant_order].tolist() == sorted(directions.tolist())
    blocks = [len(list(group)) for _, group in itertools.groupby(pairs)]
    assert plan.in_blocks == (len(blocks) == len(plan.variants) and len(set(blocks)) == 1)


def test_plans_of_the_methods() -> None:
    shared, each, clean, one = plans.shared_pairs(3), plans.example_pairs(3), plans.clean(3), plans.branch(7, -1)
    assert [(v.direction, v.sign, v.span) for v in shared.variants] == [(0, 1.0, (0, 3)), (0, -1.0, (3, 6))]
    assert each.direction.tolist() == [0, 1, 2] * 2
    assert each.sign.tolist() == [1] * 3 + [-1] * 3
    assert (shared.copies, each.copies, clean.copies, one.copies) == (2, 2, 1, 1)
    assert [(v.direction, v.sign) for v in one.variants] == [(7, -1.0)]
    assert [v.sign for v in clean.variants] == [0]


class Pair(NamedTuple):
    left: torch.Tensor
    right: Any


@dataclasses.dataclass(frozen=True)
class Record:
    ids: torch.Tensor
    tags: list[str]
    width: int
    total: int = dataclasses.field(init=False, default=4)


def test_batches_of_any_structure_expand() -> None:
    ids, rows = torch.arange(6).view(3, 2), torch.arange(6)
    batch = {
        "record": Record(ids, ["a", "b", "c"], 7),
        "pair": Pair(rows, [ids, (rows, None)]),
        "scalar": torch.tensor(2.0),
        "class weights": torch.tensor([1.0, 2.0]),
        "words": ["x", "y", "z"],
        "size": (224, 224),
        "name": "prompt",
        "number": 0.5,
    }
    assert batches.examples({k: v for k, v in batch.items() if k != "class weights"}) == 3
    assert len(list(batches.tensors(batch))) == 6
    twice, held = batches.part(batch, 3, 0, 3, copies=2)
    assert twice["record"] == dataclasses.replace(batch["record"], ids=twice["record"].ids, tags=["a", "b", "c"] * 2)
    assert torch.equal(twice["record"].ids, ids.repeat(2, 1))
    assert isinstance(twice["pair"], Pair)
    assert torch.equal(twice["pair"].left, rows.repeat(2))
    assert torch.equal(twice["pair"].right[0], ids.repeat(2, 1))
    assert twice["pair"].right[1][1] is None
    assert (twice["words"], twice["name"], twice["number"], float(twice["scalar"])) == (["x", "y", "z"] * 2, "prompt", 0.5, 2.0)
    assert twice["size"] == (224, 224)
    assert [len(t) for t in held] == [6, 12, 6, 12]
    second, _ = batches.part(batch, 3, 1, 2)
    assert second["size"] == (224, 224)
    assert torch.equal(second["record"].ids, ids[1:2])
    assert torch.equal(second["pair"].left, rows[2:4])
    assert (second["words"], second["record"].tags, second["name"]) == (["y"], ["b"], "prompt")
    assert torch.equal(batch["record"].ids, torch.arange(6).view(3, 2))


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"a": torch.zeros(4), "b": torch.zeros(6)}, "4 and 6"),
        ({"a": torch.zeros(0, 3)}, "0 examples"),
        ({"a": torch.tensor(1.0), "b": "text"}, "no tensor"),
    ],
)
def test_batches_without_examples_are_refused(batch: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        batches.examples(batch)


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
        score(model, lambda m, b: m.out(m.table(b["ids"]).transpose(0, 1)), some_ids(3, 7), 3)
    score_closure(perturb_in_place.slots_of(model), Directions(Family(), 5, 3), branch(0, 1), lambda: keeps(model, batch).mean())
    assert torch.equal(score(model, keeps, batch, 3, family), first)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("arrangement", ["interleaved", "population"])
def test_any_plan(rank: int, arrangement: str) -> None:
    """Variants that are not contiguous, and blocks of directions beside a clean one."""
    if arrangement == "interleaved":
        plan = Plan(torch.tensor([3, 1, 3, 1, 1, 3]), torch.tensor([1.0, -1, 1, 1, -1, 1]), 2)
    else:
        plan = Plan(torch.tensor([0] * 3 + [1] * 3 + [0] * 3), torch.tensor([1.0] * 6 + [0] * 3), 3)
    model, batch, directions = small(), some_ids(3), Directions(Family("gaussian", rank), 5, 3)
    slots = perturb_in_place.slots_of(model)
    mine = score_batch(slots, directions, plan, lambda b: loss(model, b), batch)
    torch.testing.assert_close(mine, perturb_in_place.losses(model, slots, directions, plan, loss, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_positions_of_a_batch_keep_the_dtype_that_they_were_cast_to(rank: int) -> None:
    """Positions that the model makes itself, a row for each of the batch, cast before they are added."""
    table, seen = nn.Embedding(7, WIDTH).bfloat16(), []

    def losses(x: torch.Tensor) -> torch.Tensor:
        y = x + table(torch.arange(7).expand(len(x), 7)).float()
        seen.append((y.dtype, y.detach()))
        return y.float().square().mean((1, 2))

    slots, x, directions = (
        perturb_in_place.slots_of(table),
        torch.randn(2, 7, WIDTH).bfloat16(),
        Directions(Family("gaussian", rank), 5, 3),
    )
    score_batch(slots, directions, plans.shared_pairs(2), losses, x)
    ((dtype, y),) = seen
    assert dtype == torch.float32
    for half, sign in enumerate((1.0, -1.0)):
        perturbed = directions.perturbed(slots[0], 0, [sign])[0].float()
        torch.testing.assert_close(y[2 * half : 2 * half + 2], x.float() + perturbed, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("copies", [1, 2, 3, 9])
@pytest.mark.parametrize("pair", [False, True])
def test_a_large_population_takes_several_passes_with_the_same_scores(copies: int, pair: bool, monkeypatch) -> None:
    """Copies that share a direction stay together; others go as many at a time as a pass may have."""
    plan = plans.shared_pairs(3) if pair else plans.population(3, 4)
    model, batch, directions = small(), some_ids(3), Directions(Family(), 5, 3)
    slots, seen = perturb_in_place.slots_of(model), []

    def losses(expanded: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(len(expanded["ids"]) // 3)
        return loss(model, expanded)

    whole = score_batch(slots, directions, plan, losses, batch)
    monkeypatch.setattr(scoring, "WORK", copies * batch["ids"].numel() * sum(slot.parameter.numel() for slot in slots))
    parts = score_batch(slots, directions, plan, losses, batch)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    whole_plan, *passes = seen
    assert whole_plan == plan.copies == sum(passes)
    assert len(passes) == (1 if pair else -(-plan.copies // copies))


def test_losses_that_are_not_one_an_example_are_refused() -> None:
    for wrong in (lambda m, b: loss(m, b).mean(), lambda m, b: m(b["ids"]).sum(2)):
        with pytest.raises(ValueError, match="one loss an example"):
            score(small(), wrong, some_ids(3), 3)
    with pytest.raises(ValueError, match="scalar"):
        score_closure([], Directions(Family(), 5, 3), branch(0, 1), lambda: torch.zeros(2))


class Behind(nn.Module):
    """A model that reads its weight where no torch operation sees it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.randn(WIDTH, 5))
        self.bias = nn.Parameter(torch.randn(5))
        self.view = self.weight.detach().numpy()

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "numpy view":
            weight = torch.from_numpy(self.view)
        else:
            memory = (ctypes.c_float * self.weight.numel()).from_address(self.weight.data_ptr())
            weight = torch.frombuffer(memory, dtype=torch.float32).view(WIDTH, 5)
        return x @ weight + self.bias


@pytest.mark.parametrize("how", ["address", "numpy view"])
@pytest.mark.parametrize("each", [False, True])
def test_self_check_finds_reads_behind_torch(how: str, each: bool) -> None:
    torch.manual_seed(0)
    batch = {"x": torch.randn(2, 3, WIDTH)}
    with pytest.raises(SelfCheckFailed, match="weight"):
        check(Behind(how), lambda m, b: m.logits(b["x"]).logsumexp((1, 2)), batch, 2, each)


def test_self_check_finds_a_use_that_is_partly_missed() -> None:
    """A tenth of the weight's effect goes past torch."""
    torch.manual_seed(0)
    model, batch = Behind("address"), {"x": torch.randn(2, 3, WIDTH)}

    def partly(model: Any, batch: Any) -> torch.Tensor:
        seen = batch["x"] @ model.weight + model.bias
        return (0.9 * seen + 0.1 * model.logits(batch["x"])).logsumexp((1, 2))

    with pytest.raises(SelfCheckFailed, match="weight"):
        check(model, partly, batch, 2)


@pytest.mark.parametrize("missed", [False, True])
def test_self_check_tells_a_deep_16_bit_models_rounding_from_a_fault(missed: bool) -> None:
    """Losses that jump by more than the floor where the true effect is small, and are right where it is large."""
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    slot = collect([("weight", parameter)], "bfloat16")[0]
    directions = Directions(Family(), 5, 3)
    plan = plans.shared_pairs(2)
    z = directions.z(slot, 0)

    def plain() -> torch.Tensor:
        moved = parameter.detach().float().sub(1).flatten() @ z.flatten() / z.numel()  # sign * eps, rounded
        return torch.tensor([1.0, 2.0]) + moved

    def score(slots: Any) -> torch.Tensor:
        jump = 0.15 if slots[0].eps * slots[0].scale < 0.2 else 0.0
        signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
        moved = torch.zeros(4) if missed else signs * slots[0].eps * slots[0].scale
        return torch.tensor([1.0, 2.0, 1.0, 2.0]) + moved + jump * signs

    def run() -> int:
        return self_check([slot], directions, plan, score, plain, every=True)

    if missed:
        with pytest.raises(SelfCheckFailed, match="by 0,"):
            run()
    else:
        assert run() == 1


@pytest.mark.parametrize("method", [zg.optim.MeZO, zg.optim.PerExample])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_statistics_are_refused(method: Any, affine: bool) -> None:
    """Batch norm in training mode mixes the branches of a step."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6, affine=affine, momentum=None, track_running_stats=affine)
    model = nn.Sequential(nn.Linear(WIDTH, 6), norm, nn.Tanh(), nn.Linear(6, 3)).train()
    weights = copy.deepcopy(dict(model.named_parameters()))
    batch = {"x": torch.randn(4, WIDTH) * 3, "y": torch.tensor([0, 1, 2, 0])}
    optimiser = method(model)
    with pytest.raises((NotPure, SelfCheckFailed, UnresolvedOperation)):
        optimiser.step(lambda b: F.cross_entropy(model(b["x"]), b["y"], reduction="none"), batch)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


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


@every_family
@pytest.mark.parametrize("tied", [True, False])
def test_nothing_as_large_as_the_largest_weight_is_made(family: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head of a few columns, no operation makes an eighth of the embedding; dense noise comes in chunks."""
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
    slots, directions, plan = perturb_in_place.slots_of(model), Directions(kind, 5, 3), make_plan(2)
    with Largest({p.untyped_storage().data_ptr() for p in model.parameters()}) as largest:
        score_batch(slots, directions, plan, lambda b: scored(model, b), some_ids(2))
    assert 0 < largest.bytes < 8192 * 64 * 4 // 8
