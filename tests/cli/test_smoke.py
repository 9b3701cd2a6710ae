"""One case of what the full tier tests at length: a run, all that is done with a finished one, and a transformer's scores."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.cli.runs import COLUMNS, ROWS, said, tuned
from tests.oracles import perturb_in_place
from tests.text.data.files import write
from zerograd.cli import main
from zerograd.directions import Draws
from zerograd.evaluate.evaluator import LocalBatch


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A finished run, and the folder with its data. What imports cost is a fixture's."""
    place = tmp_path_factory.mktemp("smoke")
    data = write(place / "mine.csv", ROWS)
    tuned(folder, data, place / "run", *COLUMNS, "--scheme", "full")
    return place / "run"


def test_a_run_has_a_result_a_report_and_a_journal(run):
    result = json.loads((run / "result.json").read_text())
    assert (result["task"], result["metric"], result["test_rows"]) == ("mine", "accuracy", 12)
    assert "value_after" in result
    assert "<svg" in (run / "report.html").read_text()
    assert {"journal.zgj", "metrics.jsonl", "predictions.jsonl", "model"} <= {path.name for path in run.iterdir()}


def test_a_run_is_evaluated(run, capsys):
    assert main(["eval", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert again["value"] == pytest.approx(json.loads((run / "result.json").read_text())["value_after"])


def test_a_run_predicts(run, tmp_path):
    new = write(tmp_path / "new.csv", [{"body": "good one"}, {"body": "bad"}])
    assert main(["predict", str(run), "--data", str(new), "--out", str(tmp_path / "answers.jsonl")]) == 0
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert all(answer["prediction"] in ("no", "yes") for answer in answers)


def test_a_run_is_made_again_from_its_journal(run, folder, tmp_path, capsys):
    assert "after 3 steps" in said(capsys, "replay", run, "--base", folder, "--out", tmp_path / "again", "--threads", 1)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()


def test_a_run_goes_on_with_more_steps(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    said(capsys, "tune", "--resume", tmp_path / "run", "--steps", 4)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 4


def test_a_run_is_shipped_as_one_file(run, tmp_path, capsys):
    assert f"{tmp_path / 'tuned.zg'}: " in said(capsys, "ship", run, "--out", tmp_path / "tuned.zg")


def test_a_transformer_is_scored_as_with_weights_perturbed_in_place(run):
    from tests.text.tiny import tiny_model

    model, ids = tiny_model(), torch.randint(2, 100, (3, 5), generator=torch.Generator().manual_seed(0))

    def losses(model, ids):
        return model(input_ids=ids, use_cache=False).logits.float().logsumexp((1, 2))

    for family, plan_of in perturb_in_place.FAMILIES.values():
        spaces, directions, plan = perturb_in_place.spaces_of(model), Draws(family, 5).at(3), plan_of(3)
        ask = LocalBatch.of(spaces, lambda ids: losses(model, ids), ids)
        mine = ask.scores(plan, directions, perturb_in_place.radii_of(spaces)).values.flatten()
        torch.testing.assert_close(
            mine, perturb_in_place.losses(model, spaces, directions, plan, losses, ids), rtol=1e-5, atol=1e-4
        )
