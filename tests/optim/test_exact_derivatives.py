"""Methods that take exact derivatives: forward gradients against autograd, first-order baselines against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zerograd as zg
from tests.oracles import perturb_in_place
from tests.oracles.methods import Net, batch, every_precision, exact, same, stored
from zerograd import journal
from zerograd.directions import Draws
from zerograd.evaluate import derivative
from zerograd.evaluate.evaluator import LocalBatch
from zerograd.evaluate.self_check import SelfCheckFailed
from zerograd.queries.plan import shared_pairs
from zerograd.spaces.floats import Rounded


def gradient(net: Net, tokens: torch.Tensor) -> list[torch.Tensor]:
    found = torch.autograd.grad(net.losses(tokens).mean(), list(net.parameters()))
    return [g.detach().double() for g in found]


def by_slot(opt: Any, net: Net, values: list[torch.Tensor]) -> list[torch.Tensor]:
    of = {id(p): v for p, v in zip(net.parameters(), values, strict=True)}
    return [of[id(space.parameter)] for space in opt.spaces]


@pytest.mark.parametrize("tied", [False, True])
def test_a_forward_gradient_is_the_derivative_along_the_direction(tied):
    net = Net(tied=tied)
    opt = zg.optim.ForwardGradient(net, lr=0.1)
    expected = by_slot(opt, net, gradient(net, batch()))
    z = [Draws(opt.method.draw, 0).at(0).z(space, 0).double() * space.scale for space in opt.spaces]
    slope = sum(float((g * d).sum()) for g, d in zip(expected, z, strict=True))
    before, clean = exact(opt), float(net.losses(batch()).mean())
    loss = opt.step(net.losses, batch())
    assert opt.info.difference == pytest.approx(slope, rel=1e-4)
    assert loss == pytest.approx(clean, rel=1e-5)
    for was, now, d in zip(before, exact(opt), z, strict=True):
        torch.testing.assert_close(was - now, (0.1 * slope * d).float(), rtol=1e-3, atol=1e-6)
    assert opt.forwards == 3 + 2  # its own, as three, and those that show that the objective is pure


@every_precision
def test_a_forward_gradient_replays_from_its_record(precision, recwarn):
    net, other = Net(), Net()
    opt, twin = (zg.optim.ForwardGradient(n, lr=0.1, precision=precision) for n in (net, other))
    records: list[Any] = []
    opt.record = records.append
    for seed in range(4):
        opt.step(net.losses, batch(seed=seed))
    journal.replay(twin.memory, records)
    assert same(stored(opt), stored(twin))


@pytest.mark.parametrize("method", [zg.optim.ForwardGradient, zg.optim.SGD, zg.optim.AdamW])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_in_parts_gives_the_step_of_the_whole(method, weighted):
    def trained(micro_batch: int | None) -> tuple[float, list[torch.Tensor]]:
        net = Net()

        def objective(given: dict[str, torch.Tensor]) -> Any:
            losses = net.losses(given["ids"])
            return (losses * given["weight"], given["weight"]) if weighted else losses

        opt = method(net, lr=0.01)
        given = {"ids": batch(), "weight": torch.tensor([1.0, 2.0, 5.0, 0.5])}
        return opt.step(objective, given, micro_batch=micro_batch), exact(opt)

    (loss, weights), (whole_loss, whole) = trained(3), trained(None)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights, whole, strict=True))


DIFFERENTIATES = [zg.optim.ForwardGradient, zg.optim.SGD, zg.optim.AdamW, zg.optim.Hybrid, zg.optim.Addax]


@pytest.mark.parametrize("method", DIFFERENTIATES)
def test_a_tensor_that_holds_no_examples_is_seen_whole_where_their_number_is_given(method):
    """A table of 2 rows beside 4 examples would make them 2."""

    def trained(table: bool, micro_batch: int | None) -> list[torch.Tensor]:
        net = Net()
        opt = method(net, lr=0.01)
        given = {"ids": batch(), "table": torch.ones(2, 3)} if table else batch()
        opt.step(lambda b: net.losses(b["ids"] if table else b), given, micro_batch=micro_batch, examples=4)
        return exact(opt)

    for micro_batch in (None, 3):
        assert all(torch.equal(a, b) for a, b in zip(trained(True, micro_batch), trained(False, micro_batch), strict=True))


@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize(("share", "settings"), [(0.25, 6), (0.5, 2), (0.5, 6)])
def test_addax_sees_settings_whole_whichever_examples_it_takes(share, settings, micro_batch):
    """As many of them as make a multiple of the examples of a part."""
    net, seen = Net(), []

    def objective(given: dict[str, Any]) -> torch.Tensor:
        seen.append((len(given["table"]), len(given["names"])))
        return net.losses(given["ids"])

    given = {"ids": batch(), "table": torch.ones(settings, 3), "names": ["a"] * settings}
    zg.optim.Addax(net, lr=0.01, share=share).step(objective, given, examples=4, micro_batch=micro_batch)
    assert set(seen) == {(settings, settings)}


@pytest.mark.parametrize("method", DIFFERENTIATES)
@pytest.mark.parametrize(("name", "value"), [("micro_batch", 0), ("micro_batch", -2), ("micro_batch", "all"), ("examples", 0)])
def test_counts_that_are_none_are_refused_where_derivatives_are_taken(method, name, value):
    net = Net()
    for act in (method(net).step, method(net).attach):
        with pytest.raises(ValueError, match=f"{name} is '?{value}'?; it must be"):
            act(net.losses, batch(), **{name: value})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (zg.optim.SGD, lambda p: torch.optim.SGD(p, lr=0.02)),
        (lambda p: zg.optim.AdamW(p, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1)),
    ],
    ids=["sgd", "adamw"],
)
def test_first_order_steps_are_those_of_torch(ours, theirs):
    net, other = Net(), Net()
    opt, twin = ours(net), theirs(other.parameters())
    opt.param_groups[0]["lr"] = 0.02
    for seed in range(6):
        opt.step(net.losses, batch(seed=seed))
        twin.zero_grad()
        other.losses(batch(seed=seed)).mean().backward()
        twin.step()
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    assert opt.forwards == 6 * 3
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.full
def test_checkpointing_gives_the_same_gradient_with_fewer_activations():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2)
    )
    model.eval()
    ids, held = torch.randint(64, (3, 16)), []

    def losses(ids: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t.numel()), t)[1], lambda t: t):
            return model(input_ids=ids).logits.float().logsumexp(-1).mean(1)

    found, counts = [], []
    for checkpointing in (False, True):
        opt = zg.optim.AdamW(model, checkpointing=checkpointing)
        held.clear()
        found.append(opt._gradients(LocalBatch.of(opt.spaces, losses, ids))[1])
        counts.append(sum(held))
        assert not any(module.training for module in model.modules())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
    assert counts[1] < counts[0] / 2


def test_the_hybrid_follows_the_gradient_above_and_evaluations_below():
    """Against plain autograd and the perturbed forward's own scores; no gradient is taken of what lies below."""
    net = Net()
    opt = zg.optim.Hybrid(net, lr=0.1, deep=0.4, ratio=0.5, zeta=1e-3)
    deep = [not opt.method.draw.is_active(space, 0, 0) for space in opt.spaces]
    assert [space.name for space, above in zip(opt.spaces, deep, strict=True) if above] == [
        "norm.weight",
        "norm.bias",
        "head.weight",
    ]
    assert {name.split(".", 1)[1] for name in opt.memory.tensors if "." in name} == {"norm.weight", "norm.bias", "head.weight"}
    expected, before = by_slot(opt, net, gradient(net, batch())), exact(opt)
    shallow = [space for space in opt.spaces if opt.method.draw.is_active(space, 0, 0)]
    scores = (
        perturb_in_place.scores(shallow, opt.draws.at(opt.steps), shared_pairs(4), net.losses, batch(), 1e-2).view(2, 4).mean(1)
    )
    c = float(scores[0] - scores[1]) / 2 / 1e-2
    opt.step(net.losses, batch())
    for space, was, now, g, above in zip(opt.spaces, before, exact(opt), expected, deep, strict=True):
        if above:
            g = g * space.scale
            change = 0.1 * 0.5 * space.scale * g / (g.abs() + 1e-3)
        else:
            change = 0.1 * c * space.scale * Draws(opt.method.draw, 0).at(0).z(space, 0).double()
        torch.testing.assert_close((was - now).double(), change, rtol=1e-3, atol=1e-6, msg=space.name)
    assert opt.evaluations == 5
    assert opt.forwards == 5 + 2  # those that show that the objective is pure


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("deep", [0.01, 0.5, 0.9, 0.99])
def test_the_hybrid_has_a_layer_below_and_one_above_whatever_the_share(layers, deep):
    opt = zg.optim.Hybrid(nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers))), deep=deep)
    shallow = [space.name for space in opt.spaces if opt.method.draw.is_active(space, 0, 0)]
    assert "0.weight" in shallow
    assert f"{layers - 1}.weight" not in shallow


def test_the_hybrid_refuses_a_single_layer():
    with pytest.raises(ValueError, match="one block of layers"):
        zg.optim.Hybrid(nn.Sequential(nn.Linear(3, 3)))


@pytest.mark.parametrize("relative", [True, False])
def test_addax_takes_the_gradient_of_the_first_examples_and_evaluates_the_others(relative):
    net = Net()
    opt = zg.optim.Addax(net, lr=0.1, eps=1e-2, alpha=0.25, share=0.5, relative=relative)
    assert all(space.scale == 1 for space in opt.spaces) != relative
    expected, before = by_slot(opt, net, gradient(net, batch()[:2])), exact(opt)
    scores = (
        perturb_in_place.scores(opt.spaces, opt.draws.at(opt.steps), shared_pairs(2), net.losses, batch()[2:], 1e-2)
        .view(2, 2)
        .mean(1)
    )
    c = float(scores[0] - scores[1]) / 2 / 1e-2
    opt.step(net.losses, batch())
    for space, was, now, g in zip(opt.spaces, before, exact(opt), expected, strict=True):
        change = 0.1 * (0.25 * c * space.scale * Draws(opt.method.draw, 0).at(0).z(space, 0).double() + 0.75 * space.scale**2 * g)
        torch.testing.assert_close((was - now).double(), change, rtol=1e-3, atol=1e-6, msg=space.name)


@pytest.mark.parametrize("method", [zg.optim.SGD, zg.optim.AdamW, zg.optim.Hybrid, zg.optim.Addax])
def test_weights_decay_once_in_a_step(method):
    net, other = Net(), Net()
    opt, twin = method(net, lr=0.01, weight_decay=10.0), method(other, lr=0.01)
    before = exact(twin)
    opt.step(net.losses, batch())
    twin.step(other.losses, batch())
    for was, a, b in zip(before, exact(opt), exact(twin), strict=True):
        torch.testing.assert_close(a, b - 0.1 * was, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [zg.optim.Hybrid, zg.optim.Addax])
@pytest.mark.parametrize("act", ["step", "attach"])
def test_what_perturbs_beside_a_gradient_is_checked_first(method, act):
    net = Net()
    view = net.embed.weight.detach()  # which no perturbed forward sees

    def losses(tokens: torch.Tensor) -> torch.Tensor:
        x = F.embedding(tokens[:, 1:], view.clone()).mean(1)
        return F.cross_entropy(net.head(net.norm(x + net.hidden(x))), tokens[:, 0], reduction="none")

    opt = method(net)
    before = stored(opt)
    with pytest.raises(SelfCheckFailed, match=r"embed\.weight"):
        getattr(opt, act)(losses, batch())
    assert same(stored(opt), before)
    method(net, self_check=False).step(losses, batch())


def test_what_a_derivative_cannot_have_is_refused():
    net = Net()
    for method in (zg.optim.ForwardGradient, zg.optim.SGD):
        with pytest.raises(ValueError, match=r"^(ForwardGradient|SGD) needs step\(objective, batch\)"):
            method(net).step(lambda: net.losses(batch()).mean())
    opt = zg.optim.AdamW(net)
    opt.record = print
    with pytest.raises(ValueError, match="no journal can hold a gradient"):
        opt.step(net.losses, batch())
    with pytest.raises(ValueError, match="checkpointing is True"):
        zg.optim.SGD(net, checkpointing=True)


def test_a_gradient_that_is_not_finite_changes_nothing():
    net = Net()
    opt = zg.optim.AdamW(net)
    before = stored(opt)
    opt.step(lambda tokens: net.losses(tokens) * torch.nan, batch())
    assert opt.skipped == 1
    assert same(stored(opt), before)
    assert not any(t.any() for name, t in opt.memory.tensors.items() if name not in ("powers", "path"))
    assert opt.memory.tensors["path"].tolist() == [0, -1]


def test_parameters_are_replaced_wherever_an_operation_takes_them():
    net = Net()
    zeros = {id(p): torch.zeros_like(p) for p in net.parameters()}
    with derivative.Replaced(zeros):
        assert not torch.cat([net.head.weight.flatten(), net.norm.weight]).any()
    assert net.head.weight.any()


def test_a_step_of_both_kinds_stores_a_value_once(monkeypatch):
    """Addax adds an estimate to a gradient: two roundings by the same noise would not be independent."""
    stores: list[str] = []
    whole = Rounded.store

    def counted(self: Rounded, *given: Any) -> None:
        stores.append(self.name)
        whole(self, *given)

    monkeypatch.setattr(Rounded, "store", counted)
    net = Net().to(torch.bfloat16)
    with pytest.warns(UserWarning, match="bfloat16 precision rounds"):
        opt = zg.optim.Addax(net, precision="bfloat16", lr=0.1)
    before = stored(opt)
    opt.step(net.losses, batch(8))
    assert sorted(stores) == sorted(space.name for space in opt.spaces)
    assert not same(stored(opt), before)
