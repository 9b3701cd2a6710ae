"""Seconds of a step: products, and what is moved between them."""

from __future__ import annotations

import pytest
import torch

from tests.planner.described import llama, rows_of
from zerograd.planner import activations, make_plan, method_cost, probe, shapes
from zerograd.planner.settings import PlanSettings
from zerograd.planner.traffic import TrafficCounter

pytestmark = pytest.mark.full


def test_a_measured_product_is_no_larger_than_a_slow_core_makes_in_two_seconds():
    cpu = torch.device("cpu")
    for hidden in (64, 576, 4096, 8192, 65536):
        found = probe.output_columns(hidden, cpu)
        assert 1 <= found <= 4 * hidden
        assert 2 * probe.PRODUCT_ROWS * hidden * found <= probe.MAX_PRODUCT_FLOP
    assert probe.output_columns(576, cpu) == 4 * 576
    assert probe.output_columns(8192, torch.device("cuda")) == 4 * 8192


def test_seconds_follow_the_machines_rates(folder):
    slow, fast = (rows_of(model=str(folder), flops=flops) for flops in ("1GFLOPS", "2GFLOPS"))
    for name in ("inference", "AdamW, lora"):
        assert slow[name].seconds == pytest.approx(2 * fast[name].seconds, rel=0.05)
    assert slow["per-example, upper"].seconds < slow["per-example, full"].seconds
    assert slow["AdamW, lora, checkpointing"].seconds == pytest.approx(4 / 3 * slow["AdamW, lora"].seconds, rel=0.05)
    unknown = make_plan(PlanSettings(model=str(folder), device="cuda:9", memory="8GB"))
    assert {row.seconds for row in unknown.rows} == {None}
    assert any("give --flops and --bandwidth" in line for line in unknown.basis)


@pytest.mark.parametrize(("rows", "layers"), [(1, 6), (4, 6), (4, 3), (4, 2)])
def test_operations_between_products_move_the_bytes_of_a_real_pass(rows, layers):
    model = llama(layers)
    found = shapes._shape_of(model.config, "causal", 4)
    moved = []
    for kept_layers in (layers, 1):
        model.model.layers = model.model.layers[:kept_layers]
        with torch.no_grad(), TrafficCounter() as moving:
            model.get_decoder()(input_ids=torch.ones(rows, 16, dtype=torch.long), use_cache=False)
        moved.append(moving.bytes)
    each = (moved[0] - moved[1]) / (layers - 1)
    assert rows * activations.layer_traffic(found, 16, torch.bfloat16) == pytest.approx(layers * each, rel=0.1)


def test_a_model_of_one_layer_moves_what_its_pass_moves():
    model = llama(1)
    with torch.no_grad(), TrafficCounter() as moving:
        model.get_decoder()(input_ids=torch.ones(1, 16, dtype=torch.long), use_cache=False)
    found = shapes._shape_of(model.config, "causal", 4)
    assert activations.layer_traffic(found, 16, torch.bfloat16) == pytest.approx(moving.bytes, rel=0.1)


def test_products_and_views_move_nothing_and_others_what_they_read_and_write():
    x = torch.ones(8, 16)
    with TrafficCounter() as moving:
        x @ x.T
        x.view(16, 8)[2:]
    assert moving.bytes == 0
    with TrafficCounter() as moving:
        x + x
        x.mul_(2)
    assert moving.bytes == 4 * 8 * 16 * (3 + 2)


def test_a_method_that_evaluates_or_draws_more_takes_longer():
    rows = rows_of(model="1B", batch_size=8, threads=1)
    mezo = rows["mezo, full"].seconds
    optimizer = method_cost.small_optimizer("conservative")
    assert (optimizer.evaluations, optimizer.branches) == (5, 3)
    assert 1.5 * mezo < rows["conservative, full"].seconds < 2.5 * mezo  # 5 forwards for 2, directions drawn 3 times for 2
    wide = {(1, 4096, 4096): 1}
    update, replay = (method_cost.cost_of(method, wide).update_traffic for method in ("adam", "adamezo"))
    assert replay > 2 * update > 0  # ten estimates are made anew
    assert method_cost.cost_of("mezo", wide).update_traffic < 1e-2 * update
    assert rows["adamezo, full"].seconds > rows["adam, full"].seconds > mezo
    assert rows["grzo, full"].seconds > 2 * rows["per-example, full"].seconds  # two products, and U drawn for each
