"""Weights move by finished updates alone: no drift, and nothing written by errors, NaN or interrupts."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import zerograd as zg
from tests.oracles.methods import (
    COMMON,
    Net,
    batch,
    every_query,
    every_query_in_split,
    every_rule_in_split,
    pairs,
    same,
    shared_and_own,
    stored,
)
from zerograd.evaluate.self_check import NotPure, SelfCheckFailed
from zerograd.optim.base import SKIPS_BEFORE_ERROR, NotFinite


class Sabotaged:
    """An objective that misbehaves from call `start` on, for `count` calls: it raises, or spoils one example's loss."""

    def __init__(self, net: Net, what: type[BaseException] | float, start: int = 1, count: float = math.inf) -> None:
        self.net, self.what, self.start, self.count = net, what, start, count
        self.calls = 0

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        losses = self.net.losses(tokens)
        if self.start <= self.calls < self.start + self.count:
            if isinstance(self.what, type):
                raise self.what
            losses[len(losses) // 2] = self.what
        return losses


def calls_of_first_step(method: Any, precision: str) -> int:
    net = Net()
    counted = Sabotaged(net, math.nan, count=0)
    method(net, precision=precision).step(counted, batch())
    return counted.calls


@every_query_in_split
def test_an_error_in_the_objective_at_any_call_leaves_weights_and_the_run_as_they_were(method, precision):
    undisturbed = Net()
    twin = method(undisturbed, lr=0.01, precision=precision)
    twin.step(undisturbed.losses, batch())
    calls = calls_of_first_step(method, precision)
    assert calls >= 3
    # in the purity check, in the self-check, in the evaluation
    for nth, error in ((1, RuntimeError), (3, KeyboardInterrupt), (calls, RuntimeError), (calls, KeyboardInterrupt)):
        net = Net()
        opt = method(net, lr=0.01, precision=precision)
        before = stored(opt)
        with pytest.raises(error):
            opt.step(Sabotaged(net, error, nth), batch())
        assert same(stored(opt), before)
        assert opt.steps == 0
        assert torch.is_grad_enabled()
        opt.step(net.losses, batch())  # and the run goes on as if nothing had happened
        assert same(stored(opt), stored(twin))


@pairs(("mezo", "fzoo", "conservative", "hizoo"), ("mezo",))
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_a_closure_leaves_weights_as_they_were(method, precision, error):
    net = Net()
    opt = method(net, lr=0.01, precision=precision)
    objective = Sabotaged(net, error, start=10**9)
    opt.step(lambda: objective(batch()).mean())
    before = stored(opt)
    for later in (1, 2):  # the branch of +z, the branch of -z
        objective.start = objective.calls + later
        with pytest.raises(error):
            opt.step(lambda: objective(batch()).mean())
        assert same(stored(opt), before)
        assert opt.steps == 1


@every_query_in_split
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_skips_the_step_and_is_counted(method, precision, value):
    net = Net()
    opt = method(net, lr=0.01, weight_decay=0.1, precision=precision)
    opt.step(net.losses, batch())
    before = stored(opt)
    loss = opt.step(Sabotaged(net, value), batch())
    assert not math.isfinite(loss)
    assert same(stored(opt), before)
    assert (opt.steps, opt.skipped, opt.info.skipped) == (2, 1, True)
    opt.step(net.losses, batch())
    assert not same(stored(opt), before)
    assert (opt.steps, opt.skipped, opt.info.skipped) == (3, 1, False)


@shared_and_own
def test_ten_losses_in_a_row_that_are_not_finite_raise_and_a_good_one_starts_the_count_again(method):
    net = Net()
    opt = method(net, lr=0.01)
    assert SKIPS_BEFORE_ERROR == 10
    spoiled = Sabotaged(net, math.nan)
    for _ in range(9):
        opt.step(spoiled, batch())
    opt.step(net.losses, batch())
    before = stored(opt)
    for _ in range(9):
        opt.step(spoiled, batch())
    with pytest.raises(NotFinite, match="10 steps in a row"):
        opt.step(spoiled, batch())
    assert same(stored(opt), before)
    assert opt.skipped == 19


@shared_and_own
def test_a_first_loss_of_nan_does_not_switch_the_checks_of_the_objective_off(method):
    net = Net()
    opt = method(net)
    opt.step(Sabotaged(net, math.nan), batch())
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(NotPure):
        opt.step(lambda tokens: net.losses(tokens) + torch.rand(len(tokens), generator=generator), batch())


@every_query
def test_an_objective_that_escapes_the_perturbed_forward_is_refused_and_nothing_moves(method):
    net = Net()
    opt = method(net, lr=0.01)
    before = stored(opt)
    with ThreadPoolExecutor(1) as pool, pytest.raises(SelfCheckFailed, match="perturbed forward changes the loss by 0,"):
        opt.step(lambda tokens: pool.submit(net.losses, tokens).result(), batch())  # function modes belong to one thread
    assert same(stored(opt), before)
    assert opt.steps == 0


# Ctrl-C.


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler: a process that a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def pressed_in_updates(opt: Any) -> Iterator[list[int]]:
    """Ctrl-C before every tensor of an update; how often."""
    presses: list[int] = []
    update = opt.memory.rule.update

    def pressing(*given: Any) -> None:
        presses.append(1)
        signal.raise_signal(signal.SIGINT)
        update(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opt.memory.rule, "update", pressing)
        yield presses


@every_rule_in_split
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_during_the_update_waits_for_its_end(method, precision):
    undisturbed, net = Net(), Net()
    twin = method(undisturbed, lr=0.01, weight_decay=0.1, precision=precision)
    opt = method(net, lr=0.01, weight_decay=0.1, precision=precision)
    before = stored(opt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), pressed_in_updates(opt) as presses:
        opt.step(net.losses, batch())
    assert len(presses) == len(opt.spaces)
    assert signal.getsignal(signal.SIGINT) is handler
    twin.step(undisturbed.losses, batch())
    assert not same(stored(opt), before)
    assert same(stored(opt), stored(twin))
    assert opt.steps == twin.steps == 1
    for o, n in ((opt, net), (twin, undisturbed)):
        o.step(n.losses, batch(seed=1))
    assert same(stored(opt), stored(twin))


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("own", [True, False], ids=["its own handler", "ignored"])
def test_ctrl_c_during_the_update_is_left_to_a_handler_that_the_program_has_set(own):
    net, heard = Net(), []
    opt = COMMON["mezo"](net, lr=0.01)
    signal.signal(signal.SIGINT, (lambda number, frame: heard.append(stored(opt))) if own else signal.SIG_IGN)
    try:
        with pressed_in_updates(opt) as presses:
            opt.step(net.losses, batch())
    except KeyboardInterrupt:
        pytest.fail("the program's own handling of Ctrl-C was set aside")
    assert len(presses) == len(opt.spaces)
    assert len(heard) == own
    assert all(same(state, stored(opt)) for state in heard)  # it is told when the update has ended


@shared_and_own
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_during_the_evaluation_is_not_held_back(method):
    net = Net()
    opt = method(net, lr=0.01)
    opt.step(net.losses, batch())
    before = stored(opt)

    def objective(tokens: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the interrupt was held back")

    with pytest.raises(KeyboardInterrupt):
        opt.step(objective, batch())
    assert same(stored(opt), before)


def test_a_step_works_outside_the_main_thread_where_no_signal_handler_can_be_set():
    net, other = Net(), Net()
    twin, opt = (COMMON["mezo"](n, lr=0.01) for n in (net, other))
    twin.step(net.losses, batch())
    thread = threading.Thread(target=lambda: opt.step(other.losses, batch()))
    thread.start()
    thread.join()
    assert same(stored(opt), stored(twin))


@pytest.mark.parametrize("method", [zg.optim.MeZO, zg.optim.PerExample])
def test_a_16_bit_model_that_jumps_by_itself_is_not_refused_where_only_vectors_are_trained(method):
    """The sine of thousands: the last bit of a weight moves the loss as much as a tenth of it does."""
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(16, dtype=torch.bfloat16)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)

    def losses(x: torch.Tensor) -> torch.Tensor:
        return (3000 * norm(x)).sin().mean(1).float()

    assert math.isfinite(method(norm, lr=0.1).step(losses, torch.randn(8, 16, dtype=torch.bfloat16)))
