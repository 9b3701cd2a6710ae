"""Rows of a model that stays packed: the bytes that it has, and the advice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quantised.tiny import llama
from zerograd.planner import make_plan
from zerograd.planner.settings import PlanSettings
from zerograd.quantised.models import weight_bytes
from zerograd.tune.base_model import base_model
from zerograd.tune.settings import TuneSettings

RATES = {"memory": "24GB", "bandwidth": "20GB/s", "flops": "100GFLOPS", "tokens": 16}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("plan") / "tiny.gguf")


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["qk", "upper", "scales", "lora"])
def test_weights_of_a_packed_row_are_those_of_the_model(scheme: str, file: Path) -> None:
    plan = make_plan(PlanSettings(model=str(file), **RATES))
    row = next(row for row in plan.rows if row.is_packed and (row.method, row.scheme) == ("per-example", scheme))
    model = base_model(TuneSettings(model=str(file), packed=True, scheme=scheme)).model
    assert row.parts["weights"] == pytest.approx(weight_bytes(model), rel=0.06)
    assert row.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert row.command.endswith("--packed")


@pytest.mark.full
def test_what_fits_unpacked_is_advised_so(file: Path) -> None:
    roomy = make_plan(PlanSettings(model=str(file), **RATES))
    assert [row.is_packed for row in roomy._by_preference()[:2]] == [False, True]
    assert any(row.is_packed for row in roomy.rows)
    assert "--packed" not in roomy.advice
