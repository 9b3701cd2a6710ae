"""torch's protocol: what a closure may do, schedulers of every kind, and accelerate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

import zerograd as zg

X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2


class Counting(nn.Module):
    """A module with a buffer that it writes in place, one that it puts anew, and norms."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), norm(8), nn.ReLU(), nn.Linear(8, 2))
        self.register_buffer("seen", torch.zeros(4))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += x.sum(0)
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        y: torch.Tensor = self.layers(x)
        return y


def loss_of(model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(X), Y)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch norm": nn.BatchNorm1d,
    "batch norm without momentum": lambda n: nn.BatchNorm1d(n, momentum=None),
    "instance norm": lambda n: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("given", ["module", "parameters"])
def test_buffers_are_as_they_were_after_every_step(norm: str, given: str) -> None:
    model = Counting(NORMS[norm]).train()
    watched = model if given == "module" else model.layers
    before = {name: buffer.clone() for name, buffer in watched.named_buffers()}
    opt = zg.optim.MeZO(model if given == "module" else model.parameters(), lr=0.01, directions=2)
    for _ in range(2):
        opt.step(lambda: loss_of(model))
    assert before
    for name, buffer in watched.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_the_loss_of_a_batch_norm_in_training_is_that_of_the_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).train()
    expected = float(F.cross_entropy(model(X).detach(), Y))
    assert zg.optim.MeZO(model, lr=0.0, eps=1e-6).step(lambda: loss_of(model)) == pytest.approx(expected, rel=1e-4)


def test_buffers_are_put_back_when_a_closure_fails() -> None:
    model = Counting(nn.BatchNorm1d).train()

    def failing() -> torch.Tensor:
        loss_of(model)
        raise KeyError("data")

    with pytest.raises(KeyError):
        zg.optim.MeZO(model).step(failing)
    assert not model.seen.any()


def calls_backward(model: nn.Module) -> torch.Tensor:
    loss = loss_of(model)
    loss.backward()
    return loss


def calls_grad(model: nn.Module) -> torch.Tensor:
    loss = loss_of(model)
    torch.autograd.grad(loss, list(model.parameters()))
    return loss


MISUSES: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "backward": (calls_backward, "the closure calls backward; a closure computes the loss and returns it as one number"),
    "grad": (calls_grad, "the closure calls for gradients; a closure computes"),
    "None": (lambda model: None, "the closure returned a NoneType; a closure computes"),
    "tuple": (lambda model: (loss_of(model), 1), "the closure returned a tuple; a closure computes"),
    "text": (lambda model: "0.5", "the closure returned a str; a closure computes"),
    "dict": (lambda model: {"loss": loss_of(model)}, "the closure returned a dict; a closure computes"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_each_misuse_of_a_closure_is_one_sentence_and_leaves_the_weights(misuse: str) -> None:
    closure, says = MISUSES[misuse]
    model = nn.Linear(4, 2)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TypeError, match=says) as raised:
        zg.optim.MeZO(model).step(functools.partial(closure, model))
    assert "\n" not in str(raised.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("given", "says"), [((), "given nothing"), ((torch.zeros(2),), "given a Tensor"), ((0.5,), "given a float")]
)
def test_a_step_without_anything_to_evaluate_says_what_it_takes(given: tuple[Any, ...], says: str) -> None:
    with pytest.raises(
        TypeError, match=f"{says} to evaluate; call step\\(closure\\) or step\\(objective, batch\\).*ZerothOrderMixin"
    ):
        zg.optim.MeZO(nn.Linear(4, 2)).step(*given)


def test_an_objective_that_returns_no_tensor_is_one_sentence() -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(TypeError, match=r"objective\(batch\) returned a NoneType; return a tensor of one loss an example"):
        zg.optim.PerExample(model).step(lambda b: None, X)


@pytest.mark.parametrize("kind", [float, lambda loss: loss.detach().numpy(), lambda loss: [float(loss)]])
def test_a_number_that_is_no_tensor_is_a_loss(kind: Callable[[torch.Tensor], Any]) -> None:
    model = nn.Linear(4, 2)
    assert zg.optim.MeZO(model).step(lambda: kind(loss_of(model))) > 0


KINDS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 1),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 2]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=2),
    "LinearLR": schedulers.LinearLR,
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 4),
    "PolynomialLR": schedulers.PolynomialLR,
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4),
    "SequentialLR": lambda o: schedulers.SequentialLR(o, [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)], [2]),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler([schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)]),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, threshold=10.0),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 1e-4, 1e-3, cycle_momentum=False),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 1e-3, 10, cycle_momentum=False),
    "SWALR": lambda o: SWALR(o, 1e-4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_schedulers_of_every_kind_set_the_rate_of_the_next_step(kind: str) -> None:
    model = nn.Linear(4, 2)
    opt = zg.optim.PerExample(model, lr=1e-3)
    made, recorded = KINDS[kind](opt), []
    opt.record = recorded.append
    for _ in range(3):
        loss = opt.step(lambda b: F.cross_entropy(model(b["x"]), b["y"], reduction="none"), {"x": X, "y": Y})
        made.step(loss) if kind == "ReduceLROnPlateau" else made.step()
    rates = [float(step.lrs[0]) for step in recorded]
    assert len(set(rates)) > 1
    assert opt.param_groups[0]["lr"] != pytest.approx(rates[-2])


@pytest.mark.parametrize("kind", [schedulers.OneCycleLR, schedulers.CyclicLR])
def test_a_schedule_of_a_momentum_says_that_there_is_none(kind: Any) -> None:
    with pytest.raises(ValueError, match="momentum"):
        kind(zg.optim.MeZO(nn.Linear(4, 2)), 1e-3, 10)


@pytest.mark.full
def test_accelerate_gives_back_the_optimiser_and_its_scheduler_follows_it() -> None:
    import accelerate

    model = nn.Linear(4, 2)
    opt = zg.optim.PerExample(model, lr=1e-3)
    accelerator = accelerate.Accelerator(cpu=True)
    model, prepared, scheduler = accelerator.prepare(model, opt, schedulers.StepLR(opt, 1))
    for _ in range(2):
        loss = prepared.step(lambda b: F.cross_entropy(model(b["x"]), b["y"], reduction="none"), {"x": X, "y": Y})
        scheduler.step()
        prepared.zero_grad()
        assert 0 < loss < 10
    assert opt.steps == 2
    assert opt.param_groups[0]["lr"] == pytest.approx(1e-5)


@pytest.mark.full
def test_a_plain_trainer_that_is_given_the_optimiser_names_the_mixin(tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    from tests.text.tiny import tiny_model

    model = tiny_model()
    args = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}] * 8
    with pytest.raises(TypeError, match=r"given nothing to evaluate; .*put ZerothOrderMixin before it"):
        Trainer(model, args, train_dataset=rows, optimizers=(zg.optim.MeZO(model), None)).train()
